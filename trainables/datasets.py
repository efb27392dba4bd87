"""Datasets as tensors in memory: checked once, converted once to Arrow in a cache that a node's processes share."""

import gzip
import hashlib
import json
import logging
import mmap
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from search_spaces import InputError

SPLIT_SEED = 0
SHIPPED = Path(__file__).parent / "data"
_CACHE_FORMAT = 1  # bumped when the files in the cache change

log = logging.getLogger("takd")

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, channels, height, width], memory-mapped and read-only; labels int64 [n]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class RawSplit:
    """As a source gives it: images uint8 [n, channels, height, width], labels uint8 [n]."""

    images: Bytes
    labels: Bytes


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from. `digest` is what its content must have; see `_digest`."""

    read: Callable[[], dict[str, RawSplit]]  # "train" and "test"
    digest: str
    classes: tuple[str, ...]
    validation: int  # examples held out of train


def _read_shipped_mnist() -> dict[str, RawSplit]:
    return {name: _read_parquet(SHIPPED / "mnist" / f"{name}.parquet", (1, 28, 28)) for name in ("train", "test")}


DATASETS: dict[str, Source] = {
    "mnist": Source(
        read=_read_shipped_mnist,
        digest="06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
        classes=tuple("0123456789"),
        validation=10_000,
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
    normalization: tuple[list[float], list[float]]  # mean and standard deviation by channel of train's pixels in [0, 1]

    @cached_property
    def train(self) -> Split:
        return self._open("train")

    @cached_property
    def validation(self) -> Split:
        """Held out of the source's training images by the split seed."""
        return self._open("validation")

    def test(self) -> Split:
        """Read by whoever reports a chosen model, never by what chooses one."""
        return self._open("test")

    def _open(self, split: str) -> Split:
        return _open_split(self.folder / f"{split}.arrow", self.file_digests[split], self.image_shape)


@lru_cache
def load(name: str) -> Dataset:
    """The dataset from the cache, converted first where needed; raises InputError on one that isn't known."""
    source = _source(name)
    return _open(name, source) or _convert(name, source, source.read())


