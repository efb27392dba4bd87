"""From a source to a folder of Arrow files: in one pass, a slice of images at a time, whatever their number."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from takd.search_spaces import InputError, some
from takd.trainables.datasets.division import held_out
from takd.trainables.datasets.reading import of_shape
from takd.trainables.datasets.sources import ALL, SPLITS, Bytes, EncodedImages, Images, Indices, RawSplit, Source
from takd.trainables.datasets.splits import EncodedFile, SplitFile
from takd.trainables.store.storage import write_synced

EXAMPLES = "examples.parquet"
_SLICE = 1 << 24  # bytes of pixels that are in memory at once
_KEPT = 256  # images, at most, whose encoded bytes are: they may be far larger than their pixels


class Normalization(NamedTuple):
    """By channel, of train's pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_bytes(self) -> tuple[Tensor, Tensor]:
        """Scale and shift by channel `[channels, 1, 1]`: a pixel of 0 to 255 times the one, plus the other."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in self)
        return 1 / (255 * std), -mean / std


class Written(NamedTuple):
    """What `write_entry` has to say."""

    digest: str
    warnings: list[str]


def write_entry(folder: Path, source: Source, raw: dict[str, RawSplit], advance: Callable[[int], None]) -> Written:
    """Writes train, validation and test as Arrow, where each example comes from, and `dataset.json`.

    The content's digest is the SHA-256 over each part's images, then its labels, train before validation before test;
    and, where the source divides a part, over what goes where. `advance` is called with a number of images that are
    written. Raises InputError where the source can't be split.
    """
    pieces = _pieces(source, raw)
    form: type[EncodedFile] | type[SplitFile] = EncodedFile if source.keeps_encoded else SplitFile
    files = {piece.split: form(folder / f"{piece.split}.arrow", raw[piece.part], piece.rows) for piece in pieces}
    digest, twice = hashlib.sha256(), _Twice()
    parts = [part for part in (ALL, *SPLITS) if part in raw]
    reading = source.reading or of_shape(raw[parts[0]].images.shape[1:])
    histogram = np.zeros((raw[parts[0]].images.shape[1], 256), np.int64)
    for part in parts:
        for start, pixels, encoded in _slices(raw[part].images, source.keeps_encoded):
            digest.update(pixels.data)
            twice.look(raw[part].places or raw[part].names, start, pixels)
            for piece in pieces:
                if piece.part == part:
                    written = files[piece.split].write(start, pixels, encoded)
                    if piece.split == "train":
                        histogram += _histogram(written)
            advance(len(pixels))
        digest.update(np.ascontiguousarray(raw[part].labels).data)
        if (splits := raw[part].splits) is not None:
            digest.update(splits.data)
    counts = {name: np.bincount(file.labels, minlength=len(source.classes)).tolist() for name, file in files.items()}
    about = {
        "digest": digest.hexdigest(),
        "classes": source.classes,
        "image_shape": raw[parts[0]].images.shape[1:],
        "sizes": {name: len(file.rows) for name, file in files.items()},
        "class_counts": counts,
        "normalization": _normalization(histogram),
        "file_digests": {name: file.close() for name, file in files.items()},
        "reading": reading.values(),
        "parts": {piece.split: [piece.part, raw[piece.part].whole or len(raw[piece.part].labels)] for piece in pieces},
    }
    _write_examples(folder / EXAMPLES, pieces, raw)
    write_synced(folder / "dataset.json", json.dumps(about, indent=1).encode())
    return Written(digest.hexdigest(), [*twice.lines(), *_rare(source.classes, counts)])


def _rare(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Of the classes that a split says nothing of."""
    for split in ("validation", "test"):
        gone = [
            f"{name} ({counts['train'][each]} in train)" for each, name in enumerate(classes) if not counts[split][each]
        ]
        if gone:
            yield f"no {split} image of {some(gone)}; what is measured there says nothing of that"


