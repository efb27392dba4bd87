"""Rows of `results/trials.parquet`: which students there are, and which of them an arm is judged by. In percent."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pandas as pd
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from takd.analysis.metrics import Column, column_of
from takd.search_spaces import InputError, is_called, parse_arm
from takd.search_spaces.arms import ANY_SIZE
from takd.search_spaces.methods import DKD, reuses_head
from takd.search_spaces.metrics import ACCURACY, METRICS, Metric

UNTAUGHT = ("labels", "label_smoothing")  # arms whose students learn from labels alone


P = ParamSpec("P")
T = TypeVar("T")


class Missing(Exception):  # noqa: N818  # it is no error: a study may be young
    """What a figure or a table needs and this study has not, in a sentence."""


# While something remembers, of one thread.
_known: ContextVar[dict[tuple[Any, ...], tuple[Any, Any]] | None] = ContextVar("known", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """What is made of tables by a function that is `remembered` is made once; nobody may change tables meanwhile."""
    known = _known.get()
    before = _known.set({} if known is None else known)
    try:
        yield
    finally:
        _known.reset(before)


def remembered(make: Callable[P, T]) -> Callable[P, T]:
    """A function whose result is kept, by what it was given, as long as `remembering` lasts; of a table by itself.

    Where nothing remembers yet it does, until the function returns: what it calls is `remembered`, too.
    """
    signature = inspect.signature(make)

    @wraps(make)
    def made(*given: P.args, **named: P.kwargs) -> T:
        known = _known.get()
        if known is None:
            with remembering():
                return make(*given, **named)
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        values = tuple(bound.arguments.values())
        place = (make, *(id(each) if isinstance(each, pd.DataFrame) else each for each in values))
        if place not in known:
            known[place] = values, make(*given, **named)  # the tables too, so that their ids stay their own
        found: Any = known[place][1]
        kept: Any = found.copy() if isinstance(found, pd.DataFrame) else found
        return kept

    return made


def read_trials(file: str) -> pd.DataFrame:
    """One row a stage and path use, from a path or a URI; see `study.results.TRIALS` for the columns."""
    filesystem, path = FileSystem.from_uri(file) if "://" in file else (None, file)
    return pq.read_table(path, filesystem=filesystem).to_pandas()


@remembered
def by_cell(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each cell by its name, in order; all rows under "" where the study's space has no factors."""
    cells = cells_of(trials)
    return {name: trials[trials["cell"].fillna("") == name] for name in cells} if cells != [""] else {"": trials}


@remembered
def students(trials: pd.DataFrame) -> pd.DataFrame:
    """The search's finished students, one row a stage and cell, with the validation `accuracy` in percent.

    `value` is what the study goes by as people read it, in percent where it is a fraction, and `score` the same, but
    the higher the better: of the loss its negative.
    """
    rows = trials[(trials["role"] == "student") & (trials["status"] == "done") & (trials["phase"] == "search")]
    once = rows.drop_duplicates([*_cell_of(rows), "stage_key"])
    metric = metric_of(trials)
    return _judged(once.assign(accuracy=100 * once["val_accuracy"]), metric, column_of(metric).searched)


def _judged(rows: pd.DataFrame, metric: Metric, column: str | None) -> pd.DataFrame:
    """With `value` and `score` of a metric by its column; NaN where nobody measured it."""
    values = rows[column].astype(float) if column in rows else pd.Series(float("nan"), index=rows.index)
    value = metric.times * values
    return rows.assign(value=value, score=value if metric.higher else -value)


def metric_of(trials: pd.DataFrame) -> Metric:
    """What the study goes by; tables of an older version don't say it, and it is the accuracy.

    Several studies that go by several are shown by their accuracy, which all have.
    """
    if "metric" not in trials or (known := trials["metric"].dropna()).nunique() != 1:
        return ACCURACY
    name = str(known.iloc[0])
    if name in METRICS:
        return METRICS[name]
    row = trials[trials["metric"] == name].iloc[0]
    return Metric(name, str(row["metric_title"]), bool(row["metric_higher"]), bool(row["metric_fraction"]))


def column_of_study(trials: pd.DataFrame) -> Column:
    """Of what the study goes by."""
    return column_of(metric_of(trials))


def _cell_of(rows: pd.DataFrame) -> list[str]:
    """The column that names the cell; tables of an older version have none."""
    return [name for name in rows.columns if name == "cell"]


@remembered
def confirmed(trials: pd.DataFrame) -> pd.DataFrame:
    """The confirm phase's finished students, with the test `accuracy` in percent; empty before that phase.

    `value` and `score` as of `students`, on test.
    """
    rows = trials[(trials["role"] == "student") & (trials["status"] == "done") & (trials["phase"] == "confirm")]
    rows = rows[rows["test_accuracy"].notna()].drop_duplicates([*_cell_of(rows), "arm", "path_seed"])
    metric = metric_of(trials)
    return _judged(rows.assign(accuracy=100 * rows["test_accuracy"]), metric, column_of(metric).confirmed)


def cells_of(trials: pd.DataFrame) -> list[str]:
    """The cells of a study's factors, in the order of its rows: `[""]` of one without factors."""
    return list(map(str, trials["cell"].fillna("").unique())) if "cell" in trials and len(trials) else [""]


