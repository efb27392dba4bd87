"""A MedMNIST archive: `train_images`, `train_labels` and the same of val and test, as NumPy arrays."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from takd.search_spaces import InputError
from takd.trainables.datasets.listing import Listing, Part, Rows, check_learnable, check_learned, labels_of
from takd.trainables.datasets.sources import Bytes

_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # theirs
# What zipfile and NumPy raise of what is damaged or was not written by NumPy.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError)


@dataclass
class NpzImages:
    """An array of images in an archive, read from its beginning to its end, a slice at a time."""

    path: Path
    name: str
    stream: IO[bytes] | None = None
    at: int = 0
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._open()

    def _open(self) -> None:
        """At the first image. The archive stays open for as long as its stream is."""
        archive = zipfile.ZipFile(self.path)
        self.stream, self.at = archive.open(f"{self.name}.npy"), 0
        version = np.lib.format.read_magic(self.stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, dtype = read(self.stream)
        if dtype != np.uint8 or fortran or len(self.shape) not in (3, 4) or self.shape[3:] not in ((), (3,)):
            shape = "x".join(map(str, self.shape))
            raise InputError(
                f"{self.path}: {self.name} is {dtype} of {shape}; expected uint8 of images x height x width (x 3)"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> list[Bytes]:
        start, stop, _ = rows.indices(self.shape[0])
        if start < self.at:
            self._open()
        assert self.stream is not None
        size = int(np.prod(self.shape[1:]))
        try:
            self.stream.seek((start - self.at) * size, 1)
            content = self.stream.read((stop - start) * size)
        except _DAMAGE as error:
            raise InputError(f"{self.path}: {self.name} is damaged ({error})") from None
        if len(content) != (stop - start) * size:
            raise InputError(f"{self.path}: {self.name} is not whole")
        self.at = stop
        return list(np.frombuffer(content, np.uint8).reshape(-1, *self.shape[1:]))


def list_npz(path: Path) -> Listing:
    """Classes are numbers: the archive has no names. Raises InputError on what MedMNIST's archives are not."""
    try:
        with np.load(path) as archive:
            there = list(archive)
            labels = {split: archive[f"{name}_labels"] for split, name in _SPLITS.items() if f"{name}_labels" in there}
        images = {split: NpzImages(path, f"{_SPLITS[split]}_images") for split in labels}
    except _DAMAGE as error:
        raise InputError(
            f"{path}: can't be read as an archive of MedMNIST ({str(error).strip() or 'damaged'})"
        ) from None
    if "train" not in labels:
        raise InputError(f"{path}: has no train_images and train_labels; it has {', '.join(there) or 'nothing'}")
    for split, found in labels.items():
        labels[split] = _labels(path, f"{_SPLITS[split]}_labels", found, images[split].shape[0])
    classes = tuple(map(str, range(1 + max(int(each.max()) for each in labels.values()))))
    parts = {}
    for split, found in labels.items():
        places = Rows([(f"{path} {_SPLITS[split]}_images", len(found))])
        parts[split] = Part(images[split], labels_of(found, classes), places, seekable=False)
        check_learnable(classes, parts[split].labels, places, labels["train"])
    check_learned(classes, labels["train"], f"{path}: train_labels")
    return Listing(classes, parts, frozenset(parts))


def _labels(path: Path, name: str, found: Any, images: int) -> Any:
    """[n] of the array [n] or [n, 1] that MedMNIST has."""
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        shape = "x".join(map(str, found.shape))
        raise InputError(f"{path}: {name} is {found.dtype} of {shape}; expected one whole number an image")
    if len(found) != images:
        raise InputError(f"{path}: {name} has {len(found)} rows, of {images} images")
    if not len(found):
        raise InputError(f"{path}: {name} has no rows")
    if found.min() < 0:
        raise InputError(f"{path}: {name} row {int(np.argmin(found))}: is {found.min()}; expected 0 or more")
    return found
