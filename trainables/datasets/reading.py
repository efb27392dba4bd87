"""How an image file becomes an image of a data set: the same for what is converted and for what is predicted.

It loads NumPy and Pillow alone: the processes that decode a data set start with it.
"""

import struct
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from takd.trainables.datasets.sources import Bytes, ImageShape

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # in any case
FITS = ("crop", "pad", "stretch")
COLORS = {"grey": 1, "rgb": 3}  # channels
EXTREME = 8  # times enlarged, or times as wide or high as what it becomes

Encoded = str | Path | bytes | Bytes | None  # a file, what is in one, pixels, or nothing where something should be
Finding = tuple[int, str, Any]  # which image of a block, a key of CONVERSIONS or of the others below, and a detail

BROKEN, OTHER_SIZE, COLOURED, EXTREME_SIZE = "broken", "size", "coloured", "extreme"
CONVERSIONS = {
    "exif": "turned upright, as the EXIF orientation says",
    "animated": "animated: the first frame is taken",
    "palette": "with a palette, which became RGB",
    "cmyk": "CMYK, which became RGB",
    "grey-alpha": "grey with transparency, laid over white, which became RGB",
    "alpha": "with transparency, laid over white",
    "16-bit": "of 16 bits a pixel, scaled to 8",
    "1-bit": "of 1 bit a pixel, which became grey",
    "other": "in another colour space, which became RGB",
    "grey": "grey, which became RGB",
    "colour": "in colour, which became grey",
}

# Of large images, which it refuses by itself where they are too large, and of metadata that nothing here asks for.
warnings.filterwarnings("ignore", module=r"PIL\.")

# What Pillow raises of a file that is damaged, by the chunk or marker that is.
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
_EXIF_IN = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Reading:
    """What is done to an image: turned upright, over white, to 8 bits, to the colours, and to the size.

    `crop` brings the shorter side to the size and cuts the centre out, as torchvision's Resize and CenterCrop do; `pad`
    brings the longer side to it, on black; `stretch` changes the shape. Each is bilinear and antialiased.
    """

    width: int
    height: int
    fit: str  # of FITS
    color: str  # of COLORS

    @property
    def image_shape(self) -> ImageShape:
        return (COLORS[self.color], self.height, self.width)

    def values(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def read(self, encoded: Encoded) -> Bytes:
        """uint8 `[channels, height, width]`; raises one of UNDECODABLE."""
        image, _ = as_it_is(encoded)
        return self.pixels(image)

    def pixels(self, image: Image.Image) -> Bytes:
        """Of an image that `as_it_is` gave."""
        mode = "L" if self.color == "grey" else "RGB"
        fitted = _FITTED[self.fit](image.convert(mode) if image.mode != mode else image, self.width, self.height)
        found = np.asarray(fitted)
        return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)

    def is_extreme(self, width: int, height: int) -> bool:
        """Whether little is left of an image of that size, or little was there."""
        across, down = width / self.width, height / self.height
        return min(across, down) < 1 / EXTREME or max(across, down) > EXTREME * min(across, down)


def of_shape(image_shape: Sequence[int]) -> Reading:
    """Makes an image of that shape of any image file, where a data set was not made of image files."""
    channels, height, width = image_shape
    return Reading(width, height, "crop", "grey" if channels == 1 else "rgb")


def opened(encoded: Encoded) -> Image.Image:
    """As Pillow opens it, not decoded yet."""
    if encoded is None:
        raise ValueError("has no bytes")
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    return Image.open(BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS)


def as_it_is(encoded: Encoded) -> tuple[Image.Image, list[str]]:
    """An image upright, over white and of 8 bits, grey (mode L) or RGB; and which of CONVERSIONS it took."""
    with opened(encoded) as image:
        found = []
        tiff = getattr(image, "format", None) == "TIFF"  # which Pillow turns as it decodes it
        turned = tiff and _is_turned(image)
        if image.format not in (None, "JPEG", "MPO", "BMP") and getattr(image, "is_animated", False):
            found.append("animated")
        image.load()
        if not tiff and any(each in image.info for each in _EXIF_IN):
            turned = _is_turned(image)
            if turned:
                image = ImageOps.exif_transpose(image)
        if turned:
            found.append("exif")
        if image.mode in ("L", "RGB") and "transparency" not in image.info:
            return image, found
        plain, conversions = _plain(image)
        return plain, found + conversions


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except UNDECODABLE:  # what says nothing that can be understood says nothing
        return False


