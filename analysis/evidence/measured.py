"""What the chosen students of each arm reached, by path: the numbers that all evidence is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from takd.analysis.evidence.chosen import chosen_students
from takd.analysis.evidence.statistics import Spread, spread_of_images, spread_of_paths
from takd.analysis.tables import arm_order, metric_of, remembered
from takd.search_spaces.metrics import ACCURACY

Right = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Measured:
    """An arm's chosen students.

    `rows` are theirs, a row a student, by unit and seed. A unit is what intervals count: a path that was drawn anew,
    with all its students, or where the study drew students alone, a student.
    """

    arm: str
    rows: pd.DataFrame

    @property
    def units(self) -> int:
        return self.rows.index.get_level_values(0).nunique()

    def by_unit(self, column: str = "score") -> "pd.Series[float]":
        """The mean of its students, by unit; of what the study goes by, the higher the better, in percent."""
        return self.rows[column].astype(float).groupby(level=0).mean()

    def bits(self) -> Right | None:
        """Whether each student chose each image's class, `[students, images]`; None where it isn't known."""
        if "test_right" not in self.rows or self.rows["test_right"].isna().any():
            return None
        images = int(self.rows["test_images"].iloc[0])
        each = [np.unpackbits(np.frombuffer(packed, np.uint8), count=images) for packed in self.rows["test_right"]]
        return np.stack(each) if each else np.zeros((0, images))

    def right(self) -> Right | None:
        """The part of its students that chose each image's class, `[units, images]`; None where it isn't known."""
        bits = self.bits()
        if bits is None:
            return None
        units = self.rows.index.get_level_values(0)
        return np.stack([bits[units == unit].mean(axis=0) for unit in units.unique()])

    def judged(self) -> Right | None:
        """As `right`, where the study goes by the accuracy: no single image has another metric."""
        return self.right() if metric_of(self.rows) == ACCURACY else None

    def by_student(self) -> Right | None:
        """As `bits`, `[units, students of each, images]`; None where units have not as many each, or it isn't known."""
        bits = self.bits() if metric_of(self.rows) == ACCURACY else None
        counts = self.rows.groupby(level=0).size()
        if bits is None or counts.nunique() != 1:
            return None
        return bits.reshape(len(counts), int(counts.iloc[0]), -1).astype(float)

    def beside(self, other: "Measured") -> tuple["Measured", "Measured"]:
        """Both with those students alone that the other has as well: of the same path and seed."""
        common = self.rows.index.intersection(other.rows.index)
        return Measured(self.arm, self.rows.loc[common]), Measured(other.arm, other.rows.loc[common])


def spread_between(arm: Measured, reference: Measured) -> Spread:
    """Of their paired differences, as fractions, positive where the arm is better.

    Over units and images where single images are known, else over units.

    Both have the same students, see `Measured.beside`.
    """
    right, other = arm.judged(), reference.judged()
    if right is not None and other is not None:
        return spread_of_images(right - other)
    return spread_of_paths((arm.by_unit() - reference.by_unit()).to_numpy() / 100)


@remembered
def measured(trials: pd.DataFrame) -> Mapping[str, Measured]:
    """By arm, in the paper's order, of the trials of one study, or of one cell of its factors."""
    rows = by_unit(chosen_students(trials))
    arms = sorted(rows["arm"].unique(), key=lambda arm: arm_order(trials, arm))
    return {arm: Measured(arm, rows[rows["arm"] == arm]) for arm in arms}


def by_unit(students: pd.DataFrame) -> pd.DataFrame:
    """Rows of students as `Measured` has them."""
    if "replicate" not in students:  # a table of an older version
        students = students.assign(replicate=np.nan)
    unit = students["replicate"].where(students["replicate"].notna(), students["path_seed"]).astype(int)
    return students.set_index([unit.rename("unit"), "path_seed"]).sort_index()
