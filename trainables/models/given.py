"""What exists in place of a training: a whole model, or what one says of the images. Checked, and in one form.

A study keeps that form below its root by its digest; workers read it there, and never the user's file. It has the data
set's order of classes and of images, and the pixels that the data set gives: nobody who reads it asks for more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from takd.search_spaces import Existing, InputError, some
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.families import build, check_model
from takd.trainables.models.given_classes import NAMED, class_order
from takd.trainables.models.given_logits import canonical_logits
from takd.trainables.models.pretrained import SCALE, SHIFT, between, heads_of, restore
from takd.trainables.models.weights_files import fitting, read_file

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def canonical_given(existing: Existing, model: str, dataset: Dataset) -> bytes:
    """Of a checkpoint or of logits: the same bytes wherever and in whatever kind of file they were.

    Raises InputError, and MissingWeightsError where there is no file.
    """
    if existing.logits is not None:
        return canonical_logits(Path(existing.logits).expanduser(), existing, dataset)
    return _canonical_checkpoint(Path(existing.place).expanduser(), existing, model, dataset)


def _canonical_checkpoint(path: Path, existing: Existing, model: str, dataset: Dataset) -> bytes:
    about, classes, shape = f"checkpoint {path}", len(dataset.classes), dataset.image_shape
    found = read_file(path, "checkpoint")
    module = check_model(model, shape, classes)
    own = {name: each for name, each in found.tensors.items() if name in (SCALE, SHIFT)}  # of a model that takd trained
    tensors = {name: each for name, each in found.tensors.items() if name not in own}
    heads = heads_of(module)
    _check_head(tensors, heads[-1], dataset, about)
    complaint = f"{about}: these are not the weights of {model} for images of {'x'.join(map(str, shape))}"
    tensors = fitting(tensors, module.state_dict(), complaint)
    for name, each in tensors.items():
        if not bool(torch.isfinite(each).all()):
            raise InputError(f"{about}: {name} has numbers that are not finite")
    order = class_order(existing.classes, found.classes, dataset, about)
    if order != list(range(classes)):
        tensors = _in_order(tensors, heads, order, model, dataset, about)
    pixels = _pixels(existing, found.normalization, model, dataset, about)
    return safetensors.torch.save(tensors | _input_buffers(pixels, own, dataset))


def _check_head(tensors: Mapping[str, Tensor], head: str, dataset: Dataset, about: str) -> None:
    weight = tensors.get(f"{head}.weight")
    if weight is not None and weight.dim() and len(weight) != len(dataset.classes):
        raise InputError(
            f"{about}: is of {len(weight):,} classes ({head}.weight is {list(weight.shape)}); dataset {dataset.name} "
            f"has {len(dataset.classes)} ({some(dataset.classes, NAMED)})"
        )


def _in_order(
    tensors: dict[str, Tensor], heads: Sequence[str], order: Sequence[int], model: str, dataset: Dataset, about: str
) -> dict[str, Tensor]:
    """With the classes of the last layers as the data set has them; raises InputError where others have a say too."""
    rows = torch.tensor(order)
    moved = {name: each[rows] if name.rpartition(".")[0] in heads else each for name, each in tensors.items()}
    before, after = (_logits_of(weights, model, dataset) for weights in (tensors, moved))
    if not torch.allclose(before[:, rows], after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise InputError(
            f"{about}: has the classes in another order than dataset {dataset.name}, and {model} can't be brought into "
            f"that order by its last layer; expected {some(dataset.classes, NAMED)}"
        )
    return moved


@torch.no_grad()
def _logits_of(tensors: Mapping[str, Tensor], model: str, dataset: Dataset) -> Tensor:
    """On a few images of noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = build(model, dataset.image_shape, len(dataset.classes))
        images = torch.randn(2, *dataset.image_shape)
    logits: Tensor = restore(module, tensors).eval()(images)
    return logits


def _pixels(
    existing: Existing, of_file: Normalization | None, model: str, dataset: Dataset, about: str
) -> Normalization | None:
    """What the model expects; None: what the data set gives. Raises InputError where nobody says it."""
    if existing.normalize is None:
        if of_file is None:
            raise InputError(
                f"{about}: does not say by which mean and deviation its images were normalised; give normalize: "
                "dataset, imagenet, or {mean: [...], std: [...]}"
            )
        return _checked(of_file, model, dataset, f"{about}: its")
    if existing.normalize == "dataset":
        given = None
    elif existing.normalize == "imagenet":
        given = _checked(IMAGENET, model, dataset, "normalize: imagenet's")
    else:
        named = existing.normalize
        given = _checked(Normalization(tuple(named.mean), tuple(named.std)), model, dataset, "normalize:")
    if of_file is not None and not _alike(of_file, given or dataset.normalization):
        raise InputError(
            f"{about}: says mean {_numbers(of_file.mean)} and std {_numbers(of_file.std)}, normalize another; leave "
            "normalize out"
        )
    return given


def _alike(one: Normalization, other: Normalization) -> bool:
    """Where one has a number for all channels, so has each of them."""
    return np.allclose(np.broadcast_to(np.array(one).T, (3, 2)), np.broadcast_to(np.array(other).T, (3, 2)), atol=1e-3)


def _checked(pixels: Normalization, model: str, dataset: Dataset, whose: str) -> Normalization:
    channels = 3 if "/" in model else dataset.image_shape[0]  # models of libraries take grey images as RGB
    if len(pixels.mean) not in (1, channels):
        raise InputError(f"{whose} mean and std are of {len(pixels.mean)} channels; {model} takes {channels}")
    return pixels


def _input_buffers(pixels: Normalization | None, own: Mapping[str, Tensor], dataset: Dataset) -> dict[str, Tensor]:
    """From the pixels that the data set gives to those that the weights expect; nothing where they are alike."""
    if pixels is None:
        return dict(own)
    scale, shift = between(dataset.normalization, pixels)
    if own:
        scale, shift = scale * own[SCALE], shift * own[SCALE] + own[SHIFT]
    return {SCALE: scale, SHIFT: shift}


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{each:.4g}" for each in values)
