"""Train a list of stages of one shape, side by side, from tensors in memory: plain PyTorch, no Ray."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from takd.search_spaces import Stage
from takd.trainables.datasets.dataset import Dataset, transfer_set
from takd.trainables.models.families import build, family_of, normalises_batches
from takd.trainables.models.pretrained import Pretrained, start_from
from takd.trainables.training.lanes import Alone, LaneModel, LaneOptimizer, Stacked
from takd.trainables.training.losses import SoftTargets, distillation, labels_only, measure, soften
from takd.trainables.training.schedules import rate_factor
from takd.trainables.training.transfer import Features, cache_features, find_head, train_from
from takd.trainables.training.views import View, view

EVALUATION_BATCH = 1000  # images, and fewer where they are large:
EVALUATION_PIXELS = 2_500_000  # with 50 of 224x224 a resnet50 takes 1 GB
CHECKPOINT_FORMAT = 1
_GUIDES = 1  # tells the generators of guides from those of other things with the same seeds
Logits = np.ndarray[Any, np.dtype[np.float32]]
ByView = Sequence[Logits]


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one stage. Accuracy is a fraction; losses are means over examples."""

    epoch: int  # from 1
    learning_rate: float  # at its last step
    train_loss: float
    val_loss: float | None  # cross-entropy; None where the recipe does not look
    val_accuracy: float | None
    seconds: float  # a lane's share of the epoch's
    val_seconds: float  # of these, for the look at the validation split


@dataclass(frozen=True)
class Trained:
    """What a stage's training leaves."""

    weights: dict[str, Tensor]
    soft_targets: Tensor | None  # float32 logits [views, train examples, classes]; None for students
    selected: EpochMetrics  # the epoch whose weights these are
    soft_targets_seconds: float


@dataclass
class Lane:
    """One stage among those that train together."""

    stage: Stage
    epochs: list[EpochMetrics] = field(default_factory=list)
    failure: str | None = None
    best_weights: dict[str, Tensor] | None = None

    @property
    def val_accuracy(self) -> float | None:
        """At the last look at the validation split."""
        return next((each.val_accuracy for each in reversed(self.epochs) if each.val_accuracy is not None), None)

    @property
    def best_accuracy(self) -> float:
        """On the validation split; -1 before the first look."""
        return max((each.val_accuracy for each in self.epochs if each.val_accuracy is not None), default=-1.0)


class Pixels:
    """Images of a split on the device that trains, as bytes; a batch of them becomes normalised float32.

    With a `view` they are as that view has them.
    """

    view: View | None = None

    def __init__(self, images: Tensor, dataset: Dataset, device: torch.device, memory_format: torch.memory_format):
        self.images = images.to(device)
        self.memory_format = memory_format
        self.scale, self.shift = (each.to(device) for each in dataset.normalization.of_bytes())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """[batch, channels, height, width]"""
        pixels = self.images[index] if isinstance(index, slice) else self.images.index_select(0, index)
        if self.view is not None:
            pixels = self.view.apply(pixels, index)
        pixels = pixels.float().mul_(self.scale).add_(self.shift)
        return pixels.contiguous(memory_format=self.memory_format)


def form_of(model: str) -> tuple[type[LaneModel], torch.memory_format]:
    """In which form a model spec's lanes are computed, and how their weights and images lie in memory."""
    family, _ = family_of(model)
    layout = torch.channels_last if family.convolutional else torch.contiguous_format
    return Stacked if family.stacks else Alone, layout


def evaluation_batch(image_shape: Sequence[int]) -> int:
    """How many images (channels, height, width) go through a model at once where none trains."""
    return max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // math.prod(image_shape[1:])))


@torch.no_grad()
def predict(model: LaneModel, pixels: Pixels | Tensor) -> Tensor:
    """Logits `[lanes, classes, n]`, float32 whatever precision the training steps have: an export computes the same."""
    model.eval()
    size = evaluation_batch(pixels[slice(0, 1)].shape[1:])
    return torch.cat([model(pixels[slice(start, start + size)]) for start in range(0, len(pixels), size)], dim=2)


