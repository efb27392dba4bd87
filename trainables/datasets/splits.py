"""One split as an Arrow file: written a slice of images at a time, read as a mapping that processes share."""

import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from takd.trainables.datasets.sources import Bytes, Indices, RawSplit

# What reading a damaged file raises: ValueError stands for Arrow's and JSON's errors too.
DAMAGE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, channels, height, width], labels int64 [n]: mapped, shared by processes, not to be written."""

    images: Tensor
    labels: Tensor


class SplitFile:
    """A split that is being written: the rows of a source's split that belong to it, `rows`, sorted.

    Arrow writes the file with room for the pixels, and they are filled in where they belong. So one record batch, whose
    images lie in one piece to be mapped, never is in memory.
    """

    def __init__(self, path: Path, raw: RawSplit, rows: Indices) -> None:
        self.rows, self.labels = rows, raw.labels[rows]
        pixels = int(np.prod(raw.images.shape[1:]))
        room = np.zeros(len(rows) * pixels, np.uint8)  # pages that nothing is written to take no memory
        images = pa.FixedSizeListArray.from_arrays(pa.array(room), pixels)
        columns = {name: pa.array(values[rows]) for name, values in raw.columns.items()}
        table = pa.table({"image": images, "label": pa.array(self.labels, pa.int64()), **columns})
        with path.open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=len(table))
        mapped = _map(path)
        _, begin = _extent(_batch(mapped).column("image").values, mapped)
        self.file = path.open("r+b")
        self.file.seek(begin)

    def write(self, start: int, pixels: Bytes) -> Bytes:
        """Takes and returns those of the source's images from `start` on that belong here."""
        first, last = np.searchsorted(self.rows, [start, start + len(pixels)])
        chosen = pixels[self.rows[first:last] - start]
        self.file.write(chosen.data)
        return chosen

    def class_counts(self, classes: int) -> list[int]:
        return [int(number) for number in np.bincount(self.labels, minlength=classes)]

    def close(self) -> str:
        """Its SHA-256, once it is safely on the disk."""
        with self.file:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.seek(0)
            return hashlib.file_digest(self.file, "sha256").hexdigest()


def read_split(path: Path, digest: str, image_shape: tuple[int, int, int]) -> Split:
    """Raises one of DAMAGE where the file is not what was written. The SHA-256 costs 22 ms on 40 MB."""
    with path.open("rb") as file:  # not as it is mapped: a driver, which looks at no image, has none in memory
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise ValueError(f"{path.name} is not what was written")
    mapped = _map(path)
    batch = _batch(mapped)
    images = np.frombuffer(mapped, np.uint8, *_extent(batch.column("image").values, mapped))
    labels = np.frombuffer(mapped, np.int64, *_extent(batch.column("label"), mapped))
    return Split(torch.from_numpy(images).view(-1, *image_shape), torch.from_numpy(labels))


def _map(path: Path) -> mmap.mmap:
    """A private, copy-on-write mapping: torch takes it as writable, and its pages are shared until one is written."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _batch(mapped: mmap.mmap) -> pa.RecordBatch:
    [batch] = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all().to_batches()
    return batch


def _extent(column: pa.Array, mapped: mmap.mmap) -> tuple[int, int]:
    """How many values a column has, and where in the mapping they begin."""
    start = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    return len(column), column.buffers()[1].address - start
