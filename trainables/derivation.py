"""What is derived from weights that exist: one stage's, by a Tune trial like any other's, into the store. Knows no Ray.

A given model gets its artifact here too, as a trained one has it: nothing of it is trained.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property

import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from takd.search_spaces import (
    VALIDATION,
    DatasetFingerprint,
    Left,
    LeftName,
    Stage,
    ViewName,
    derived_of,
    frozen_of,
)
from takd.search_spaces.augments import view_number
from takd.search_spaces.metrics import Metric
from takd.search_spaces.stage import HEAD
from takd.trainables.datasets.dataset import Dataset, load_for, taught_on
from takd.trainables.datasets.splits import SplitImages
from takd.trainables.models.frozen import cut_in, entered, head_in
from takd.trainables.models.learned import weights_of
from takd.trainables.models.pretrained import read_weights
from takd.trainables.models.stage_models import finished_module
from takd.trainables.outcome import describe_outcome, device_name
from takd.trainables.store.artifacts import LOGITS, WEIGHTS, ArtifactStore, needed_files
from takd.trainables.store.derived import Array
from takd.trainables.training.features import Frozen, halved, left_by
from takd.trainables.training.inputs import Inputs, Pixels, of_all, predict
from takd.trainables.training.lanes import LaneModel, form_of, new_model
from takd.trainables.training.losses import measure
from takd.trainables.training.scores import scores
from takd.trainables.training.teaching import soft_targets

CPU = torch.device("cpu")


def derive(
    stage: Stage,
    names: Sequence[LeftName],
    store: ArtifactStore,
    threads: int,
    origin: Mapping[str, str],
    metric: Metric | None = None,
    device: torch.device = CPU,
) -> None:
    """Computes what the store lacks of what a stage leaves by these names; of a given one its artifact first.

    With `metric` also that on the validation split, where the artifact doesn't say it.

    Where the artifact of a trained stage is gone or damaged nothing is done: it must be trained again.
    """
    torch.set_num_threads(threads)
    if of_frozen := [name for name in names if Left.parse(name).what == "frozen"]:
        derive_frozen(stage, of_frozen, store, device)
        return
    source = _Source(stage, store, device)
    description = store.artifact(stage)
    if description is None and stage.given:
        source.publish(threads, origin)
        description = store.artifact(stage)
    if description is None:
        return
    if metric and metric.kept not in description["outcome"]["metrics"]["validation"]:
        store.add_metrics(stage.key, source.scores(metric))
    if not (lacking := store.lacking(stage, description, names)):
        return
    [file] = needed_files(stage)
    for name in lacking:  # one after the other: what is there stays, whatever happens to the next
        started = time.perf_counter()
        found = {name: source.left(Left.parse(name))}
        seconds = time.perf_counter() - started
        publish_left(store, stage, description["files"][file], found, seconds, source.device)


def derive_frozen(stage: Stage, names: Sequence[LeftName], store: ArtifactStore, device: torch.device = CPU) -> None:
    """Computes what the store lacks of what the weights that a stage starts from give below its layers that train.

    Of a view the images go through the network once, whatever is kept of them.
    """
    lacking = store.lacking_frozen(stage, names)
    by_images: dict[tuple[ViewName, str | None], list[Left]] = {}
    for left in map(Left.parse, lacking):
        by_images.setdefault((left.view, left.images), []).append(left)
    if not by_images:
        return
    assert stage.pretrained is not None
    dataset = dataset_of(stage, store)
    _, layout = form_of(stage.model, dataset)
    module = new_model(stage, dataset, read_weights(store, stage.pretrained)).eval()
    module.to(device, memory_format=layout)  # type: ignore[call-overload]
    inputs = Inputs(dataset, stage.recipe, device, layout, stage.transfer is None)
    for (view, images), lefts in by_images.items():
        started = time.perf_counter()
        inputs.show(view_number(view))
        pixels = inputs.validation if images == VALIDATION else inputs.images
        found = given_below(module, [_place(stage, left, dataset) for left in lefts], pixels)
        about = {"seconds": (time.perf_counter() - started) / len(lefts), "device": device_name(device)}
        for left, values in zip(lefts, found, strict=True):
            store.derived.publish(frozen_of(stage, left.name), stage.key, values.numpy(), about)


def _place(stage: Stage, left: Left, dataset: Dataset) -> str:
    """The layer that is entered: of those that train the first that runs."""
    assert stage.frozen
    assert left.layer
    about = stage.model, dataset.image_shape, len(dataset.classes), stage.recipe.dropout
    if left.layer == HEAD:
        return head_in(*about)[0].first
    cut = cut_in(*about, first=left.layer)
    assert cut
    return cut.layer


@torch.no_grad()
def given_below(module: nn.Module, layers: Sequence[str], images: Pixels) -> list[Tensor]:
    """What enters these layers, of all images, `[n, ...]` each on the CPU; what is above the last of them rests."""
    shapes: list[tuple[int, ...]] = []

    def into(batch: Tensor) -> Tensor:
        with entered(module, layers) as found:
            module(batch)
        shapes[:] = [tuple(found[layer].shape[1:]) for layer in layers]
        return torch.cat([found[layer].float().flatten(1) for layer in layers], dim=1)

    rows = of_all(images, into, dim=0).cpu()
    parts = rows.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def publish_left(
    store: ArtifactStore,
    stage: Stage,
    weights: str,
    found: Mapping[LeftName, Array],
    seconds: float,
    device: torch.device,
) -> None:
    """Into the store, each `[train examples, ...]` by itself; whether they come of training or not."""
    about = {"seconds": seconds / len(found), "device": device_name(device)}
    for name, values in found.items():
        store.derived.publish(derived_of(stage, weights, name), stage.key, values, about)


def dataset_of(stage: Stage, store: ArtifactStore) -> Dataset:
    """What a stage is trained and measured on."""
    own = load_for(stage.dataset, store)
    return taught_on(own, load_for(stage.transfer, store), bool(stage.with_own)) if stage.transfer else own


def frozen(stage: Stage, store: ArtifactStore, device: torch.device) -> Frozen:
    """A finished stage's model, to run beside those that learn from it."""
    source = _Source(stage, store, device)
    return Frozen(source.model, stage.model, source.dataset)