class StageTraining:
    """Training of stages that share a shape; between two calls of `run_epoch` it stands still.

    upstream: for each stage, of its upstream stages in their order, by view the logits `[train examples, classes]`.
    pretrained: the weights that `stage.pretrained` names.
    A loss that is no finite number ends its lane alone, with the reason in `failure`.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        dataset: Dataset,
        upstream: Sequence[Sequence[ByView]],
        device: torch.device | str = "cpu",
        pretrained: Pretrained | None = None,
    ) -> None:
        if len({stage.shape for stage in stages}) > 1:
            raise ValueError("stages that train together share dataset, model, recipe (but the rate) and loss form")
        if (stages[0].pretrained is None) != (pretrained is None):
            raise ValueError(f"{stages[0].name} starts from pretrained weights: {stages[0].pretrained}")
        self.dataset, self.device, self.pretrained = dataset, torch.device(device), pretrained
        self.recipe, self.loss = stages[0].recipe, stages[0].loss
        self.form, self.memory_format = form_of(stages[0].model)
        self.transfer_set = self._transfer_set()
        self.images = self._pixels(dataset.train.images[self.transfer_set])
        self.labels = dataset.train.labels[self.transfer_set].to(self.device)
        self.validation = self._pixels(dataset.validation.images)
        self.validation_labels = dataset.validation.labels.to(self.device)
        self.class_weights = self._class_weights()
        self.lanes = [Lane(stage) for stage in stages]
        self.running = list(self.lanes)  # those that are in the model, in its order
        self.model = self._lane_model([self._new_model(stage) for stage in stages])
        self.head = find_head(self.model.layers, self.images[slice(0, 2)]) if self.recipe.head_epochs else None
        self.features: Features | None = None  # while the head alone trains
        self.normalises_batches = normalises_batches(self.model)
        self.optimizer = self._new_optimizer()
        self.epoch = 0
        self.upstream = dict(zip((stage.key for stage in stages), upstream, strict=True))
        self.view: int | None = None
        self._begin_epoch()

    def _transfer_set(self) -> Any:
        """An index of the training examples that the recipe trains on."""
        if self.recipe.examples is None:
            return slice(None)
        return transfer_set(self.dataset.train.labels, self.recipe.examples, self.recipe.examples_seed)

    def _pixels(self, images: Tensor) -> Pixels:
        return Pixels(images, self.dataset, self.device, self.memory_format)

    def _new_model(self, stage: Stage) -> nn.Module:
        # The seed alone decides the first weights, whatever device they go to.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.seed)
            module = build(stage.model, self.dataset.image_shape, len(self.dataset.classes), self.recipe.dropout)
        if self.pretrained is not None:
            start_from(self.pretrained, module, self.dataset.normalization)
        return module

    def _lane_model(self, models: Sequence[nn.Module]) -> LaneModel:
        model = self.form(models)
        return model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def _new_optimizer(self) -> LaneOptimizer:
        return LaneOptimizer(self.model, self.recipe, [lane.stage.recipe.learning_rate for lane in self.running])

    def _class_weights(self) -> Tensor | None:
        """By class, so that each weighs as much in sum: examples / (classes * examples of the class)."""
        if self.recipe.class_weights is None:
            return None
        counts = self.labels.bincount(minlength=len(self.dataset.classes)).clamp_min(1)
        return len(self.labels) / (len(counts) * counts)

    def _begin_epoch(self) -> None:
        """Whatever is random in an epoch follows from seeds and its number, so training can go on from any epoch."""
        self.model.seed_dropout([_mix(lane.stage.seed, self.epoch) for lane in self.running])
        number = self.epoch % (self.recipe.views or 1)
        if number != self.view:
            self.view = number
            self.images.view = self._view(number, self.transfer_set)
            self._set_soft_targets([self._soft_targets(lane.stage, number) for lane in self.running])
        self.guides = self._draw_guides()

    def _view(self, number: int, index: Any) -> View | None:
        drawn = view(self.recipe.augment, number, self.dataset.sizes["train"])
        return drawn.of(index).to(self.device) if drawn else None

    def _soft_targets(self, stage: Stage, view: int) -> SoftTargets | None:
        if stage.temperature is None or stage.loss is None:
            return None
        chosen = [torch.from_numpy(np.array(logits[view][self.transfer_set])) for logits in self.upstream[stage.key]]
        return soften(torch.stack(chosen).to(self.device), stage.temperature, stage.loss)

    def _set_soft_targets(self, targets: Sequence[SoftTargets | None]) -> None:
        """All lanes' targets and hyperparameters together: one row an example, so that a batch is one gather."""
        given = [each for each in targets if each is not None]
        if not given:
            return
        self.probabilities = torch.stack([each.probabilities for each in given], dim=1)
        self.negative_entropy = torch.stack([each.negative_entropy for each in given], dim=1)
        self.temperature = torch.tensor([lane.stage.temperature for lane in self.running], device=self.device)
        self.weight = torch.tensor([lane.stage.lambda_ for lane in self.running], device=self.device)

    def _draw_guides(self) -> Tensor | None:
        """What each upstream counts for in each batch of the epoch, `[batches, lanes, upstreams]`; None: all the same.

        Each is left out with the chance `drop_guides`, but never all (stochastic guidance, Son et al. 2021).
        """
        if self.loss is None or self.loss.drop_guides is None or self.probabilities.shape[2] == 1:
            return None
        drawn = []
        for lane in self.running:
            random = np.random.Generator(np.random.PCG64([lane.stage.seed, self.epoch, _GUIDES]))
            chances = random.random((-(-len(self.labels) // self.recipe.batch_size), self.probabilities.shape[2]))
            kept = (chances >= self.loss.drop_guides) | (chances == chances.max(axis=1, keepdims=True))
            drawn.append(kept / kept.sum(axis=1, keepdims=True))
        return torch.from_numpy(np.stack(drawn, axis=1).astype(np.float32)).to(self.device)

    def end(self, lanes: Sequence[Lane]) -> None:
        """Goes on without these; the others are not touched."""
        kept = [number for number, lane in enumerate(self.running) if lane not in lanes]
        if len(kept) == len(self.running):
            return
        states = [self.optimizer.state(number) for number in kept]
        self.running = [self.running[number] for number in kept]
        if not kept:
            return
        self.model.keep(kept)
        self.optimizer = self._new_optimizer()
        self.optimizer.load(states)
        if self.loss is not None:
            self.probabilities = self.probabilities[:, kept].contiguous()
            self.negative_entropy = self.negative_entropy[:, kept].contiguous()
            self.temperature, self.weight = self.temperature[kept], self.weight[kept]

    @property
    def done(self) -> bool:
        return self.epoch == self.recipe.epochs or not self.running

    def run_epoch(self) -> None:
        """One epoch over the transfer set, then a look at the validation split where the recipe says so."""
        started = time.perf_counter()
        generator = np.random.Generator(np.random.PCG64([self.recipe.order_seed, self.epoch]))
        order = torch.from_numpy(generator.permutation(len(self.labels))).to(self.device)
        self._begin_epoch()
        self._choose_what_trains()
        batches = self._batches(order)
        total = torch.zeros(len(self.running), device=self.device)
        for number, batch in enumerate(batches):
            factor = rate_factor(self.recipe, self.epoch + number / len(batches))
            total += self.train_step(batch, factor, number) * len(batch)
        self.epoch += 1
        self._close_epoch((total / len(self.labels)).tolist(), factor, started)

    def _batches(self, order: Tensor) -> list[Tensor]:
        """The order in batches; where batches are normalised, a last one of one example joins the one before."""
        batches = list(order.split(self.recipe.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1 and self.normalises_batches:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def _choose_what_trains(self) -> None:
        """All layers, or in a recipe of two parts the head alone and then those from `finetune_from` on."""
        if self.head is None:
            self.model.train()
            return
        if self.epoch == self.recipe.head_epochs:
            self.optimizer = self._new_optimizer()  # the second part remembers nothing of the first
        in_head_part = self.epoch < (self.recipe.head_epochs or 0)
        if not in_head_part:
            self.features = None
        elif self.features is None and self.head.whole and self.recipe.views is None:
            size = evaluation_batch(self.dataset.image_shape)
            self.features = cache_features(
                self.model.layers, self.head, self.images, self.validation, size, self._precision()
            )
        train_from(self.model.layers, self.head.first if in_head_part else self.recipe.finetune_from)

    def train_step(self, batch: Tensor, factor: float, number: int = 0) -> Tensor:
        """One step on a batch of the transfer set, at `factor` times each lane's rate; returns the losses `[lanes]`.

        `number` is the batch's in its epoch.
        """
        model, images = (self.features.model, self.features.train) if self.features else (self.model, self.images)
        with self._precision():
            logits = model(images[batch])
        losses = self._losses(logits, batch, number)
        self.optimizer.zero_grad()
        losses.sum().backward()  # lanes share no weights: each gets its own gradient
        self.optimizer.step(factor)
        return losses.detach()

    def _losses(self, logits: Tensor, batch: Tensor, number: int) -> Tensor:
        labels = self.labels.index_select(0, batch)
        hard = labels_only(logits, labels, self.recipe.label_smoothing or 0.0, self.class_weights)
        if self.loss is None:
            return hard
        targets = SoftTargets(
            self.probabilities.index_select(0, batch).permute(1, 2, 3, 0).contiguous(),
            self.negative_entropy.index_select(0, batch).permute(1, 2, 0),
        )
        guides = None if self.guides is None else self.guides[number]
        return distillation(hard, logits, labels, targets, self.temperature, self.weight, self.loss, guides)

    def _close_epoch(self, train_losses: list[float], factor: float, started: float) -> None:
        where = f"in epoch {self.epoch} of {self.recipe.epochs}"
        for lane, loss in zip(self.running, train_losses, strict=True):
            if not math.isfinite(loss):
                lane.failure = f"the training loss became {loss} {where}"
        looks: list[tuple[float | None, float | None]] = [(None, None)] * len(self.running)
        looked = time.perf_counter()
        if self.epoch % self.recipe.evaluate_every == 0 or self.epoch == self.recipe.epochs:
            features = self.features
            logits = predict(features.model, features.validation) if features else predict(self.model, self.validation)
            looks = [*measure(logits, self.validation_labels)]
        seconds, val_seconds = ((time.perf_counter() - since) / len(self.running) for since in (started, looked))
        for number, (lane, train_loss, look) in enumerate(zip(self.running, train_losses, looks, strict=True)):
            val_loss, val_accuracy = look
            if lane.failure is None and val_loss is not None and not math.isfinite(val_loss):
                lane.failure = f"the validation loss became {val_loss} {where}"
            if lane.failure is not None:
                continue
            if self.recipe.select == "best" and val_accuracy is not None and val_accuracy > lane.best_accuracy:
                lane.best_weights = _copied(self.model.weights(number))
            rate = lane.stage.recipe.learning_rate * factor
            lane.epochs.append(EpochMetrics(self.epoch, rate, train_loss, val_loss, val_accuracy, seconds, val_seconds))
        self.end([lane for lane in self.running if lane.failure is not None])

    def checkpoint(self, lane: Lane) -> bytes:
        """All that training a lane from here on depends on: a line of JSON, then safetensors. No pickle."""
        number = self.running.index(lane)
        tensors = {f"model.{name}": tensor for name, tensor in self.model.weights(number).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (lane.best_weights or {}).items()}
        for name, state in self.optimizer.state(number).items():
            tensors |= {f"optimizer.{name}.{what}": each for what, each in state.items()}
        head = {"format": CHECKPOINT_FORMAT, "epochs": [asdict(each) for each in lane.epochs]}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return json.dumps(head).encode() + b"\n" + safetensors.torch.save(tensors)

    def restore(self, checkpoints: Sequence["Checkpoint"]) -> None:
        """Goes on from a checkpoint of every lane, all made after the same epoch.

        Raises ValueError on one of another model.
        """
        try:
            self.model.load([each.tensors_of("model") for each in checkpoints])
            self.optimizer.load(
                [
                    {name: each.tensors_of(f"optimizer.{name}") for name in self.optimizer.weights}
                    for each in checkpoints
                ]
            )
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"a checkpoint of another model: {error}") from None
        for lane, each in zip(self.lanes, checkpoints, strict=True):
            lane.best_weights = each.tensors_of("best") or None
            lane.epochs = list(each.epochs)
        [self.epoch] = {len(each.epochs) for each in checkpoints}

    def finish(self) -> list[tuple[Lane, Trained]]:
        """Of the lanes that came to the end: the weights the recipe selects, and what may be learned from them."""
        if not self.running:
            return []
        selected = [lane.best_weights or self.model.weights(number) for number, lane in enumerate(self.running)]
        self.model.load(selected)
        started = time.perf_counter()
        logits: list[Tensor | None] = [None] * len(self.running)
        if any(lane.stage.role != "student" for lane in self.running):
            pixels, views = self._pixels(self.dataset.train.images), []
            for number in range(self.recipe.views or 1):
                pixels.view = self._view(number, slice(None))
                views.append(predict(self.model, pixels).transpose(1, 2).cpu())
            logits = [each.contiguous() for each in torch.stack(views, dim=1)]
        seconds = (time.perf_counter() - started) / len(self.running)
        return [
            (
                lane,
                Trained(
                    weights=_copied(self.model.weights(number)),
                    soft_targets=logits[number] if lane.stage.role != "student" else None,
                    selected=_selected(lane),
                    soft_targets_seconds=seconds,
                ),
            )
            for number, lane in enumerate(self.running)
        ]


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in weights.items()}


def _selected(lane: Lane) -> EpochMetrics:
    looks = [each for each in lane.epochs if each.val_accuracy is not None]
    if lane.best_weights is None:
        return looks[-1]
    return next(each for each in looks if each.val_accuracy == lane.best_accuracy)


@dataclass(frozen=True)
class Checkpoint:
    """What `StageTraining.checkpoint` wrote, read back."""

    epochs: list[EpochMetrics]
    tensors: dict[str, Tensor]

    @classmethod
    def parse(cls, content: bytes) -> "Checkpoint":
        """Raises ValueError on bytes that are no checkpoint."""
        head, _, tensors = content.partition(b"\n")
        try:
            about = json.loads(head)
            if about["format"] != CHECKPOINT_FORMAT:
                raise ValueError(f"its format is {about['format']}")
            return cls([EpochMetrics(**epoch) for epoch in about["epochs"]], safetensors.torch.load(tensors))
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(f"no checkpoint: {error}") from None

    def tensors_of(self, prefix: str) -> dict[str, Tensor]:
        """`{"model.a": x, ...}` of `model`: `{"a": x}`"""
        start = f"{prefix}."
        return {name.removeprefix(start): each for name, each in self.tensors.items() if name.startswith(start)}


def _mix(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


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
