"""Train a list of stages of one shape, side by side, from tensors in memory: plain PyTorch, no Ray."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from search_spaces import Recipe, Stage
from trainables.datasets import Dataset, transfer_set
from trainables.losses import SoftTargets, distillation, labels_only, soften
from trainables.models import build, family_of

EVALUATION_BATCH = 1000
CHECKPOINT_FORMAT = 1
Logits = np.ndarray[Any, np.dtype[np.float32]]

# What the learning rate is multiplied by, by the fraction of the run that is done (0 at the first step).
SCHEDULES: dict[str, Callable[[float, Recipe], float]] = {
    "constant": lambda done, recipe: 1.0,
    "cosine": lambda done, recipe: (1 + math.cos(math.pi * done)) / 2,
    # Smith 2018 as torch's OneCycleLR draws it: up from 1/25 over 30 % of the run, then down to nothing.
    "one-cycle": lambda done, recipe: (
        1 - (24 / 25) * (1 + math.cos(math.pi * done / 0.3)) / 2
        if done < 0.3
        else (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
    ),
    "step": lambda done, recipe: (recipe.step_factor or 1) ** sum(done >= mark for mark in recipe.milestones or ()),
}

# Fused: one kernel a step over all parameters, on CPU and CUDA.
OPTIMIZERS: dict[str, Callable[[list[dict[str, object]], Recipe], torch.optim.Optimizer]] = {
    "adam": lambda groups, recipe: torch.optim.Adam(groups, weight_decay=recipe.weight_decay, fused=True),
    "adamw": lambda groups, recipe: torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True),
    "sgd": lambda groups, recipe: torch.optim.SGD(
        groups, momentum=recipe.momentum or 0.0, weight_decay=recipe.weight_decay, fused=True
    ),
}


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one stage. Accuracy is a fraction; losses are means over examples."""

    epoch: int  # from 1
    learning_rate: float  # at its last step
    train_loss: float
    val_loss: float | None  # cross-entropy; None where the recipe does not look
    val_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Trained:
    """What a stage's training leaves."""

    weights: dict[str, Tensor]
    soft_targets: Tensor | None  # float32 logits [train examples, classes]; None for students
    selected: EpochMetrics  # the epoch whose weights these are
    soft_targets_seconds: float


@dataclass
class Lane:
    """One stage among those that train together."""

    stage: Stage
    model: nn.Module
    soft_targets: SoftTargets | None
    epochs: list[EpochMetrics] = field(default_factory=list)
    failure: str | None = None
    best_weights: dict[str, Tensor] | None = None

    @property
    def best_accuracy(self) -> float:
        """On the validation split; -1 before the first look."""
        return max((each.val_accuracy for each in self.epochs if each.val_accuracy is not None), default=-1.0)


class Pixels:
    """Images of a split on the device that trains, as bytes; a batch of them becomes normalised float32."""

    def __init__(self, images: Tensor, dataset: Dataset, device: torch.device, memory_format: torch.memory_format):
        self.images = images.to(device)
        self.memory_format = memory_format
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in dataset.normalization)
        self.scale, self.shift = (1 / (255 * std)).to(device), (-mean / std).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """[batch, channels, height, width]"""
        pixels = self.images[index].float().mul_(self.scale).add_(self.shift)
        return pixels.contiguous(memory_format=self.memory_format)


@torch.no_grad()
def predict(model: nn.Module, pixels: Pixels) -> Tensor:
    """Float32 logits `[n, classes]`, whatever precision the training steps have: an export computes the same."""
    model.eval()
    starts = range(0, len(pixels), EVALUATION_BATCH)
    return torch.cat([model(pixels[slice(start, start + EVALUATION_BATCH)]) for start in starts])


