"""Studies beside each other: how their spaces differ, and what the same arm reaches in one and in another."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from scipy import stats

from takd.analysis.statistics import ALPHA, CONFIDENCE, holm, mean_interval, paired_p
from takd.analysis.tables import accuracy_by_seed, chosen_students, split_of

FIRST = ("dataset", "student", "teacher", "assistants", "arms", "loss")  # of a space, what says most about numbers
BESIDE = (
    "description",
    "weights",
    "published",
    "resources",
    "lanes",
    "checkpoint_every",
    "max_failures",
)  # says nothing
WARNED = {"dataset": "another data set", "student.model": "another student"}


def differences(spaces: Mapping[str, Mapping[str, Any] | None]) -> pd.DataFrame:
    """A row for each key in which spaces differ, a column a study; data set and student first.

    Spaces are plain data; None of a study whose space can't be read, which has a dash.
    """
    flat = {name: dict(_flat(space)) if space is not None else None for name, space in spaces.items()}
    known = [each for each in flat.values() if each is not None]
    keys = dict.fromkeys(key for each in known for key in each)
    other = [key for key in keys if len({repr(each.get(key)) for each in known}) > 1]
    other.sort(key=lambda key: (_place(key), list(keys).index(key)))
    columns = {name: ["-" if each is None else _text(each.get(key)) for key in other] for name, each in flat.items()}
    return pd.DataFrame({"key": other, **columns})


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and not {"choices", "low"} & set(value):
        for name, each in value.items():
            if place or name not in BESIDE:
                yield from _flat(each, f"{place}.{name}".lstrip("."))
    else:
        yield place, value


def _place(key: str) -> int:
    first = key.partition(".")[0]
    return FIRST.index(first) if first in FIRST else len(FIRST)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_text(each)}" for name, each in value.items() if each is not None) + "}"
    return "-" if value is None else str(value)


def warnings(table: pd.DataFrame) -> list[str]:
    """What makes numbers of two studies no comparison of what was done to one student."""
    return [
        f"warning: {words}: differences between these studies are partly those of {key.split('.')[0]}"
        for key, words in WARNED.items()
        if key in set(table["key"])
    ]


def same_arms(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Of every arm that both have: its accuracy in the second less that in the first, in points, with 95 % interval.

    Paired by seed where their paths are of the same models and two seeds or more are the same; else Welch's, which
    takes the students of one study for independent of those of the other. `p` is Holm's. Empty where one is measured on
    test and the other on validation.
    """
    if split_of(first) != split_of(second):
        return pd.DataFrame()
    one, other = accuracy_by_seed(first), accuracy_by_seed(second)
    rows = [
        _compared(arm, one[arm], other[arm], _path(first, arm) == _path(second, arm)) for arm in one if arm in other
    ]
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"])) if len(table) else table


def _path(trials: pd.DataFrame, arm: str) -> set[str]:
    chosen = chosen_students(trials)
    return set(chosen.loc[chosen["arm"] == arm, "path"])


def _compared(arm: str, one: "pd.Series[float]", other: "pd.Series[float]", same_path: bool) -> dict[str, Any]:
    points = (other - one).dropna()
    if same_path and len(points) > 1:
        estimate = mean_interval(points)
        difference, low, high = float(estimate.mean), float(estimate.low), float(estimate.high)
        how, p = f"paired, {len(points)} seeds", float(paired_p(points)) if points.abs().max() > 0 else float("nan")
        how = how if points.abs().max() > 0 else f"the same {len(points)} numbers"
    else:
        difference, how = float(other.mean() - one.mean()), f"Welch, {len(one)} and {len(other)} seeds"
        low = high = p = float("nan")
        if min(len(one), len(other)) > 1:
            tested = stats.ttest_ind(other, one, equal_var=False)
            interval = tested.confidence_interval(CONFIDENCE)
            low, high, p = float(interval.low), float(interval.high), float(tested.pvalue)
    return {"arm": arm, "difference": difference, "low": low, "high": high, "p": p, "how": how}


def verdict(row: Mapping[str, Any]) -> str:
    """Whether the difference is more than chance."""
    if row["how"].startswith("the same"):
        return "the same students"
    if pd.isna(row["p"]):
        return "one seed says nothing of chance"
    return "different" if row["p"] < ALPHA else "no difference shown"