@remembered
def blocks_of(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What has a table of its own: each study, and each cell of its factors. By a name, "" where there is one alone."""
    several = trials["study"].nunique() > 1
    if not several and len(cells_of(trials)) < 2:
        return {"": trials}
    cell = trials["cell"].fillna("") if "cell" in trials else pd.Series("", index=trials.index)
    found: dict[str, pd.DataFrame] = {}
    for (study, name), rows in trials.groupby([trials["study"], cell], sort=False):
        found[" ".join(filter(None, [str(study) if several else "", str(name)]))] = rows
    return found


def split_of(trials: pd.DataFrame) -> str:
    """`test` where the study has confirmed students, else `validation`: what every accuracy shown was measured on."""
    return "test" if len(confirmed(trials)) else "validation"


def smallest_effect(trials: pd.DataFrame) -> float | None:
    """The smallest difference that matters, in points, where the space says one."""
    known = trials["smallest_effect"].dropna().tolist() if "smallest_effect" in trials else []
    return float(known[0]) if known else None


def arm_order(trials: pd.DataFrame, arm: str) -> tuple[int, int, float, str]:
    """labels, what has no teacher, kd, kd@..., other methods, ensemble, then by the number of assistants, from the
    largest down."""
    assistants = assistants_of(arm)
    if arm.startswith("kd@"):
        return (2, 1, 0.0, arm)
    if not assistants:
        order = {"labels": (0, 0), "kd": (2, 0), "ensemble": (3, 0)}.get(arm, (2, 2) if is_distilled(arm) else (1, 0))
        return (*order, 0.0, arm)
    parameters = trials.loc[of_assistant(trials, arm), "parameters"].max()
    return (4, len(assistants), 0.0 if pd.isna(parameters) else -float(parameters), arm)  # of logits none are known


def assistants_of(arm: str) -> tuple[str, ...]:
    """The assistants that an arm's name says; none for an arm that this version doesn't know."""
    try:
        return parse_arm(arm, any_method=True).assistants
    except InputError:
        return ()


def is_another_method(arm: str) -> bool:
    """Whether its students are taught by another method than kd, or by one more."""
    try:
        found = parse_arm(arm, any_method=True)
    except InputError:
        return False
    return found.distilled and (found.methods != ("kd",) or found.standardized)


def images_learned_from(students: pd.DataFrame) -> int:
    """By most arms; by those that somebody taught, where these saw other images than the arm `labels`."""
    by_arm = students.groupby("arm", sort=False)["examples"].first()
    taught = by_arm[~by_arm.index.isin(UNTAUGHT)]
    return int((taught if len(taught) else by_arm).mode().iloc[0])


def images_text(students: pd.DataFrame) -> str:
    """`2,000 images`; where some arms saw others, `2,000 images (labels: 500)`."""
    main, by_number = images_learned_from(students), dict[int, list[str]]()
    for arm, number in students.groupby("arm", sort=False)["examples"].first().items():
        by_number.setdefault(int(number), []).append(str(arm))
    others = "; ".join(f"{', '.join(arms)}: {number:,}" for number, arms in by_number.items() if number != main)
    return f"{main:,} images{f' ({others})' if others else ''}"


def by_lambda(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of arms that T and lambda teach: DKD has a weight and a temperature of its own in these columns."""
    return rows.loc[[not _has_own_weight(str(arm)) for arm in rows["arm"]]]


def _has_own_weight(arm: str) -> bool:
    return DKD in _methods_of(arm)


def ends_in_anothers_head(arm: str) -> bool:
    """Whether its students do, by SimKD: they are larger than their model."""
    return any(map(reuses_head, _methods_of(arm)))


def _methods_of(arm: str) -> tuple[str, ...]:
    try:
        return parse_arm(arm, any_method=True).methods
    except InputError:
        return ()


def of_assistant(trials: pd.DataFrame, arm: str) -> "pd.Series[bool]":
    """Which rows are of the last assistant of an arm; where its size was searched, of those that taught this arm."""
    name = assistants_of(arm)[-1]
    if not name.endswith(ANY_SIZE):
        return trials["model"] == name
    rows = (trials["arm"] == arm) & (trials["role"] == "assistant")
    return rows & trials["model"].map(lambda model: is_called(name, str(model))).astype(bool)


def assistant_size(configuration: str) -> int | None:
    """The size that was chosen of the last assistant of a configuration whose size was searched."""
    found = [value for name, value in parameters_of(configuration).items() if name.endswith(f"{ANY_SIZE}.size")]
    return int(found[-1]) if found else None


def sized_arms(trials: pd.DataFrame) -> list[str]:
    """The arms whose last searched assistant has sizes in the search."""
    if "assistant_size" not in trials:
        return []
    rows = trials[trials["assistant_size"].notna()]
    return [arm for arm in rows["arm"].unique() if any(each.endswith(ANY_SIZE) for each in assistants_of(arm))]


def is_distilled(arm: str) -> bool:
    """Whether it learns from anyone; so does an arm that this version doesn't know."""
    try:
        return parse_arm(arm, any_method=True).distilled
    except InputError:
        return True


def paper_name(arm: str) -> str:
    """What Mirzadeh et al. 2020 call it; a dash for an arm that they have not."""
    try:
        return parse_arm(arm, any_method=True).paper_name
    except InputError:
        return "-"


def hyperparameters_of(configuration: str, cell: str = "") -> str:
    """What was chosen, for people, without the cell's factors: `temperature=4 lambda=0.7021`; a dash for nothing."""
    factors = parameters_of(f"- {cell}")
    chosen = {name: value for name, value in parameters_of(configuration).items() if name not in factors}
    return " ".join(f"{name}={_short(value)}" for name, value in chosen.items()) or "-"


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def parameters_of(configuration: str) -> dict[str, str]:
    """`kd temperature=4 lambda=0.7` as {"temperature": "4", "lambda": "0.7"}."""
    return dict(part.split("=", 1) for part in configuration.split(" ")[1:] if "=" in part)
