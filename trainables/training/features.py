"""What is inside a model and taught by some methods: the embedding, which is what enters its head, and layers' maps."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from takd.trainables.training.devices import tf32
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


Map = tuple[int, int, int]  # channels, height, width


def maps_in(model: str, image_shape: ImageShape, classes: int) -> Mapping[str, Map]:
    """By layer, in the order in which they run, the maps that a model has of one image; empty where it has none."""
    origin = origin_of("model_family", family_name(model))
    return _maps_in(model, image_shape, classes, origin.digest if origin else None)


@lru_cache
def _maps_in(model: str, image_shape: ImageShape, classes: int, digest: str | None) -> dict[str, Map]:
    with torch.device("meta"), torch.no_grad():
        module = build(model, image_shape, classes).eval()
        if stack_together(module):
            return {}
        try:
            return _mapped(module, torch.empty(2, *image_shape))
        except (NotImplementedError, RuntimeError):
            if digest is None:
                raise
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return _mapped(build(model, image_shape, classes).eval(), torch.zeros(2, *image_shape))


def _mapped(module: nn.Module, images: Tensor) -> dict[str, Map]:
    found: dict[str, Map] = {}

    def note(name: str, result: object) -> None:
        if isinstance(result, Tensor) and result.dim() == 4 and result.shape[2] * result.shape[3] > 1:
            found[name] = (result.shape[1], result.shape[2], result.shape[3])

    hooks = [
        each.register_forward_hook(lambda _, __, result, name=name: note(name, result))
        for name, each in module.named_modules()
        if name
    ]
    try:
        module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def stages_in(model: str, image_shape: ImageShape, classes: int) -> list[str]:
    """The last layer of each stage of a model, which are its layers whose maps have one size: `layer1`, `layer2`...

    Of layers within one another it is the outermost, other than the whole of a sequence.
    """
    maps = maps_in(model, image_shape, classes)
    with torch.device("meta"):
        module = build(model, image_shape, classes)
    sequences = {
        name for name, each in module.named_modules() if type(each) is nn.Sequential and _changes(each, maps, name)
    }
    outer = [name for name in maps if name not in sequences and not _within(name, maps, sequences)]
    ends: list[str] = []
    for name in outer:
        if ends and maps[ends[-1]][1:] == maps[name][1:]:
            ends[-1] = name
        else:
            ends.append(name)
    return ends


def _changes(module: nn.Module, maps: Mapping[str, Map], name: str) -> bool:
    """Whether a sequence has stages in it: the maps of its parts have several sizes, after the first."""
    parts = [maps[f"{name}.{each}"][1:] for each, _ in module.named_children() if f"{name}.{each}" in maps]
    return len(set(parts)) > 1


def _within(name: str, maps: Mapping[str, Map], sequences: set[str]) -> bool:
    """Whether it is a part of another layer that has maps and is no sequence of stages."""
    path = name.split(".")
    above = [".".join(path[:end]) for end in range(1, len(path))]
    return any(each in maps and each not in sequences for each in above)


def check_map(model: str, image_shape: ImageShape, classes: int, layer: str) -> None:
    """Raises InputError where a model has no maps of a layer by that name."""
    maps = maps_in(model, image_shape, classes)
    if layer not in maps:
        near = difflib.get_close_matches(layer, list(maps), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        stages = stages_in(model, image_shape, classes)
        raise InputError(f"{model} has no maps of a layer {layer!r}; {hint}the last layers of its stages are {stages}")


@contextmanager
def leaving(model: LaneModel, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A context in which what these layers of a model of one lane give is found by name, after each forward pass."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            hook = model.layers.get_submodule(layer).register_forward_hook(
                lambda _, __, result, layer=layer: found.__setitem__(layer, result)
            )
            hooks.callback(hook.remove)
        yield found


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


def halved(tensor: Tensor) -> Tensor:
    """In float16; what is larger than that has is the largest that it has."""
    largest = torch.finfo(torch.float16).max
    return tensor.clamp(-largest, largest).half()


class Frozen:
    """A model that runs beside those that learn from it, in evaluation mode and float32, and does not change."""

    def __init__(self, model: LaneModel, spec: str, dataset: Dataset) -> None:
        self.model, self.spec, self.shape = model.eval().requires_grad_(False), spec, dataset.image_shape
        self.classes = len(dataset.classes)

    def shape_of(self, layer: str | None) -> tuple[int, ...]:
        """Of a layer's map of one image; None: of the embedding."""
        if layer is None:
            return (embedding_in(self.spec, self.shape, self.classes).features,)
        return maps_in(self.spec, self.shape, self.classes)[layer]

    @torch.no_grad()
    def of(self, images: Tensor, layers: Sequence[str], embedding: bool = False) -> dict[str | None, Tensor]:
        """By layer its maps; by None the embedding."""
        head = embedding_in(self.spec, self.shape, self.classes).head if embedding else None
        with ExitStack() as watching, tf32(False):
            maps = watching.enter_context(leaving(self.model, layers))
            entered = watching.enter_context(entering(self.model, head)) if head else []
            self.model(images)
            found: dict[str | None, Tensor] = {layer: each.float() for layer, each in maps.items()}
            if head:
                found[None] = by_lane(entered.pop(), self.model.stacked)[0]
        return found


@torch.no_grad()
def left_by(model: LaneModel, spec: str, dataset: Dataset, images: Pixels, layer: str | None) -> Tensor:
    """Of all images the maps of a layer, or with None the embedding: `[images, ...]` on the CPU."""
    if layer is None:
        return embeddings(model, spec, dataset, images)
    frozen = Frozen(model, spec, dataset)
    return of_all(images, lambda batch: frozen.of(batch, [layer])[layer], dim=0).cpu().contiguous()


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

        return of_all(images, embed, dim=0, fully_connected=model.stacked).cpu()