class _Piece(NamedTuple):
    """A split, and which images of a part of the source it is."""

    split: str
    part: str
    rows: Indices  # sorted


def _pieces(source: Source, raw: dict[str, RawSplit]) -> list[_Piece]:
    """One a split, in the order of SPLITS; raises InputError where a split would have no image."""
    found: dict[str, _Piece] = {}
    for part, split in raw.items():
        everything = np.arange(len(split.labels))
        if split.splits is not None:
            for number in np.unique(split.splits):
                found[SPLITS[number]] = _Piece(SPLITS[number], part, np.flatnonzero(split.splits == number))
        elif part == "train" and "validation" not in raw:
            held = held_out(split.labels, source)
            found["train"] = _Piece("train", part, np.setdiff1d(everything, held))
            found["validation"] = _Piece("validation", part, held)
        else:
            found[part] = _Piece(part, part, everything)
    for name in SPLITS:
        if name not in found:
            raise InputError(f"no image falls into {name}; each of {', '.join(SPLITS)} needs one")
    return [found[name] for name in SPLITS]


def _write_examples(path: Path, pieces: list[_Piece], raw: dict[str, RawSplit]) -> None:
    """Of each example, in the order of the splits' files, its place in the user's part, and its name or null."""
    columns: dict[str, list[Any]] = {"split": [], "row": [], "name": []}
    for split, part, rows in pieces:
        places, names = raw[part].rows, raw[part].names
        columns["split"] += [split] * len(rows)
        columns["row"] += (rows if places is None else places[rows]).tolist()
        columns["name"] += [names[row] for row in rows] if len(names) else [None] * len(rows)
    kinds = {"split": pa.dictionary(pa.int8(), pa.string()), "row": pa.int64(), "name": pa.string()}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
    pq.write_table(table, path, compression="zstd")


def _slices(images: Images, encoded: bool) -> Iterator[tuple[int, Bytes, list[bytes]]]:
    """Where a slice begins, its images, `_SLICE` bytes each, and what they were decoded from where that is asked for.

    The next is read while one is worked on.
    """
    number, step = images.shape[0], max(1, _SLICE // int(np.prod(images.shape[1:])))
    step = min(step, _KEPT) if encoded else step

    def read(start: int) -> tuple[Bytes, list[bytes]]:
        rows = slice(start, min(start + step, number))
        if encoded:
            return cast(EncodedImages, images).with_encoded(rows)
        return np.ascontiguousarray(images[rows]), []

    with ThreadPoolExecutor(1) as beside:
        following = beside.submit(read, 0)
        for start in range(0, number, step):
            found = following.result()
            if start + step < number:
                following = beside.submit(read, start + step)
            yield start, *found


def _histogram(images: Bytes) -> Indices:
    """How many pixels [channels, 256] have each value."""
    channels = images.swapaxes(0, 1).reshape(images.shape[1], -1)
    return np.stack([np.bincount(each, minlength=256) for each in channels])


def _normalization(histogram: Indices) -> Normalization:
    values, number = np.arange(256) / 255, histogram.sum(axis=1)
    mean = histogram @ values / number
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / number
    deviation = np.where(variance > 0, np.sqrt(variance), 1.0)  # a channel that is the same everywhere stays 0
    return Normalization(tuple(mean.tolist()), tuple(deviation.tolist()))


class _Twice:
    """Finds images of files that have the content of an earlier one."""

    def __init__(self) -> None:
        self.first: dict[bytes, str] = {}
        self.found: list[tuple[str, str]] = []

    def look(self, names: Any, start: int, pixels: Bytes) -> None:
        for name, image in zip(names[start : start + len(pixels)], pixels, strict=False):
            content = hashlib.blake2b(image.data, digest_size=16).digest()
            earlier = self.first.setdefault(content, name)
            if earlier != name:
                self.found.append((earlier, name))

    def lines(self) -> Iterator[str]:
        if self.found:
            yield f"the same image is there twice: {some((f'{name} is {earlier}' for earlier, name in self.found), 1)}"
