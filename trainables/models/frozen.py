"""Layers that stand still: where a network is cut, what enters the layers above, and these alone as they train.

The network stays whole. Above the cut it is run as it is written; what runs below is left out, and in the place of what
would come from there is what was kept of it.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from takd.search_spaces import Kept, Stage
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.dropout import Dropout
from takd.trainables.models.families import build, digest_of, flops_of, size_of
from takd.trainables.models.transfer import Head, find_head, over_features

Values = np.ndarray[Any, np.dtype[np.float32]]
NOISE = 0.1  # of the deviation of each weight: so that none is zero, behind which a second way could hide


class Cut(NamedTuple):
    """Of a network: the first layer that runs of those that train, and what runs before it."""

    layer: str
    shape: tuple[int, ...]  # of what enters it, of one image
    image: tuple[int, ...]  # channels, height, width
    below: Mapping[str, tuple[int, ...]]  # by layer, the shape of what it gives for a batch of one image


def cut_in(
    model: str, image_shape: ImageShape, classes: int, dropout: float | None = None, *, first: str
) -> Cut | None:
    """Where a model is cut that trains from the layer `first` on.

    None where more than one tensor comes from below, or the layers don't run in their order.
    """
    return _cut_in(model, image_shape, classes, dropout, first, digest_of(model))


@lru_cache
def _cut_in(
    model: str, image_shape: ImageShape, classes: int, dropout: float | None, first: str, digest: str | None
) -> Cut | None:
    module, images = _noisy(model, image_shape, classes, dropout)
    return find_cut(module, images, first)


def head_in(
    model: str, image_shape: ImageShape, classes: int, dropout: float | None = None
) -> tuple[Head, tuple[int, ...]]:
    """The head of a model, and the shape of what enters it of one image."""
    return _head_in(model, image_shape, classes, dropout, digest_of(model))


@lru_cache
def _head_in(
    model: str, image_shape: ImageShape, classes: int, dropout: float | None, digest: str | None
) -> tuple[Head, tuple[int, ...]]:
    module, images = _noisy(model, image_shape, classes, dropout)
    head = find_head(module, images)
    with torch.no_grad(), entered(module, [head.first]) as found:
        module(images)
    return head, tuple(found[head.first].shape[1:])


def _noisy(model: str, image_shape: ImageShape, classes: int, dropout: float | None) -> tuple[nn.Module, Tensor]:
    """With random weights, none of them zero, and three images; what else draws random numbers is not disturbed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = build(model, image_shape, classes, dropout).eval()
        for each in module.parameters():
            deviation = float(each.std()) if each.numel() > 1 else 0.0
            each.add_(torch.randn_like(each), alpha=NOISE * (deviation if deviation > 0 else 1.0))
        return module, torch.randn(3, *image_shape)


class _ReachedError(Exception):
    """All that was asked for is there: what runs after it is not wanted."""


