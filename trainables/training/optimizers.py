"""torch's optimizers by its functions: its classes load its compiler, seconds of every worker's start.

Used as its classes are: `state` by weight has their names, and the learning rate is that of the one group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adadelta import adadelta
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamax import adamax
from torch.optim.nadam import nadam
from torch.optim.radam import radam
from torch.optim.rmsprop import rmsprop
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
    """Stochastic gradient descent, with momentum or without; with momentum it may be Nesterov's."""

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        rate: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool = False,
    ) -> None:
        super().__init__(weights, rate)
        self.weight_decay, self.momentum, self.nesterov = weight_decay, momentum, nesterov

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
            nesterov=self.nesterov,
            maximize=False,
        )
        for weight, buffer in zip(weights, buffers, strict=False):  # without momentum there are none
            assert buffer is not None  # the first step made it
            self.state[weight]["momentum_buffer"] = buffer


@dataclass(frozen=True)
class Rule:
    """How one of torch's optimizers steps: its function, what it keeps of a weight, and torch's own hyperparameters.

    `keeps` has the function's lists by the names that torch's class has in its state.
    """

    function: Callable[..., None]
    keeps: Mapping[str, str]
    options: Mapping[str, Any]
    scalars: Mapping[str, float]  # what else it keeps of a weight, one number each, with its first value


_STEPS = {"step": 0.0}
_MOMENTS = {"exp_avgs": "exp_avg", "exp_avg_sqs": "exp_avg_sq"}
_ADAM = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPSILON}
# A step of each is its rate times what follows from gradients alone, which lanes at different rates need.
RULES: Mapping[str, Rule] = {
    "rmsprop": Rule(
        rmsprop,
        {"square_avgs": "square_avg"},
        {"grad_avgs": [], "momentum_buffer_list": [], "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False},
        _STEPS,
    ),
    "nadam": Rule(nadam, _MOMENTS, _ADAM | {"momentum_decay": 4e-3}, _STEPS | {"mu_product": 1.0}),
    "radam": Rule(radam, _MOMENTS, _ADAM, _STEPS),
    "adamax": Rule(adamax, {"exp_avgs": "exp_avg", "exp_infs": "exp_inf"}, _ADAM, _STEPS),
    "adagrad": Rule(adagrad, {"state_sums": "sum"}, {"lr_decay": 0.0, "eps": 1e-10, "maximize": False}, _STEPS),
    "adadelta": Rule(
        adadelta,
        {"square_avgs": "square_avg", "acc_deltas": "acc_delta"},
        {"rho": 0.9, "eps": 1e-6, "maximize": False},
        _STEPS,
    ),
}
_LISTS = {"step": "state_steps", "mu_product": "mu_products"}


class ByRule(_Fused):
    """One of torch's optimizers that have no fused form, or none that is the same: see `RULES`."""

    scalars_on = torch.device("cpu")  # on a GPU, reading them would wait for it at every step

    def __init__(self, weights: Sequence[nn.Parameter], rate: float, weight_decay: float, rule: Rule) -> None:
        super().__init__(weights, rate)
        self.weight_decay, self.rule = weight_decay, rule

    @torch.no_grad()
    def step(self) -> None:
        weights, gradients = self._with_gradients()
        if not weights:
            return
        states = [self.state[weight] or self._first(weight) for weight in weights]
        kept = {name: [state[what] for state in states] for name, what in self.rule.keeps.items()}
        kept |= {_LISTS[what]: [state[what] for state in states] for what in self.rule.scalars}
        self.rule.function(
            list[Tensor](weights),
            gradients,
            **kept,
            **self.rule.options,
            foreach=weights[0].is_cuda,
            lr=self.param_groups[0]["lr"],
            weight_decay=self.weight_decay,
        )

    def _first(self, weight: nn.Parameter) -> dict[str, Tensor]:
        self.state[weight] |= {what: torch.tensor(first) for what, first in self.rule.scalars.items()}
        self.state[weight] |= {what: torch.zeros_like(weight) for what in self.rule.keeps.values()}
        return self.state[weight]
