"""Rows of `results/trials.parquet`: which students there are, and which of them an arm is judged by. In percent."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pandas as pd
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from takd.search_spaces import InputError, parse_arm

# Said wherever the table of arms is shown: what its columns are, and what its numbers are.
ARMS_NOTE = (
    "In brackets are 95 % intervals over seeds. `over kd` is the difference to kd in percentage points, paired by "
    "seed. `teacher` and `assistants` are their own accuracies, those of the assistants in the path's order. `path "
    "seconds` is the training time of teacher, assistants and student together."
)
SEARCH_NOTE = (
    "These are validation numbers of the search: the split that chose the best configuration of each arm also measured "
    "it, so they flatter every arm, and most the arm with the most configurations tried. They can rank the arms, but "
    "they cannot prove that a difference is real."
)
CONFIRM_NOTE = (
    "These are test numbers of the confirm phase: each arm's best configuration was trained again from seeds that the "
    "search never used, and then the test split was read once. Intervals hold for the configuration that was chosen. A "
    "sampler that learns from what has ended (TPE) may choose another one the next time; a grid chooses another one "
    "only where two are equally good."
)


P = ParamSpec("P")
T = TypeVar("T")

BINS = 15  # of confidence, for the calibration error, as Guo et al. 2017 have it


class Missing(Exception):  # noqa: N818  # it is no error: a study may be young
    """What a figure or a table needs and this study has not, in a sentence."""


_known: dict[tuple[Any, ...], tuple[Any, Any]] | None = None  # while something remembers


@contextmanager
def remembering() -> Iterator[None]:
    """What is made of tables by a function that is `remembered` is made once; nobody may change tables meanwhile."""
    global _known
    before, _known = _known, {} if _known is None else _known
    try:
        yield
    finally:
        _known = before


def remembered(make: Callable[P, T]) -> Callable[P, T]:
    """A function whose result is kept, by what it was given, as long as `remembering` lasts; of a table by itself."""
    signature = inspect.signature(make)

    @wraps(make)
    def made(*given: P.args, **named: P.kwargs) -> T:
        if _known is None:
            return make(*given, **named)
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        values = tuple(bound.arguments.values())
        place = (make, *(id(each) if isinstance(each, pd.DataFrame) else each for each in values))
        if place not in _known:
            _known[place] = values, make(*given, **named)  # the tables too, so that their ids stay their own
        found: Any = _known[place][1]
        return found.copy() if isinstance(found, pd.DataFrame) else found

    return made


def read_trials(file: str) -> pd.DataFrame:
    """One row a stage and path use, from a path or a URI; see `study.results.TRIALS` for the columns."""
    filesystem, path = FileSystem.from_uri(file) if "://" in file else (None, file)
    return pq.read_table(path, filesystem=filesystem).to_pandas()


@remembered
def students(trials: pd.DataFrame) -> pd.DataFrame:
    """The search's finished students, one row a stage, with the validation `accuracy` in percent."""
    rows = trials[(trials["role"] == "student") & (trials["status"] == "done") & (trials["phase"] == "search")]
    return rows.drop_duplicates("stage_key").assign(accuracy=lambda row: 100 * row["val_accuracy"])


@remembered
def confirmed(trials: pd.DataFrame) -> pd.DataFrame:
    """The confirm phase's finished students, with the test `accuracy` in percent; empty before that phase."""
    rows = trials[(trials["role"] == "student") & (trials["status"] == "done") & (trials["phase"] == "confirm")]
    rows = rows[rows["test_accuracy"].notna()].drop_duplicates(["arm", "path_seed"])
    return rows.assign(accuracy=lambda row: 100 * row["test_accuracy"])


def cells_of(trials: pd.DataFrame) -> list[str]:
    """The cells of a study's factors, in the order of its rows: `[""]` of one without factors."""
    return list(trials["cell"].fillna("").unique()) if "cell" in trials and len(trials) else [""]


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