@contextmanager
def entered(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A context in which what enters these layers is found by name; a forward pass ends it when all is there."""
    found: dict[str, Tensor] = {}

    def note(layer: str) -> Any:
        def take(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[layer] = given[0].clone()
            if len(found) == len(set(layers)):
                raise _ReachedError

        return take

    hooks = [module.get_submodule(layer).register_forward_pre_hook(note(layer)) for layer in layers]
    try:
        yield found
    except _ReachedError:
        pass
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def find_cut(module: nn.Module, images: Tensor, first: str) -> Cut | None:
    """By what a few images `[few, ...]` go through; then the layers above are run alone, and must say the same."""
    module.eval()
    still = _still(module, first)
    began: list[tuple[str, Any]] = []
    gave: dict[str, list[Any]] = {}

    def begins(name: str) -> Any:
        def note(_: nn.Module, given: tuple[Any, ...]) -> None:
            into = given[0] if given else None
            if isinstance(into, Tensor) and name not in still:  # what runs above may change it in its place
                into = into.clone()
            began.append((name, into))

        return note

    def ends(name: str) -> Any:
        return lambda _, __, result: gave.setdefault(name, []).append(result)

    hooks = []
    for name, each in module.named_modules():
        if name:
            hooks += [each.register_forward_pre_hook(begins(name)), each.register_forward_hook(ends(name))]
    try:
        whole = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _ in began]
    at = next((place for place, name in enumerate(names) if name not in still and not first.startswith(f"{name}.")), 0)
    layer, into = began[at]
    before = set(names[:at])
    below = [
        name
        for name in dict.fromkeys(names[:at])
        if name in still and not any(_within(name, each) for each in still & before)
    ]
    once = all(names.count(name) == 1 for name in [layer, *below])
    if not once or not below or not all(_by_image(each, images) for each in [into, *(gave[name][0] for name in below)]):
        return None
    shapes = {name: (len(gave[name][0]) // len(images), *gave[name][0].shape[1:]) for name in below}
    cut = Cut(layer, tuple(into.shape[1:]), tuple(images.shape[1:]), shapes)
    if len(into) != len(images):
        return None
    try:
        found = above(module, cut, into)
    except (RuntimeError, ValueError, TypeError, IndexError):  # what runs between layers wants more than their shapes
        return None
    same = isinstance(whole, Tensor) and whole.shape == found.shape and bool(torch.isfinite(whole).all())
    return cut if same and torch.allclose(whole, found, rtol=1e-4, atol=1e-5 * float(whole.abs().max())) else None


def _still(module: nn.Module, first: str) -> set[str]:
    """The layers that stand still where `first` and all after it train, as `train_from` has it."""
    found: set[str] = set()
    for name, _ in module.named_modules():
        if name == first:
            break
        if name and not first.startswith(f"{name}."):
            found.add(name)
    return found


def _within(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _by_image(given: Any, images: Tensor) -> bool:
    return isinstance(given, Tensor) and given.dim() > 0 and len(given) > 0 and len(given) % len(images) == 0


def above(module: nn.Module, cut: Cut, rows: Tensor) -> Tensor:
    """What the whole network gives for images whose way through the layers below the cut has led to these rows."""
    number, zero = len(rows), rows.new_zeros(())

    def left_out(shape: tuple[int, ...]) -> Any:
        return lambda *_, **__: zero.expand(shape[0] * number, *shape[1:])

    first = module.get_submodule(cut.layer)
    into = first.forward
    instead: dict[str, Any] = {cut.layer: lambda _, *more, **named: into(rows, *more, **named)}
    instead |= {name: left_out(shape) for name, shape in cut.below.items()}
    with ExitStack() as stack:
        for name, forward in instead.items():
            stack.enter_context(_forward(module.get_submodule(name), forward))
        # Not by a call: what is done to images before the first layer would be done to all of these.
        found: Tensor = module.forward(zero.expand(number, *cut.image))
    return found


@contextmanager
def _forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """A context in which a layer computes this in the place of its own; its hooks hear of it."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


class Rows:
    """What enters a cut, of all images of a set: memory-mapped on a CPU, on a GPU there; a batch by its places."""

    def __init__(
        self,
        values: Values | Tensor,
        image_shape: Sequence[int],
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self.values, self.layout = _mapped(values).to(device), layout
        # Of the images that they stand for: what comes of a row may take as much memory as what comes of one of these.
        self.image_shape = tuple(image_shape) if self.values.dim() > 2 else tuple(self.values.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """`[batch, ...]`"""
        # Always copies: some layers write into what they are given.
        rows = self.values[index].clone() if isinstance(index, slice) else self.values.index_select(0, index)
        return rows.contiguous(memory_format=self.layout) if rows.dim() == 4 else rows


def _mapped(values: Values | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it can't be written to, and is not
        return torch.from_numpy(values)


def trains_heads(stage: Stage, image_shape: ImageShape, classes: int) -> bool:
    """Whether all that trains of a stage is one fully connected layer on what is kept: such train as lanes."""
    if stage.frozen is None or stage.frozen.head is None or stage.role != "student" or stage.terms:
        return False
    if stage.recipe.head_epochs != stage.recipe.epochs:
        return False
    head, shape = head_in(stage.model, image_shape, classes, stage.recipe.dropout)
    with torch.device("meta"):
        module = build(stage.model, image_shape, classes, stage.recipe.dropout)
    layers = [module.get_submodule(name) for name in head.layers]
    return head.whole and len(shape) == 1 and [*map(type, layers)] == [Dropout] * (len(layers) - 1) + [nn.Linear]


def whole_epochs(stage: Stage, image_shape: ImageShape, classes: int, epochs: int) -> float:
    """How many epochs of all layers cost as much as so many of a stage: of those that stand still nothing is counted
    where it is kept what they give, as nothing of what others derive is; else as `Recipe.whole_epochs` has it."""
    kept, recipe = stage.frozen or Kept(), stage.recipe
    head = min(epochs, recipe.head_epochs or 0)
    whole = size_of(stage.model, image_shape, classes).flops
    if kept.head is not None:
        costs = head * _flops_of_head(stage.model, image_shape, classes, digest_of(stage.model)) / whole
    else:
        costs = recipe.model_copy(update={"epochs": head, "head_epochs": head or None}).whole_epochs
    above = (
        _flops_above(stage.model, image_shape, classes, kept.rest, digest_of(stage.model)) / whole if kept.rest else 1
    )
    return costs + (epochs - head) * above


@lru_cache
def _flops_of_head(model: str, image_shape: ImageShape, classes: int, digest: str | None) -> int:
    head, shape = head_in(model, image_shape, classes)
    with torch.device("meta"):
        layers = over_features(build(model, image_shape, classes).eval(), head.layers)
        return flops_of(lambda: layers(torch.empty(1, *shape)))


@lru_cache
def _flops_above(model: str, image_shape: ImageShape, classes: int, first: str, digest: str | None) -> int:
    cut = cut_in(model, image_shape, classes, first=first)
    assert cut
    with torch.device("meta"):
        module = build(model, image_shape, classes).eval()
        return flops_of(lambda: above(module, cut, torch.empty(1, *cut.shape)))
