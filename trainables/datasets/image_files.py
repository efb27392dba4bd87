"""Images in files of one size and mode, decoded a slice at a time; any other is refused."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from takd.search_spaces import InputError
from takd.trainables.datasets.reading import UNDECODABLE
from takd.trainables.datasets.sources import Bytes, ImageShape

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
