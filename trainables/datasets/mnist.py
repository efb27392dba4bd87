"""MNIST: as it ships, and from the four original files."""

import gzip
import hashlib
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import Bytes, RawSplit, Source

SHIPPED = Path(__file__).parent / "data"


def read_shipped_mnist() -> dict[str, RawSplit]:
    return {name: read_parquet(SHIPPED / "mnist" / f"{name}.parquet", (1, 28, 28)) for name in ("train", "test")}


MNIST = Source(
    read=read_shipped_mnist,
    digest="06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
    classes=tuple("0123456789"),
    validation=10_000,
    stratified=False,
)


def open_mnist(folder: Path) -> Source:
    """From torchvision's folder, checked file by file."""
    raw = read_mnist_folder(folder)
    return replace(MNIST, read=lambda: raw)


def read_parquet(path: Path, image_shape: tuple[int, int, int]) -> RawSplit:
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
