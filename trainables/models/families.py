"""Model families as a table: a spec such as `mlp-1200` names one architecture."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.convnets import PLAIN, RESNET_DEPTHS, plain, resnet
from takd.trainables.models.dropout import Dropout
from takd.trainables.models.libraries import build_timm, build_torchvision, is_timm, is_torchvision


@dataclass(frozen=True)
class Family:
    """How a family's members are built.

    `build(size, image_shape, classes, dropout)` gives a module `[batch, channels, height, width] -> [batch, classes]`.
    """

    sizes: str  # what a size may be, for people: "mlp-H, H hidden units >= 1"
    valid_size: Callable[[str], bool]
    build: Callable[[str, ImageShape, int, Any], nn.Module]
    dropout: float | None = None  # what the family has unless a recipe says otherwise; None: it takes none
    own_dropout: bool = False  # each member has its own: `build` gets what the recipe says, or None
    convolutional: bool = False  # trained channels-last
    separator: str = "-"  # between the family's name and a size
    stacks: bool = False  # `takd.trainables.training.lanes` has a form for every layer, so that several train as one


def _mlp(size: str, image_shape: ImageShape, classes: int, dropout: float) -> nn.Module:
    """Hinton et al. 2015, section 3: two hidden layers of equal width."""
    pixels, hidden = image_shape[0] * image_shape[1] * image_shape[2], int(size)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, hidden),
        nn.ReLU(inplace=True),
        *_dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        *_dropout(dropout),
        nn.Linear(hidden, classes),
    )


def _cnn(size: str, image_shape: ImageShape, classes: int, dropout: float) -> nn.Module:
    """A teacher for MNIST: 3x3 convolutions without padding, the first max-pool with stride 1."""
    channels, height, width = image_shape
    flat = 64 * ((height - 5) // 2) * ((width - 5) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, stride=2),
        *_dropout(dropout),
        nn.Flatten(),
        nn.Linear(flat, 128),
        nn.ReLU(inplace=True),
        *_dropout(dropout),
        nn.Linear(128, classes),
    )


def _dropout(probability: float) -> list[nn.Module]:
    return [Dropout(probability)] if probability > 0 else []


FAMILIES: dict[str, Family] = {
    "mlp": Family(
        sizes="mlp-H with H >= 1 hidden units a layer",
        valid_size=lambda size: re.fullmatch(r"[1-9][0-9]{0,5}", size) is not None,
        build=_mlp,
        dropout=0.0,
        stacks=True,
    ),
    "cnn": Family(
        sizes="cnn",
        valid_size=lambda size: size == "",
        build=_cnn,
        dropout=0.5,
        convolutional=True,
    ),
    "plain": Family(
        sizes=f"plain-N with N one of {', '.join(PLAIN)}",
        valid_size=lambda size: size in PLAIN,
        build=plain,
        convolutional=True,
    ),
    "resnet": Family(
        sizes=f"resnet-N with N one of {', '.join(RESNET_DEPTHS)}",
        valid_size=lambda size: size in RESNET_DEPTHS,
        build=resnet,
        convolutional=True,
    ),
    "torchvision": Family(
        sizes="torchvision/NAME with a classification model of torchvision's",
        valid_size=is_torchvision,
        build=build_torchvision,
        own_dropout=True,
        convolutional=True,
        separator="/",
    ),
    "timm": Family(
        sizes="timm/NAME with a model of timm's (the extra timm)",
        valid_size=is_timm,
        build=build_timm,
        own_dropout=True,
        convolutional=True,
        separator="/",
    ),
}


def family_of(model: str) -> tuple[Family, str]:
    """The family of a model spec and the size in it; an unknown one raises InputError listing what exists."""
    separator = "/" if "/" in model else "-"
    name, _, size = model.partition(separator)
    family = FAMILIES.get(name)
    if family is None or (size and family.separator != separator) or not family.valid_size(size):
        raise InputError(
            f"model {model!r} does not exist; valid: {'; '.join(each.sizes for each in FAMILIES.values())}"
        )
    return family, size


def build(model: str, image_shape: ImageShape, classes: int, dropout: float | None = None) -> nn.Module:
    """A model with freshly initialised weights, from torch's global random state, on torch's default device."""
    family, size = family_of(model)
    if dropout is not None and family.dropout is None and not family.own_dropout:
        raise InputError(f"recipe.dropout: the family of {model!r} has no dropout")
    return family.build(size, image_shape, classes, family.dropout if dropout is None else dropout)


def check_model(model: str, image_shape: ImageShape, classes: int, dropout: float | None = None) -> nn.Module:
    """The model on the meta device, once it has taken two images; raises InputError where it can't.

    Fully connected models take images of any size and are not run: that makes torch load its compiler, for a second.
    """
    with torch.device("meta"), torch.no_grad():
        try:
            module = build(model, image_shape, classes, dropout).eval()
            if not family_of(model)[0].stacks:
                module(torch.empty(2, *image_shape))
        except InputError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            shape = "x".join(map(str, image_shape))
            raise InputError(f"model {model} can't take images of {shape}: {str(error).splitlines()[0]}") from None
    return module


def normalises_batches(module: nn.Module) -> bool:
    """Whether it takes means over a batch, which say nothing of a batch of one."""
    return bool(batch_norms(module))


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]


@dataclass(frozen=True)
class ModelSize:
    parameters: int
    flops: int  # of one forward pass of one image; a multiply-add is two


@lru_cache
def parameters_of(model: str, image_shape: ImageShape, classes: int) -> int:
    """Counted on torch's meta device: no weights are made."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build(model, image_shape, classes).parameters())


@lru_cache
def size_of(model: str, image_shape: ImageShape, classes: int) -> ModelSize:
    """On the meta device as well. Fully connected models are not run: that makes torch load its compiler: seconds."""
    parameters = parameters_of(model, image_shape, classes)
    with torch.device("meta"):
        module = build(model, image_shape, classes).eval()
        if family_of(model)[0].stacks:
            return ModelSize(parameters, sum(2 * each.numel() for each in module.parameters() if each.dim() == 2))
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module(torch.empty(1, *image_shape))
    return ModelSize(parameters, counter.get_total_flops())


def library_of(model: str) -> dict[str, str]:
    """The library whose code a model spec names, with its version; none of our own families."""
    library, slash, _ = model.partition("/")
    return {library: version(library)} if slash else {}
