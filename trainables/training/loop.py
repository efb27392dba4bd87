"""Train a list of stages of one shape, side by side, from tensors in memory: plain PyTorch, no Ray."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from takd.search_spaces import LeftName, Stage, What
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.frozen import Rows, Values
from takd.trainables.models.weights_files import Pretrained
from takd.trainables.training.checkpoint import Checkpoint, restore
from takd.trainables.training.devices import tf32
from takd.trainables.training.features import Frozen
from takd.trainables.training.graphs import Graphs, Places
from takd.trainables.training.inputs import Feed, Inputs, Pixels, part_of, predict
from takd.trainables.training.lanes import EpochMetrics, Lane, Lanes, form_of
from takd.trainables.training.losses import measure
from takd.trainables.training.ranks import Ranks
from takd.trainables.training.schedules import rate_factor
from takd.trainables.training.scores import MEASURED, scores
from takd.trainables.training.teaching import ByView, Lessons, Teaching, soft_targets, teaching_of
from takd.trainables.training.terms import MethodTeaching

Upstream = ByView | Lessons
SOFT_TARGETS: tuple[What, None] = ("soft_targets", None)


class _Look(NamedTuple):
    pair: tuple[float | None, float | None]  # loss and accuracy on the validation split
    scores: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """What a stage's training leaves."""

    weights: dict[str, Tensor]
    soft_targets: Tensor | None  # float32 logits [left views, train examples, classes]; None for students
    selected: EpochMetrics  # the epoch whose weights these are
    soft_targets_seconds: float


