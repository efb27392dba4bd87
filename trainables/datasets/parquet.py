"""Parquet files with images in them, as the Hugging Face Hub has them: one or more a split."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from takd.search_spaces import InputError
from takd.trainables.datasets.listing import (
    SPLIT_NAMES,
    Listing,
    Part,
    Rows,
    check_learnable,
    check_learned,
    labels_of,
    sorted_labels,
)
from takd.trainables.datasets.sources import SPLITS

_BATCH = 256  # rows that are read at once
_IMAGE, _LABEL = ("image", "img"), ("label", "labels", "fine_label")  # what columns are called without metadata


def parquet_files(place: Path) -> list[Path]:
    """Sorted; in a folder, its folders, or those of `default`, which is the Hub's own name for what has no other."""
    if place.is_file():
        return [place] if place.suffix.lower() == ".parquet" else []
    found = [file for pattern in ("*.parquet", "*/*.parquet", "default/*/*.parquet") for file in place.glob(pattern)]
    files = sorted(file for file in found if not file.name.startswith("."))
    return files if any(map(_is_of_images, files)) else []


def _is_of_images(file: Path) -> bool:
    """A table of labels beside a folder's images, and nothing else of Parquet, is not."""
    try:
        return any(pa.types.is_struct(each.type) or pa.types.is_binary(each.type) for each in pq.read_schema(file))
    except (OSError, pa.ArrowException):
        return True  # that it is damaged is said when it is read


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    classes: tuple[str, ...] | None  # from the metadata


@dataclass
class ParquetImages:
    """The encoded images of some files, read from the first to the last, a few rows at a time."""

    files: Sequence[Path]
    column: str
    rows: Sequence[int]  # of each file
    at: int = 0  # how many are read
    read: Iterator[list[bytes | None]] | None = None
    left: list[bytes | None] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(self.rows)

    def __getitem__(self, rows: slice) -> list[bytes | None]:
        start, stop, _ = rows.indices(len(self))
        if self.read is None or start < self.at:
            first = max(number for number, begin in enumerate([0, *accumulate(self.rows)][:-1]) if begin <= start)
            self.read, self.left, self.at = self._batches(first), [], sum(self.rows[:first])
        found: list[bytes | None] = []
        while self.at < stop:
            self.left = self.left or next(self.read)
            taken, self.left = self.left[: stop - self.at], self.left[stop - self.at :]
            found += taken[max(0, start - self.at) :]
            self.at += len(taken)
        return found

    def _batches(self, first: int) -> Iterator[list[bytes | None]]:
        for file in self.files[first:]:
            try:
                with pq.ParquetFile(file) as parquet:
                    for batch in parquet.iter_batches(_BATCH, columns=[self.column], use_threads=False):
                        column = batch.column(0)
                        yield (column.field("bytes") if pa.types.is_struct(column.type) else column).to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{file}: can't be read as Parquet ({str(error).splitlines()[0]})") from None


def list_parquet(place: Path, files: Sequence[Path]) -> Listing:
    """Splits by the files' names, or their folders'; raises InputError on a file that has no images or no labels."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, place), []).append(file)
    columns = {file: _columns(file) for file in files}
    first = columns[files[0]]
    for file, found in columns.items():
        if (found.image, found.label) != (first.image, first.label) or found.classes != first.classes:
            raise InputError(f"{file}: has other columns or class names than {files[0]}; expected one data set")
    values = {file: _labels(file, columns[file]) for file in files}
    classes = first.classes or tuple(map(str, sorted_labels([each for found in values.values() for each in found])))
    number = {name: each for each, name in enumerate(classes)}
    parts = {}
    for split in (each for each in SPLITS if each in by_split):
        chosen = by_split[split]
        rows = [len(values[file]) for file in chosen]
        found = [each if first.classes else number[str(each)] for file in chosen for each in values[file]]
        places = Rows([(str(file), count) for file, count in zip(chosen, rows, strict=True)])
        images = ParquetImages(chosen, first.image, rows)
        parts[split] = Part(images, labels_of(found, classes), places, _names(chosen, first.image), seekable=False)
        if not found:
            raise InputError(f"{chosen[0]}: has no rows")
    if "train" in parts:
        for part in parts.values():
            check_learnable(classes, part.labels, part.places, parts["train"].labels)
        check_learned(classes, parts["train"].labels, str(by_split["train"][0]))
    return Listing(classes, parts, frozenset(parts))


def _split_of(file: Path, place: Path) -> str:
    """`train-00000-of-00002.parquet`, `train/0000.parquet`, and `train` alone of a file that says nothing."""
    for name in (re.split(r"[-_.]", file.name)[0], *reversed(file.relative_to(place).parts[:-1])):
        if (split := SPLIT_NAMES.get(name.lower())) is not None:
            return split
    return "train"


def _columns(file: Path) -> _Columns:
    """By the metadata that the Hub's `datasets` writes; else by their names."""
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: can't be read as Parquet ({str(error).splitlines()[0]})") from None
    features = _features(file, schema)
    kinds = {name: each.get("_type") for name, each in features.items() if isinstance(each, dict)}
    images = [name for name, kind in kinds.items() if kind == "Image"] or [n for n in _IMAGE if n in schema.names]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"] or [n for n in _LABEL if n in schema.names]
    image = _one(file, "image", images, schema)
    label = _one(file, "label", labels, schema)
    kind = schema.field(image).type
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not has_bytes and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise InputError(f"{file}: column {image!r} is {kind}; expected bytes, or a struct with bytes")
    names = features.get(label, {}).get("names") if kinds.get(label) == "ClassLabel" else None
    return _Columns(image, label, tuple(map(str, names)) if names else None)


def _features(file: Path, schema: pa.Schema) -> dict[str, Any]:
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return {}
    try:
        features = json.loads(content)["info"]["features"]
        return {name: each for name, each in features.items() if name in schema.names}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: its metadata 'huggingface' has no info.features in JSON") from None


def _one(file: Path, what: str, names: list[str], schema: pa.Schema) -> str:
    usual = [name for name in names if name == what] or names
    if len(usual) != 1:
        there = ", ".join(map(repr, schema.names))
        raise InputError(f"{file}: expected one column {what!r}, found {len(usual)}; columns are {there}")
    return usual[0]


def _labels(file: Path, columns: _Columns) -> list[Any]:
    """Numbers of the classes where they have names; else what is in the column."""
    try:
        found = pq.read_table(file, columns=[columns.label])[columns.label].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: can't be read as Parquet ({str(error).splitlines()[0]})") from None
    for row, value in enumerate(found):
        if columns.classes and (not isinstance(value, int) or not 0 <= value < len(columns.classes)):
            valid = f"0 to {len(columns.classes) - 1}"
            raise InputError(
                f"{file} row {row}: {columns.label!r} is {value}; expected {valid}, for a class of the metadata"
            )
        if not isinstance(value, str | int) or value in ("", -1):
            raise InputError(f"{file} row {row}: {columns.label!r} is {value!r}; expected a class's name or number")
    return found


def _names(files: Sequence[Path], column: str) -> tuple[str, ...]:
    """What the rows call their images, where all do and no two the same."""
    found: list[str | None] = []
    for file in files:
        kind = pq.read_schema(file).field(column).type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return ()
        read = pq.read_table(file, columns=[f"{column}.path"])
        found += read.flatten().column(0).to_pylist()
    return tuple(map(str, found)) if None not in found and len(set(found)) == len(found) else ()
