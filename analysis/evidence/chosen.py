"""Which configuration of each arm is chosen, and so which students it is judged by; and what is said of the choice."""

from collections.abc import Mapping, Sequence
from math import fsum, sqrt
from statistics import stdev
from typing import Literal

import pandas as pd

from takd.analysis.evidence.surface import weights
from takd.analysis.tables import (
    arm_order,
    assistants_of,
    by_cell,
    confirmed,
    is_distilled,
    metric_of,
    parameters_of,
    remembered,
    sized_arms,
    split_of,
    students,
)
from takd.search_spaces import some
from takd.search_spaces.metrics import ACCURACY, Metric

SEARCH_NOTE = (
    "These are validation numbers of the search: the split that chose the best configuration of each arm also measured "
    "it, so they flatter every arm, and most the arm with the most configurations tried. They can rank the arms, but "
    "they cannot prove that a difference is real."
)
CONFIRM_NOTE = (
    "These are test numbers of the confirm phase: each arm's chosen configuration was trained again from seeds that "
    "the search never used, and then the test split was read once. Of configurations within one standard error of the "
    "best the one with the lowest temperature was chosen, then with the lowest lambda."
)

_ROUNDING = 1e-9  # points
_FIRST = ("temperature", "lambda")


def best_configurations(trials: pd.DataFrame) -> dict[str, str]:
    """By arm the configuration that `choose` takes by the students of the search; of the trials of one cell."""
    done = students(trials)
    return {
        str(arm): choose({str(name): each["score"].tolist() for name, each in rows.groupby("configuration")})
        for arm, rows in done.groupby("arm", sort=False)
    }


def chosen_configurations(trials: pd.DataFrame) -> dict[str, str]:
    """By arm what was confirmed, else the best; of the trials of one cell."""
    final = confirmed(trials).groupby("arm")["configuration"].first().to_dict()
    return {arm: str(final.get(arm, best)) for arm, best in best_configurations(trials).items()}


def choose(scores: Mapping[str, Sequence[float]]) -> str:
    """The configuration of an arm that is chosen, from the scores of its students, which are the better the higher.

    Where the size of an assistant was searched, it is the one with the best mean as `weights` estimate it.
    """
    weighed = weights(scores)
    if weighed is None:
        return choose_setting(scores)
    means = weighed @ [fsum(values) / len(values) for values in scores.values()]
    best = [name for name, mean in zip(scores, means, strict=True) if mean >= means.max() - _ROUNDING]
    return min(best, key=order_of_setting)


def choose_setting(accuracies: Mapping[str, Sequence[float]]) -> str:
    """The setting that is chosen, by its name `kd temperature=4 lambda=0.7`, from the accuracies of its seeds, or from
    another score that is the better the higher.

    All whose mean is within one standard error of the best one's mean are tied; with one seed only equal means are. Of
    those the lowest temperature wins, then the lowest lambda, then the lowest of the other parameters in their order.
    So neither rounding nor the clock decides. Raises ValueError where there is no setting.
    """
    means = {name: fsum(values) / len(values) for name, values in accuracies.items()}
    best = max(means.values())
    # Of several that are best the one whose mean is known worst: which of them is not decided by their order.
    error = max(_standard_error(accuracies[name]) for name, mean in means.items() if mean >= best - _ROUNDING)
    tied = [name for name, mean in means.items() if mean >= best - error - _ROUNDING]
    return min(tied, key=order_of_setting)


def _standard_error(values: Sequence[float]) -> float:
    """Of their mean; 0 of one value."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def order_of_setting(name: str) -> list[tuple[float, str]]:
    """What settings of one arm are sorted by: the one that is preferred among equals first."""
    parameters = parameters_of(name)
    first = [parameters.pop(each, "") for each in _FIRST]
    return [*map(_order_of_value, [*first, *parameters.values()]), (0.0, name)]


def _order_of_value(text: str) -> tuple[float, str]:
    """Numbers by their size, before words; what an arm has not is the same for all its settings."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


@remembered
def chosen_students(trials: pd.DataFrame) -> pd.DataFrame:
    """The students that an arm is judged by: the confirmed ones, else those of its best configuration in the search."""
    final = confirmed(trials)
    if len(final):
        return final
    done = students(trials)
    best = [name for rows in by_cell(trials).values() for name in best_configurations(rows).values()]
    return done[done["configuration"].isin(best)]  # whose name has the arm and the cell in it


def teachers_chosen(trials: pd.DataFrame) -> dict[str, str]:
    """By arm, in the paper's order, the model of the teacher in its configuration, where the search chose it."""
    if any("teacher.model" in parameters_of(f"cell {cell}") for cell in by_cell(trials)):
        return {}  # it is a factor, which is compared and not chosen
    configurations = chosen_students(trials).groupby("arm")["configuration"].first().map(parameters_of)
    chosen = {str(arm): each["teacher.model"] for arm, each in configurations.items() if "teacher.model" in each}
    return {arm: chosen[arm] for arm in sorted(chosen, key=lambda arm: arm_order(trials, arm))}


