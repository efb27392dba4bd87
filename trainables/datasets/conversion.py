"""From a source to a folder of Arrow files: in one pass, a slice of images at a time, whatever their number."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import Bytes, Images, Indices, Labels, RawSplit, Source
from takd.trainables.datasets.splits import SplitFile
from takd.trainables.store.storage import write_synced

SPLIT_SEED = 0
_SLICE = 1 << 24  # bytes of pixels that are in memory at once
_SPLITS = ("train", "test")

log = logging.getLogger("takd")


class Normalization(NamedTuple):
    """By channel, of train's pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_bytes(self) -> tuple[Tensor, Tensor]:
        """Scale and shift by channel `[channels, 1, 1]`: a pixel of 0 to 255 times the one, plus the other."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in self)
        return 1 / (255 * std), -mean / std


def generator(seed: int) -> np.random.Generator:
    """Named in full: NumPy's default generator may change, and the splits with it."""
    return np.random.Generator(np.random.PCG64(seed))


def write_entry(folder: Path, source: Source, raw: dict[str, RawSplit], advance: Callable[[int], None]) -> str:
    """Writes train, validation and test as Arrow, and `dataset.json`.

    Returns the content's digest: SHA-256 over the bytes of all images, then all labels, train before test.
    `advance` is called with a number of images that are written. Raises InputError where the source can't be split.
    """
    held = held_out(raw["train"].labels, source)
    kept = np.setdiff1d(np.arange(len(raw["train"].labels)), held)
    everything = np.arange(len(raw["test"].labels))
    files = {
        "train": SplitFile(folder / "train.arrow", raw["train"], kept),
        "validation": SplitFile(folder / "validation.arrow", raw["train"], held),
        "test": SplitFile(folder / "test.arrow", raw["test"], everything),
    }
    digest, twice = hashlib.sha256(), _Twice()
    histogram = np.zeros((raw["train"].images.shape[1], 256), np.int64)
    for split in _SPLITS:
        for start, pixels in _slices(raw[split].images):
            digest.update(pixels.data)
            twice.look(raw[split].names, start, pixels)
            for name in ("train", "validation") if split == "train" else ("test",):
                written = files[name].write(start, pixels)
                if name == "train":
                    histogram += _histogram(written)
            advance(len(pixels))
        digest.update(np.ascontiguousarray(raw[split].labels).data)
    twice.warn()
    about = {
        "digest": digest.hexdigest(),
        "classes": source.classes,
        "image_shape": raw["train"].images.shape[1:],
        "sizes": {name: len(file.rows) for name, file in files.items()},
        "class_counts": {name: file.class_counts(len(source.classes)) for name, file in files.items()},
        "normalization": _normalization(histogram),
        "file_digests": {name: file.close() for name, file in files.items()},
    }
    write_synced(folder / "dataset.json", json.dumps(about, indent=1).encode())
    return digest.hexdigest()


def held_out(labels: Labels, source: Source) -> Indices:
    """Sorted indices of the training examples that are for validation, by the split seed.

    Their number is the source's own, or a tenth. Where it is stratified, each class gives its share by largest
    remainder and keeps one example at least. Raises InputError where that can't be.
    """
    examples = max(1, round(len(labels) / 10)) if source.validation is None else source.validation
    available = np.bincount(labels, minlength=len(source.classes))
    most = len(labels) - np.count_nonzero(available)
    if not 1 <= examples <= most:
        raise InputError(
            f"validation is {examples}; at least 1 and at most {most} of the {len(labels)} images in train can be held "
            "out, as every class keeps one"
        )
    order = generator(SPLIT_SEED).permutation(len(labels))
    if not source.stratified:
        return np.sort(order[:examples])
    exact = available * examples / len(labels)
    share = np.floor(exact).astype(np.int64)
    while left := examples - share.sum():
        able = np.flatnonzero(share < available - 1)
        share[able[np.argsort((share - exact)[able], kind="stable")][:left]] += 1
    return np.sort(np.concatenate([order[labels[order] == label][:number] for label, number in enumerate(share)]))


def _slices(images: Images) -> Iterator[tuple[int, Bytes]]:
    """Where a slice begins, and its images; `_SLICE` bytes each."""
    number, step = images.shape[0], max(1, _SLICE // int(np.prod(images.shape[1:])))
    for start in range(0, number, step):
        yield start, np.ascontiguousarray(images[start : min(start + step, number)])


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

    def warn(self) -> None:
        if self.found:
            earlier, name = self.found[0]
            more = f", and {len(self.found) - 1} more pairs" if len(self.found) > 1 else ""
            log.warning("the same image is there twice: %s and %s%s", earlier, name, more)