def import_mnist(folder: Path) -> Dataset:
    """MNIST from torchvision's folder (DIR, DIR/raw or DIR/MNIST/raw; files gzipped or not), checked file by file."""
    raw = next((each for each in (folder / "MNIST" / "raw", folder / "raw", folder) if each.is_dir()), None)
    if raw is None:
        raise InputError(f"--from {folder}: no such folder; expected torchvision's MNIST folder")
    found = {
        split: RawSplit(_read_idx(raw, f"{prefix}-images-idx3-ubyte"), _read_idx(raw, f"{prefix}-labels-idx1-ubyte"))
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
    load.cache_clear()
    return _convert("mnist", DATASETS["mnist"], found)


def transfer_set(labels: Tensor, examples: int, seed: int) -> Tensor:
    """Sorted indices of a seeded subset whose classes differ by one example at most.

    A smaller set of the same seed is part of a larger one. Raises InputError where a class has too few.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    classes = int(labels.max()) + 1
    by_class = [order[labels[order] == number] for number in range(classes)]
    share, rest = divmod(examples, classes)
    for number, members in enumerate(by_class):
        if len(members) < share + (number < rest):
            most = classes * min(len(each) for each in by_class)
            raise InputError(f"recipe.examples is {examples}; at most {most} can be balanced over {classes} classes")
    chosen = [members[: share + (number < rest)] for number, members in enumerate(by_class)]
    return torch.cat(chosen).sort().values


def cache_folder() -> Path:
    """TAKD_CACHE, or the user's cache directory."""
    return Path(os.environ.get("TAKD_CACHE") or platformdirs.user_cache_path("takd")) / "datasets"


def _source(name: str) -> Source:
    if name not in DATASETS:
        raise InputError(f"dataset {name!r} does not exist; valid: {', '.join(DATASETS)}")
    return DATASETS[name]


def _folder(name: str, source: Source) -> Path:
    return cache_folder() / f"{name}-{source.digest[:16]}-split{SPLIT_SEED}-v{_CACHE_FORMAT}"


def _open(name: str, source: Source) -> Dataset | None:
    """The converted dataset; None where there is none, or what is there is damaged (then it is taken away)."""
    folder = _folder(name, source)
    if not folder.exists():
        return None
    try:
        about = json.loads((folder / "dataset.json").read_text())
        dataset = Dataset(
            folder=folder,
            name=name,
            digest=source.digest,
            classes=source.classes,
            image_shape=tuple(about["image_shape"]),
            split_seed=SPLIT_SEED,
            sizes=about["sizes"],
            file_digests=about["file_digests"],
            normalization=tuple(about["normalization"]),
        )
        _ = dataset.train, dataset.validation  # opening them checks their content
    except (OSError, ValueError, KeyError) as error:
        log.warning("cached dataset %s is damaged (%s); it is converted again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return dataset


def _convert(name: str, source: Source, raw: dict[str, RawSplit]) -> Dataset:
    """Checks the content and writes the cache entry, whole or not at all; of two at once the first wins."""
    found = _digest(raw)
    if found != source.digest:
        raise InputError(f"dataset {name}: content has digest {found[:16]}, expected {source.digest[:16]}")
    train, validation = _hold_out(raw["train"], source.validation)
    folder = _folder(name, source)
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        splits = {"train": train, "validation": validation, "test": raw["test"]}
        digests = {split: _write_split(temporary / f"{split}.arrow", content) for split, content in splits.items()}
        pixels = train.images.astype(np.float64).swapaxes(0, 1).reshape(train.images.shape[1], -1) / 255
        about = {
            "image_shape": train.images.shape[1:],
            "sizes": {split: len(content.labels) for split, content in splits.items()},
            "normalization": [pixels.mean(axis=1).tolist(), pixels.std(axis=1).tolist()],
            "file_digests": digests,
        }
        (temporary / "dataset.json").write_text(json.dumps(about, indent=1))
        if not folder.exists():
            temporary.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another process was first
            raise InputError(f"cache {cache_folder()}: can't be written ({error.strerror}); set TAKD_CACHE") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    dataset = _open(name, source)
    if dataset is None:
        raise InputError(f"cache {cache_folder()}: {folder.name} can't be read back; set TAKD_CACHE to another folder")
    return dataset


def _hold_out(train: RawSplit, validation: int) -> tuple[RawSplit, RawSplit]:
    """Train and validation by the split seed, each in the source's order."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train.labels))
    held, kept = np.sort(order[:validation]), np.sort(order[validation:])
    return RawSplit(train.images[kept], train.labels[kept]), RawSplit(train.images[held], train.labels[held])


def _digest(raw: dict[str, RawSplit]) -> str:
    """SHA-256 over image bytes and label bytes, train before test."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        digest.update(np.ascontiguousarray(raw[split].images).data)
        digest.update(np.ascontiguousarray(raw[split].labels).data)
    return digest.hexdigest()


def _write_split(path: Path, split: RawSplit) -> str:
    """Writes an Arrow file; returns its SHA-256."""
    pixels = split.images[0].size
    images = pa.FixedSizeListArray.from_arrays(pa.array(split.images.reshape(-1)), pixels)
    table = pa.table({"image": images, "label": pa.array(split.labels, pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=len(table))
    content = sink.getvalue()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _open_split(path: Path, digest: str, image_shape: tuple[int, int, int]) -> Split:
    """Raises InputError, a ValueError, where the file is not what was written."""
    # A private, copy-on-write mapping: torch takes it as writable, and its pages are shared until written, which
    # nothing does.
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hashlib.sha256(mapped).hexdigest() != digest:
        raise InputError(f"{path}: not the content that was written; delete its folder, it is converted again")
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
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: can't be read as Parquet ({str(error).splitlines()[0]})") from None
    images = np.frombuffer(table.column("image").chunk(0).buffers()[1], np.uint8)
    return RawSplit(images.reshape(-1, *image_shape), table.column("label").to_numpy())


# Of the uncompressed files, as published.
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def _read_idx(folder: Path, name: str) -> Bytes:
    """One of MNIST's four files: images [n, 1, 28, 28] or labels [n]."""
    path = next((each for each in (folder / name, folder / f"{name}.gz") if each.exists()), None)
    if path is None:
        raise InputError(f"{folder / name}: missing; expected it, or {name}.gz, beside the other three MNIST files")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != _MNIST_MD5[name]:
        raise InputError(f"{path}: {len(content)} bytes with MD5 {found}; MNIST's has {_MNIST_MD5[name]}")
    header = 4 + 4 * content[3]
    values = np.frombuffer(content, np.uint8, offset=header)
    return values.reshape(-1, 1, 28, 28) if "images" in name else values
