"""One split as an Arrow file: written a slice of images at a time, read as a mapping that processes share.

Its images are pixels, or encoded as the user's files have them; these are decoded when they are asked for.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
import pyarrow as pa
import torch
from torch import Tensor

from takd.search_spaces import InputError
from takd.trainables.datasets.decoding import decoded
from takd.trainables.datasets.reading import Reading
from takd.trainables.datasets.sources import Bytes, Indices, RawSplit
from takd.trainables.store.derived import write_whole
from takd.trainables.store.storage import write_synced

# What reading a damaged file raises: ValueError stands for Arrow's and JSON's errors too.
DAMAGE = (OSError, ValueError, KeyError, TypeError)
COPIED = 1 << 26  # bytes of some images of a split, up to which they are copied; more are found by their places
LARGE = 1 << 30  # bytes of a file, from which on its digest is not taken whenever it is opened
AT_ONCE = 1 << 24  # bytes of pixels that are decoded at once where all go through
_PROBED = 64  # images by which it is known that they are decoded as they were when they were kept
_NO_RESERVE = 0x4000  # Linux's flag of mmap, which Python names from 3.13 on


class SplitImages(Protocol):
    """Images of a split, uint8 [n, channels, height, width]; a slice of them, or those at an index, is a tensor.

    A tensor is one. What is none reads or decodes what it is asked for, and never is in memory as a whole.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, channels, height, width], labels int64 [n]: mapped, shared by processes, not to be written."""

    images: SplitImages
    labels: Tensor


def rows_of(images: SplitImages, index: slice | Tensor) -> Tensor:
    """Uint8 [batch, channels, height, width]; a slice of a tensor is a view of it."""
    if isinstance(images, Tensor) and isinstance(index, Tensor):
        return images.index_select(0, index)
    return images[index]


def some_of(images: SplitImages, index: slice | Tensor) -> SplitImages:
    """The images at an index, or in a slice."""
    if isinstance(images, Tensor):
        small = not isinstance(index, slice) and len(index) * math.prod(images.shape[1:]) <= COPIED
        if isinstance(index, slice) or small or images.device.type != "cpu":
            return images[index]
    elif isinstance(index, slice) and index == slice(None):
        return images
    return _Some(images, torch.arange(len(images))[index] if isinstance(index, slice) else index.cpu())


def joined(first: SplitImages, second: SplitImages) -> SplitImages:
    """All images of one, then all of the other."""
    size = (len(first) + len(second)) * math.prod(first.shape[1:])
    if isinstance(first, Tensor) and isinstance(second, Tensor) and size <= COPIED:
        return torch.cat([first, second])
    return _Joined(first, second)


def whole_on(images: SplitImages, device: torch.device) -> Tensor:
    """All of them on a device."""
    if isinstance(images, Tensor):
        return images.to(device)
    found = torch.empty(images.shape, dtype=torch.uint8, device=device)
    step = max(1, AT_ONCE // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        found[start : start + step] = images[slice(start, start + step)].to(device)
    return found


@dataclass(frozen=True)
class _Some:
    images: SplitImages
    rows: Tensor  # [n]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        return rows_of(self.images, self.rows[index])


@dataclass(frozen=True)
class _Joined:
    first: SplitImages
    second: SplitImages

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.first.shape[1:])

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        rows = torch.arange(len(self))[index] if isinstance(index, slice) else index
        found = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        own = rows < len(self.first)
        for images, belongs, before in ((self.first, own, 0), (self.second, ~own, len(self.first))):
            if (chosen := rows[belongs] - before).numel():
                found[belongs] = rows_of(images, chosen)
        return found


class EncodedSplit:
    """Images that are kept as the user's files have them; what is asked for is decoded.

    The first read decodes a few whose pixels are known, and raises InputError where they become others here.
    """

    def __init__(self, path: Path, mapped: mmap.mmap, batches: Sequence[pa.RecordBatch], reading: Reading) -> None:
        self.path, self.mapped, self.reading = path, mapped, reading
        begin = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
        bounds = [_bounds(batch.column("image"), begin) for batch in batches]
        self.starts, self.ends = (np.concatenate(each) for each in zip(*bounds, strict=True))  # [n] in the file
        self.about = json.loads(batches[0].schema.metadata[b"takd"])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.reading.image_shape)

    @property
    def nbytes(self) -> int:
        """As they are encoded."""
        return int((self.ends - self.starts).sum())

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        _ = self._as_kept
        return torch.from_numpy(self._decoded(index if isinstance(index, slice) else index.numpy()))

    def _decoded(self, index: Any) -> Bytes:
        places = zip(self.starts[index].tolist(), self.ends[index].tolist(), strict=True)
        encoded = [self.mapped[start:end] for start, end in places]
        return decoded(encoded, self.reading, many=len(self), cores=torch.get_num_threads())

    @cached_property
    def _as_kept(self) -> None:
        if _digest_of(self._decoded(slice(0, self.about["probed"]))) != self.about["decoded"]:
            raise InputError(
                f"{self.path}: Pillow {PIL.__version__} decodes its images otherwise here than Pillow "
                f"{self.about['pillow']} did where they were converted; install that"
            )


def _bounds(column: pa.Array, begin: int) -> tuple[Indices, Indices]:
    """Where each value of a column lies in the file."""
    _, offsets, content = column.buffers()
    places = np.frombuffer(offsets, np.int64)[: len(column) + 1] + (content.address - begin)
    return places[:-1], places[1:]


def _digest_of(pixels: Bytes) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


class EncodedFile:
    """A split that is being written, of encoded images: a record batch for each slice of the source."""

    def __init__(self, path: Path, raw: RawSplit, rows: Indices) -> None:
        self.raw, self.rows, self.labels = raw, rows, raw.labels[rows]
        self.file = path.open("w+b")
        self.writer: pa.ipc.RecordBatchFileWriter | None = None

    def write(self, start: int, pixels: Bytes, encoded: Sequence[bytes]) -> Bytes:
        """As that of `SplitFile`."""
        first, last = np.searchsorted(self.rows, [start, start + len(pixels)])
        places = self.rows[first:last] - start
        chosen = pixels[places]
        if len(places):
            columns = {name: pa.array(values[self.rows[first:last]]) for name, values in self.raw.columns.items()}
            images = pa.array([encoded[place] for place in places], pa.large_binary())
            batch = pa.record_batch(
                {"image": images, "label": pa.array(self.labels[first:last], pa.int64()), **columns}
            )
            if self.writer is None:
                few = chosen[:_PROBED]
                about = {"probed": len(few), "decoded": _digest_of(few), "pillow": PIL.__version__}
                schema = batch.schema.with_metadata({"takd": json.dumps(about)})
                self.writer = pa.ipc.new_file(self.file, schema)
            self.writer.write_batch(batch)
        return chosen

    def close(self) -> str:
        """Its SHA-256, once it is safely on the disk."""
        if self.writer is not None:
            self.writer.close()
        return _closed(self.file)


class SplitFile:
    """A split that is being written: the rows of a source's split that belong to it, `rows`, sorted.

    Arrow writes the file with room for the pixels, and they are filled in where they belong. So one record batch, whose
    images lie in one piece to be mapped, never is in memory.
    """

    def __init__(self, path: Path, raw: RawSplit, rows: Indices) -> None:
        self.rows, self.labels = rows, raw.labels[rows]
        pixels = int(np.prod(raw.images.shape[1:]))
        room = _zeros(len(rows) * pixels)
        images = pa.FixedSizeListArray.from_arrays(pa.array(room), pixels)
        columns = {name: pa.array(values[rows]) for name, values in raw.columns.items()}
        table = pa.table({"image": images, "label": pa.array(self.labels, pa.int64()), **columns})
        with path.open("wb") as sink:
            write_whole(sink, table)
        mapped = _map(path)
        [batch] = _batches(mapped)
        _, begin = _extent(batch.column("image").values, mapped)
        self.file = path.open("r+b")
        self.file.seek(begin)

    def write(self, start: int, pixels: Bytes, encoded: Sequence[bytes] = ()) -> Bytes:
        """Takes and returns those of the source's images from `start` on that belong here."""
        first, last = np.searchsorted(self.rows, [start, start + len(pixels)])
        chosen = pixels[self.rows[first:last] - start]
        self.file.write(chosen.data)
        return chosen

    def close(self) -> str:
        """Its SHA-256, once it is safely on the disk."""
        return _closed(self.file)


