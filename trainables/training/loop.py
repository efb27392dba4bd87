"""Train a list of stages of one shape, side by side, from tensors in memory: plain PyTorch, no Ray."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from takd.search_spaces import Stage
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.weights_files import Pretrained
from takd.trainables.training.checkpoint import Checkpoint, restore
from takd.trainables.training.inputs import Feed, Inputs, predict
from takd.trainables.training.lanes import EpochMetrics, Lane, Lanes, form_of
from takd.trainables.training.losses import measure
from takd.trainables.training.schedules import rate_factor
from takd.trainables.training.scores import SCORES, scores
from takd.trainables.training.teaching import ByView, soft_targets, teaching_of


class _Look(NamedTuple):
    pair: tuple[float | None, float | None]  # loss and accuracy on the validation split
    scores: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """What a stage's training leaves."""

    weights: dict[str, Tensor]
    soft_targets: Tensor | None  # float32 logits [views, train examples, classes]; None for students
    selected: EpochMetrics  # the epoch whose weights these are
    soft_targets_seconds: float


class StageTraining:
    """Training of stages that share a shape; between two calls of `run_epoch` it stands still.

    upstream: for each stage, of its upstream stages in their order, by view the logits `[train examples, classes]`.
    pretrained: the weights that `stage.pretrained` names.
    metric: what is measured at each look beside loss and accuracy, where it is another; `select_by` is too.
    A loss that is no finite number ends its lane alone, with the reason in `failure`.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        dataset: Dataset,
        upstream: Sequence[Sequence[ByView]],
        device: torch.device | str = "cpu",
        pretrained: Pretrained | None = None,
        metric: str | None = None,
    ) -> None:
        first = stages[0]
        if len({stage.shape for stage in stages}) > 1:
            raise ValueError("stages that train together share dataset, model, recipe (but the rate) and loss form")
        if (first.pretrained is None) != (pretrained is None):
            raise ValueError(f"{first.name} starts from pretrained weights: {first.pretrained}")
        self.recipe, self.epoch = first.recipe, 0
        self.scores = [name for name in SCORES if name in (metric, first.recipe.select_by)]
        _, layout = form_of(first.model)
        self.inputs = Inputs(dataset, self.recipe, torch.device(device), layout)
        self.taught = Lanes(stages, dataset, self.inputs.images[slice(0, 2)], pretrained)
        self.feed = Feed(self.taught.model, self.inputs.images, self.inputs.validation)
        self.teaching = teaching_of(first)(self.taught, self.inputs, upstream)
        self._begin_epoch()

    @property
    def lanes(self) -> list[Lane]:
        """All, in the order of the stages."""
        return self.taught.all

    @property
    def running(self) -> list[Lane]:
        """Those that did not end."""
        return self.taught.running

    @property
    def done(self) -> bool:
        return self.epoch == self.recipe.epochs or not self.running

    def run_epoch(self) -> None:
        """One epoch over the transfer set, then a look at the validation split where the recipe says so."""
        started = time.perf_counter()
        self._begin_epoch()
        self.feed = self.inputs.feed(self.taught, self.epoch)
        self.taught.train(self.epoch)
        batches = self.inputs.batches(self.epoch, self.taught.smallest_batch)
        total = torch.zeros(len(self.running), device=self.inputs.device)
        for number, batch in enumerate(batches):
            factor = rate_factor(self.recipe, self.epoch + number / len(batches))
            total += self.train_step(batch, factor, number) * len(batch)
        train_losses = (total / len(self.inputs.labels)).tolist()
        self.epoch += 1
        looked = time.perf_counter()
        looks = self._look()
        seconds, val_seconds = ((time.perf_counter() - since) / len(self.running) for since in (started, looked))
        for number, (lane, loss, look) in enumerate(zip(self.running, train_losses, looks, strict=True)):
            rate = lane.stage.recipe.learning_rate * factor
            metrics = EpochMetrics(self.epoch, rate, loss, *look.pair, seconds, val_seconds, **look.scores)
            lane.failure = _failure(metrics, self.recipe.epochs)
            if lane.failure is None:
                self.taught.note(number, metrics)
        self.end([lane for lane in self.running if lane.failure is not None])

    def _begin_epoch(self) -> None:
        """Whatever is random in an epoch follows from seeds and its number, so training can go on from any epoch."""
        self.taught.seed_dropout(self.epoch)
        view = self.epoch % (self.recipe.views or 1)
        self.inputs.show(view)
        self.teaching.begin_epoch(self.epoch, view)

    def train_step(self, batch: Tensor, factor: float, number: int = 0) -> Tensor:
        """One step on a batch of the transfer set, at `factor` times each lane's rate; returns the losses `[lanes]`.

        `number` is the batch's in its epoch.
        """
        with self.inputs.precision():
            logits = self.feed.model(self.feed.train[batch])
        losses = self.teaching.losses(logits, self.inputs.labels.index_select(0, batch), batch, number)
        self.taught.optimizer.zero_grad()
        losses.sum().backward()  # lanes share no weights: each gets its own gradient
        self.taught.optimizer.step(factor)
        self.teaching.step(factor)
        return losses.detach()

    def _look(self) -> "Sequence[_Look]":
        """By lane, what the validation split says; nothing where the recipe does not look."""
        if self.epoch % self.recipe.evaluate_every and self.epoch != self.recipe.epochs:
            return [_Look((None, None), {})] * len(self.running)
        logits, labels = predict(self.feed.model, self.feed.validation), self.inputs.validation_labels
        more = [scores(each, labels, self.scores) for each in logits]
        return [
            _Look(pair, {f"val_{name}": value for name, value in found.items()})
            for pair, found in zip(measure(logits, labels), more, strict=True)
        ]

    def end(self, lanes: Sequence[Lane]) -> None:
        """Goes on without these; the others are not touched."""
        kept = [number for number, lane in enumerate(self.running) if lane not in lanes]
        if len(kept) == len(self.running):
            return
        self.taught.keep(kept)
        if kept:
            self.teaching.keep(kept)

    def checkpoint(self, lane: Lane) -> bytes:
        """All that training a lane from here on depends on."""
        return Checkpoint.of(lane, self.taught, self.teaching).content()

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Goes on from a checkpoint of every lane, all made after the same epoch.

        Raises ValueError on one of another model.
        """
        self.epoch = restore(checkpoints, self.taught, self.teaching)

    def finish(self) -> list[tuple[Lane, Trained]]:
        """Of the lanes that came to the end: the weights the recipe selects, and what may be learned from them."""
        if not self.running:
            return []
        self.taught.load_selected()
        started = time.perf_counter()
        teaches = any(lane.stage.role != "student" for lane in self.running)
        logits = self._soft_targets() if teaches else None
        seconds = (time.perf_counter() - started) / len(self.running)
        return [
            (lane, Trained(self.taught.weights(number), _of_lane(logits, lane, number), lane.selected, seconds))
            for number, lane in enumerate(self.running)
        ]

    def _soft_targets(self) -> Tensor:
        images = self.inputs.pixels(self.inputs.dataset.train.images)
        return soft_targets(self.taught.model, images, self.recipe.view_names)


def _of_lane(logits: Tensor | None, lane: Lane, number: int) -> Tensor | None:
    return None if logits is None or lane.stage.role == "student" else logits[number].contiguous()


def _failure(metrics: EpochMetrics, epochs: int) -> str | None:
    for split, loss in (("training", metrics.train_loss), ("validation", metrics.val_loss)):
        if loss is not None and not math.isfinite(loss):
            return f"the {split} loss became {loss} in epoch {metrics.epoch} of {epochs}"
    return None


def train(
    stages: Sequence[Stage],
    dataset: Dataset,
    upstream: Sequence[Sequence[ByView]],
    device: torch.device | str = "cpu",
    pretrained: Pretrained | None = None,
) -> list[Trained]:
    """Train stages of one shape to their end; see `StageTraining`. Raises TrainingError where one failed."""
    training = StageTraining(stages, dataset, upstream, device, pretrained)
    while not training.done:
        training.run_epoch()
    for lane in training.lanes:
        if lane.failure:
            raise TrainingError(f"{lane.stage.name}: {lane.failure}")
    return [trained for _, trained in training.finish()]


class TrainingError(RuntimeError):
    """A stage ended without a result; the message says which and why."""
