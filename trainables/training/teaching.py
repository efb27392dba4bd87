"""By what lanes are taught: labels alone, or soft targets too; and what a trained model leaves for its students.

Another kind of teaching is a subclass of `Teaching` here, and its line in `teaching_of`. The loop calls what a kind has
and knows none.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from takd.search_spaces import NamedView, Stage, ViewName, What
from takd.trainables.training.features import Frozen
from takd.trainables.training.graphs import in_place
from takd.trainables.training.inputs import Inputs, Pixels, predict
from takd.trainables.training.lanes import LaneModel, Lanes
from takd.trainables.training.losses import (
    DIVERGENCES,
    FORMS,
    SoftTargets,
    by_method,
    distillation,
    example_weights,
    labels_only,
    soften,
    standardized,
)

_GUIDES = 1  # tells the generators of guides from those of other things with the same seeds
Logits = np.ndarray[Any, np.dtype[np.float32]]
ByView = Sequence[Logits]
# All that is learned from a stage, by what it is and of which layer; or the model that says it in the loop.
Lessons = Mapping[tuple[What, str | None], "ByView | Frozen"]


class Teaching:
    """Labels alone; what every other kind has too.

    `upstream`: for each stage, of its upstream stages in their order, by view the logits `[train examples, classes]`.
    A kind that needs what is inside the lanes' model finds it in `taught.model`. What it keeps by lane is in the order
    of `taught.running`.
    """

    def __init__(self, taught: Lanes, inputs: Inputs, upstream: Sequence[Sequence[ByView]]) -> None:
        self.taught, self.inputs, self.recipe = taught, inputs, inputs.recipe
        self.class_weights = self._class_weights()
        self.whole: Tensor | None = None  # what an example weighs in the mean of a batch that goes through in parts

    def _class_weights(self) -> Tensor | None:
        """By class, so that each weighs as much in sum: examples / (classes * examples of the class)."""
        if self.recipe.class_weights is None or not self.inputs.labelled:
            return None
        labels = self.inputs.labels
        counts = labels.bincount(minlength=len(self.inputs.dataset.classes)).clamp_min(1)
        return len(labels) / (len(counts) * counts)

    @property
    def watches(self) -> bool:
        """Whether it needs what is inside of the lanes' model, while they train."""
        return False

    @property
    def watched(self) -> Sequence[str]:
        """The layers of that model whose maps it needs."""
        return ()

    def watching(self) -> AbstractContextManager[None]:
        """A context of a forward pass of the lanes' model, in which it takes note of that."""
        return nullcontext()

    def begin_epoch(self, epoch: int, view: int) -> None:
        """Before the first batch of an epoch (from 0), whose images are in that view.

        Whatever is random follows from seeds and the epoch's number, so that training can go on from any epoch.
        """

    def losses(self, logits: Tensor, labels: Tensor, batch: Tensor, number: int | Tensor) -> Tensor:
        """What each lane minimises, `[lanes]`: of logits `[lanes, classes, batch]` and labels `[batch]`.

        `batch [batch]` is where the examples are in the transfer set; it is the epoch's batch `number`, from 0, or a
        part of it where the recipe says `accumulate`. On a GPU `number` is `[1]`, so that a step is the same kernels
        for every batch (`graphs.py`). What is kept from one batch to the next is a tensor of this object's, whose
        content changes and not its place.
        """
        if not self.inputs.labelled:
            return logits.new_zeros(len(logits))
        smoothing, mixed = self.recipe.label_smoothing or 0.0, self.inputs.mixed_labels(batch)
        return labels_only(logits, labels, smoothing, self.class_weights, self.whole, mixed)

    def mean_weight(self, batch: Tensor) -> Tensor | None:
        """Of a batch's examples in the loss on labels; None where all weigh the same."""
        if self.class_weights is None:
            return None
        labels = self.inputs.labels.index_select(0, batch)
        return example_weights(self.class_weights, labels, self.inputs.mixed_labels(batch)).mean()

    def step(self, factor: float | Tensor) -> None:
        """After the lanes' own step on a batch, at `factor` times their rates: of weights that train beside them."""

    def keep(self, numbers: Sequence[int]) -> None:
        """Goes on with some of the running lanes, one at least."""

    def state(self, number: int) -> dict[str, Tensor]:
        """What of a running lane's teaching goes on from one epoch to the next, for its checkpoint."""
        return {}

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Goes on from the states of all running lanes; raises KeyError or RuntimeError on those of another kind."""


class SoftTeaching(Teaching):
    """The soft targets of one or several upstream stages beside the labels: see `losses.distillation`."""

    def __init__(self, taught: Lanes, inputs: Inputs, upstream: Sequence[Sequence[ByView]]) -> None:
        super().__init__(taught, inputs, upstream)
        stages = [lane.stage for lane in taught.running]
        assert stages[0].loss
        self.loss, self.upstream = stages[0].loss, list(upstream)
        self.temperature = torch.tensor([stage.temperature for stage in stages], device=inputs.device)
        self.weight = torch.tensor([stage.lambda_ for stage in stages], device=inputs.device)
        self.view: int | None = None

    def begin_epoch(self, epoch: int, view: int) -> None:
        if view != self.view:
            self.view = view
            self._soften()
        self.rise = in_place(vars(self).get("rise"), rise(self.loss.warmup, epoch, self.inputs))
        self.guides = in_place(vars(self).get("guides"), self._draw_guides(epoch))

    def _soften(self) -> None:
        """All lanes' targets together: one row an example, so that a batch is one gather."""
        targets = [
            self._soft_targets(lane.stage, upstream)
            for lane, upstream in zip(self.taught.running, self.upstream, strict=True)
        ]
        # [examples, lanes, upstreams, classes]
        probabilities = torch.stack([each.probabilities for each in targets], dim=1)
        self.probabilities = in_place(vars(self).get("probabilities"), probabilities)
        entropy = torch.stack([each.negative_entropy for each in targets], dim=1)
        self.negative_entropy = in_place(vars(self).get("negative_entropy"), entropy)

    def _soft_targets(self, stage: Stage, upstream: Sequence[ByView]) -> SoftTargets:
        assert stage.temperature
        return soften(self._logits(upstream), stage.temperature, self.loss)

    def _logits(self, upstream: Sequence[ByView]) -> Tensor:
        """Of the view's images of the transfer set, `[upstreams, examples, classes]`."""
        assert self.view is not None
        name = self.recipe.view_names[self.view]
        own = slice(None) if name and NamedView.parse(name).examples is not None else self.inputs.transfer_set
        return torch.stack([torch.from_numpy(np.array(logits[self.view][own])) for logits in upstream]).to(
            self.inputs.device
        )

    def _draw_guides(self, epoch: int) -> Tensor | None:
        """What each upstream counts for in each batch of the epoch, `[batches, lanes, upstreams]`; None: all the same.

        Each is left out with the chance `drop_guides`, but never all (stochastic guidance, Son et al. 2021).
        """
        upstreams = self.probabilities.shape[2]
        if self.loss.drop_guides is None or upstreams == 1:
            return None
        batches = -(-len(self.inputs.labels) // self.recipe.batch_size)
        drawn = []
        for lane in self.taught.running:
            random = np.random.Generator(np.random.PCG64([lane.stage.seed, epoch, _GUIDES]))
            chances = random.random((batches, upstreams))
            kept = (chances >= self.loss.drop_guides) | (chances == chances.max(axis=1, keepdims=True))
            drawn.append(kept / kept.sum(axis=1, keepdims=True))
        return torch.from_numpy(np.stack(drawn, axis=1).astype(np.float32)).to(self.inputs.device)

    def losses(self, logits: Tensor, labels: Tensor, batch: Tensor, number: int | Tensor) -> Tensor:
        hard = super().losses(logits, labels, batch, number)
        targets = SoftTargets(
            self.probabilities.index_select(0, batch).permute(1, 2, 3, 0).contiguous(),
            self.negative_entropy.index_select(0, batch).permute(1, 2, 0),
        )
        guides = self._guides(number)
        return distillation(hard, logits, labels, targets, self.temperature, self.weight, self.loss, guides, self.rise)

    def _guides(self, number: int | Tensor) -> Tensor | None:
        """What each upstream counts for in a batch, `[lanes, upstreams]`."""
        if self.guides is None:
            return None
        return self.guides.index_select(0, number)[0] if isinstance(number, Tensor) else self.guides[number]

    def keep(self, numbers: Sequence[int]) -> None:
        kept = list(numbers)
        self.upstream = [self.upstream[number] for number in kept]
        self.probabilities = self.probabilities[:, kept].contiguous()
        self.negative_entropy = self.negative_entropy[:, kept].contiguous()
        self.temperature, self.weight = self.temperature[kept], self.weight[kept]


class LogitTeaching(SoftTeaching):
    """A method that needs logits, in the place of the divergence from soft targets."""

    def __init__(self, taught: Lanes, inputs: Inputs, upstream: Sequence[Sequence[ByView]]) -> None:
        super().__init__(taught, inputs, upstream)
        self.degrees = self.temperature.tolist()  # once: reading a GPU's numbers waits for it

    def keep(self, numbers: Sequence[int]) -> None:
        super().keep(numbers)
        self.degrees = [self.degrees[number] for number in numbers]

    def _soften(self) -> None:
        """The upstreams' logits as they are; of an ensemble the logarithm of their mean probabilities."""
        found = []
        for upstream in self.upstream:
            logits = self._logits(upstream).transpose(0, 1)  # [examples, upstreams, classes]
            if self.loss.guidance == "ensemble":
                logits = logits.softmax(dim=2).mean(dim=1, keepdim=True).log()
            found.append(logits)
        # [examples, lanes, upstreams, classes]
        self.probabilities = in_place(vars(self).get("probabilities"), torch.stack(found, dim=1))
        self.negative_entropy = self.probabilities.new_zeros(self.probabilities.shape[:3])

    def losses(self, logits: Tensor, labels: Tensor, batch: Tensor, number: int | Tensor) -> Tensor:
        hard = Teaching.losses(self, logits, labels, batch, number)
        teacher = self.probabilities.index_select(0, batch).permute(1, 2, 3, 0)
        if self.loss.standardize:
            logits, teacher = standardized(logits, 1), standardized(teacher, 2)
        assert self.loss.divergence
        found = by_method(DIVERGENCES[self.loss.divergence], logits, teacher, labels, self.degrees)
        guides = self._guides(number)
        soft = found.mean(dim=1) if guides is None else (found * guides).sum(dim=1)
        if self.loss.kl_reduction == "mean":
            soft = soft / logits.shape[1]
        if self.rise is not None:
            soft = self.rise * soft
        return FORMS[self.loss.form](hard, soft, self.weight)


def rise(warmup: float | None, epoch: int, inputs: Inputs) -> Tensor | None:
    """What a weight is multiplied by in an epoch, from 0: it rises over that part of the run; None: it is whole."""
    if warmup is None:
        return None
    return torch.tensor(min(1.0, (epoch + 1) / (warmup * inputs.recipe.epochs)), device=inputs.device)


def teaching_of(stage: Stage) -> type[Teaching]:
    """The kind of teaching that a stage asks for, which all stages of its shape do."""
    if stage.loss is None:
        return Teaching
    kind = DIVERGENCES[stage.loss.divergence] if stage.loss.divergence else None
    return LogitTeaching if kind and kind.needs == "logits" else SoftTeaching


def soft_targets(model: LaneModel, images: Pixels, labels: Tensor, views: Sequence[ViewName]) -> Tensor:
    """What is learned from a model: float32 logits `[lanes, views, train examples, classes]`, on the CPU.

    `images` are all training images, in the data set's order, with their labels. Of a view that mixes them within a
    transfer set the examples are those of this set.
    """
    found = [predict(model, images.named(name, labels)).transpose(1, 2).cpu() for name in views]
    return torch.stack(found, dim=1)
