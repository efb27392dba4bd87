"""Model families as a table: a spec such as `mlp-1200` names one architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import torch
from torch import nn

from takd.search_spaces import InputError
from takd.search_spaces.registry import PAGE, TABLES, Family, Origin, model_family, nearest, origin_of
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models import cifar_nets, convnets
from takd.trainables.models.cifar_nets import VGG
from takd.trainables.models.convnets import PLAIN, RESNET_DEPTHS
from takd.trainables.models.dropout import Dropout
from takd.trainables.models.layers import stack_together
from takd.trainables.models.libraries import build_timm, build_torchvision, is_timm, is_torchvision
from takd.trainables.models.own import built_by, check_own

FAMILIES: Mapping[str, Family] = TABLES["model_family"]

Size = int | str | None


@model_family(
    "mlp",
    sizes="mlp-H with H >= 1 hidden units a layer",
    valid=lambda size: isinstance(size, int) and 1 <= size < 10**6,
)
def _mlp(size: int, image_shape: ImageShape, classes: int, dropout: float = 0.0) -> nn.Module:
    """Hinton et al. 2015, section 3: two hidden layers of equal width."""
    pixels, hidden = image_shape[0] * image_shape[1] * image_shape[2], size
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


@model_family("cnn", sizes="cnn", valid=lambda size: size is None)
def _cnn(size: None, image_shape: ImageShape, classes: int, dropout: float = 0.5) -> nn.Module:
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


model_family("plain", sizes=f"plain-N with N one of {', '.join(map(str, PLAIN))}", valid=lambda size: size in PLAIN)(
    convnets.plain
)
model_family(
    "resnet",
    sizes=f"resnet-N and resnet-Nx4 with N one of {', '.join(map(str, RESNET_DEPTHS))}",
    valid=convnets.is_resnet,
)(convnets.resnet)
model_family("wrn", sizes="wrn-D-W with a depth D of 6n + 4 and a width W, such as wrn-40-2", valid=cifar_nets.is_wide)(
    cifar_nets.wide
)
model_family("vgg", sizes=f"vgg-N with N one of {', '.join(map(str, VGG))}", valid=lambda size: size in VGG)(
    cifar_nets.vgg
)
model_family("shufflenet", sizes="shufflenet-v1", valid=lambda size: size == "v1")(cifar_nets.shufflenet)
model_family(
    "torchvision",
    sizes="torchvision/NAME with a classification model of torchvision's",
    valid=lambda size: is_torchvision(str(size or "")),
    separator="/",
)(build_torchvision)
model_family(
    "timm",
    sizes="timm/NAME with a model of timm's (the extra timm)",
    valid=lambda size: is_timm(str(size or "")),
    separator="/",
)(build_timm)


def family_name(model: str) -> str:
    """Of a model spec, whether there is such a family or not."""
    return model.partition("/" if "/" in model else "-")[0]


def family_of(model: str) -> tuple[Family, Size]:
    """The family of a model spec and the size in it; an unknown one raises InputError listing what exists."""
    separator = "/" if "/" in model else "-"
    name, found, tail = model.partition(separator)
    family = FAMILIES.get(name)
    size = _size(tail) if found else None
    known = family is not None and not (found and (family.separator != separator or not tail or size == ""))
    if family is None or not known or not (family.valid is None or family.valid(size)):
        raise InputError(
            f"model {model!r} does not exist; valid: {'; '.join(each.sizes for each in FAMILIES.values())}; "
            f"{nearest(name, FAMILIES) if family is None else ''}{PAGE} says how to bring one of your own"
        )
    return family, size


def _size(tail: str) -> Size:
    """A number is written in one way, or two names would mean one model; empty where it is not."""
    if tail.isascii() and tail.isdigit() and len(tail) < 19:
        return int(tail) if tail == "0" or tail[0] != "0" else ""
    return tail


def build(model: str, image_shape: ImageShape, classes: int, dropout: float | None = None) -> nn.Module:
    """A model with freshly initialised weights, from torch's global random state, on torch's default device."""
    family, size = family_of(model)
    if dropout is not None and not family.takes_dropout:
        raise InputError(f"recipe.dropout: the family of {model!r} has no dropout")
    own = {"dropout": family.dropout if dropout is None else dropout} if family.takes_dropout else {}
    origin = _own_origin(model)
    if origin is not None:
        return built_by(family, origin, model, (size, image_shape, classes), own)
    module: nn.Module = family.build(size, image_shape, classes, **own)
    return module


def _own_origin(model: str) -> Origin | None:
    """Where a family of a user's code was defined; None of takd's own."""
    origin = origin_of("model_family", family_name(model))
    return origin if origin and origin.digest else None


def check_model(model: str, image_shape: ImageShape, classes: int, dropout: float | None = None) -> nn.Module:
    """The model on the meta device, once it has taken two images; raises InputError where it can't.

    Fully connected models take images of any size and are not run: that makes torch load its compiler, for a second.
    Those of a user's code are built and run for real: what they give out must have the right shape, and follow from
    the seed.
    """
    if (origin := _own_origin(model)) is not None:
        check_own(lambda: build(model, image_shape, classes, dropout), origin, model, image_shape, classes)
    with torch.device("meta"), torch.no_grad():
        try:
            module = build(model, image_shape, classes, dropout).eval()
            if not stack_together(module) and origin is None:
                module(torch.empty(2, *image_shape))
        except InputError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            shape = "x".join(map(str, image_shape))
            raise InputError(f"model {model} can't take images of {shape}: {str(error).splitlines()[0]}") from None
    return module


def stacks(model: str, image_shape: ImageShape, classes: int) -> bool:
    """Whether several members train as one stacked model: whether there is a form for all their layers."""
    return _form(model, image_shape, classes, _digest_of(model))[0]


def convolutional(model: str, image_shape: ImageShape, classes: int) -> bool:
    """Whether it has convolutions over images: such models are trained channels-last."""
    return _form(model, image_shape, classes, _digest_of(model))[1]


def _digest_of(model: str) -> str | None:
    origin = _own_origin(model)
    return origin.digest if origin else None


@lru_cache
def _form(model: str, image_shape: ImageShape, classes: int, digest: str | None) -> tuple[bool, bool]:
    """Of the code with that digest, whether members stack, and whether they have convolutions."""
    with torch.device("meta"):
        module = build(model, image_shape, classes)
    return stack_together(module), any(isinstance(each, nn.Conv2d) for each in module.modules())


def normalises_batches(module: nn.Module) -> bool:
    """Whether it takes means over a batch, which say nothing of a batch of one."""
    return bool(batch_norms(module))


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]


@dataclass(frozen=True)
class ModelSize:
    parameters: int
    flops: int  # of one forward pass of one image; a multiply-add is two


def parameters_of(model: str, image_shape: ImageShape, classes: int) -> int:
    """Counted on torch's meta device: no weights are made."""
    return _parameters_of(model, image_shape, classes, _digest_of(model))