def measure(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Cross-entropy, and accuracy as a fraction."""
    loss = nn.functional.cross_entropy(logits, labels)
    return loss.item(), int((logits.argmax(dim=1) == labels).sum()) / len(labels)


class StageTraining:
    """Training of stages that share a shape; between two calls of `run_epoch` it stands still.

    upstream: for each stage the logits `[train examples, classes]` of its upstream stages, in their order.
    A loss that is no finite number ends its lane alone, with the reason in `failure`.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        dataset: Dataset,
        upstream: Sequence[Sequence[Logits]],
        device: torch.device | str = "cpu",
    ) -> None:
        shapes = [(stage.model, stage.recipe.model_copy(update={"learning_rate": 1.0}), stage.loss) for stage in stages]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("stages that train together share model, recipe (but the learning rate) and loss form")
        self.dataset, self.device = dataset, torch.device(device)
        self.recipe, self.loss = stages[0].recipe, stages[0].loss
        convolutional = family_of(stages[0].model)[0].convolutional
        self.memory_format = torch.channels_last if convolutional else torch.contiguous_format
        self.transfer_set = self._transfer_set()
        self.images = self._pixels(dataset.train.images[self.transfer_set])
        self.labels = dataset.train.labels[self.transfer_set].to(self.device)
        self.validation = self._pixels(dataset.validation.images)
        self.validation_labels = dataset.validation.labels.to(self.device)
        self.lanes = [self._lane(stage, logits) for stage, logits in zip(stages, upstream, strict=True)]
        self.optimizer = OPTIMIZERS[self.recipe.optimizer](
            [{"params": list(lane.model.parameters()), "lr": lane.stage.recipe.learning_rate} for lane in self.lanes],
            self.recipe,
        )
        self.epoch = 0
        self._stack_soft_targets()

    def _transfer_set(self) -> Any:
        """An index of the training examples that the recipe trains on."""
        if self.recipe.examples is None:
            return slice(None)
        return transfer_set(self.dataset.train.labels, self.recipe.examples, self.recipe.examples_seed)

    def _pixels(self, images: Tensor) -> Pixels:
        return Pixels(images, self.dataset, self.device, self.memory_format)

    def _lane(self, stage: Stage, upstream: Sequence[Logits]) -> Lane:
        # The seed alone decides the first weights, whatever device they go to.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.seed)
            model = build(stage.model, self.dataset.image_shape, len(self.dataset.classes), self.recipe.dropout)
        model = model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        targets = None
        if stage.temperature is not None and stage.loss is not None:
            chosen = [torch.from_numpy(np.array(logits[self.transfer_set])) for logits in upstream]
            logits = torch.stack(chosen).to(self.device)
            targets = soften(logits, stage.temperature, stage.loss.guidance)
        return Lane(stage, model, targets)

    def _stack_soft_targets(self) -> None:
        """The running lanes' targets and hyperparameters, each one tensor with lanes first."""
        lanes = self.running
        targets = [lane.soft_targets for lane in lanes if lane.soft_targets is not None]
        if not targets:
            return
        self.probabilities = torch.stack([each.probabilities for each in targets])
        self.negative_entropy = torch.stack([each.negative_entropy for each in targets])
        self.temperature = torch.tensor([lane.stage.temperature for lane in lanes], device=self.device)
        self.weight = torch.tensor([lane.stage.lambda_ for lane in lanes], device=self.device)

    @property
    def running(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.failure is None]

    @property
    def done(self) -> bool:
        return self.epoch == self.recipe.epochs or not self.running

    def run_epoch(self) -> None:
        """One epoch over the transfer set, then a look at the validation split where the recipe says so."""
        started = time.perf_counter()
        lanes = self.running
        # Everything random in an epoch follows from seeds and its number, so training can go on from any epoch.
        generator = np.random.Generator(np.random.PCG64([self.recipe.order_seed, self.epoch]))
        order = generator.permutation(len(self.labels))
        torch.manual_seed(_mix(lanes[0].stage.seed, self.epoch))  # dropout
        batches = torch.from_numpy(order).to(self.device).split(self.recipe.batch_size)
        total = torch.zeros(len(lanes), device=self.device)
        for lane in lanes:
            lane.model.train()
        for number, batch in enumerate(batches):
            factor = self._set_learning_rates(self.epoch + number / len(batches))
            total += self._step(lanes, batch) * len(batch)
        self.epoch += 1
        losses = (total / len(self.labels)).tolist()
        for lane, loss in zip(lanes, losses, strict=True):
            if math.isfinite(loss):
                self._close_epoch(lane, loss, lane.stage.recipe.learning_rate * factor, started)
            else:
                lane.failure = f"the training loss became {loss} in epoch {self.epoch} of {self.recipe.epochs}"
        if len(self.running) < len(lanes):
            self._stack_soft_targets()

    def _set_learning_rates(self, epochs_done: float) -> float:
        factor = SCHEDULES[self.recipe.schedule](epochs_done / self.recipe.epochs, self.recipe)
        for lane, group in zip(self.lanes, self.optimizer.param_groups, strict=True):
            group["lr"] = lane.stage.recipe.learning_rate * factor
        return factor

    def _step(self, lanes: list[Lane], batch: Tensor) -> Tensor:
        images, labels = self.images[batch], self.labels[batch]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            logits = torch.stack([lane.model(images) for lane in lanes])
        logits = logits.float()
        if self.loss is None:
            losses = labels_only(logits, labels)
        else:
            soft, entropy = self.probabilities[:, batch], self.negative_entropy[:, batch]
            losses = distillation(logits, labels, soft, entropy, self.temperature, self.weight, self.loss)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # lanes share no weights: each gets its own gradient
        self.optimizer.step()
        return losses.detach()

    def _close_epoch(self, lane: Lane, train_loss: float, learning_rate: float, started: float) -> None:
        val_loss = val_accuracy = None
        if self.epoch % self.recipe.evaluate_every == 0 or self.epoch == self.recipe.epochs:
            val_loss, val_accuracy = measure(predict(lane.model, self.validation), self.validation_labels)
            if not math.isfinite(val_loss):
                lane.failure = f"the validation loss became {val_loss} in epoch {self.epoch} of {self.recipe.epochs}"
                return
            if val_accuracy > lane.best_accuracy and self.recipe.select == "best":
                lane.best_weights = {name: each.clone() for name, each in lane.model.state_dict().items()}
        seconds = time.perf_counter() - started
        lane.epochs.append(EpochMetrics(self.epoch, learning_rate, train_loss, val_loss, val_accuracy, seconds))

    def checkpoint(self, lane: Lane) -> bytes:
        """All that training a lane from here on depends on: a line of JSON, then safetensors. No pickle."""
        tensors = {f"model.{name}": tensor for name, tensor in lane.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (lane.best_weights or {}).items()}
        for name, weight in lane.model.named_parameters():
            tensors |= {f"optimizer.{name}.{what}": each for what, each in self.optimizer.state[weight].items()}
        head = {"format": CHECKPOINT_FORMAT, "epochs": [asdict(each) for each in lane.epochs]}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return json.dumps(head).encode() + b"\n" + safetensors.torch.save(tensors)

    def restore(self, checkpoints: Sequence[bytes | None]) -> None:
        """Goes on from a checkpoint of every lane, all made after the same epoch; else from the start.

        Raises ValueError on a checkpoint that isn't one of this stage's.
        """
        states = [_parse_checkpoint(content) for content in checkpoints if content is not None]
        if len(states) < len(self.lanes) or len({len(epochs) for epochs, _ in states}) > 1:
            return
        for lane, (epochs, tensors) in zip(self.lanes, states, strict=True):
            try:
                lane.model.load_state_dict(_below(tensors, "model"))
            except RuntimeError as error:
                raise ValueError(f"a checkpoint of another model: {error}") from None
            lane.best_weights = {name: each.to(self.device) for name, each in _below(tensors, "best").items()} or None
            lane.epochs = epochs
            for name, weight in lane.model.named_parameters():
                state = _below(tensors, f"optimizer.{name}")
                self.optimizer.state[weight] = {what: _laid_out_as(weight, each) for what, each in state.items()}
        self.epoch = len(states[0][0])

    def finish(self, lane: Lane) -> Trained:
        """The weights the recipe selects, and their soft targets where something may learn from them."""
        looks = [each for each in lane.epochs if each.val_accuracy is not None]
        selected = looks[-1]
        if lane.best_weights is not None:
            lane.model.load_state_dict(lane.best_weights)
            selected = next(each for each in looks if each.val_accuracy == lane.best_accuracy)
        started = time.perf_counter()
        soft_targets = None
        if lane.stage.role != "student":
            soft_targets = predict(lane.model, self._pixels(self.dataset.train.images)).cpu()
        return Trained(
            weights={name: weight.detach().cpu().contiguous() for name, weight in lane.model.state_dict().items()},
            soft_targets=soft_targets,
            selected=selected,
            soft_targets_seconds=time.perf_counter() - started,
        )


