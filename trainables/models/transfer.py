"""A recipe in two parts: the new head of a pretrained model alone, then the layers from one on, at a smaller rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from takd.search_spaces import InputError, Recipe
from takd.trainables.models.dropout import Dropout
from takd.trainables.models.families import batch_norms
from takd.trainables.models.pretrained import heads_of


@dataclass(frozen=True)
class Part:
    """Epochs of a run over which the schedule runs once; `factor` is of the learning rate."""

    start: int
    epochs: int
    factor: float = 1.0


def part_of(recipe: Recipe, epoch: int) -> Part:
    """The part that an epoch (from 0) is in; a recipe without `head_epochs` has one."""
    if recipe.head_epochs is None:
        return Part(0, recipe.epochs)
    if epoch < recipe.head_epochs:
        return Part(0, recipe.head_epochs)
    return Part(recipe.head_epochs, recipe.epochs - recipe.head_epochs, recipe.finetune_factor or 1.0)


def check_layer(model: str, module: nn.Module, name: str) -> None:
    """Raises InputError where a model has no such layer to train from."""
    if name not in _layers(module):
        top = [each for each, _ in module.named_children() if each in _layers(module)]
        inner = next((each for each in _layers(module) if "." in each), None)
        raise InputError(
            f"finetune_from is {name!r}; the layers of {model} are {', '.join(top)}"
            + (f"; a part of one, such as {inner}, is one too" if inner else "")
        )


def _layers(module: nn.Module, prefix: str = "") -> list[str]:
    """Layers with weights, in order: the module's own, and those in layers that are sequences."""
    found = []
    for name, child in module.named_children():
        if any(True for _ in child.parameters()):
            found.append(f"{prefix}{name}")
            found += _layers(child, f"{prefix}{name}.") if isinstance(child, nn.Sequential) else []
    return found


def train_head(module: nn.Module, head: "Head") -> None:
    """Training mode for the head alone; all else stands still, in evaluation mode."""
    module.eval().requires_grad_(False)
    for name in head.layers:
        module.get_submodule(name).train().requires_grad_(True)


def freeze_norm(module: nn.Module) -> None:
    """Batch normalisation stays as it is: by its running means and variances, with its scale and shift, none trained.

    As torchvision's `FrozenBatchNorm2d` and timm's `freeze_batch_norm_2d` have it. To be called after what puts a model
    into training mode.
    """
    for each in batch_norms(module):
        each.eval().requires_grad_(False)


def train_from(module: nn.Module, first: str | None) -> None:
    """Training mode for a layer and all after it in the module's order; what is before stands still. None: all train.

    What stands still is in evaluation mode: its batch normalisation keeps its means, its dropout drops nothing.
    """
    module.train().requires_grad_(True)
    if first is None:
        return
    for name, each in module.named_modules():
        if name == first:
            return
        for weight in each.parameters(recurse=False):
            weight.requires_grad_(False)
        if name and not first.startswith(f"{name}."):
            each.training = False


@dataclass(frozen=True)
class Head:
    """What of a model trains while its backbone stands still: the new layer, with the dropout right before it.

    Where several new layers give logits it is all of these.
    """

    layers: tuple[str, ...]
    whole: bool  # the model is its backbone and then these layers, nothing beside or between

    @property
    def first(self) -> str:
        return self.layers[0]


@torch.no_grad()
def find_head(module: nn.Module, images: Tensor) -> Head:
    """By what a few images `[batch, ...]` go through."""
    module.eval()
    calls: list[tuple[str, Any, Any]] = []

    def watch(name: str) -> Any:
        return lambda _, given, result: calls.append((name, given[0] if given else None, result))

    leaves = [(name, each) for name, each in module.named_modules() if name and not any(True for _ in each.children())]
    hooks = [each.register_forward_hook(watch(name)) for name, each in leaves]
    try:
        logits = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _, _ in calls]
    heads = [name for name in heads_of(module) if name in names]
    start = at = names.index(heads[-1])
    while (
        at
        and calls[at - 1][2] is calls[at][1]
        and not any(True for _ in module.get_submodule(names[at - 1]).parameters())
    ):
        at -= 1
        if isinstance(module.get_submodule(names[at]), Dropout):
            start = at
    if len(heads) > 1:
        return Head(tuple(dict.fromkeys([*heads, *names[start:]])), whole=False)
    layers = tuple(names[start:])
    again = over_features(module, layers)(calls[start][1])
    return Head(layers, again.shape == logits.shape and torch.allclose(again, logits, rtol=1e-4, atol=1e-5))


def over_features(module: nn.Module, layers: Sequence[str]) -> nn.Sequential:
    """The head alone: from what goes into its first layer to logits `[batch, classes]`."""
    return nn.Sequential(*map(module.get_submodule, layers), nn.Flatten())