def _closed(file: Any) -> str:
    with file:
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_split(path: Path, digest: str, reading: Reading) -> Split:
    """Raises one of DAMAGE where the file is not what was written. The SHA-256 costs 22 ms on 40 MB."""
    _check(path, digest)
    mapped = _map(path)
    batches = _batches(mapped)
    if pa.types.is_large_binary(batches[0].schema.field("image").type):
        labels = np.concatenate([np.asarray(each.column("label")) for each in batches])
        return Split(EncodedSplit(path, mapped, batches, reading), torch.from_numpy(labels))
    [batch] = batches
    images = np.frombuffer(mapped, np.uint8, *_extent(batch.column("image").values, mapped))
    labels = np.frombuffer(mapped, np.int64, *_extent(batch.column("label"), mapped))
    return Split(torch.from_numpy(images).view(-1, *reading.image_shape), torch.from_numpy(labels))


def _zeros(size: int) -> Bytes:
    """Pages that nothing is written to take no memory; none is set aside, so there may be more than the machine has."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


def _check(path: Path, digest: str) -> None:
    """Raises ValueError where a file is not what was written.

    Of a large one it is noted beside it that it was, and when: it is read again only where it changed since then.
    """
    found = path.stat()
    note, seen = path.with_name(f".{path.name}.seen"), [digest, found.st_size, found.st_mtime_ns, found.st_ino]
    if found.st_size >= LARGE:
        with suppress(OSError, ValueError):
            if json.loads(note.read_bytes()) == seen:
                return
    with path.open("rb") as file:  # not as it is mapped: a driver, which looks at no image, has none in memory
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise ValueError(f"{path.name} is not what was written")
    if found.st_size >= LARGE:
        with suppress(OSError):  # of a cache that can't be written
            write_synced(temporary := note.with_name(f"{note.name}-{os.getpid()}"), json.dumps(seen).encode())
            temporary.replace(note)


def _map(path: Path) -> mmap.mmap:
    """A private, copy-on-write mapping: torch takes it as writable, and its pages are shared until one is written.

    No memory is set aside for pages that might be: of a file that is larger than memory Linux would refuse that.
    """
    with path.open("rb") as file:
        flags = mmap.MAP_PRIVATE | _NO_RESERVE
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _batches(mapped: mmap.mmap) -> list[pa.RecordBatch]:
    found: list[pa.RecordBatch] = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all().to_batches()
    return found


def _extent(column: pa.Array, mapped: mmap.mmap) -> tuple[int, int]:
    """How many values a column has, and where in the mapping they begin."""
    start = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    return len(column), column.buffers()[1].address - start
