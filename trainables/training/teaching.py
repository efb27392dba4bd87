"""By what lanes are taught: labels alone, or soft targets too; and what a trained model leaves for its students.

Another kind of teaching is a subclass of `Teaching` here, and its line in `teaching_of`. The loop calls what a kind has
and knows none.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from takd.search_spaces import Stage, ViewName
from takd.trainables.training.graphs import in_place
from takd.trainables.training.inputs import Inputs, Pixels, predict
from takd.trainables.training.lanes import LaneModel, Lanes
from takd.trainables.training.losses import SoftTargets, distillation, labels_only, soften
from takd.trainables.training.views import view_named

_GUIDES = 1  # tells the generators of guides from those of other things with the same seeds
Logits = np.ndarray[Any, np.dtype[np.float32]]
ByView = Sequence[Logits]


class Teaching:
    """Labels alone; what every other kind has too.

    `upstream`: for each stage, of its upstream stages in their order, by view the logits `[train examples, classes]`.
    A kind that needs what is inside the lanes' model finds it in `taught.model`. What it keeps by lane is in the order
    of `taught.running`.
    """

    def __init__(self, taught: Lanes, inputs: Inputs, upstream: Sequence[Sequence[ByView]]) -> None:
        self.taught, self.inputs, self.recipe = taught, inputs, inputs.recipe
        self.class_weights = self._class_weights()

    def _class_weights(self) -> Tensor | None:
        """By class, so that each weighs as much in sum: examples / (classes * examples of the class)."""
        if self.recipe.class_weights is None:
            return None
        labels = self.inputs.labels
        counts = labels.bincount(minlength=len(self.inputs.dataset.classes)).clamp_min(1)
        return len(labels) / (len(counts) * counts)

    def begin_epoch(self, epoch: int, view: int) -> None:
        """Before the first batch of an epoch (from 0), whose images are in that view.

        Whatever is random follows from seeds and the epoch's number, so that training can go on from any epoch.
        """

    def losses(self, logits: Tensor, labels: Tensor, batch: Tensor, number: int | Tensor) -> Tensor:
        """What each lane minimises, `[lanes]`: of logits `[lanes, classes, batch]` and labels `[batch]`.

        `batch [batch]` is where the examples are in the transfer set; it is the epoch's batch `number`, from 0; on a
        GPU `[1]`, so that a step is the same kernels for every batch (`graphs.py`). What is kept from one batch to the
        next is a tensor of this object's, whose content changes and not its place.
        """
        return labels_only(logits, labels, self.recipe.label_smoothing or 0.0, self.class_weights)

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
        assert self.view is not None
        assert stage.temperature
        chosen = [torch.from_numpy(np.array(logits[self.view][self.inputs.transfer_set])) for logits in upstream]
        return soften(torch.stack(chosen).to(self.inputs.device), stage.temperature, self.loss)

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
        guides = self.guides
        if guides is not None:
            guides = guides.index_select(0, number)[0] if isinstance(number, Tensor) else guides[number]
        return distillation(hard, logits, labels, targets, self.temperature, self.weight, self.loss, guides)

    def keep(self, numbers: Sequence[int]) -> None:
        kept = list(numbers)
        self.upstream = [self.upstream[number] for number in kept]
        self.probabilities = self.probabilities[:, kept].contiguous()
        self.negative_entropy = self.negative_entropy[:, kept].contiguous()
        self.temperature, self.weight = self.temperature[kept], self.weight[kept]


def teaching_of(stage: Stage) -> type[Teaching]:
    """The kind of teaching that a stage asks for, which all stages of its shape do."""
    return Teaching if stage.loss is None else SoftTeaching


def soft_targets(model: LaneModel, images: Pixels, views: Sequence[ViewName]) -> Tensor:
    """What is learned from a model: float32 logits `[lanes, views, train examples, classes]`, on the CPU.

    `images` are all training images, in the data set's order, and end up in the last of the views.
    """
    found = []
    for name in views:
        drawn = view_named(name, len(images))
        images.view = drawn.to(images.device) if drawn else None
        found.append(predict(model, images).transpose(1, 2).cpu())
    return torch.stack(found, dim=1)
