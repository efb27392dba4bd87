"""Which student ships: a study's configurations in order, and the student of one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pandas as pd
from torch import Tensor, nn

from takd.analysis.evidence.measured import Measured, by_unit
from takd.analysis.metrics import COLUMNS, Column, column_of
from takd.analysis.tables import confirmed, metric_of, students
from takd.analysis.teachers import teacher_warnings
from takd.search_spaces import InputError, Path, Stage
from takd.search_spaces.metrics import Metric
from takd.study.folder import StudyFolder
from takd.study.search.graph import Description
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.dataset import Dataset, load_for
from takd.trainables.measuring import trained_module
from takd.trainables.models.learned import weights_of

Measure = Callable[[Sequence[str]], Mapping[str, Mapping[str, float]]]  # by keys of stages, on validation


@dataclass(frozen=True)
class Candidate:
    """A configuration's best student, beside the metric of all its students."""

    row: Mapping[Any, Any]  # of results/trials.parquet
    metric: Metric
    phase: str  # whose students these are: confirm, fresh ones of what was chosen, else search
    reached: Measured  # all its students: `chosen_by` has the metric on validation
    tested_as: str  # the column of the metric on test, which reports; empty of the search's
    trials: pd.DataFrame = field(compare=False, repr=False)
    students: pd.DataFrame = field(compare=False, repr=False)  # this one alone, of those

    @property
    def by_seed(self) -> list[float]:
        """On validation: it chooses."""
        return list(map(float, self.reached.rows["chosen_by"]))

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)

    @property
    def on_test(self) -> list[float]:
        """Of the same students."""
        return list(map(float, self.reached.rows[self.tested_as])) if self.tested_as else []

    @property
    def warnings(self) -> list[str]:
        """About those who taught this student."""
        return teacher_warnings(self.trials, self.students)

    @property
    def tested(self) -> dict[str, float]:
        """By stage key what the confirm phase measured on the test split: students, and those who taught them."""
        rows = self.trials[(self.trials["phase"] == "confirm") & self.trials["test_accuracy"].notna()]
        return dict(zip(rows["stage_key"], rows["test_accuracy"].astype(float), strict=True))

    def __str__(self) -> str:
        return f"{self.row['path']} (seed {self.row['seed']}, {self.row['configuration']})"


def find_candidates(
    trials: pd.DataFrame, study: str, metric: Metric, arm: str | None, measure: Measure
) -> list[Candidate]:
    """Best first: configurations by their mean on validation, each with its student of the best
    one.

    Of the confirm phase's fresh students where there are any, else of the search's. Nothing is chosen by the test
    split. `measure` is asked for a metric that the tables have of the test split alone.
    """
    final, kind = confirmed(trials), column_of(metric)
    fresh = len(final) > 0
    rows = final if fresh else students(trials)
    if not len(rows):
        raise InputError(f"study {study}: no student has ended yet")
    known = ", ".join(rows["arm"].unique())
    rows = rows[rows["arm"] == arm] if arm is not None else rows
    if not len(rows):
        raise InputError(f"--arm {arm}: no finished student; arms with one: {known}")
    known_columns = {**COLUMNS, own.name: column_of(own)} if (own := metric_of(trials)).name not in COLUMNS else COLUMNS
    columns = {name: each.confirmed if fresh else each.searched for name, each in known_columns.items()}
    valid = [name for name, column in columns.items() if column in rows and rows[column].notna().any()]
    if metric.name not in valid:
        whose = f"study {study}" if arm is None else f"arm {arm} of study {study}"
        kind_of = "confirmed student" if fresh else "student (none is confirmed)"
        raise InputError(f"--metric {metric.name}: no {kind_of} of {whose} has it; valid: {', '.join(valid)}")
    rows = rows[rows[columns[metric.name]].notna()]
    rows = rows.assign(chosen_by=_on_validation(rows, kind, measure))
    found = []
    for _, group in rows.groupby("configuration"):
        best = group.sort_values(["chosen_by", "seed"], ascending=[not metric.higher, True]).iloc[0]
        reached = Measured(str(best["arm"]), by_unit(group))
        phase, tested_as = ("confirm", kind.confirmed) if fresh else ("search", "")
        itself = group.loc[[best.name]]
        found.append(Candidate(best.to_dict(), metric, phase, reached, tested_as, trials, itself))
    return sorted(found, key=lambda each: -each.mean if metric.higher else each.mean)


def _on_validation(rows: pd.DataFrame, kind: Column, measure: Measure) -> "pd.Series[float]":
    """Of each student: as the tables have it, else measured now."""
    if kind.searched in rows and rows[kind.searched].notna().all():
        return rows[kind.searched]
    measured, name = measure(rows["stage_key"].tolist()), kind.confirmed.removeprefix("test_")
    return rows["stage_key"].map(lambda key: measured[key][name])


@dataclass(frozen=True)
class Student:
    """A candidate's stage and what it left."""

    candidate: Candidate
    folder: StudyFolder
    path: Path
    descriptions: Mapping[str, Description]  # of the path's stages by key, as far as they are there
    dataset: Dataset

    @property
    def stage(self) -> Stage:
        return self.path.student

    @property
    def normalization(self) -> Normalization:
        """What the student's images are normalised by: the one place that says it of an export."""
        return self.dataset.normalization

    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.stage, self.folder.artifacts)

    def module(self) -> nn.Module:
        return trained_module(self.folder.artifacts, self.stage, self.dataset).eval()


def student_of(candidate: Candidate, folder: StudyFolder, stages: Mapping[str, Stage]) -> Student:
    """Raises InputError where its artifact is not whole."""
    key = candidate.row["stage_key"]
    if folder.artifacts.check(key) is None:
        raise InputError(f"artifact {key[:12]} is missing or damaged; `takd run` trains it again")
    path = Path(arm=candidate.row["arm"], student=stages[key])
    found = {stage.key: folder.artifacts.describe(stage.key) for stage in path.stages}
    known = {key: description for key, description in found.items() if description}
    return Student(candidate, folder, path, known, load_for(path.student.dataset, folder.artifacts))
