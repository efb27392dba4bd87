"""What a user's images are found to be, before any is decoded."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import ALL, SPLITS, Bytes, Indices, Labels

SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One part of a source: a split of the user's, or all."""

    images: Any  # a slice of it is a sequence of Encoded
    labels: Labels
    places: Any  # [n] str: what an error calls each
    names: Any = ()  # [n] str, where they have some
    given: Bytes | None = None  # [n], of the part ALL: the number in SPLITS that the user gives each
    groups: Indices | None = None  # [n]: what must stay together
    rows: Indices | None = None
    whole: int | None = None
    seekable: bool = True  # whether any image is as near as the first


@dataclass(frozen=True)
class Listing:
    """A source's parts and classes, in the order that they are read in."""

    classes: tuple[str, ...]
    parts: dict[str, Part]
    splits: frozenset[str]  # that the user gives; ALL where none
    notes: tuple[str, ...] = ()
    undivided: str = ""  # what to say of a source that has to be divided

    def count(self, split: str) -> int:
        """How many images the user gives a split."""
        if split in self.parts:
            return len(self.parts[split].labels)
        given = self.parts[ALL].given if ALL in self.parts else None
        return 0 if given is None else int((given == SPLITS.index(split)).sum())

    def renamed(self, old: str, new: str) -> "Listing":
        """With a split under another name."""
        parts = {new if name == old else name: part for name, part in self.parts.items()}
        if (part := parts.get(ALL)) is not None and part.given is not None:
            given = np.where(part.given == SPLITS.index(old), SPLITS.index(new), part.given).astype(np.uint8)
            parts[ALL] = replace(part, given=given)
        return replace(self, parts=parts, splits=self.splits - {old} | {new})


@dataclass(frozen=True)
class Chosen:
    """Some of a sequence, in its order; a slice reads no more than the stretch that it lies in."""

    of: Any
    rows: Indices

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: int | slice) -> Any:
        if isinstance(rows, int | np.integer):
            return self.of[int(self.rows[rows])]
        chosen = self.rows[rows]
        if not len(chosen):
            return []
        stretch = self.of[int(chosen[0]) : int(chosen[-1]) + 1]
        return [stretch[each] for each in chosen - chosen[0]]


class Rows:
    """What an error calls the rows of files: `train.parquet row 7`; nothing is kept for each."""

    def __init__(self, files: Sequence[tuple[str, int]]) -> None:
        self.files = [name for name, _ in files]
        self.starts = [0, *accumulate(number for _, number in files)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return [self[row] for row in range(*rows.indices(len(self)))]
        file = bisect_right(self.starts, rows) - 1
        return f"{self.files[file]} row {rows - self.starts[file]}"


def sorted_labels(labels: Sequence[Any]) -> list[Any]:
    """Each once: numbers by size, and all else by name."""
    different = set(labels)
    numbers = all(str(each).isdigit() for each in different)
    return sorted(different, key=lambda each: int(each)) if numbers else sorted(different, key=str)


def labels_of(labels: Any, classes: Sequence[str]) -> Labels:
    """In the smallest type that has room for all classes."""
    return np.array(labels, np.min_scalar_type(max(len(classes) - 1, 0)))


def check_learnable(classes: Sequence[str], labels: Labels, places: Any, train: Any) -> None:
    """Raises InputError on the first image of a class that is not among `train`, the training images' labels."""
    unknown = set(np.unique(labels).tolist()) - set(np.unique(train).tolist())
    for label in sorted(unknown):
        first = int(np.flatnonzero(labels == label)[0])
        known = ", ".join(classes[each] for each in np.unique(train)[:20])
        raise InputError(f"{places[first]}: class {classes[label]} is in no training image; those are of {known}")


def check_learned(classes: Sequence[str], train: Any, place: str) -> None:
    """Raises InputError on a class that no training image is of; `train` are those images' labels."""
    for label in sorted(set(range(len(classes))) - set(np.unique(train).tolist())):
        raise InputError(f"{place}: no training image is of class {classes[label]}, which is one of {len(classes)}")
