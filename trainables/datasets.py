"""Datasets as tensors in memory: checked once, converted once to Arrow in a cache that a node's processes share."""

import filecmp
import gzip
import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from search_spaces import InputError
from trainables.storage import cache_folder, sha256, write_synced

SPLIT_SEED = 0
SHIPPED = Path(__file__).parent / "data"
_CACHE_FORMAT = 1  # bumped when the files in the cache change

# What reading a damaged entry of the cache raises: ValueError stands for Arrow's and JSON's errors too.
_DAMAGE = (OSError, ValueError, KeyError, TypeError)

log = logging.getLogger("takd")

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, channels, height, width], labels int64 [n]: mapped, shared by processes, not to be written."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class RawSplit:
    """As a source gives it: images uint8 [n, channels, height, width], labels uint8 [n]."""

    images: Bytes
    labels: Bytes


class Normalization(NamedTuple):
    """By channel, of train's pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from. `digest` is what its content must have; see `_digest`."""

    read: Callable[[], dict[str, RawSplit]]  # "train" and "test"
    digest: str
    classes: tuple[str, ...]
    validation: int  # examples held out of train
    license: str = "not stated; ask where the data come from."


def _read_shipped_mnist() -> dict[str, RawSplit]:
    return {name: _read_parquet(SHIPPED / "mnist" / f"{name}.parquet", (1, 28, 28)) for name in ("train", "test")}


DATASETS: dict[str, Source] = {
    "mnist": Source(
        read=_read_shipped_mnist,
        digest="06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
        classes=tuple("0123456789"),
        validation=10_000,
        license="MNIST by Yann LeCun and Corinna Cortes, CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/).",
    ),
}


@dataclass(frozen=True)
class Dataset:
    """A name, a digest, images and labels. The test split is opened by `test()` alone."""

    folder: Path
    name: str
    digest: str  # SHA-256 over the content of train and test as the source has it
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # channels, height, width
    split_seed: int
    sizes: dict[str, int]  # by split
    file_digests: dict[str, str]  # SHA-256 of each split's Arrow file
    normalization: Normalization

    @cached_property
    def train(self) -> Split:
        return self._read("train")

    @cached_property
    def validation(self) -> Split:
        """Held out of the source's training images by the split seed."""
        return self._read("validation")

    def test(self) -> Split:
        """Read by whoever reports a chosen model, never by what chooses one.

        Raises InputError where its file is missing or damaged: it is not converted again unasked, so that a search
        that ran with the file away is known not to have read it.
        """
        try:
            return self._read("test")
        except _DAMAGE as error:
            raise InputError(
                f"cache {self.folder}: the test split can't be read ({error}); delete the folder, it is made again"
            ) from None

    def _read(self, split: str) -> Split:
        return _read_split(self.folder / f"{split}.arrow", self.file_digests[split], self.image_shape)


@lru_cache
def load(name: str) -> Dataset:
    """The dataset from the cache, converted first where needed; raises InputError on one that isn't known."""
    source = _source(name)
    folder = _folder(name, source)
    if os.path.isdir(folder):
        try:
            return _open(name, source)
        except _DAMAGE as error:
            log.warning("cached dataset %s is damaged (%s); it is converted again", folder, error)
    return _convert(name, source, source.read())


def import_mnist(folder: Path) -> Dataset:
    """MNIST from torchvision's folder, checked file by file, in the cache where `load` finds it."""
    raw = read_mnist_folder(folder)
    load.cache_clear()
    return _convert("mnist", DATASETS["mnist"], raw)


def transfer_set(labels: Tensor, examples: int, seed: int) -> Tensor:
    """Sorted indices of a seeded subset whose classes differ by one example at most.

    A smaller set of the same seed is part of a larger one. Raises InputError where a class has too few.
    """
    classes = int(labels.max()) + 1
    available = labels.bincount().tolist()
    # The first classes get the examples that don't divide: one that has k suffices up to k * classes + its number.
    most, scarce = min((number * classes + label, label) for label, number in enumerate(available))
    if not 1 <= examples <= most:
        raise InputError(
            f"recipe.examples is {examples}; 1 to {most} can be balanced over {classes} classes "
            f"(class {scarce} has {available[scarce]})"
        )
    order = torch.from_numpy(_generator(seed).permutation(len(labels)))
    share, rest = divmod(examples, classes)
    chosen = [order[labels[order] == label][: share + (label < rest)] for label in range(classes)]
    return torch.cat(chosen).sort().values