def _plain(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Grey or RGB, of 8 bits and nothing to look through; what is grey with transparency becomes RGB."""
    mode, found = image.mode, []
    if mode == "1":
        found.append("1-bit")
    elif mode == "P":
        found.append("palette")
    elif mode == "CMYK":
        found.append("cmyk")
    elif mode == "I" or mode.startswith("I;16"):
        return _scaled(image), ["16-bit"]
    elif mode == "F":
        raise ValueError("its pixels are floating-point numbers; expected 8 or 16 bits")
    if image.has_transparency_data:
        found.append("grey-alpha" if mode in ("LA", "La") else "alpha")
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"), found
    if mode not in ("1", "P", "CMYK", "L", "RGB"):
        found.append("other")
    return image.convert("L" if mode in ("1", "L") else "RGB"), found


def _scaled(image: Image.Image) -> Image.Image:
    """The whole range of 16 bits as that of 8."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have 32 bits; expected 8 or 16")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _cropped(image: Image.Image, width: int, height: int) -> Image.Image:
    """Only what stays is computed: a long and narrow image is never made as large as its shorter side asks for."""
    if image.size == (width, height):
        return image
    across, down = image.size
    if width * down >= height * across:
        whole = (width, max(height, int(width * down / across)))
    else:
        whole = (max(width, int(height * across / down)), height)
    left, top = round((whole[0] - width) / 2), round((whole[1] - height) / 2)
    right, bottom = min(across, (left + width) * across / whole[0]), min(down, (top + height) * down / whole[1])
    box = (left * across / whole[0], top * down / whole[1], right, bottom)
    return image.resize((width, height), Image.Resampling.BILINEAR, box)


def _padded(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    whole = Image.new(image.mode, (width, height))
    whole.paste(_stretched(image, *size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return whole


def _stretched(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


_FITTED = {"crop": _cropped, "pad": _padded, "stretch": _stretched}


@dataclass(frozen=True)
class Block:
    """Images that are read one after the other, and how."""

    images: Sequence[Encoded]
    reading: Reading
    resized: bool  # False: an image of another size is a finding
    automatic: bool  # the colours are grey until an image is found that is not
    look: bool = False  # at sizes only

    def read(self, out: Bytes) -> list[Finding]:
        """Fills `out` `[n, channels, height, width]`, zeros where there is no image, and says what it found."""
        findings: list[Finding] = []
        for number, encoded in enumerate(self.images):
            try:
                if self.look:
                    findings.append((number, OTHER_SIZE, _size(encoded)))
                    continue
                image, conversions = as_it_is(encoded)
                findings += [(number, each, None) for each in conversions]
                if not self.resized and image.size != (self.reading.width, self.reading.height):
                    findings.append((number, OTHER_SIZE, image.size))
                    continue
                findings += [(number, kind, image.size) for kind in self._noticed(image)]
                out[number] = self.reading.pixels(image)
            except UNDECODABLE as error:
                findings.append((number, BROKEN, reason(error)))
        return findings

    def _noticed(self, image: Image.Image) -> list[str]:
        found = []
        if self.resized and self.reading.is_extreme(*image.size):
            found.append(EXTREME_SIZE)
        if image.mode == "RGB" and self.reading.color == "grey":
            found.append(COLOURED if self.automatic else "colour")
        if image.mode == "L" and self.reading.color == "rgb":
            found.append("grey")
        return found


def _size(encoded: Encoded) -> tuple[int, int]:
    """Width and height as they are shown; a PNG that says how it is turned after its pixels is taken as stored."""
    with opened(encoded) as image:
        sideways = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) in range(5, 9)
        width, height = image.size
        return (height, width) if sideways else (width, height)


def reason(error: BaseException) -> str:
    """Why an image can't be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "is no PNG, JPEG, WebP, BMP, TIFF or GIF image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