class _Source:
    """A stage's model with its weights, or what is known of it; of a given stage from what the study keeps."""

    def __init__(self, stage: Stage, store: ArtifactStore, device: torch.device) -> None:
        self.stage, self.store, self.device = stage, store, device
        self.dataset: Dataset = load_for(stage.dataset, store)

    def publish(self, threads: int, origin: Mapping[str, str]) -> None:
        assert self.stage.given
        content, validation = self.store.pretrained(self.stage.given.digest), self._validation()
        labels = self.dataset.validation.labels
        [(loss, accuracy)] = [(None, None)] if validation is None else measure(validation, labels.to(validation.device))
        outcome = describe_outcome(
            self.stage,
            self.dataset,
            self.device,
            threads,
            origin,
            given=self.stage.given.model_dump(exclude_none=True),
            metrics={"validation": {"accuracy": accuracy, "loss": loss}},
            selected_epoch=None,
            epochs=[],
            train_seconds=0.0,
            soft_targets_seconds=0.0,
            lanes=1,
        )
        file = WEIGHTS if self.stage.has_weights else LOGITS
        self.store.publish(self.stage.key, {"input": self.stage.key_input(), "outcome": outcome}, {file: content})

    def _logits(self) -> bytes:
        """Of one of whom nothing else is known."""
        assert self.stage.given
        return self.store.pretrained(self.stage.given.digest)

    def _validation(self) -> Tensor | None:
        """Logits `[1, classes, n]` on the validation images; None where they are not known."""
        if not self.stage.has_weights:
            logits = safetensors.numpy.load(self._logits()).get("validation")
            return None if logits is None else torch.from_numpy(logits).t().unsqueeze(0)
        return predict(self.model, self._pixels(self.dataset.validation.images))

    def scores(self, metric: Metric) -> dict[str, float]:
        """On the validation split, as an artifact keeps it."""
        validation, labels = self._validation(), self.dataset.validation.labels
        if validation is None:
            return {}
        return {metric.kept: scores(validation[0], labels, [metric.name])[metric.name]}

    def left(self, left: Left) -> Array:
        """`[train examples, ...]`"""
        found = self._left(left)
        return halved(torch.from_numpy(found)).numpy() if left.dtype else found

    def _left(self, left: Left) -> Array:
        if left.images is not None:
            return self._of_others(left)
        if left.what == "soft_targets":
            return self.soft_targets(left.view)
        if not self.stage.has_weights:
            raise ValueError(f"{self.stage.name}: logits are all that is known of it, and nothing of what is inside")
        pixels = self._images.named(left.view, self.dataset.train.labels)
        found: Array = left_by(self.model, self.stage.model, self.dataset, pixels, left.layer).numpy()
        return found

    def _of_others(self, left: Left) -> Array:
        """On the training images of another data set, or of both."""
        other = load_for(DatasetFingerprint.model_validate_json(left.images or ""), self.store)
        other = taught_on(self.dataset, other, with_own=True) if left.with_own else other
        if not self.stage.has_weights:
            raise ValueError(f"{self.stage.name}: logits are all that is known of it, and of other images none")
        images = self._pixels(other.train.images)
        if left.what == "soft_targets":
            found: Array = soft_targets(self.model, images, other.train.labels, [left.view])[0, 0].numpy()
            return found
        pixels = images.named(left.view, other.train.labels)
        return left_by(self.model, self.stage.model, self.dataset, pixels, left.layer).numpy()

    def soft_targets(self, view: ViewName) -> Array:
        """`[train examples, classes]`"""
        if self.stage.has_weights:
            labels = self.dataset.train.labels
            found: Array = soft_targets(self.model, self._images, labels, [view])[0, 0].numpy()
            return found
        if view is not None:
            raise ValueError(f"{self.stage.name}: its logits are of the images as they are, and of no other view")
        return safetensors.numpy.load(self._logits())["train"]

    @cached_property
    def model(self) -> LaneModel:
        """As it would stand at the end of its training."""
        stage, dataset = self.stage, self.dataset
        form, layout = form_of(stage.model, dataset)
        lanes = form([finished_module(stage, dataset, weights_of(stage, self.store))])
        model: LaneModel = lanes.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        return model

    @cached_property
    def _images(self) -> Pixels:
        return self._pixels(self.dataset.train.images)

    def _pixels(self, images: SplitImages) -> Pixels:
        _, layout = form_of(self.stage.model, self.dataset)
        return Pixels(images, self.dataset, self.device, layout, resident=False)