def _generator(seed: int) -> np.random.Generator:
    """Named in full: NumPy's default generator may change, and the splits with it."""
    return np.random.Generator(np.random.PCG64(seed))


def _source(name: str) -> Source:
    if name not in DATASETS:
        raise InputError(f"dataset {name!r} does not exist; valid: {', '.join(DATASETS)}")
    return DATASETS[name]


def _folder(name: str, source: Source) -> Path:
    return cache_folder() / "datasets" / f"{name}-{source.digest[:16]}-split{SPLIT_SEED}-v{_CACHE_FORMAT}"


def _open(name: str, source: Source) -> Dataset:
    """The converted dataset; raises one of _DAMAGE where train or validation is not what was written."""
    folder = _folder(name, source)
    about = json.loads((folder / "dataset.json").read_bytes())
    dataset = Dataset(
        folder=folder,
        name=name,
        digest=source.digest,
        classes=source.classes,
        image_shape=tuple(about["image_shape"]),
        split_seed=SPLIT_SEED,
        sizes=about["sizes"],
        file_digests=about["file_digests"],
        normalization=Normalization(*map(tuple, about["normalization"])),
    )
    _ = dataset.train, dataset.validation  # opening them checks their content
    return dataset


def _convert(name: str, source: Source, raw: dict[str, RawSplit]) -> Dataset:
    """Checks the content and writes the cache entry. Two processes at once write the same bytes."""
    found = _digest(raw)
    if found != source.digest:
        raise InputError(
            f"dataset {name}: the files in {SHIPPED / name} have content digest {found[:16]}, "
            f"expected {source.digest[:16]}; install takd again"
        )
    folder = _folder(name, source)
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        _write_entry(temporary, source, raw)
        _put_in_place(temporary, folder)
    except OSError as error:
        raise InputError(f"cache {cache_folder()}: can't be written ({error.strerror}); set TAKD_CACHE") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        return _open(name, source)
    except _DAMAGE as error:
        raise InputError(f"cache {folder}: can't be read back ({error}); set TAKD_CACHE to another folder") from None


def _write_entry(folder: Path, source: Source, raw: dict[str, RawSplit]) -> None:
    train, validation = _hold_out(raw["train"], source.validation)
    splits = {"train": train, "validation": validation, "test": raw["test"]}
    contents = {split: _arrow_file(content) for split, content in splits.items()}
    for split, file in contents.items():
        write_synced(folder / f"{split}.arrow", file)
    about = {
        "image_shape": train.images.shape[1:],
        "sizes": {split: len(content.labels) for split, content in splits.items()},
        "normalization": _normalization(train.images),
        "file_digests": {split: sha256(file) for split, file in contents.items()},
    }
    write_synced(folder / "dataset.json", json.dumps(about, indent=1).encode())


def _put_in_place(temporary: Path, folder: Path) -> None:
    """All at once where nothing is; else what is missing or damaged, file by file.

    Nothing is taken away and no good file replaced: other processes may have them mapped, or be doing the same.
    """
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        _, damaged, missing = filecmp.cmpfiles(temporary, folder, os.listdir(temporary), shallow=False)
        for file in damaged + missing:
            (temporary / file).replace(folder / file)


def _normalization(images: Bytes) -> Normalization:
    pixels = images.astype(np.float64).swapaxes(0, 1).reshape(images.shape[1], -1) / 255
    return Normalization(tuple(pixels.mean(axis=1).tolist()), tuple(pixels.std(axis=1).tolist()))


def _hold_out(train: RawSplit, validation: int) -> tuple[RawSplit, RawSplit]:
    """Train and validation by the split seed, each in the source's order."""
    order = _generator(SPLIT_SEED).permutation(len(train.labels))
    held, kept = np.sort(order[:validation]), np.sort(order[validation:])
    return RawSplit(train.images[kept], train.labels[kept]), RawSplit(train.images[held], train.labels[held])


