"""MHIST (Wei et al. 2021, "A Petri Dish for Histopathology Image Analysis"), as its authors give it on request.

3,152 images of colorectal polyps, hyperplastic polyp (HP) or sessile serrated adenoma (SSA), each labelled by the
majority of seven pathologists.
"""

import csv
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from takd.search_spaces import InputError
from takd.trainables.datasets.image_files import ImageFiles, decode_image, describe, shape_of
from takd.trainables.datasets.listing import labels_of
from takd.trainables.datasets.sources import RawSplit, Source

CLASSES = ("HP", "SSA")  # SSA = 1 is the positive class
SIZES = {"train": 2175, "test": 977}  # as published
IMAGE_SHAPE = (3, 224, 224)
ANNOTATORS = 7
NAME, LABEL, VOTES, PARTITION = (
    "Image Name",
    "Majority Vote Label",
    "Number of Annotators who Selected SSA (Out of 7)",
    "Partition",
)

log = logging.getLogger("takd")


@dataclass(frozen=True)
class _Row:
    place: str  # what an error calls it
    path: Path
    label: str
    votes: int  # for SSA
    partition: str


def open_mhist(folder: Path) -> Source:
    """A folder of `annotations.csv` and `images/*.png`; raises InputError on the first row that is wrong.

    Warns of what a subset has: other counts than published, another size than 224x224.
    """
    rows = _rows(folder)
    splits = {name: [row for row in rows if row.partition == name] for name in SIZES}
    _check_counts(folder, splits)
    first = rows[0]
    shape = shape_of(decode_image(first.path, first.place))
    if shape[0] != IMAGE_SHAPE[0]:
        raise InputError(f"{first.place}: is {describe(shape)}; expected {describe(IMAGE_SHAPE)}")
    if shape != IMAGE_SHAPE:
        log.warning("%s: is %s; MHIST's images are %s", first.place, describe(shape), describe(IMAGE_SHAPE))
    reason = "as MHIST's are" if shape == IMAGE_SHAPE else f"as {first.path} is"

    def split_of(rows: list[_Row]) -> RawSplit:
        places = [row.place for row in rows]
        return RawSplit(
            ImageFiles([row.path for row in rows], places, shape, reason),
            labels_of([CLASSES.index(row.label) for row in rows], CLASSES),
            [row.path.name for row in rows],
            {"annotators_ssa": np.array([row.votes for row in rows], np.uint8)},
            places=places,
        )

    return Source(read=lambda: {name: split_of(rows) for name, rows in splits.items()}, classes=CLASSES)


def _rows(folder: Path) -> list[_Row]:
    """In the file's order; the header is row 1, and empty rows count."""
    table = folder / "annotations.csv"
    if not table.is_file() or not (folder / "images").is_dir():
        raise InputError(f"--from {folder}: expected MHIST's annotations.csv and images/*.png in it")
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = reader.fieldnames or []
            found = [(reader.line_num, values) for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: can't be read as CSV ({error})") from None
    for column in (NAME, LABEL, VOTES, PARTITION):
        if column not in columns:
            raise InputError(
                f"{table}: has no column {column!r}; columns are {', '.join(map(repr, columns)) or 'none'}"
            )
    rows = [_row(folder, f"{table} row {number}", values) for number, values in found]
    first: dict[Path, _Row] = {}
    for row in rows:
        earlier = first.setdefault(row.path, row)
        if earlier is not row:
            raise InputError(f"{row.place}: is there twice; first in {earlier.place.partition(':')[0]}")
    unlike = [row for row in rows if (row.votes > ANNOTATORS / 2) != (row.label == "SSA")]
    if unlike:
        log.warning("%s: label %s, but %d of 7 annotators selected SSA (%d such rows); the label counts",
                    unlike[0].place, unlike[0].label, unlike[0].votes, len(unlike))  # fmt: skip
    return rows


def _row(folder: Path, place: str, values: dict[str, str | None]) -> _Row:
    name, label, votes, partition = ((values[column] or "").strip() for column in (NAME, LABEL, VOTES, PARTITION))
    if not name or Path(name).name != name:
        raise InputError(f"{place}: {NAME!r} is {name!r}; expected the name of a file in images")
    if label not in CLASSES:
        raise InputError(f"{place}: {LABEL!r} is {label!r}; expected {' or '.join(CLASSES)}")
    if votes not in {str(number) for number in range(ANNOTATORS + 1)}:
        raise InputError(f"{place}: {VOTES!r} is {votes!r}; expected 0 to {ANNOTATORS}")
    if partition not in SIZES:
        raise InputError(f"{place}: {PARTITION!r} is {partition!r}; expected {' or '.join(SIZES)}")
    path = folder / "images" / name
    if not path.is_file():
        raise InputError(f"{place}: {path}: there is no such file")
    return _Row(f"{place}: {path}", path, label, int(votes), partition)


def _check_counts(folder: Path, splits: dict[str, list[_Row]]) -> None:
    table = folder / "annotations.csv"
    for name, rows in splits.items():
        if not rows:
            raise InputError(
                f"{table}: no row has {PARTITION!r} {name}; expected some of each of {' and '.join(SIZES)}"
            )
        counts = Counter(row.label for row in rows)
        for label in CLASSES:
            if not counts[label]:
                raise InputError(
                    f"{table}: no row of partition {name} is {label}; expected both of {', '.join(CLASSES)}"
                )
    sizes = {name: len(rows) for name, rows in splits.items()}
    if sizes != SIZES:
        told, published = (", ".join(f"{number} {name}" for name, number in each.items()) for each in (sizes, SIZES))
        log.warning("%s: has %s; MHIST as published has %s", table, told, published)
