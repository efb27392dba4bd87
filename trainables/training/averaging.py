"""The moving average of weights, which is looked at and kept in their place: `ema` of a recipe."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn


class OfLanes(Protocol):
    """What is asked of a model of lanes."""

    layers: nn.Module

    def part(self, tensor: Tensor, lane: int) -> Tensor: ...
    def join(self, parts: Sequence[Tensor]) -> Tensor: ...


class Average:
    """Of all lanes' weights and of what batch normalisation keeps: torch's `AveragedModel` with `use_buffers`.

    After the first step it is the weights; after each other step it goes to them by `1 - decay`. Whole numbers, such as
    the count of batches, are copied.
    """

    def __init__(self, model: OfLanes, decay: float) -> None:
        self.model, self.decay, self.begun = model, decay, False
        self.averaged = {name: each.detach().clone() for name, each in self._now().items()}

    def _now(self) -> dict[str, Tensor]:
        """The model's own weights and buffers, by name."""
        return self.model.layers.state_dict(keep_vars=True)

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimizer."""
        now = self._now()
        moving = [name for name, each in now.items() if each.is_floating_point()] if self.begun else []
        for name in now.keys() - set(moving):
            self.averaged[name].copy_(now[name])
        if moving:
            torch._foreach_lerp_(
                [self.averaged[name] for name in moving], [now[name] for name in moving], 1 - self.decay
            )
        self.begun = True

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average where it has its weights, and these again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Contents alone: whatever reads one of the tensors finds it where it was."""
        for name, each in self._now().items():
            own = each.clone()
            each.copy_(self.averaged[name])
            self.averaged[name].copy_(own)

    def keep(self, numbers: Sequence[int]) -> None:
        """Goes on with some of the lanes; before the model does."""
        model = self.model
        self.averaged = {
            name: model.join([model.part(each, number) for number in numbers]) for name, each in self.averaged.items()
        }

    def state(self, number: int) -> dict[str, Tensor]:
        """Of a lane, for its checkpoint; empty before the first step."""
        if not self.begun:
            return {}
        return {name: self.model.part(each, number) for name, each in self.averaged.items()}

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """All lanes' states; raises KeyError on those of another model."""
        self.begun = bool(states[0])
        for name, each in self.averaged.items() if self.begun else ():
            each.copy_(self.model.join([state[name] for state in states]))