def unit_of(trials: pd.DataFrame) -> Literal["path", "student"]:
    """What intervals count: whole paths where the confirm phase drew them anew, else students of one path."""
    chosen = chosen_students(trials)
    return "path" if "replicate" in chosen and chosen["replicate"].notna().any() else "student"


def scope(trials: pd.DataFrame, *arms: str) -> str:
    """What these arms had only one of, in words that begin a sentence: `With this teacher`; nothing where that is none.

    Whose units are students had one of everything else; whose are paths, of what was given.
    """
    rows = chosen_students(trials)
    anew = set() if unit_of(trials) == "student" else set(str(rows["redrawn"].iloc[0]).split(", "))
    distilled = [arm for arm in arms if is_distilled(arm)]
    one = ["this teacher"] if distilled and "teacher" not in anew else []
    assistants = {model for arm in arms for model in assistants_of(arm)}
    if assistants and "assistants" not in anew:
        one.append("these assistants" if len(assistants) > 1 else "this assistant")
    if not one and not anew:
        one.append("this order of examples")
    return f"with {' and '.join(one)}" if one else ""


def note(trials: pd.DataFrame) -> str:
    """What the numbers of this study are, and what their intervals hold for."""
    final = set(confirmed(trials)["arm"])
    left_out = [arm for arm in students(trials)["arm"].unique() if arm not in final]
    sentences = [CONFIRM_NOTE if final else SEARCH_NOTE]
    if (metric := metric_of(trials)) != ACCURACY:
        sentences.append(
            f"The search went by the validation {metric.title}: it chose each arm's configuration, differences between "
            f"arms are {metric.unit}{'' if metric.higher else ', positive where there is less of it'}, and accuracies "
            "are those of what was chosen."
        )
    if sized := sized_arms(trials):
        sentences.append(
            f"Of {some(sized)}, whose assistant's size was searched, the configuration was chosen by a surface through "
            "all that the search tried, and not by its own students alone."
        )
    if len(chosen_students(trials)):
        sentences.append(intervals_note(trials))
    if final and left_out:
        sentences.append(f"Not confirmed yet, and so left out: {', '.join(left_out)}.")
    teachers = teachers_chosen(trials)
    if len(set(teachers.values())) > 1:
        listed = ", ".join(f"{arm} from {teacher}" for arm, teacher in teachers.items())
        sentences.append(
            f"Each arm chose a teacher too, and not the same one ({listed}): differences between these arms are partly "
            "those of their teachers. As `factors: {teacher.model: [...]}` teachers are compared and not chosen."
        )
    return " ".join(sentences)


def arms_note(trials: pd.DataFrame) -> str:
    """What the columns of the table of arms are: said wherever it is shown."""
    return (
        f"In brackets are 95 % intervals. `over kd` is the difference to kd {_in_unit(metric_of(trials))}, paired by "
        f"{'path' if unit_of(trials) == 'path' else 'seed'}. `teacher` and `assistants` are their own accuracies, "
        "those of the assistants in the path's order. `path seconds` is the training time of teacher, assistants and "
        "student together."
    )


def _in_unit(metric: Metric) -> str:
    if metric == ACCURACY:
        return "in percentage points"
    return f"in {metric.unit}" if metric.fraction else f"{metric.unit}{'' if metric.higher else ', as what it is less'}"


def intervals_note(trials: pd.DataFrame) -> str:
    """What intervals hold for, and what they don't."""
    rows = chosen_students(trials)
    by_accuracy = metric_of(trials) == ACCURACY
    images = by_accuracy and "test_right" in rows and bool(rows["test_right"].notna().all())
    also = " and other test images" if images else ""
    if unit_of(trials) == "path":
        numbers = rows["replicate"].dropna().nunique()
        own = str(rows["redrawn"].iloc[0]).replace(", ", ", its own ")
        said = f"Each of {numbers} paths had its own {own}. Intervals hold for other such paths{also}."
    else:
        said = (
            "All students of an arm had one teacher, one set of assistants and of examples, and one order of examples. "
            f"Intervals hold for other seeds{also}, and for this path alone; `confirm: {{paths: 5}}` draws whole paths "
            "anew."
        )
    if split_of(trials) == "test" and not by_accuracy:
        said += f" Those of the {metric_of(trials).title} take the test images as fixed: no single image has one."
    elif split_of(trials) == "test" and not images:
        said += (
            " They take the test images as fixed: an older takd kept no predictions of single images. `takd run` again "
            "adds them, and trains nothing."
        )
    return f"{said} They are of the configurations that the search chose, which may be others the next time."
