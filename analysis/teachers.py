"""Those who teach: what the teacher and the assistants of each arm reach themselves, and whether that is enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from takd.analysis.cost import USE
from takd.analysis.evidence.chosen import chosen_students
from takd.analysis.evidence.statistics import fraction_interval
from takd.analysis.tables import split_of

WARNING = "Warning: "
NOT_KNOWN, NOT_MEASURED = "not known", "not measured"  # at all; on the test split
NOT_JUDGED = (
    "Whether those who teach are better than chance was not judged: these results, of an older takd, don't say how "
    "large the largest class is. `takd run` again adds it."
)


@dataclass(frozen=True)
class Teaching:
    """The stages in one place of an arm's paths: its teachers, or those of one assistant.

    One stage where all seeds share it, one a seed where the path was trained again, the members of an ensemble.
    Accuracies are means in percent, NaN where one of the stages has none.
    """

    role: str
    model: str
    keys: frozenset[str]
    validation: float
    test: float

    @property
    def name(self) -> str:
        """`the teacher mlp-1200`, `the teachers mlp-1200 (mean of 3)`"""
        several = len(self.keys) > 1
        return f"the {self.role}{'s' * several} {self.model}{f' (mean of {len(self.keys)})' * several}"

    def accuracy(self, split: str) -> str:
        return accuracy_text(self.validation, self.test, len(self.keys), split)


def accuracy_text(validation: float, test: float, stages: int, split: str) -> str:
    """As a cell has it: `98.40`, `98.40 (mean of 5)`, or why there is none."""
    value = test if split == "test" else validation
    if np.isnan(value):
        return NOT_MEASURED if split == "test" and not np.isnan(validation) else NOT_KNOWN
    return f"{value:.2f}" + (f" (mean of {stages})" if stages > 1 else "")


def teaching(trials: pd.DataFrame, students: pd.DataFrame | None = None) -> dict[str, list[Teaching]]:
    """By arm those who taught these students, in the path's order; an arm without a teacher has none.

    Of no students told: those that arms are judged by.
    """
    students = chosen_students(trials) if students is None else students
    uses = students[USE].assign(trial=lambda rows: rows["trial"].fillna(-1))
    rows = trials.assign(trial=trials["trial"].fillna(-1)).merge(uses, on=USE)
    rows = rows[rows["role"] != "student"].drop_duplicates(["arm", "stage_key"])
    place = rows["model"].where(rows["role"] == "assistant", "")  # all teachers of an ensemble are in one
    found: dict[str, list[Teaching]] = {}
    for (arm, _), stages in rows.groupby(["arm", place], sort=False):
        found.setdefault(str(arm), []).append(_one(stages))
    return found


def _one(stages: pd.DataFrame) -> Teaching:
    return Teaching(
        role=str(stages["role"].iloc[0]),
        model=" + ".join(stages["model"].unique()),
        keys=frozenset(stages["stage_key"]),
        validation=_percent(stages["val_accuracy"]),
        test=_percent(stages["test_accuracy"]),
    )


def _percent(fractions: "pd.Series[float]") -> float:
    return 100 * float(fractions.astype(float).mean(skipna=False))


def teaching_columns(who: Sequence[Teaching]) -> dict[str, float | str]:
    """Of an arm, for the table of arms: numbers in percent of its teachers, text of its assistants, in order."""
    teachers = [each for each in who if each.role == "teacher"]
    assistants = [each for each in who if each.role == "assistant"]
    return {
        "teacher": teachers[0].model if teachers else "",
        "teachers": len(teachers[0].keys) if teachers else 0,
        "teacher_val_accuracy": teachers[0].validation if teachers else np.nan,
        "teacher_test_accuracy": teachers[0].test if teachers else np.nan,
        "assistants_val_accuracy": " > ".join(each.accuracy("validation") for each in assistants),
        "assistants_test_accuracy": " > ".join(each.accuracy("test") for each in assistants),
    }


# The judgement


def teacher_warnings(trials: pd.DataFrame, students: pd.DataFrame | None = None) -> list[str]:
    """A sentence for each teacher or assistant of these students that is at chance, or below the arm `labels`.

    Students are those of `teaching`. Chance is the share of the largest class of the validation images; who is not
    above it by the 95 % interval over these images is at chance. One whose accuracy is not known is not judged.
    """
    by_arm = teaching(trials, students)
    who: dict[frozenset[str], Teaching] = {}
    arms: dict[frozenset[str], list[str]] = {}
    for name, each_of in by_arm.items():
        for each in each_of:
            who.setdefault(each.keys, each)
            arms.setdefault(each.keys, []).append(name)
    judged = {keys: [said for judge in _JUDGES if (said := judge(trials, each))] for keys, each in who.items()}
    return [
        f"{WARNING}{who[keys].name}: {'; '.join(said)}. {'They' if len(keys) > 1 else 'It'} taught "
        f"{', '.join(arms[keys])}."
        for keys, said in judged.items()
        if said
    ]


def _at_chance(trials: pd.DataFrame, each: Teaching) -> str | None:
    chance, images = chance_of(trials)
    if np.isnan(each.validation) or chance is None or images is None:
        return None
    low, high = (100 * end for end in fraction_interval(round(each.validation * images / 100), images))
    if low > chance:
        return None
    where = "below chance" if high < chance else "at chance"
    return (
        f"{where}, {each.validation:.2f} % of the {images:,} validation images (95 % CI {low:.2f} to {high:.2f}), "
        f"where the largest class alone is {chance:.2f} %"
    )


def _below_labels(trials: pd.DataFrame, each: Teaching) -> str | None:
    """On the test split where both were measured there, else on validation."""
    chosen = chosen_students(trials)
    labels = chosen[chosen["arm"] == "labels"]
    on_test = split_of(trials) == "test" and not np.isnan(each.test)
    own = each.test if on_test else each.validation
    if not len(labels) or np.isnan(own):
        return None
    reached = 100 * float(labels["test_accuracy" if on_test else "val_accuracy"].mean())
    if own >= reached:
        return None
    split = "test" if on_test else "validation"
    return f"below the arm labels, {own:.2f} % on {split} against {reached:.2f} %"


_JUDGES: Sequence[Callable[[pd.DataFrame, Teaching], str | None]] = (_at_chance, _below_labels)


def chance_of(trials: pd.DataFrame) -> tuple[float | None, int | None]:
    """The largest class's share of the validation images, in percent, and their number; None in older results."""
    known = trials.dropna(subset=["val_majority", "val_images"]) if "val_majority" in trials else trials[:0]
    if not len(known):
        return None, None
    return 100 * float(known["val_majority"].iloc[0]), int(known["val_images"].iloc[0])


def not_judged(trials: pd.DataFrame) -> list[str]:
    """That nobody was compared with chance, where there is somebody and an older version made the results."""
    lacking = chance_of(trials) == (None, None)
    known = any(not np.isnan(each.validation) for who in teaching(trials).values() for each in who)
    return [NOT_JUDGED] if lacking and known else []
