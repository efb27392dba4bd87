"""What is inside a model and taught by some methods: the embedding, which is what enters its head."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from takd.search_spaces import InputError
from takd.search_spaces.registry import origin_of
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.dropout import Dropout
from takd.trainables.models.families import build, family_name
from takd.trainables.models.layers import stack_together
from takd.trainables.models.pretrained import heads_of
from takd.trainables.training.inputs import Pixels, of_all
from takd.trainables.training.lanes import LaneModel


class Embedding(NamedTuple):
    """Of a model: the first layer of its head, by its name, and how many features enter it."""

    head: str
    features: int


def embedding_in(model: str, image_shape: ImageShape, classes: int) -> Embedding:
    """Found on the meta device, where there are no weights; raises InputError on a model that has none.

    The head is the last layer that is fully connected or a convolution, with the dropout right before it. Where maps
    enter it they are averaged over their places.
    """
    origin = origin_of("model_family", family_name(model))
    return _embedding_in(model, image_shape, classes, origin.digest if origin else None)


@lru_cache
def _embedding_in(model: str, image_shape: ImageShape, classes: int, digest: str | None) -> Embedding:
    with torch.device("meta"), torch.no_grad():
        module = build(model, image_shape, classes).eval()
        if stack_together(module):  # running those on the meta device makes torch load its compiler
            return _of_fully_connected(model, module)
        try:
            return _watched(module, torch.empty(2, *image_shape))
        except (NotImplementedError, RuntimeError):
            if digest is None:
                raise
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # what a user's code does with numbers needs some
        return _watched(build(model, image_shape, classes).eval(), torch.zeros(2, *image_shape))


def _of_fully_connected(model: str, module: nn.Module) -> Embedding:
    leaves = [(name, each) for name, each in module.named_modules() if not any(True for _ in each.children())]
    linears = [place for place, (_, each) in enumerate(leaves) if isinstance(each, nn.Linear)]
    head, last = linears[-1], leaves[linears[-1]][1]
    assert isinstance(last, nn.Linear)
    if len(linears) == 1:
        raise InputError(f"{model} is its head alone: what enters that is the image, of which nothing can be learned")
    while isinstance(leaves[head - 1][1], Dropout):
        head -= 1
    return Embedding(leaves[head][0], last.in_features)


def _watched(module: nn.Module, images: Tensor) -> Embedding:
    calls: list[tuple[str, Tensor, Tensor]] = []
    leaves = [(name, each) for name, each in module.named_modules() if name and not any(True for _ in each.children())]
    hooks = [
        each.register_forward_hook(lambda _, given, result, name=name: calls.append((name, given[0], result)))
        for name, each in leaves
    ]
    try:
        module(images)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _, _ in calls]
    heads = [name for name in heads_of(module) if name in names]
    at = names.index(heads[-1])
    while at and calls[at - 1][2] is calls[at][1] and isinstance(module.get_submodule(names[at - 1]), Dropout):
        at -= 1
    return Embedding(names[at], calls[at][1].shape[1])


@contextmanager
def entering(model: LaneModel, head: str) -> Iterator[list[Tensor]]:
    """A context in which what enters a layer of the lanes' model is put into the list, at each forward pass."""
    found: list[Tensor] = []
    hook = model.layers.get_submodule(head).register_forward_pre_hook(lambda _, given: found.append(given[0]))
    try:
        yield found
    finally:
        hook.remove()


def by_lane(entered: Tensor, stacked: bool) -> Tensor:
    """Embeddings float32 `[lanes, images, features]`, of what entered the head of lanes."""
    if stacked:  # [lanes, features, images]
        return entered.float().transpose(1, 2)
    whole = entered.float()  # [images, features, ...]
    return (whole.mean(dim=(2, 3)) if whole.dim() == 4 else whole.flatten(1)).unsqueeze(0)


@torch.no_grad()
def embeddings(model: LaneModel, spec: str, dataset: Dataset, images: Pixels) -> Tensor:
    """Of all images, `[images, features]` on the CPU, in evaluation mode and float32, of a model of one lane."""
    head = embedding_in(spec, dataset.image_shape, len(dataset.classes)).head
    model.eval()
    with entering(model, head) as found:

        def embed(batch: Tensor) -> Tensor:
            found.clear()
            model(batch)
            return by_lane(found.pop(), model.stacked)[0]

        return of_all(images, embed, dim=0).cpu()
