"""What a batch is: images in a view of theirs, or, while a head alone trains, what the layers before give for them."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from takd.search_spaces import VALIDATION, Left, LeftName, NamedView, Recipe, ViewName
from takd.trainables.datasets.dataset import Dataset, any_examples, transfer_set
from takd.trainables.datasets.splits import SplitImages, rows_of, some_of, whole_on
from takd.trainables.models.frozen import Rows, Values
from takd.trainables.models.transfer import Head, over_features
from takd.trainables.training.devices import can_stream, images_stay, let_go, room_on, tf32
from takd.trainables.training.graphs import in_place
from takd.trainables.training.lanes import Alone, Heads, LaneModel, Lanes, Tail
from takd.trainables.training.mixing import Mix, mix
from takd.trainables.training.streaming import Index, Stream
from takd.trainables.training.views import View, view

# Images that go through a model at once where none trains, and of how many pixels, by whether it is fully connected.
# Else its layers leave maps: larger tensors than these would be given back to the system one by one, and new pages
# be zeroed for the next, which on two cores took as long as all that is computed (`benchmarks/evaluation.py`).
EVALUATION_BATCH, EVALUATION_PIXELS = {True: 1000, False: 128}, {True: 2_500_000, False: 4 * 224 * 224}
EVALUATION_BATCH_ON_GPU, BYTES_PER_PIXEL = 4000, 1000  # the first layers of a vgg16 take 800 bytes a pixel


class Pixels:
    """Images of a split, as bytes; a batch of them becomes normalised float32 on the device.

    With a `view` they are as that view has them, and with a `mix` each has its partner in it. They are all on the
    device, or with `resident` false where they were: a batch at a time goes there, where it is said what is expected
    before it is asked for.
    """

    view: View | None = None
    mix: Mix | None = None

    def __init__(
        self,
        images: SplitImages,
        dataset: Dataset,
        device: torch.device,
        memory_format: torch.memory_format,
        resident: bool = True,
    ) -> None:
        self.images: SplitImages = whole_on(images, device) if resident and device.type != "cpu" else images
        self.device = device
        self.stream = self._stream()
        self.memory_format = memory_format
        self.scale, self.shift = (each.to(device) for each in dataset.normalization.of_bytes())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """[batch, channels, height, width]"""
        own, others = self._bytes(index)
        pixels = self._seen(own, index).float()
        if self.mix is not None:
            assert others is not None
            pixels = self.mix.apply(pixels, self._seen(others, self.mix.partner[index]).float(), index)
        pixels = pixels.mul_(self.scale).add_(self.shift)
        return pixels.contiguous(memory_format=self.memory_format)

    def expect(self, indices: Iterable[Index]) -> None:
        """These will be asked for, in this order."""
        if self.stream is not None:
            self.stream.expect(indices, self.mix.partner if self.mix else None)

    @property
    def nbytes(self) -> int:
        """That they take on the device."""
        return self.images.nbytes if isinstance(self.images, Tensor) and self.stream is None else 0

    def _stream(self) -> Stream | None:
        """None where all are a tensor on the device."""
        there = isinstance(self.images, Tensor) and self.images.device.type == self.device.type
        return None if there else Stream(self.images, self.device)

    def _bytes(self, index: Index) -> tuple[Tensor, Tensor | None]:
        """Of images and of their partners, on the device."""
        partner = self.mix.partner if self.mix is not None else None
        if self.stream is not None:
            return self.stream.take(index, partner)
        others = None if partner is None else rows_of(self.images, partner[index])
        return rows_of(self.images, index), others

    def _seen(self, pixels: Tensor, index: Tensor | slice) -> Tensor:
        """As bytes, before they are mixed."""
        return pixels if self.view is None else self.view.apply(pixels, index)

    def part(self, index: Index) -> "Pixels":
        """Some of them, as they are in here."""
        found = copy.copy(self)
        found.images = some_of(self.images, index)
        found.stream = found._stream()
        return found

    def named(self, name: ViewName, labels: Tensor) -> "Pixels":
        """These, all the images of a training set that have those labels, in a view by its name.

        Where that mixes images within a part of the training set they are those of that part.
        """
        shown = copy.copy(self)
        shown.view = shown.mix = None
        if name is None:
            return shown
        named, device = NamedView.parse(name), self.device
        drawn = view(named.augment, named.number, len(self))
        index: Any = slice(None)
        if named.examples is not None:
            index = transfer_set(labels.cpu(), named.examples, named.examples_seed)
            shown = shown.part(index)
        mixed = mix(named.augment, named.number, len(shown), self.images.shape[1:])
        shown.view = drawn.of(index).to(device) if drawn else None
        shown.mix = mixed.to(device) if mixed else None
        return shown


def part_of(images: Pixels | Tensor, part: slice) -> Pixels | Tensor:
    """Some of the images of a split, in no view."""
    return images[part] if isinstance(images, Tensor) else images.part(part)


@dataclass(frozen=True)
class Feed:
    """What trains, and the examples that go through it: a whole model and images, or what is above layers that stand
    still and what these give."""

    model: LaneModel | Tail
    train: Pixels | Rows | Tensor  # [examples, ...]
    validation: Pixels | Rows | Tensor


class Inputs:
    """The transfer set of a recipe and the validation split, on the device that trains."""

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        device: torch.device,
        memory_format: torch.memory_format,
        labelled: bool = True,
        kept: Mapping[LeftName, Values] | None = None,
        streamed: bool = False,
    ) -> None:
        """`labelled`: whether the labels of the training images say what is on them. `kept`: what is kept of layers
        that stand still, by the names of `frozen_for`. `streamed`: whether a GPU gets images a batch at a time though
        all may have room."""
        self.labelled, self.kept = labelled, kept or {}
        self.dataset, self.recipe, self.device, self.memory_format = dataset, recipe, device, memory_format
        self.transfer_set = self._transfer_set()
        train, validation = some_of(dataset.train.images, self.transfer_set), dataset.validation.images
        self.streamed = can_stream(device) and (streamed or not self._stay(len(train) + len(validation)))
        self.images = self.pixels(train, not self.streamed)
        self.labels = dataset.train.labels[self.transfer_set].to(device)
        self.validation = self.pixels(validation, not self.streamed)
        self.validation_labels = dataset.validation.labels.to(device)
        self.view = 0  # the number of the view that the images are in
        self._shown: View | None = None  # the last view that was one
        self._mixed: Mix | None = None
        self.features: Feed | None = None  # while the head alone trains
        self._rows: dict[LeftName, Rows] = {}  # of what is kept, that which an epoch goes through

    def _transfer_set(self) -> Any:
        """An index of the training examples that the recipe trains on."""
        if self.recipe.examples is None:
            return slice(None)
        if not self.labelled:
            images = self.dataset.sizes["train"]
            return any_examples(images, self.recipe.examples, self.recipe.examples_seed)
        return transfer_set(self.dataset.train.labels, self.recipe.examples, self.recipe.examples_seed)

    def _stay(self, images: int) -> bool:
        """Whether so many stay on the device."""
        return images_stay(images * math.prod(self.dataset.image_shape), room_on(self.device))

    def pixels(self, images: SplitImages, resident: bool = True) -> Pixels:
        return Pixels(images, self.dataset, self.device, self.memory_format, resident)

    def drawn(self, number: int, index: Any) -> View | None:
        """View `number` of the training examples at `index`."""
        whole = view(self.recipe.augment, number, self.dataset.sizes["train"])
        return whole.of(index).to(self.device) if whole else None

    def show(self, number: int) -> None:
        """The images of the transfer set in that view."""
        if number != self.view:
            self.view, drawn = number, self.drawn(number, self.transfer_set)
            self.images.view = in_place(self._shown, drawn) if drawn else None
            self._shown = self.images.view or self._shown
            mixed = mix(self.recipe.augment, number, len(self.labels), self.dataset.image_shape)
            self.images.mix = in_place(self._mixed, mixed.to(self.device)) if mixed else None
            self._mixed = self.images.mix or self._mixed

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

    def feed(self, taught: Lanes, epoch: int, watched: bool = False, layers: Sequence[str] = ()) -> Feed:
        """What trains in an epoch: the model, or its head on features computed once, where that comes to the same.

        It does not where what is inside of the model is `watched`, of what is kept where that is below the cut:
        `layers` are those whose maps are.
        """
        head = taught.head_alone(epoch)
        if (above := self._above(taught, head, layers, self.recipe.view_names[self.view])) is not None:
            return above
        if head is None or not head.whole or self.recipe.views is not None or watched:
            self.features = None
            return Feed(taught.model, self.images, self.validation)
        if self.features is None:
            self.features = self._cache(taught.model.layers, head)
        return self.features

    def above_at_the_end(self, taught: Lanes, view: ViewName) -> Feed | None:
        """What the last epoch trains, on what is kept of all training images in a view; None where nothing is."""
        head = taught.head_alone(self.recipe.epochs - 1)
        whole = self.recipe.examples is None and self.labelled
        there = Left("frozen", taught.kept_below(head), view).name in self.kept
        return self._above(taught, head, (), view) if whole and there else None

    def _above(self, taught: Lanes, head: Head | None, watched: Sequence[str], view: ViewName) -> Feed | None:
        """What trains, on what is kept of the layers below; None where nothing is."""
        layer = taught.kept_below(head)
        if layer is None or not self.kept:
            return None
        if head is not None:
            if watched:
                return None
            whole = isinstance(taught.model, Heads)
            model: LaneModel | Tail = (
                taught.model if whole else Alone([over_features(taught.model.layers, head.layers)])
            )
        else:
            assert taught.cut is not None
            assert isinstance(taught.model, Alone)
            if any(f"{each}.".startswith(f"{below}.") for each in watched for below in taught.cut.below):
                return None
            model = Tail(taught.model, taught.cut)
        return Feed(model, self._kept(layer, view), self._kept(layer, None, VALIDATION))

    def _kept(self, layer: str, view: ViewName, images: str | None = None) -> Rows:
        """On a GPU in the place of what the epoch before went through."""
        values = self.kept[Left("frozen", layer, view, images).name]
        now = Rows(values, self.dataset.image_shape, self.device, self.memory_format)
        place = Left("frozen", layer, images=images).name
        self._rows[place] = in_place(self._rows.get(place), now)
        return self._rows[place]

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


def evaluation_batch(image_shape: Sequence[int], room: float | None = None, fully_connected: bool = False) -> int:
    """How many images (channels, height, width) go through a model at once where none trains.

    On a GPU that has room for so many bytes as many more as half of it holds.
    """
    pixels = math.prod(image_shape[1:])
    if room is None:
        return max(1, min(EVALUATION_BATCH[fully_connected], EVALUATION_PIXELS[fully_connected] // pixels))
    return max(1, min(EVALUATION_BATCH_ON_GPU, int(room / 2 / BYTES_PER_PIXEL) // pixels))


@torch.no_grad()
def predict(model: LaneModel | Tail, pixels: Pixels | Rows | Tensor) -> Tensor:
    """Logits `[lanes, classes, n]`, float32 whatever precision the training steps have: an export computes the same."""
    model.eval()
    return of_all(pixels, model, dim=2, fully_connected=isinstance(model, LaneModel) and model.stacked)


@torch.no_grad()
def _features(module: nn.Module, head: Head, images: Pixels, precision: AbstractContextManager[Any]) -> Tensor:
    """What goes into the head of every image, `[n, ...]`."""
    module.eval()
    given: list[Tensor] = []
    hook = module.get_submodule(head.first).register_forward_pre_hook(lambda _, into: given.append(into[0].clone()))

    def into_the_head(batch: Tensor) -> Tensor:
        given.clear()
        module(batch)
        return given.pop()

    try:
        with precision:
            return of_all(images, into_the_head, dim=0)
    finally:
        hook.remove()


def of_all(
    images: Pixels | Rows | Tensor, compute: Callable[[Tensor], Tensor], dim: int, fully_connected: bool = False
) -> Tensor:
    """What is computed of all images, in float32 proper, a batch at a time: `n` in dimension `dim`.

    Each batch goes to its place at once, so that no part is in memory twice. Where the device has no room for a batch,
    it is halved. `fully_connected`: what computes has no maps.
    """
    first = images[slice(0, 1)]
    shape = images.image_shape if isinstance(images, Rows) else first.shape[1:]
    size = evaluation_batch(shape, room_on(first.device) if first.device.type == "cuda" else None, fully_connected)
    found: Tensor | None = None
    start = 0
    _expect(images, start, size)
    with tf32(False):
        while start < len(images):
            try:
                part = compute(images[slice(start, start + size)])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                part = None
            if part is None:
                let_go(first.device)
                size //= 2
                _expect(images, start, size)
                continue
            if found is None:
                found = _room_for(part, len(images), dim)
            found.narrow(dim, start, part.shape[dim]).copy_(part)
            start += size
    assert found is not None
    return found


def _expect(images: Pixels | Rows | Tensor, start: int, size: int) -> None:
    if isinstance(images, Pixels):
        images.expect(slice(each, each + size) for each in range(start, len(images), size))


def _room_for(part: Tensor, number: int, dim: int) -> Tensor:
    """Empty, laid out in memory as the part is."""
    shape = [*part.shape[:dim], number, *part.shape[dim + 1 :]]
    last = part.dim() == 4 and not part.is_contiguous() and part.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout)
