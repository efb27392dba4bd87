"""A table that names images, with their labels, and perhaps with their splits and groups."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from takd.search_spaces import InputError
from takd.trainables.datasets.folders import Prefixed
from takd.trainables.datasets.listing import SPLIT_NAMES, Listing, Part, check_learnable, labels_of, sorted_labels
from takd.trainables.datasets.sources import ALL, SPLITS, Bytes, Indices

IMAGE, LABEL, SPLIT, GROUP = "image", "label", "split", "group"


@dataclass(frozen=True)
class _Table:
    """Columns by name, every value a string, none of them None."""

    path: Path
    columns: dict[str, list[str]]
    rows: Sequence[int]  # what a user calls them

    def place(self, row: int) -> str:
        return f"{self.path} row {self.rows[row]}"


@dataclass(frozen=True)
class _Places:
    """What an error calls an image: its row and its file."""

    table: _Table
    folder: str

    def __len__(self) -> int:
        return len(self.table.rows)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return [self[row] for row in range(*rows.indices(len(self)))]
        return f"{self.table.place(rows)}: {self.folder}/{self.table.columns[IMAGE][rows]}"


def list_table(path: Path, folder: Path) -> Listing:
    """The images that a table names, below a folder; raises InputError on the first row that is wrong."""
    if not path.is_file() and not (folder / path).is_file():
        raise InputError(f"--table {path}: there is no such file, neither here nor in the folder of --from")
    table = _read(path if path.is_file() else folder / path)
    names = table.columns[IMAGE]
    _check_files(table, folder)
    for row, label in enumerate(table.columns[LABEL]):
        if not label:
            raise InputError(f"{table.place(row)}: 'label' is empty; expected the image's class")
    classes = tuple(sorted_labels(table.columns[LABEL]))
    number = {name: each for each, name in enumerate(classes)}
    labels = labels_of([number[label] for label in table.columns[LABEL]], classes)
    given = _splits(table) if SPLIT in table.columns else None
    groups = _groups(table) if GROUP in table.columns else None
    if given is not None:
        if groups is not None:
            _check_groups(table, given, groups)
        if (given == 0).any():
            places = [f"{table.place(row)}: 'label' is {label!r}" for row, label in enumerate(table.columns[LABEL])]
            check_learnable(classes, labels, places, labels[given == 0])
    splits = frozenset({ALL} if given is None else {SPLITS[each] for each in np.unique(given)})
    part = Part(Prefixed(f"{folder}/", names), labels, _Places(table, str(folder)), names, given, groups)
    return Listing(classes, {ALL: part}, splits, (), f"{table.path} has no column 'split', or train alone in it")


def _read(path: Path) -> _Table:
    """Raises InputError on what is no table; the header of a CSV file is row 1, the first row of Parquet is row 0."""
    table = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    for column in (IMAGE, LABEL):
        if column not in table.columns:
            there = ", ".join(map(repr, table.columns)) or "none"
            raise InputError(f"{path}: has no column {column!r}; columns are {there}")
    if not table.rows:
        raise InputError(f"{path}: has no rows")
    return table


def _csv(path: Path) -> _Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            names = list(reader.fieldnames or [])
            found = [(reader.line_num, values) for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't be read as CSV ({error})") from None
    columns = {name: [(values[name] or "").strip() for _, values in found] for name in names}
    return _Table(path, {name.strip(): values for name, values in columns.items()}, [row for row, _ in found])


def _parquet(path: Path) -> _Table:
    try:
        read = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: can't be read as Parquet ({str(error).splitlines()[0]})") from None
    columns = {
        name: ["" if each is None else str(each).strip() for each in read[name].to_pylist()]
        for name in read.column_names
        if name in (IMAGE, LABEL, SPLIT, GROUP)
    }
    return _Table(path, columns, range(len(read)))


def _check_files(table: _Table, folder: Path) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(table.columns[IMAGE]):
        if not name:
            raise InputError(f"{table.place(row)}: 'image' is empty; expected a file below {folder}")
        if not (folder / name).is_file():
            raise InputError(f"{table.place(row)}: {folder / name}: there is no such file")
        if first.setdefault(name, row) != row:
            raise InputError(f"{table.place(row)}: {name} is there twice; first in row {table.rows[first[name]]}")


def _splits(table: _Table) -> Bytes:
    found = np.zeros(len(table.rows), np.uint8)
    for row, name in enumerate(table.columns[SPLIT]):
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            raise InputError(f"{table.place(row)}: 'split' is {name!r}; expected train, validation (or val) or test")
        found[row] = SPLITS.index(split)
    return found


def _groups(table: _Table) -> Indices:
    """Numbers for the groups; an image without one is a group of its own."""
    number: dict[str, int] = {}
    names = [name or f"\0{row}" for row, name in enumerate(table.columns[GROUP])]
    return np.array([number.setdefault(name, len(number)) for name in names], np.int64)


def _check_groups(table: _Table, given: Bytes, groups: Indices) -> None:
    first: dict[int, int] = {}
    for row, group in enumerate(groups.tolist()):
        earlier = first.setdefault(group, row)
        if given[earlier] != given[row]:
            raise InputError(
                f"{table.place(row)}: group {table.columns[GROUP][row]!r} is in {SPLITS[given[row]]}, and in row "
                f"{table.rows[earlier]} in {SPLITS[given[earlier]]}; expected one split for a group"
            )