class StageTraining:
    """Training of stages that share a shape; between two calls of `run_epoch` it stands still.

    upstream: for each stage, of its upstream stages in their order, by view the logits `[train examples, classes]`; or,
    where it learns other things, all of these by what they are.
    pretrained: the weights that `stage.pretrained` names.
    heads: for each stage the head of its teacher, `weight` and `bias`, where its model ends in that.
    metric: what is measured at each look beside loss and accuracy, where it is another; `select_by` is too.
    kept: what is kept of the layers that stand still, by the names of `frozen_for`; without it they run in the loop.
    streamed: whether a GPU gets images a batch at a time though all may have room.
    A loss that is no finite number ends its lane alone, with the reason in `failure`.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        dataset: Dataset,
        upstream: "Sequence[Sequence[Upstream]]",
        device: torch.device | str = "cpu",
        pretrained: Pretrained | None = None,
        metric: str | None = None,
        heads: Sequence[Mapping[str, Tensor]] | None = None,
        kept: Mapping[LeftName, Values] | None = None,
        streamed: bool = False,
    ) -> None:
        if kept is None and stages[0].frozen is not None:
            stages = [stage.model_copy(update={"frozen": None}) for stage in stages]
        first = stages[0]
        if len({stage.shape for stage in stages}) > 1:
            raise ValueError("stages that train together share dataset, model, recipe (but the rate) and loss form")
        if (first.pretrained is None) != (pretrained is None):
            raise ValueError(f"{first.name} starts from pretrained weights: {first.pretrained}")
        if (first.head_of is None) != (heads is None):
            raise ValueError(f"{first.name} ends in the head of {first.head_of and first.head_of.model}")
        self.recipe, self.epoch = first.recipe, 0
        wanted = dict.fromkeys(filter(None, (metric, first.recipe.select_by)))
        self.scores = [name for name in wanted if name not in MEASURED]
        _, layout = form_of(first.model, dataset)
        self.inputs = Inputs(dataset, self.recipe, torch.device(device), layout, first.transfer is None, kept, streamed)
        self.taught = Lanes(stages, dataset, self.inputs.images[slice(0, 2)], pretrained, heads)
        self.feed = Feed(self.taught.model, self.inputs.images, self.inputs.validation)
        self.teaching = self._teaching(first, upstream)
        self.stopped: list[tuple[Lane, Trained]] = []  # that ended by their patience, until they are taken
        self.ranks: Ranks | None = None
        on_gpu = self.inputs.device.type == "cuda"
        self.graphs = Graphs(self.inputs.device, first.model) if on_gpu and not self.inputs.streamed else None
        self._reads: Places | None = None
        self._begin_epoch()
        if kept is not None:
            self.feed = self._feed()

    def _teaching(self, stage: Stage, upstream: Sequence[Sequence[Upstream]]) -> Teaching:
        whole = [[_by_kind(each) for each in of_stage] for of_stage in upstream]
        logits = [[_soft_targets_in(each) for each in of_stage] for of_stage in whole]
        base = teaching_of(stage)(self.taught, self.inputs, logits)
        return MethodTeaching(base, whole) if stage.terms else base

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

    def join(self, ranks: Ranks) -> None:
        """From now on this is one of several trainings of one stage, in as many processes, which do the same epochs.

        All stand where this one does. What the stage leaves is the first one's to say.
        """
        self.ranks, self.graphs = ranks, None

    def run_epoch(self) -> None:
        """One epoch over the transfer set, then a look at the validation split where the recipe says so."""
        started = time.perf_counter()
        self._begin_epoch()
        self.feed = self._feed()
        self.taught.train(self.epoch)
        self.looks_again()
        batches = self.inputs.batches(self.epoch, self.taught.smallest_batch)
        if isinstance(self.feed.train, Pixels):
            self.feed.train.expect(part for batch in batches for part in self._asked(batch))
        total = torch.zeros(len(self.running), device=self.inputs.device)
        for number, batch in enumerate(batches):
            factor = rate_factor(self.recipe, self.epoch + number / len(batches))
            total += self.train_step(batch, factor, number) * len(batch)
        if self.ranks is not None:
            self.ranks.sum(total)
        train_losses = (total / len(self.inputs.labels)).tolist()
        self.epoch += 1
        looked = time.perf_counter()
        looks = self._look()
        seconds, val_seconds = ((time.perf_counter() - since) / len(self.running) for since in (started, looked))
        for number, (lane, loss, look) in enumerate(zip(self.running, train_losses, looks, strict=True)):
            rate = lane.stage.recipe.learning_rate * factor
            metrics = EpochMetrics(self.epoch, rate, loss, *look.pair, seconds, val_seconds, look.scores)
            lane.failure = _failure(metrics, self.recipe.epochs)
            if lane.failure is None:
                self.taught.note(number, metrics)
        self.end([lane for lane in self.running if lane.failure is not None])
        if self.recipe.patience is not None and not self.done:
            self._stop([lane for lane in self.running if lane.looks_since_best >= self.recipe.patience])

    def _stop(self, lanes: Sequence[Lane]) -> None:
        """These have what they will keep; the others go on as if they were alone."""
        if not lanes:
            return
        if self.ranks is not None and not self.ranks.leads:
            self.end(lanes)
            return
        now = [self.taught.weights(number) for number in range(len(self.running))]
        self.stopped += [(lane, trained) for lane, trained in self._kept() if lane in lanes]
        self.taught.model.load(now)
        self.end(lanes)

    def take_stopped(self) -> list[tuple[Lane, Trained]]:
        """What the lanes leave that ended by their patience since the last call."""
        taken, self.stopped = self.stopped, []
        return taken

    def _feed(self) -> Feed:
        return self.inputs.feed(self.taught, self.epoch, self.teaching.watches, self.teaching.watched)

    def _begin_epoch(self) -> None:
        """Whatever is random in an epoch follows from seeds and its number, so training can go on from any epoch."""
        self.taught.seed_dropout(self.epoch)
        view = self.epoch % self.recipe.view_count
        self.inputs.show(view)
        self.teaching.begin_epoch(self.epoch, view)

    def train_step(self, batch: Tensor, factor: float, number: int = 0) -> Tensor:
        """One step on a batch of the transfer set, at `factor` times each lane's rate; returns the losses `[lanes]`.

        `number` is the batch's in its epoch. With ranks it is this one's part of the losses.
        """
        if self.graphs is None:
            return self.step(batch, factor, number)
        uses = self.recipe.epochs - self.epoch  # of the last batch, which may be smaller
        if len(batch) == self.recipe.batch_size:
            uses *= len(self.inputs.labels) // self.recipe.batch_size
        return self.graphs(self, batch, factor, number, uses)

    def step(self, batch: Tensor, factor: float | Tensor, number: int | Tensor) -> Tensor:
        """What `train_step` does, kernel by kernel. On a GPU factor and number are there too, `[]` and `[1]`."""
        self.taught.optimizer.zero_grad()
        with tf32(self.recipe.precision == "tf32"):
            if self.recipe.accumulate is None and self.ranks is None:
                losses = self._learn(batch, number)
            else:
                losses = self._learn_in_parts(batch, number)
        self.taught.step(factor)
        self.teaching.step(factor)
        return losses

    def _learn(self, batch: Tensor, number: int | Tensor, share: float = 1.0) -> Tensor:
        """Adds the gradients of a batch, which counts for that share of a step; its losses `[lanes]`."""
        losses = self._losses(self.feed.model, batch, number)
        losses = losses if share == 1.0 else losses * share
        losses.sum().backward()  # lanes share no weights: each gets its own gradient
        return losses.detach()

    def _losses(self, model: nn.Module, batch: Tensor, number: int | Tensor) -> Tensor:
        with self.inputs.precision(), self.teaching.watching():
            logits = model(self.feed.train[batch])
        return self.teaching.losses(logits, self.inputs.labels.index_select(0, batch), batch, number)

    def _learn_in_parts(self, batch: Tensor, number: int | Tensor) -> Tensor:
        """The same of a whole batch, in parts one after the other: no part larger than memory allows.

        Of ranks each does its share of every part.
        """
        parts = self._parts(batch)
        self.teaching.whole = self.teaching.mean_weight(batch)
        shares = []
        for place, part in enumerate(parts, start=1):
            share = len(part) / len(batch)
            if self.ranks is None:
                shares.append(self._learn(part, number, share))
            else:
                shares.append(self._learn_own(self.ranks, part, number, share, place == len(parts)))
        self.teaching.whole = None
        return torch.stack(shares).sum(dim=0)

    def _parts(self, batch: Tensor) -> Sequence[Tensor]:
        """That go through one after the other."""
        return batch.tensor_split(max(1, min(self.recipe.accumulate or 1, len(batch) // self.taught.smallest_batch)))

    def _asked(self, batch: Tensor) -> Sequence[Tensor]:
        """Of which images of a batch are asked for here, one part after the other."""
        if self.recipe.accumulate is None and self.ranks is None:
            return [batch]
        parts, ranks, stacked = self._parts(batch), self.ranks, self.taught.model.stacked
        return parts if ranks is None else [ranks.share(part, stacked).examples for part in parts]

    def _learn_own(self, ranks: Ranks, part: Tensor, number: int | Tensor, share: float, last: bool) -> Tensor:
        """As `_learn`, of what this rank has of it; with the `last` part of a batch all ranks' gradients are summed."""
        own = ranks.share(part, self.taught.model.stacked)
        with ranks.doing(own, self.taught.model, last) as model:
            losses = self._losses(model, own.examples, number)
            (losses.sum() * (share * own.gradient)).backward()
        return losses.detach() * (share * own.counts)

    def reads(self) -> Places:
        """What a step finds by its place in memory, as it was when this was last asked to look again."""
        if self._reads is None:
            self._reads = Places(self.feed, self.inputs, self.taught, self.teaching, skip=(Lane,))
        return self._reads

    def looks_again(self) -> None:
        self._reads = None

    def learns(self) -> list[Tensor]:
        """The weights of all lanes."""
        return list(self.taught.model.layers.parameters())

    def changes(self) -> list[Tensor]:
        """What else a step leaves changed: buffers, what the optimizer and the teaching remember."""
        learned = {id(each) for each in self.learns()}
        held = Places(self.taught, self.teaching, skip=(Inputs, Lane)).tensors
        return [each for each in held if id(each) not in learned]

    def draws(self) -> list[torch.Generator]:
        """What dropout draws from on a GPU."""
        return self.taught.model.generators

    def _look(self) -> "Sequence[_Look]":
        """By lane, what the validation split says; nothing where the recipe does not look."""
        if self.epoch % self.recipe.evaluate_every and self.epoch != self.recipe.epochs:
            return [_Look((None, None), {})] * len(self.running)
        images, labels = self.feed.validation, self.inputs.validation_labels
        with self.taught.evaluated():
            if self.ranks is None:
                logits = predict(self.feed.model, images)
            else:
                assert not isinstance(images, Rows)  # of several ranks each runs what stands still
                own = part_of(images, self.ranks.own_part(len(labels)))
                logits = self.ranks.whole(predict(self.feed.model, own), len(labels))
        more = [scores(each, labels, self.scores) for each in logits]
        return [_Look(pair, found) for pair, found in zip(measure(logits, labels), more, strict=True)]

    def end(self, lanes: Sequence[Lane]) -> None:
        """Goes on without these; the others are not touched."""
        kept = [number for number, lane in enumerate(self.running) if lane not in lanes]
        if len(kept) == len(self.running):
            return
        self.taught.keep(kept)
        self.looks_again()
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
        """Of the lanes that came to the end: the weights the recipe selects, and what may be learned from them.

        Also of those that stopped before and were not taken; in the order of the stages.
        """
        if self.graphs is not None:
            self.graphs.drop()  # its memory, which what follows needs
        left = self.take_stopped() + (self._kept() if self.running else [])
        return sorted(left, key=lambda each: self.lanes.index(each[0]))

    def _kept(self) -> list[tuple[Lane, Trained]]:
        """Of all running lanes; the model then has their weights."""
        self.taught.load_selected()
        self.taught.optimizer.zero_grad()  # their memory, which what follows needs
        started = time.perf_counter()
        teaches = self.recipe.left_views and any(lane.stage.role != "student" for lane in self.running)
        logits = self._soft_targets() if teaches else None
        seconds, numbers = (time.perf_counter() - started) / len(self.running), range(len(self.running))
        return [
            (lane, Trained(weights, _of_lane(logits, lane, number), lane.selected, seconds))
            for number, (lane, weights) in enumerate(zip(self.running, map(self.taught.whole, numbers), strict=True))
        ]

    def _soft_targets(self) -> Tensor:
        """Where what the layers below give is kept of a view, of all images, by those above it."""
        train = self.inputs.dataset.train
        images = self.inputs.pixels(train.images, resident=False)
        found = []
        for view in self.recipe.left_views:
            above = self.inputs.above_at_the_end(self.taught, view)
            if above is not None:
                found.append(predict(above.model, above.train).transpose(1, 2).cpu().unsqueeze(1))
            else:
                found.append(soft_targets(self.taught.model, images, train.labels, [view]))
        return torch.cat(found, dim=1)