def note(trials: pd.DataFrame) -> str:
    """What the numbers of this study are."""
    final = set(confirmed(trials)["arm"])
    left_out = [arm for arm in students(trials)["arm"].unique() if arm not in final]
    sentences = [CONFIRM_NOTE if final else SEARCH_NOTE]
    if final and left_out:
        sentences.append(f"Not confirmed yet, and so left out: {', '.join(left_out)}.")
    teachers = teachers_chosen(trials)
    if len(set(teachers.values())) > 1:
        listed = ", ".join(f"{arm} from {teacher}" for arm, teacher in teachers.items())
        sentences.append(
            f"Each arm chose a teacher too, and not the same one ({listed}): differences between these arms are partly "
            "those of their teachers."
        )
    return " ".join(sentences)


def teachers_chosen(trials: pd.DataFrame) -> dict[str, str]:
    """By arm, in the paper's order, the model of the teacher in its configuration, where that varies."""
    configurations = chosen_students(trials).groupby("arm")["configuration"].first().map(parameters_of)
    chosen = {str(arm): each["teacher.model"] for arm, each in configurations.items() if "teacher.model" in each}
    return {arm: chosen[arm] for arm in sorted(chosen, key=lambda arm: arm_order(trials, arm))}


def best_configurations(trials: pd.DataFrame) -> dict[str, str]:
    """By arm the configuration whose students have the highest mean accuracy; ties by lower path cost."""
    means = students(trials).groupby(["arm", "configuration"], sort=False)
    scores = means.agg(accuracy=("accuracy", "mean"), seconds=("total_path_seconds", "mean")).reset_index()
    ordered = scores.sort_values(["accuracy", "seconds"], ascending=[False, True])
    return dict(ordered.groupby("arm", sort=False)["configuration"].first().items())  # type: ignore[arg-type]


@remembered
def chosen_students(trials: pd.DataFrame) -> pd.DataFrame:
    """The students that an arm is judged by: the confirmed ones, else those of its best configuration in the search."""
    final = confirmed(trials)
    if len(final):
        return final
    done, best = students(trials), best_configurations(trials)
    return done[done["configuration"] == done["arm"].map(best)]


def accuracy_by_seed(trials: pd.DataFrame) -> dict[str, "pd.Series[float]"]:
    """By arm, in the paper's order, the accuracies of its chosen students by the seed that pairs them."""
    chosen = chosen_students(trials)
    arms = sorted(chosen["arm"].unique(), key=lambda arm: arm_order(trials, arm))
    return {arm: chosen[chosen["arm"] == arm].set_index("path_seed")["accuracy"].sort_index() for arm in arms}


def arm_order(trials: pd.DataFrame, arm: str) -> tuple[int, int, float, str]:
    """labels, what has no teacher, kd, ensemble, then by the number of assistants, from the largest down."""
    assistants = assistants_of(arm)
    if not assistants:
        return ({"labels": 0, "kd": 2, "ensemble": 3}.get(arm, 1), 0, 0.0, arm)
    parameters = trials.loc[trials["model"] == assistants[-1], "parameters"].max()
    return (4, len(assistants), 0.0 if pd.isna(parameters) else -float(parameters), arm)  # of logits none are known


def assistants_of(arm: str) -> tuple[str, ...]:
    """The assistants that an arm's name says; none for an arm that this version doesn't know."""
    try:
        return parse_arm(arm).assistants
    except InputError:
        return ()


def paper_name(arm: str) -> str:
    """What Mirzadeh et al. 2020 call it; a dash for an arm that they have not."""
    try:
        return parse_arm(arm).paper_name
    except InputError:
        return "-"


def hyperparameters_of(configuration: str) -> str:
    """What was chosen, for people: `temperature=4 lambda=0.7021`; a dash where nothing was."""
    return " ".join(f"{name}={_short(value)}" for name, value in parameters_of(configuration).items()) or "-"


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def parameters_of(configuration: str) -> dict[str, str]:
    """`kd temperature=4 lambda=0.7` as {"temperature": "4", "lambda": "0.7"}."""
    return dict(part.split("=", 1) for part in configuration.split(" ")[1:] if "=" in part)
