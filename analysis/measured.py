"""What the chosen students of each arm reached, by path: the numbers that all evidence is made of."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from takd.analysis.tables import arm_order, assistants_of, chosen_students, is_distilled

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

    def by_unit(self, column: str = "accuracy") -> "pd.Series[float]":
        """The mean of its students, by unit; of the accuracy in percent."""
        return self.rows[column].astype(float).groupby(level=0).mean()

    def right(self) -> Right | None:
        """The part of its students that chose each image's class, `[units, images]`; None where it isn't known."""
        if "test_right" not in self.rows or self.rows["test_right"].isna().any():
            return None
        images = int(self.rows["test_images"].iloc[0])
        bits = np.stack([np.unpackbits(np.frombuffer(each, np.uint8), count=images) for each in self.rows["test_right"]])
        units = self.rows.index.get_level_values(0)
        return np.stack([bits[units == unit].mean(axis=0) for unit in units.unique()])

    def beside(self, other: "Measured") -> tuple["Measured", "Measured"]:
        """Both with those students alone that the other has as well: of the same path and seed."""
        common = self.rows.index.intersection(other.rows.index)
        return Measured(self.arm, self.rows.loc[common]), Measured(other.arm, other.rows.loc[common])


def measured(trials: pd.DataFrame) -> Mapping[str, Measured]:
    """By arm, in the paper's order, of the trials of one study, or of one cell of its factors."""
    chosen = chosen_students(trials)
    if "replicate" not in chosen:  # a table of an older version
        chosen = chosen.assign(replicate=np.nan)
    unit = chosen["replicate"].where(chosen["replicate"].notna(), chosen["path_seed"]).astype(int)
    rows = chosen.set_index([unit.rename("unit"), "path_seed"]).sort_index()
    arms = sorted(rows["arm"].unique(), key=lambda arm: arm_order(trials, arm))
    return {arm: Measured(arm, rows[rows["arm"] == arm]) for arm in arms}


def unit_of(trials: pd.DataFrame) -> Literal["path", "student"]:
    """What intervals count: whole paths where the confirm phase drew them anew, else students of one path."""
    chosen = chosen_students(trials)
    return "path" if "replicate" in chosen and chosen["replicate"].notna().any() else "student"


def covers_text(covers: Collection[str], unit: str) -> str:
    """What an interval holds for: `paths, images`"""
    return ", ".join([f"{unit}s", *(["images"] if "images" in covers else [])])


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
    return f"With {' and '.join(one)}" if one else ""


def smallest_effect(trials: pd.DataFrame) -> float | None:
    """The smallest difference that matters, in points, where the space says one."""
    known = trials["smallest_effect"].dropna() if "smallest_effect" in trials else ()
    return float(known.iloc[0]) if len(known) else None
