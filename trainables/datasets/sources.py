"""What a dataset is read from: labels in memory, and images that are read a slice at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

import numpy as np

from takd.trainables.datasets.reading import Bytes as Bytes
from takd.trainables.datasets.reading import ImageShape as ImageShape
from takd.trainables.datasets.reading import Reading

Labels = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]
Indices = np.ndarray[Any, np.dtype[np.int64]]

SPLITS = ("train", "validation", "test")
ALL = "all"  # the part of a source that is not divided


class Images(Protocol):
    """uint8 [n, channels, height, width]; an array is one, and so are files that are decoded when a slice is asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Bytes: ...


class EncodedImages(Images, Protocol):
    """Those that are decoded from bytes, and can give these too."""

    def with_encoded(self, rows: slice, /) -> tuple[Bytes, list[bytes]]: ...


@dataclass(frozen=True)
class RawSplit:
    """A part of a source, as the source gives it."""

    images: Images
    labels: Labels  # [n], numbered from 0; uint8 for up to 256 classes
    names: Sequence[str] = ()  # [n], what a user calls each image, where it has a name; kept beside the data set
    columns: Mapping[str, Bytes] = field(default_factory=dict)  # [n] each, kept beside the labels
    places: Sequence[str] = ()  # [n], what a line calls each image: those that are there twice are named; else names
    splits: Bytes | None = None  # [n], the number in SPLITS of each, where the source itself divides this part
    rows: Indices | None = None  # [n], each one's place in the part as the user has it, where some are left out
    whole: int | None = None  # images that the user's part has, where some are left out


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from. `digest` is what its content must have, None where any will do; see `write_entry`."""

    # By part: train and test, and validation where none is held out of train; or ALL alone, which has `splits`.
    read: Callable[[], dict[str, RawSplit]]
    classes: tuple[str, ...]
    digest: str | None = None
    validation: int | None = None  # examples held out of train; None: a tenth
    stratified: bool = True  # every class gives its share of them
    reading: Reading | None = None  # of image files; None: they are of the images' size and colours
    keeps_encoded: bool = False  # the entry has the user's encoded images; `read` gives those that have them
    # Asked when all images were read: the source to convert instead, None where this will do; raises InputError.
    judged: Callable[[], Optional["Source"]] = lambda: None