def _parse_checkpoint(content: bytes) -> tuple[list[EpochMetrics], dict[str, Tensor]]:
    head, _, tensors = content.partition(b"\n")
    try:
        about = json.loads(head)
        if about["format"] != CHECKPOINT_FORMAT:
            raise ValueError(f"its format is {about['format']}")
        return [EpochMetrics(**epoch) for epoch in about["epochs"]], safetensors.torch.load(tensors)
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"no checkpoint: {error}") from None


def _laid_out_as(weight: Tensor, state: Tensor) -> Tensor:
    """On the weight's device, and channels-last where it is: fused optimizers pair the two by their place in memory."""
    if state.shape != weight.shape:
        return state.to(weight.device)
    return torch.empty_like(weight, requires_grad=False).copy_(state)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`{"model.a": x, ...}` below `model`: `{"a": x}`"""
    return {name.removeprefix(f"{prefix}."): each for name, each in tensors.items() if name.startswith(f"{prefix}.")}


def _mix(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def train(
    stages: Sequence[Stage],
    dataset: Dataset,
    upstream: Sequence[Sequence[Logits]],
    device: torch.device | str = "cpu",
) -> list[Trained]:
    """Train stages of one shape to their end; see `StageTraining`. Raises TrainingError where one failed."""
    training = StageTraining(stages, dataset, upstream, device)
    while not training.done:
        training.run_epoch()
    for lane in training.lanes:
        if lane.failure:
            raise TrainingError(f"{lane.stage.name}: {lane.failure}")
    return [training.finish(lane) for lane in training.lanes]


class TrainingError(RuntimeError):
    """A stage ended without a result; the message says which and why."""
