"""What a batch is: images in a view of theirs, or, while a head alone trains, what the layers before give for them."""

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from takd.search_spaces import NamedView, Recipe, ViewName
from takd.trainables.datasets.dataset import Dataset, transfer_set
from takd.trainables.training.lanes import Alone, LaneModel, Lanes
from takd.trainables.training.mixing import Mix, mix
from takd.trainables.training.transfer import Head, over_features
from takd.trainables.training.views import View, view

EVALUATION_BATCH = 1000  # images, and fewer where they are large:
EVALUATION_PIXELS = 2_500_000  # with 50 of 224x224 a resnet50 takes 1 GB


class Pixels:
    """Images of a split on the device that trains, as bytes; a batch of them becomes normalised float32.

    With a `view` they are as that view has them, and with a `mix` each has its partner in it.
    """

    view: View | None = None
    mix: Mix | None = None

    def __init__(self, images: Tensor, dataset: Dataset, device: torch.device, memory_format: torch.memory_format):
        self.images = images.to(device)
        self.memory_format = memory_format
        self.scale, self.shift = (each.to(device) for each in dataset.normalization.of_bytes())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """[batch, channels, height, width]"""
        pixels = self._seen(index).float()
        if self.mix is not None:
            pixels = self.mix.apply(pixels, self._seen(self.mix.partner[index]).float(), index)
        pixels = pixels.mul_(self.scale).add_(self.shift)
        return pixels.contiguous(memory_format=self.memory_format)

    def _seen(self, index: Tensor | slice) -> Tensor:
        """As bytes, before they are mixed."""
        pixels = self.images[index] if isinstance(index, slice) else self.images.index_select(0, index)
        return pixels if self.view is None else self.view.apply(pixels, index)

    def named(self, name: ViewName, labels: Tensor) -> "Pixels":
        """These, all the images of a training set that have those labels, in a view by its name.

        Where that mixes images within a part of the training set they are those of that part.
        """
        shown = copy.copy(self)
        shown.view = shown.mix = None
        if name is None:
            return shown
        named, device = NamedView.parse(name), self.images.device
        drawn = view(named.augment, named.number, len(self))
        index: Any = slice(None)
        if named.examples is not None:
            index = transfer_set(labels.cpu(), named.examples, named.examples_seed)
            shown.images = self.images[index]
        mixed = mix(named.augment, named.number, len(shown), self.images.shape[1:])
        shown.view = drawn.of(index).to(device) if drawn else None
        shown.mix = mixed.to(device) if mixed else None
        return shown


@dataclass(frozen=True)
class Feed:
    """What trains, and the examples that go through it: a whole model and images, or its head and features."""

    model: LaneModel
    train: Pixels | Tensor  # [examples, ...]
    validation: Pixels | Tensor


class Inputs:
    """The transfer set of a recipe and the validation split, on the device that trains."""

    def __init__(
        self, dataset: Dataset, recipe: Recipe, device: torch.device, memory_format: torch.memory_format
    ) -> None:
        self.dataset, self.recipe, self.device, self.memory_format = dataset, recipe, device, memory_format
        self.transfer_set = self._transfer_set()
        self.images = self.pixels(dataset.train.images[self.transfer_set])
        self.labels = dataset.train.labels[self.transfer_set].to(device)
        self.validation = self.pixels(dataset.validation.images)
        self.validation_labels = dataset.validation.labels.to(device)
        self.view = 0  # the number of the view that the images are in
        self.features: Feed | None = None  # while the head alone trains

    def _transfer_set(self) -> Any:
        """An index of the training examples that the recipe trains on."""
        if self.recipe.examples is None:
            return slice(None)
        return transfer_set(self.dataset.train.labels, self.recipe.examples, self.recipe.examples_seed)

    def pixels(self, images: Tensor) -> Pixels:
        return Pixels(images, self.dataset, self.device, self.memory_format)

    def drawn(self, number: int, index: Any) -> View | None:
        """View `number` of the training examples at `index`."""
        whole = view(self.recipe.augment, number, self.dataset.sizes["train"])
        return whole.of(index).to(self.device) if whole else None

    def show(self, number: int) -> None:
        """The images of the transfer set in that view."""
        if number != self.view:
            self.view, self.images.view = number, self.drawn(number, self.transfer_set)
            mixed = mix(self.recipe.augment, number, len(self.labels), self.dataset.image_shape)
            self.images.mix = mixed.to(self.device) if mixed else None

    def mixed_labels(self, batch: Tensor) -> tuple[Tensor, Tensor] | None:
        """Of examples of the transfer set the labels of their partners, and the part of their own, `[batch]` each.

        None where no images are mixed.
        """
        if (mixed := self.images.mix) is None:
            return None
        return self.labels.index_select(0, mixed.partner.index_select(0, batch)), mixed.part.index_select(0, batch)

    def batches(self, epoch: int, smallest: int) -> list[Tensor]:
        """Indices `[batch]` of the transfer set in the epoch's order; see `in_batches`."""
        generator = np.random.Generator(np.random.PCG64([self.recipe.order_seed, epoch]))
        order = torch.from_numpy(generator.permutation(len(self.labels))).to(self.device)
        return in_batches(order, self.recipe.batch_size, smallest)

    def precision(self) -> torch.autocast:
        """Of training steps; a context."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def feed(self, taught: Lanes, epoch: int) -> Feed:
        """What trains in an epoch: the model, or its head on features computed once, where that comes to the same."""
        head = taught.head_alone(epoch)
        if head is None or not head.whole or self.recipe.views is not None:
            self.features = None
            return Feed(taught.model, self.images, self.validation)
        if self.features is None:
            self.features = self._cache(taught.model.layers, head)
        return self.features

    def _cache(self, module: nn.Module, head: Head) -> Feed:
        """Of all images: those to train on in the precision of training steps, the others in float32."""
        return Feed(
            Alone([over_features(module, head.layers)]),
            _features(module, head, self.images, self.precision()),
            _features(module, head, self.validation, nullcontext()),
        )


def in_batches(order: Tensor, size: int, smallest: int) -> list[Tensor]:
    """The order in batches; a last one with fewer than `smallest` examples joins the one before."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) < smallest:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def evaluation_batch(image_shape: Sequence[int]) -> int:
    """How many images (channels, height, width) go through a model at once where none trains."""
    return max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // math.prod(image_shape[1:])))


@torch.no_grad()
def predict(model: LaneModel, pixels: Pixels | Tensor) -> Tensor:
    """Logits `[lanes, classes, n]`, float32 whatever precision the training steps have: an export computes the same."""
    model.eval()
    size = evaluation_batch(pixels[slice(0, 1)].shape[1:])
    return torch.cat([model(pixels[slice(start, start + size)]) for start in range(0, len(pixels), size)], dim=2)


@torch.no_grad()
def _features(module: nn.Module, head: Head, images: Pixels, precision: AbstractContextManager[Any]) -> Tensor:
    """What goes into the head of every image, `[n, ...]`."""
    module.eval()
    kept: list[Tensor] = []
    hook = module.get_submodule(head.first).register_forward_pre_hook(lambda _, given: kept.append(given[0].clone()))
    size = evaluation_batch(images.images.shape[1:])
    try:
        with precision:
            for start in range(0, len(images), size):
                module(images[slice(start, start + size)])
    finally:
        hook.remove()
    return torch.cat(kept)
