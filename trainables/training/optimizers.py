"""torch's fused Adam and SGD by its functions: its classes load its compiler, seconds of every worker's start.

Used as its classes are: `state` by weight has their names, and the learning rate is that of the one group.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's own


class Optimizer(Protocol):
    """What lanes need of one; torch's are such."""

    state: Any  # by weight and name
    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...


class _Fused:
    def __init__(self, weights: Sequence[nn.Parameter], rate: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(weights), "lr": rate}]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {weight: {} for weight in weights}

    def _with_gradients(self) -> tuple[list[nn.Parameter], list[Tensor]]:
        """The weights that have one, and these."""
        weights = [weight for weight in self.state if weight.grad is not None]
        return weights, [weight.grad for weight in weights if weight.grad is not None]


class FusedAdam(_Fused):
    """Adam (Kingma and Ba 2015); decoupled, AdamW (Loshchilov and Hutter 2019)."""

    def __init__(self, weights: Sequence[nn.Parameter], rate: float, weight_decay: float, decoupled: bool) -> None:
        super().__init__(weights, rate)
        self.weight_decay, self.decoupled = weight_decay, decoupled

    @torch.no_grad()
    def step(self) -> None:
        weights, gradients = self._with_gradients()
        states = [self.state[weight] or self._first(weight) for weight in weights]
        adam(
            list[Tensor](weights),
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            decoupled_weight_decay=self.decoupled,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.param_groups[0]["lr"],
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def _first(self, weight: nn.Parameter) -> dict[str, Tensor]:
        self.state[weight] |= {
            "step": torch.zeros((), dtype=torch.float32, device=weight.device),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
        return self.state[weight]


class FusedSGD(_Fused):
    """Stochastic gradient descent, with momentum or without."""

    def __init__(self, weights: Sequence[nn.Parameter], rate: float, weight_decay: float, momentum: float) -> None:
        super().__init__(weights, rate)
        self.weight_decay, self.momentum = weight_decay, momentum

    @torch.no_grad()
    def step(self) -> None:
        weights, gradients = self._with_gradients()
        buffers = [self.state[weight].get("momentum_buffer") for weight in weights] if self.momentum else []
        sgd(
            list[Tensor](weights),
            gradients,
            buffers,
            fused=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.param_groups[0]["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for weight, buffer in zip(weights, buffers, strict=False):  # without momentum there are none
            assert buffer is not None  # the first step made it
            self.state[weight]["momentum_buffer"] = buffer