def _digest(raw: dict[str, RawSplit]) -> str:
    """SHA-256 over image bytes and label bytes, train before test."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        digest.update(np.ascontiguousarray(raw[split].images).data)
        digest.update(np.ascontiguousarray(raw[split].labels).data)
    return digest.hexdigest()


def _arrow_file(split: RawSplit) -> pa.Buffer:
    pixels = split.images[0].size
    images = pa.FixedSizeListArray.from_arrays(pa.array(split.images.reshape(-1)), pixels)
    table = pa.table({"image": images, "label": pa.array(split.labels, pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=len(table))
    return sink.getvalue()


def _read_split(path: Path, digest: str, image_shape: tuple[int, int, int]) -> Split:
    """Raises one of _DAMAGE where the file is not what was written. The SHA-256 costs 22 ms on 40 MB."""
    # A private, copy-on-write mapping: torch takes it as writable, and its pages are shared until written, which
    # nothing does.
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hashlib.sha256(mapped).hexdigest() != digest:
        raise ValueError(f"{path.name} is not what was written")
    [batch] = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all().to_batches()
    images = np.frombuffer(mapped, np.uint8, *_extent(batch.column("image").values, mapped))
    labels = np.frombuffer(mapped, np.int64, *_extent(batch.column("label"), mapped))
    return Split(torch.from_numpy(images).view(-1, *image_shape), torch.from_numpy(labels))


def _extent(column: pa.Array, mapped: mmap.mmap) -> tuple[int, int]:
    """How many values a column has, and where in the mapping they begin."""
    start = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    return len(column), column.buffers()[1].address - start


def _read_parquet(path: Path, image_shape: tuple[int, int, int]) -> RawSplit:
    try:
        table = pq.read_table(path).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: can't be read as Parquet ({str(error).splitlines()[0]})") from None
    expected = {"image": pa.binary(math.prod(image_shape)), "label": pa.uint8()}
    found = dict(zip(table.schema.names, table.schema.types, strict=True))
    if found != expected:
        raise InputError(f"{path}: columns are {_columns(found)}; expected {_columns(expected)}")
    images = np.frombuffer(table.column("image").chunk(0).buffers()[1], np.uint8)
    return RawSplit(images.reshape(-1, *image_shape), table.column("label").to_numpy())


def _columns(types: dict[str, pa.DataType]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in types.items())


# Size in bytes and MD5 of the uncompressed files, as published.
_MNIST_FILES = {
    "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
}


def read_mnist_folder(folder: Path) -> dict[str, RawSplit]:
    """The four files in DIR, DIR/raw or DIR/MNIST/raw, gzipped or not; raises InputError on the first that is wrong."""
    places = (folder / "MNIST" / "raw", folder / "raw", folder)
    raw = next((place for place in places if any(_idx_file(place, name) for name in _MNIST_FILES)), None)
    if raw is None:
        found = "none of MNIST's files here, in raw or in MNIST/raw" if folder.is_dir() else "no such folder"
        raise InputError(f"--from {folder}: {found}; expected {', '.join(_MNIST_FILES)}, each as it is or as .gz")
    return {
        split: RawSplit(_read_idx(raw, f"{prefix}-images-idx3-ubyte"), _read_idx(raw, f"{prefix}-labels-idx1-ubyte"))
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> Bytes:
    """One of MNIST's four files: images [n, 1, 28, 28] or labels [n]."""
    path = _idx_file(folder, name)
    if path is None:
        raise InputError(f"{folder / name}: missing; expected it, or {name}.gz, beside the other MNIST files")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: not a whole gzip file ({error})") from None
    size, md5 = _MNIST_FILES[name]
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(f"{path}: {len(content)} bytes with MD5 {found}; MNIST's has {size} with MD5 {md5}")
    header = 4 + 4 * content[3]
    values = np.frombuffer(content, np.uint8, offset=header)
    return values.reshape(-1, 1, 28, 28) if "images" in name else values
