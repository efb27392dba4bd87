"""Dropout whose masks follow from a seed a lane, whatever else draws random numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_STEPS = 2**16  # of the probability


class PartOfBatch(NamedTuple):
    """Which of a batch's examples go through a model, where others take the rest: the masks are the whole batch's."""

    start: int
    examples: int  # how many of them
    whole: int  # how many the batch has
    stacked: bool  # features have the batch last, else first


class Dropout(nn.Module):
    """As torch's: what is kept is divided by the probability to keep.

    On a CPU masks come from NumPy: torch's own take 7 times as long, a fifth of a convolutional teacher's training.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.keep = 1 - probability
        self.seeds: list[tuple[int, int]] = []
        self._generators: list[np.random.Generator | torch.Generator] = []
        self.part: PartOfBatch | None = None  # None: features are of whole batches

    def seed(self, seeds: Sequence[tuple[int, int]]) -> None:
        """One a lane; in training lanes are equal parts of the features, one after the other in memory."""
        kept, self.seeds = self.generators, list(seeds)
        if kept and len(kept) == len(self.seeds):  # on a GPU the same ones: a graph of a step knows them
            for generator, seed in zip(kept, self.seeds, strict=True):
                generator.manual_seed(sum(seed))
        else:
            self._generators = []

    @property
    def generators(self) -> list[torch.Generator]:
        """A lane's each, on a GPU; none before the first step."""
        return [each for each in self._generators if isinstance(each, torch.Generator)]

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        return features * self._filled(torch.empty_like(features))

    def _filled(self, mask: Tensor) -> Tensor:
        """0 for what is dropped, else one by the probability to keep."""
        if not self._generators:
            self._generators = [_generator(mask.device, seed) for seed in self.seeds]
        flat = mask.as_strided((mask.numel(),), (1,))  # in the order of memory, however the features lie there
        if self.part is None:
            self._draw(flat)
        else:
            own = self._of_whole_batch(mask, self.part)
            flat.copy_(own.reshape(-1))
        return mask.div_(self.keep)

    def _of_whole_batch(self, mask: Tensor, part: PartOfBatch) -> Tensor:
        """What is drawn for these examples among all of the batch, by dimensions in the order of memory."""
        order = sorted(range(mask.dim()), key=mask.stride, reverse=True)
        place = order.index(mask.dim() - 1 if part.stacked else 0)
        shape = [mask.shape[dim] for dim in order]
        if shape[place] % part.examples:
            return self._draw(mask.new_empty(mask.numel()))  # it is the same for all images
        each = shape[place] // part.examples  # rows of an example: parts of an image may be examples to a layer
        shape[place] = each * part.whole
        drawn = self._draw(mask.new_empty(math.prod(shape)))
        return drawn.view(shape).narrow(place, each * part.start, each * part.examples)

    def _draw(self, flat: Tensor) -> Tensor:
        """1 for what is kept, else 0, in the place of what is there."""
        lanes = flat.split(len(flat) // len(self._generators))
        for lane, generator in zip(lanes, self._generators, strict=True):
            if isinstance(generator, torch.Generator):
                lane.bernoulli_(self.keep, generator=generator)
            else:
                drawn = generator.integers(0, _STEPS, len(lane), dtype=np.uint16)
                lane.copy_(torch.from_numpy(drawn < round(self.keep * _STEPS)))
        return flat


class StochasticDepth(Dropout):
    """Drops whole examples of a residual branch (Huang et al. 2016)."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or self.keep == 1:
            return features
        return features * self._filled(features.new_empty(len(features), *[1] * (features.dim() - 1)))


class ChannelDropout(Dropout):
    """Drops whole channels of an example: features `[batch, channels, ...]` (Tompson et al. 2015)."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        return features * self._filled(features.new_empty(*features.shape[:2], *[1] * (features.dim() - 2)))


def _generator(device: torch.device, seed: tuple[int, int]) -> np.random.Generator | torch.Generator:
    if device.type == "cpu":
        return np.random.Generator(np.random.SFC64(seed))
    return torch.Generator(device).manual_seed(sum(seed))