@lru_cache
def _parameters_of(model: str, image_shape: ImageShape, classes: int, digest: str | None) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build(model, image_shape, classes).parameters())


def size_of(model: str, image_shape: ImageShape, classes: int) -> ModelSize:
    """On the meta device as well. Fully connected models are not run: that makes torch load its compiler: seconds."""
    return _size_of(model, image_shape, classes, _digest_of(model))


@lru_cache
def _size_of(model: str, image_shape: ImageShape, classes: int, digest: str | None) -> ModelSize:
    parameters = parameters_of(model, image_shape, classes)
    with torch.device("meta"):
        module = build(model, image_shape, classes).eval()
        try:
            return size_of_module(module, image_shape)
        except (NotImplementedError, RuntimeError):
            if digest is None:
                raise
    # What a user's code does with numbers, such as `.item()`, needs some.
    return ModelSize(parameters, _flops(build(model, image_shape, classes).eval(), image_shape))


def size_of_module(module: nn.Module, image_shape: ImageShape) -> ModelSize:
    """On torch's default device, where the module is."""
    parameters = sum(weight.numel() for weight in module.parameters())
    if stack_together(module):
        return ModelSize(parameters, sum(2 * each.numel() for each in module.parameters() if each.dim() == 2))
    return ModelSize(parameters, _flops(module, image_shape))


def _flops(module: nn.Module, image_shape: ImageShape) -> int:
    """Of one image, on torch's default device."""
    from torch.utils.flop_counter import FlopCounterMode  # it loads triton

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(torch.zeros(1, *image_shape))
    return counter.get_total_flops()


def library_of(model: str) -> dict[str, str]:
    """The library whose code a model spec names, with its version; none of our own families."""
    library, slash, _ = model.partition("/")
    return {library: version(library)} if slash and _own_origin(model) is None else {}
