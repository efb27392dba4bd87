"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their archives, checked by the MD5 sums that torchvision knows.

The archives hold pickles of Python 2. They are read by an unpickler that knows dicts, lists, numbers, byte strings and
arrays of bytes, and that refuses to import anything.
"""

import hashlib
import io
import math
import pickle
import tarfile
import urllib.error
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import Bytes, RawSplit, Source

_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Cifar:
    """One of the two."""

    name: str  # torchvision's
    labels: bytes  # which labels of a batch are the classes'

    @property
    def known(self) -> Any:
        """Torchvision's class, with file names and MD5 sums."""
        from torchvision.datasets import cifar  # seconds that other datasets need not wait

        return getattr(cifar, self.name)

    def open(self, folder: Path) -> Source:
        """From the archive or the files in it; raises InputError where one is missing or has another MD5."""
        known, meta = self.known, self.known.meta
        entries = {}
        for place, name, content in self._contents(folder):
            entries[name] = _unpickle(place, content)
        classes = tuple(name.decode() for name in entries[meta["filename"]][meta["key"].encode()])
        raw = {
            split: self._split([entries[name] for name, _ in batches])
            for split, batches in (("train", known.train_list), ("test", known.test_list))
        }
        return Source(read=lambda: raw, classes=classes)

    def download(self, folder: Path) -> None:
        """The archive into the folder, by torchvision, unless it is there."""
        from torchvision.datasets.utils import download_url

        known = self.known
        try:
            download_url(known.url, str(folder), known.filename, known.tgz_md5)
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise InputError(f"--download: {known.url} can't be had ({error}); use --from DIR with the file") from None

    def _contents(self, folder: Path) -> Iterator[tuple[str, str, bytes]]:
        """What an error calls each file, its name, and what is in it, checked."""
        known = self.known
        sums = dict([*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])])
        places = [
            place for place in (folder / known.base_folder, folder) if any((place / name).is_file() for name in sums)
        ]
        archive = folder / known.filename
        if not places and not archive.is_file():
            found = f"has neither {known.filename} nor {known.base_folder}" if folder.is_dir() else "no such folder"
            raise InputError(f"--from {folder}: {found}; --download fetches it")
        for place, name, content in _of_folder(places[0], sums) if places else _of_archive(archive, known, sums):
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found != sums[name]:
                raise InputError(f"{place}: {len(content)} bytes with MD5 {found}; the published file has {sums[name]}")
            yield place, name, content

    def _split(self, batches: list[dict[bytes, Any]]) -> RawSplit:
        images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, *_SHAPE)
        labels = np.concatenate([np.array(batch[self.labels], np.uint8) for batch in batches])
        return RawSplit(images, labels)


def _of_folder(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str, bytes]]:
    for name in names:
        try:
            yield str(folder / name), name, (folder / name).read_bytes()
        except OSError as error:
            raise InputError(f"{folder / name}: can't be read ({error.strerror})") from None


def _of_archive(path: Path, known: Any, names: Iterable[str]) -> Iterator[tuple[str, str, bytes]]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != known.tgz_md5:
        size = path.stat().st_size
        raise InputError(f"{path}: {size} bytes with MD5 {found}; the published archive has {known.tgz_md5}")
    try:
        with tarfile.open(path) as archive:
            for name in names:
                member = archive.extractfile(f"{known.base_folder}/{name}")
                yield f"{path}: {name}", name, member.read() if member else b""
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise InputError(f"{path}: can't be read as an archive ({error})") from None


def _unpickle(place: str, content: bytes) -> dict[bytes, Any]:
    try:
        entry = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError) as error:
        raise InputError(f"{place}: is no batch of CIFAR's ({error})") from None
    if not isinstance(entry, dict):
        raise InputError(f"{place}: is no batch of CIFAR's (it has a {type(entry).__name__})")
    return {key: value.values() if isinstance(value, _Array) else value for key, value in entry.items()}


class _Unpickler(pickle.Unpickler):
    """Knows NumPy's arrays by the names that Python 2 gave them, and nothing else that must be imported."""

    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch does")
        return found


class _Dtype:
    """Stands for numpy.dtype: bytes alone."""

    def __init__(self, name: bytes, align: int, copy: int) -> None:
        if name != b"u1":
            raise pickle.UnpicklingError(f"it has an array of {name!r}; expected bytes")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Byte order and fields, which bytes have none of."""


class _Array:
    """Stands for numpy.ndarray until it is known to be what it should."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, self.shape, dtype, self.fortran, self.content = state
        if not isinstance(dtype, _Dtype) or len(self.content) != math.prod(self.shape):
            raise pickle.UnpicklingError("it has an array that is not whole")

    def values(self) -> Bytes:
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.fortran else "C")


def _reconstruct(kind: type[_Array], shape: tuple[int, ...], typecode: bytes) -> _Array:
    """Stands for NumPy's function, which makes the empty array that the state is then set of."""
    if kind is not _Array:
        raise pickle.UnpicklingError("it has an array of another class")
    return _Array()


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}

CIFAR10 = Cifar("CIFAR10", b"labels")
CIFAR100 = Cifar("CIFAR100", b"fine_labels")
