"""Studies beside each other: how their spaces differ, and what the same arm reaches in one and in another."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from takd.analysis.arms import paired_difference
from takd.analysis.evidence.chosen import unit_of
from takd.analysis.evidence.measured import Measured, measured
from takd.analysis.evidence.statistics import ALPHA, CONFIDENCE, holm
from takd.analysis.tables import by_cell, metric_of, split_of

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
UNITS = {"path": "path", "student": "seed"}  # what intervals count, in a word
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


def same_arms(first: pd.DataFrame, second: pd.DataFrame, same_data: bool = True) -> pd.DataFrame:
    """Of every arm that both have: what it reaches in the second less that in the first, with 95 % interval.

    In points of accuracy, or of what both studies go by.

    Paired by path and seed where their paths are of the same models and two or more are the same, and over the test
    images where those are known; else Welch's, which takes the students of one study for independent of those of the
    other, as where the data sets are two. `p` is Holm's, over all arms of all cells that both have. Empty where one is
    measured on test and the other on validation.
    """
    if split_of(first) != split_of(second):
        return pd.DataFrame()
    if metric_of(first) != metric_of(second):  # both have accuracies
        first, second = (each.drop(columns="metric", errors="ignore") for each in (first, second))
    one, other = by_cell(first), by_cell(second)
    rows = [
        {"cell": cell} | row for cell in one if cell in other for row in _of_a_cell(one[cell], other[cell], same_data)
    ]
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"].to_numpy(float))) if len(table) else table


def _of_a_cell(first: pd.DataFrame, second: pd.DataFrame, same_data: bool) -> Iterator[dict[str, Any]]:
    one, other, unit = measured(first), measured(second), UNITS[unit_of(second)]
    for arm in one:
        if arm in other:
            paired = same_data and unit_of(first) == unit_of(second) and _path(one[arm]) == _path(other[arm])
            yield {"arm": arm} | _compared(one[arm], other[arm], paired, unit)


def _path(arm: Measured) -> set[str]:
    return set(arm.rows["path"])


def _compared(one: Measured, other: Measured, paired: bool, unit: str) -> dict[str, Any]:
    found = paired_difference(other, one) if paired else {"units": 0}
    units = found["units"]
    if units > 1:
        beside = [each.rows["score"] for each in one.beside(other)]
        how = f"the same {units} numbers" if beside[0].equals(beside[1]) else f"paired, {units} {unit}s"
        return {name: found[name] for name in ("difference", "low", "high", "p")} | {"units": units, "how": how}
    before, after = one.by_unit(), other.by_unit()
    units, low, high, p = min(len(before), len(after)), float("nan"), float("nan"), float("nan")
    if units > 1:
        from scipy import stats  # a second: for who compares alone

        tested = stats.ttest_ind(after, before, equal_var=False)
        interval = tested.confidence_interval(CONFIDENCE)
        low, high, p = float(interval.low), float(interval.high), float(tested.pvalue)
    mean, how = float(after.mean() - before.mean()), f"Welch, {len(before)} and {len(after)} {unit}s"
    return {"difference": mean, "low": low, "high": high, "p": p, "units": units, "how": how}


def verdict(row: Mapping[Any, Any]) -> str:
    """Whether the difference is more than chance."""
    if row["how"].startswith("the same"):
        return "the same students"
    if row["units"] < 2:
        return f"one {row['how'].split()[-1].removesuffix('s')} says nothing of chance"
    return "different" if row["p"] < ALPHA else "no difference shown"
