"""Dropout whose masks follow from a seed a lane, whatever else draws random numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

_STEPS = 2**16  # of the probability


class Dropout(nn.Module):
    """As torch's: what is kept is divided by the probability to keep.

    On a CPU masks come from NumPy: torch's own take 7 times as long, a fifth of a convolutional teacher's training.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.keep = 1 - probability
        self.seeds: list[tuple[int, int]] = []
        self._generators: list[np.random.Generator] = []

    def seed(self, seeds: Sequence[tuple[int, int]]) -> None:
        """One a lane; in training lanes are equal parts of the features, one after the other in memory."""
        self.seeds, self._generators = list(seeds), []

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        if features.device.type != "cpu":
            return self._on_device(features)
        if not self._generators:
            self._generators = [np.random.Generator(np.random.SFC64(seed)) for seed in self.seeds]
        share = features.numel() // len(self._generators)
        drawn = [each.integers(0, _STEPS, share, dtype=np.uint16) for each in self._generators]
        kept = torch.from_numpy(np.concatenate(drawn) < round(self.keep * _STEPS))
        mask = torch.empty_like(features)
        mask.as_strided((len(kept),), (1,)).copy_(kept)  # in the order of memory, however the features lie there
        return features * mask.div_(self.keep)

    def _on_device(self, features: Tensor) -> Tensor:
        if not self._generators:
            device = features.device
            self._generators = [torch.Generator(device).manual_seed(sum(seed)) for seed in self.seeds]  # type: ignore[misc]
        mask = torch.empty_like(features)
        share = features.numel() // len(self._generators)
        flat = mask.as_strided((features.numel(),), (1,))
        for lane, generator in zip(flat.split(share), self._generators, strict=True):
            lane.bernoulli_(self.keep, generator=generator)
        return features * mask.div_(self.keep)
