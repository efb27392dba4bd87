"""Images in files, decoded a slice at a time; a user's own folder of them."""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import Bytes, ImageShape, Labels, RawSplit, Source

SUFFIXES = (".png", ".jpg", ".jpeg")
_CHANNELS = {"L": 1, "RGB": 3}  # Pillow's modes; 8 bits a channel
_COLOURS = {1: "grey", 3: "RGB"}
_BLOCK = 64  # files that a thread decodes at a time


@dataclass(frozen=True)
class ImageFiles:
    """Files of one image shape; a slice of them is decoded when it is asked for, on all cores.

    A slice raises InputError on the first file that can't be decoded or is of another shape than `reason` says.
    """

    paths: Sequence[Path]
    names: Sequence[str]  # what an error calls each
    image_shape: ImageShape
    reason: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.paths), *self.image_shape)

    def __getitem__(self, rows: slice) -> Bytes:
        """uint8 [n, channels, height, width]"""
        start, stop, _ = rows.indices(len(self.paths))
        images = np.empty((stop - start, *self.image_shape), np.uint8)

        def decode(first: int) -> None:
            for row in range(first, min(first + _BLOCK, stop)):
                images[row - start] = self._decode(row)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, range(start, stop, _BLOCK)):
                pass
        return images

    def _decode(self, row: int) -> Bytes:
        image = decode_image(self.paths[row], self.names[row], self.image_shape, self.reason)
        return image.transpose(2, 0, 1) if image.ndim == 3 else image[None]


# What Pillow raises of a file that is damaged, by the chunk or marker that is.
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def decode_image(path: Path, name: str, expected: ImageShape | None = None, reason: str = "") -> Bytes:
    """uint8 [height, width] or [height, width, 3]; raises InputError, also where it is not of the expected shape."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            shape = (_CHANNELS.get(image.mode, 0), image.height, image.width)
            if (expected is not None and shape != expected) or not shape[0]:
                wanted = f"{describe(expected)}, {reason}" if expected else "8-bit grey or RGB"
                mode = _COLOURS.get(shape[0], f"of Pillow's mode {image.mode}")
                raise InputError(f"{name}: is {image.width}x{image.height} {mode}; expected {wanted}")
            return np.asarray(image)
    except UnidentifiedImageError:
        raise InputError(f"{name}: is no PNG or JPEG image") from None
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such file") from None
    except InputError:
        raise
    except UNDECODABLE as error:
        raise InputError(f"{name}: can't be decoded ({str(error) or type(error).__name__})") from None


def shape_of(image: Bytes) -> ImageShape:
    """Of a decoded image."""
    return (1 if image.ndim == 2 else image.shape[2], image.shape[0], image.shape[1])


def describe(shape: ImageShape) -> str:
    """`32x24 RGB`: width first, as image viewers have it."""
    channels, height, width = shape
    return f"{width}x{height} {_COLOURS[channels]}"


def labels_of(labels: Sequence[int], classes: Sequence[str]) -> Labels:
    """In the smallest type that has room for all classes."""
    return np.array(labels, np.min_scalar_type(len(classes) - 1))


def open_images(folder: Path) -> Source:
    """A folder of `train/<class>/*` and `test/<class>/*`; classes and files are taken in the order of their names.

    All images are of the first one's size, and grey or RGB as it is. That is checked when they are read.
    """
    classes = _classes(folder)
    files = {split: [_files(folder / split / name) for name in classes] for split in ("train", "test")}
    first = files["train"][0][0]
    shape = shape_of(decode_image(first, str(first)))

    def split_of(by_class: list[list[Path]]) -> RawSplit:
        paths = [path for each in by_class for path in each]
        labels = [label for label, each in enumerate(by_class) for _ in each]
        names = [str(path) for path in paths]
        return RawSplit(ImageFiles(paths, names, shape, f"as {first} is"), labels_of(labels, classes), names)

    return Source(read=lambda: {split: split_of(by_class) for split, by_class in files.items()}, classes=classes)


def _classes(folder: Path) -> tuple[str, ...]:
    """The names of the class folders, the same in train and test."""
    found: dict[str, list[str]] = {}
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise InputError(f"--from {folder}: has no folder {split}; expected train/<class>/* and test/<class>/*")
        entries = _visible(folder / split)
        for entry in entries:
            if not entry.is_dir():
                raise InputError(f"{entry}: is in no class folder; expected {split}/<class>/{entry.name}")
        found[split] = [entry.name for entry in entries]
    for split, other in (("train", "test"), ("test", "train")):
        alone = sorted(set(found[split]) - set(found[other]))
        if alone:
            raise InputError(
                f"{folder / split / alone[0]}: class {alone[0]} is in {split} only; expected it in {other} too"
            )
    if len(found["train"]) < 2:
        raise InputError(f"{folder / 'train'}: has {len(found['train'])} class folders; expected 2 or more")
    return tuple(found["train"])


def _files(folder: Path) -> list[Path]:
    files = _visible(folder)
    if not files:
        raise InputError(f"{folder}: the class has no images; expected PNG or JPEG files")
    for file in files:
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            raise InputError(f"{file}: is no image file; expected names that end in {', '.join(SUFFIXES)}")
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
