"""What a dataset is read from: labels in memory, and images that are read a slice at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]
ImageShape = tuple[int, int, int]  # channels, height, width
Indices = np.ndarray[Any, np.dtype[np.int64]]


class Images(Protocol):
    """uint8 [n, channels, height, width]; an array is one, and so are files that are decoded when a slice is asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Bytes: ...


@dataclass(frozen=True)
class RawSplit:
    """As a source gives it."""

    images: Images
    labels: Labels  # [n], numbered from 0; uint8 for up to 256 classes
    names: Sequence[str] = ()  # [n], of the files, where there are some: images that are there twice are named
    columns: Mapping[str, Bytes] = field(default_factory=dict)  # [n] each, kept beside the labels


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from. `digest` is what its content must have, None where any will do; see `write_entry`."""

    read: Callable[[], dict[str, RawSplit]]  # "train" and "test"
    classes: tuple[str, ...]
    digest: str | None = None
    validation: int | None = None  # examples held out of train; None: a tenth
    stratified: bool = True  # every class gives its share of them
