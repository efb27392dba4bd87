"""Models of a user's code: built, made ours where they draw random numbers, and tried before anything starts."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from takd.search_spaces import InputError
from takd.search_spaces.registry import Family, Origin, blamed
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.dropout import ChannelDropout, Dropout

IMAGES = 4  # that a model is tried on
CLOSE = 1e-4  # between two passes that should be the same: threads add in any order

_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def built_by(family: Family, origin: Origin, model: str, given: tuple[Any, ...], own: Mapping[str, Any]) -> nn.Module:
    """What a user's function makes, with dropout that follows from seeds; raises InputError with the user's line."""
    try:
        module = _made(lambda: family.build(*given, **own))
    except InputError:
        raise
    except Exception as error:
        raise blamed(error, f"{origin}: model {model}") from None
    if not isinstance(module, nn.Module):
        raise InputError(f"{origin}: model {model}: expected an nn.Module, got {type(module).__name__}")
    dropped = _seeded(module)
    if own.get("dropout") and not dropped:
        raise InputError(f"{origin}: model {model} takes dropout {own['dropout']:g} and has no layer that drops")
    return module


def _made(make: Callable[[], Any]) -> Any:
    """On torch's default device; what can't be made without weights, as the meta device has none, is made with."""
    if torch.get_default_device().type != "meta":
        return make()
    try:
        return make()
    except (NotImplementedError, RuntimeError):
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            module = make()
        return module.to("meta") if isinstance(module, nn.Module) else module


def _seeded(module: nn.Module) -> int:
    """Puts ours in the place of torch's dropout; returns how many layers drop."""
    replaced: dict[int, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.modules.dropout._DropoutNd) and type(child) in (nn.Dropout, *_CHANNELS):
                ours = Dropout if type(child) is nn.Dropout else ChannelDropout
                if id(child) not in replaced:
                    replaced[id(child)] = ours(child.p) if child.p > 0 else nn.Identity()
                setattr(parent, name, replaced[id(child)])
    return sum(isinstance(each, Dropout) for each in module.modules())


def check_own(make: Callable[[], nn.Module], origin: Origin, model: str, image_shape: ImageShape, classes: int) -> None:
    """Builds and runs a model of a user's code for real; raises InputError with the user's file and line.

    Its weights must follow from torch's seed, what it computes from its weights and the seeds of its dropout, and what
    it gives out must be logits `[images, classes]` that its weights have a gradient of.
    """
    with _random_kept(), torch.device("cpu"):
        module, again = (_from_seed(make) for _ in range(2))
        _own_weights(module, again, origin, model)
        _same_weights(module, again, origin, model)
        images = torch.randn(IMAGES, *image_shape, generator=torch.Generator().manual_seed(0))
        first, second = (_pass(each, images, origin, model, seed) for seed, each in enumerate((module, again)))
        expected = [IMAGES, classes]
        if not isinstance(first, Tensor) or list(first.shape) != expected or not first.is_floating_point():
            got = f"{first.dtype} {list(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
            raise InputError(
                f"{origin}: model {model} gives {got} of {IMAGES} images; expected logits {expected}, one a class"
            )
        if not first.isfinite().all():
            raise InputError(f"{origin}: model {model} gives logits that are no finite numbers")
        if not torch.allclose(first, second, atol=CLOSE, rtol=CLOSE):
            raise InputError(
                f"{origin}: model {model} draws random numbers while it computes; of these only nn.Dropout's follow "
                "from seeds"
            )
        if not first.requires_grad:
            raise InputError(f"{origin}: model {model} has no weights that its logits have a gradient of")
        _each_image_alone(module, images, origin, model)


def _from_seed(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def _own_weights(module: nn.Module, again: nn.Module, origin: Origin, model: str) -> None:
    """Two builds have weights of their own, which are there."""
    tensors = [dict(each.named_parameters()) | dict(each.named_buffers()) for each in (module, again)]
    for name, tensor in tensors[0].items():
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"{origin}: model {model}: {name} has no size yet, as of a lazy layer; say its size")
        if tensor.numel() and any(tensor.data_ptr() == each.data_ptr() for each in tensors[1].values()):
            raise InputError(
                f"{origin}: model {model} has the same weights each time it is built ({name}); make its layers in the "
                "function"
            )


def _each_image_alone(module: nn.Module, images: Tensor, origin: Origin, model: str) -> None:
    """In evaluation a model says of an image what it says of it beside others; then any batch may be asked of it."""
    with torch.no_grad():
        together = module.eval()(images)
        try:
            alone = module(images[:1])
        except Exception as error:
            raise blamed(error, f"{origin}: model {model} with one image in evaluation") from None
    if not isinstance(alone, Tensor) or list(alone.shape) != [1, *together.shape[1:]]:
        got = list(alone.shape) if isinstance(alone, Tensor) else type(alone).__name__
        expected = [1, *together.shape[1:]]
        raise InputError(f"{origin}: model {model} gives {got} of one image; expected logits {expected}")
    if not torch.allclose(alone, together[:1], atol=CLOSE, rtol=CLOSE):
        raise InputError(
            f"{origin}: model {model} says something else of an image in evaluation where others are in its batch"
        )


def _same_weights(module: nn.Module, again: nn.Module, origin: Origin, model: str) -> None:
    one, other = module.state_dict(), again.state_dict()
    for name, tensor in one.items():
        there = name in other and tensor.shape == other[name].shape
        if not there or not torch.allclose(tensor, other[name], atol=0, rtol=0, equal_nan=True):
            raise InputError(
                f"{origin}: model {model} is another each time it is built from one seed ({name} differs); draw from "
                "torch alone, not from Python's random or NumPy"
            )


def _pass(module: nn.Module, images: Tensor, origin: Origin, model: str, seed: int) -> Any:
    """What it gives out in training, with the same dropout whatever `seed` torch, Python and NumPy have."""
    for number, layer in enumerate(each for each in module.modules() if isinstance(each, Dropout)):
        layer.seed([(0, number)])
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        return module.train()(images)
    except Exception as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise blamed(error, f"{origin}: model {model} with images of {shape}") from None


@contextmanager
def _random_kept() -> Iterator[None]:
    """The random states of who called stay as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
