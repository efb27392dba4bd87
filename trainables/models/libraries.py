"""Model families of torchvision and timm: `torchvision/resnet50`, `timm/resnetv2_50`. Weights are random here."""

import difflib
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.dropout import Dropout, StochasticDepth

# Models of torchvision that want more than a number of classes: auxiliary heads are left out, and a transformer is
# told the image's size.
_ARGUMENTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "googlenet": lambda height: {"aux_logits": False, "init_weights": False},
    "inception_v3": lambda height: {"aux_logits": False, "init_weights": False},
    "maxvit_t": lambda height: {"input_size": (height, height)},
    **{f"vit_{each}": lambda height: {"image_size": height} for each in ("b_16", "b_32", "l_16", "l_32", "h_14")},
}


@lru_cache
def torchvision_models() -> tuple[str, ...]:
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


@lru_cache
def timm_models() -> tuple[str, ...]:
    """Raises InputError where timm is not installed."""
    return tuple(_timm().list_models())


def _timm() -> Any:
    if find_spec("timm") is None:
        raise InputError("models timm/NAME need timm; install it: pip install 'takd[timm]'")
    import timm

    return timm


def is_torchvision(name: str) -> bool:
    """Raises InputError with names that are like it where there is none."""
    return _is_among(name, torchvision_models(), "torchvision")


def is_timm(name: str) -> bool:
    """As `is_torchvision`; a name may end in a tag of its weights (`resnet50.a1_in1k`)."""
    return _is_among(name.partition(".")[0], timm_models(), "timm")


def _is_among(name: str, valid: Sequence[str], library: str) -> bool:
    if name in valid:
        return True
    near = difflib.get_close_matches(name, valid, n=4) or valid[:4]
    raise InputError(
        f"model {library}/{name} does not exist; near: {', '.join(f'{library}/{each}' for each in near)} "
        f"({len(valid)} models)"
    )


def build_torchvision(name: str, image_shape: ImageShape, classes: int, dropout: float | None = None) -> nn.Module:
    import torchvision

    more = _ARGUMENTS.get(name, lambda height: {})(image_shape[1])
    module = _made(lambda: torchvision.models.get_model(name, weights=None, num_classes=classes, **more))
    return _as_ours(module, f"torchvision/{name}", image_shape, dropout)


def build_timm(name: str, image_shape: ImageShape, classes: int, dropout: float | None = None) -> nn.Module:
    rate = {} if dropout is None else {"drop_rate": dropout}
    timm = _timm()
    try:
        module = _made(lambda: timm.create_model(name, pretrained=False, num_classes=classes, **rate))
    except RuntimeError as error:  # an unknown tag
        raise InputError(f"model timm/{name}: {str(error).splitlines()[0]}") from None
    return _as_ours(module, f"timm/{name}", image_shape, dropout)


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    """On torch's default device; some compute on tensors while they are made, which the meta device can't."""
    try:
        return make()
    except (NotImplementedError, RuntimeError):
        default = torch.get_default_device()
        if default.type != "meta":
            raise
        with torch.device("cpu"):
            return make().to("meta")


def _as_ours(module: nn.Module, model: str, image_shape: ImageShape, dropout: float | None) -> nn.Module:
    """What it drops follows from seeds, and a grey image goes in as red, green and blue alike."""
    dropped = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout) and child.p > 0:
                setattr(parent, name, Dropout(child.p if dropout is None else dropout))
                dropped += 1
            elif type(child).__name__ in ("StochasticDepth", "DropPath"):
                setattr(parent, name, StochasticDepth(float(getattr(child, "p", 0) or getattr(child, "drop_prob", 0))))
    if dropout and not dropped:
        raise InputError(f"recipe.dropout: {model} has no dropout")
    if image_shape[0] not in (1, 3):
        raise InputError(f"model {model} takes grey images or RGB ones; these have {image_shape[0]} channels")
    if image_shape[0] == 1:
        module.register_forward_pre_hook(_grey_as_rgb)
    return module


def _grey_as_rgb(module: nn.Module, images: tuple[Tensor]) -> Tensor:
    return images[0].expand(-1, 3, -1, -1)
