"""An exported folder: what its files are called, what they compute, and their checksums."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from takd.search_spaces import InputError
from takd.search_spaces.values import explain
from takd.study.export.onnx_file import Array, OnnxModel
from takd.study.export.torch_files import pt2_model
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.reading import Reading, of_shape
from takd.trainables.datasets.splits import SplitImages
from takd.trainables.store.storage import sha256
from takd.trainables.training.inputs import evaluation_batch

FORMAT = 1
Size = Annotated[int, Field(ge=1, le=100_000)]
WEIGHTS, SOURCE, ONNX, PT2, INT8 = "student.safetensors", "load.py", "student.onnx", "student.pt2", "student.int8.onnx"
CARD, CARD_TEXT, CHECKSUMS = "model_card.json", "MODEL_CARD.md", "checksums.txt"
READING = tuple(field.name for field in fields(Reading))
BYTECODE = "__pycache__"  # of who imported load.py


def _pt2(content: bytes) -> Callable[[Array], Array]:
    model = pt2_model(content)

    @torch.no_grad()
    def run(images: Array) -> Array:
        output: Array = model(torch.from_numpy(images)).numpy()
        return output

    return run


RUNS: dict[str, Callable[[bytes], Callable[[Array], Array]]] = {ONNX: OnnxModel, INT8: OnnxModel, PT2: _pt2}


def given(images: Tensor, normalization: Normalization | None) -> Array:
    """Images uint8 `[n, channels, height, width]` as an exported file takes them; normalised unless it does that."""
    if normalization is None:
        return images.numpy()
    scale, shift = normalization.of_bytes()
    return images.float().mul_(scale).add_(shift).numpy()


def probabilities(name: str, content: bytes, images: SplitImages, normalization: Normalization | None) -> Array:
    """`[n, classes]` of uint8 images, from one of the files of RUNS; `normalization` is None for a raw one."""
    run = RUNS[name](content)
    size = evaluation_batch(images.shape[1:])
    parts = [run(given(images[start : start + size], normalization)) for start in range(0, len(images), size)]
    output = np.concatenate(parts)
    return output if normalization is None else softmax(output)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def checksums(files: Mapping[str, bytes]) -> str:
    """As `sha256sum -c` reads it."""
    return "".join(f"{sha256(content)}  {name}\n" for name, content in sorted(files.items()))


class _Part(BaseModel):
    """Of a card, as far as something is done with it."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Reading(_Part):
    width: Size
    height: Size
    fit: Literal["crop", "pad", "stretch"]
    color: Literal["rgb", "grey"]


class _Input(_Part):
    preprocessing: str
    reading: _Reading | None = None
    shape: Annotated[tuple[str, Size, Size, Size], Field(strict=False)]  # batch, channels, height, width
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class _File(_Part):
    sha256: str


class _CardStage(_Part):
    role: str
    model: str
    key: str
    key_input: dict[str, Any]


class _Data(_Part):
    name: str
    digest: str


class _Card(_Part):
    stage_key: str
    classes: list[str] = Field(min_length=1)
    input: _Input
    data: _Data
    files: dict[str, _File]
    path: list[_CardStage] = Field(min_length=1)


def read_card(folder: Path) -> dict[str, Any]:
    """model_card.json; raises InputError on a folder that is no export of this version."""
    try:
        card = json.loads((folder / CARD).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise InputError(f"{folder / CARD}: {reason}; expected a folder that takd export wrote") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT or card["format"] is True:
        raise InputError(f"{folder / CARD}: format is not {FORMAT}; it is of another version of takd")
    try:
        _Card.model_validate(card)
    except ValidationError as error:
        raise explain(error, str(folder / CARD)) from None
    return card


def normalization_of(card: Mapping[str, Any]) -> Normalization | None:
    """What a file's images must be normalised by; None where the files do that."""
    if card["input"]["preprocessing"] == "included":
        return None
    return Normalization(tuple(card["input"]["mean"]), tuple(card["input"]["std"]))


def reading_of(card: Mapping[str, Any]) -> Reading:
    """How an image file becomes one that the student takes; of a card that doesn't say, as its takd did it."""
    given, shape = card["input"].get("reading"), card["input"]["shape"][1:]
    return (
        replace(of_shape(shape), fit="stretch") if given is None else Reading(**{each: given[each] for each in READING})
    )
