"""What an exported student says of image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from takd.search_spaces import InputError
from takd.study.export.exported import ONNX, normalization_of, probabilities, read_card, reading_of
from takd.study.export.onnx_file import Array, needs_onnx
from takd.trainables.datasets.reading import UNDECODABLE, Reading, reason

SHOWN = 3  # classes


def print_predictions(folder: Path, images: Sequence[Path], console: Console) -> None:
    """A line an image: its most likely classes with their probabilities in percent."""
    classes, found = _predicted(folder, images)
    width = max(len(str(image)) for image in images)
    for image, row in zip(images, found, strict=True):
        likely = np.argsort(-row, kind="stable")[:SHOWN]
        said = "   ".join(f"{classes[each]} {100 * row[each]:6.2f} %" for each in likely)
        console.print(f"{image!s:{width}}   {said}")


def predictions(folder: Path, images: Sequence[Path]) -> list[dict[str, Any]]:
    """The same with every class, as docs/json.md says."""
    classes, found = _predicted(folder, images)
    return [
        {
            "image": str(image),
            "classes": [
                {"class": classes[each], "probability": float(row[each])} for each in np.argsort(-row, kind="stable")
            ],
        }
        for image, row in zip(images, found, strict=True)
    ]


def _predicted(folder: Path, images: Sequence[Path]) -> tuple[list[str], Array]:
    """The names of the classes, and probabilities `[images, classes]`."""
    needs_onnx("takd predict")
    card = read_card(folder)
    try:
        model = (folder / ONNX).read_bytes()
    except OSError as error:
        raise InputError(f"{folder / ONNX}: {error.strerror}") from None
    read = read_images(images, reading_of(card))
    found = probabilities(ONNX, model, torch.from_numpy(read), normalization_of(card))
    return card["classes"], np.asarray(found)


def read_images(files: Sequence[Path], reading: Reading) -> Array:
    """uint8 `[n, channels, height, width]`; raises InputError that names every file which can't be read."""
    read, wrong = [], []
    for file in files:
        try:
            read.append(reading.read(file))
        except UNDECODABLE as error:
            wrong.append(f"{file}: {reason(error)}")
    if wrong:
        raise InputError("; ".join(wrong))
    return np.stack(read)