def _by_kind(upstream: Upstream) -> Lessons:
    return upstream if isinstance(upstream, Mapping) else {SOFT_TARGETS: upstream}


def _soft_targets_in(lessons: Lessons) -> ByView:
    """None where a method learns of something else alone. They are always derived: no model runs for them."""
    found = lessons.get(SOFT_TARGETS, ())
    assert not isinstance(found, Frozen)
    return found


def _of_lane(logits: Tensor | None, lane: Lane, number: int) -> Tensor | None:
    return None if logits is None or lane.stage.role == "student" else logits[number].contiguous()


def _failure(metrics: EpochMetrics, epochs: int) -> str | None:
    for split, loss in (("training", metrics.train_loss), ("validation", metrics.val_loss)):
        if loss is not None and not math.isfinite(loss):
            return f"the {split} loss became {loss} in epoch {metrics.epoch} of {epochs}"
    for name, value in metrics.scores.items():
        if not math.isfinite(value):
            return f"the metric {name} became {value} in epoch {metrics.epoch} of {epochs}"
    return None


def train(
    stages: Sequence[Stage],
    dataset: Dataset,
    upstream: "Sequence[Sequence[Upstream]]",
    device: torch.device | str = "cpu",
    pretrained: Pretrained | None = None,
    heads: Sequence[Mapping[str, Tensor]] | None = None,
) -> list[Trained]:
    """Train stages of one shape to their end; see `StageTraining`. Raises TrainingError where one failed."""
    training = StageTraining(stages, dataset, upstream, device, pretrained, heads=heads)
    while not training.done:
        training.run_epoch()
    for lane in training.lanes:
        if lane.failure:
            raise TrainingError(f"{lane.stage.name}: {lane.failure}")
    return [trained for _, trained in training.finish()]


class TrainingError(RuntimeError):
    """A stage ended without a result; the message says which and why."""
