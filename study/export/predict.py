"""What an exported student says of image files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from takd.search_spaces import InputError
from takd.study.export.exported import ONNX, normalization_of, probabilities, read_card
from takd.study.export.onnx_file import Array, needs_onnx

MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels
SHOWN = 3  # classes


def print_predictions(folder: Path, images: Sequence[Path], console: Console) -> None:
    """A line an image: its most likely classes with their probabilities in percent."""
    needs_onnx("takd predict")
    card = read_card(folder)
    try:
        model = (folder / ONNX).read_bytes()
    except OSError as error:
        raise InputError(f"{folder / ONNX}: {error.strerror}") from None
    read = np.stack([read_image(image, card["input"]["shape"][1:]) for image in images])
    found = probabilities(ONNX, model, torch.from_numpy(read), normalization_of(card))
    width = max(len(str(image)) for image in images)
    for image, row in zip(images, found, strict=True):
        likely = np.argsort(-row, kind="stable")[:SHOWN]
        said = "   ".join(f"{card['classes'][each]} {100 * row[each]:6.2f} %" for each in likely)
        console.print(f"{image!s:{width}}   {said}")


def read_image(file: Path, shape: Sequence[int]) -> Array:
    """uint8 `[channels, height, width]`, brought to the shape that is asked for."""
    from PIL import Image, UnidentifiedImageError

    from takd.trainables.datasets.image_files import UNDECODABLE

    channels, height, width = shape
    try:
        with Image.open(file) as image:
            converted = image.convert(MODES[channels])
    except UnidentifiedImageError:
        raise InputError(f"{file}: no image that Pillow can read; expected PNG, JPEG or the like") from None
    except UNDECODABLE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{file}: {reason}") from None
    if converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(converted, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
