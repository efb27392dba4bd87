"""Batch normalisation over what several processes have of one batch, on a CPU (gloo) as on a GPU (NCCL).

torch's own `SyncBatchNorm` refuses tensors of a CPU, and takes the place of layers. Here what a model calls is found as
it runs, in whatever layer of whichever library: its layers, their names and their buffers stay as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_BATCH_NORM: Callable[..., Tensor] = F.batch_norm


class Synchronised(TorchFunctionMode):
    """A context in which batch normalisation that trains takes its means over all processes of torch's default group.

    `share` is the part of the batch that this one has.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _BATCH_NORM:
            return self._of_functional(*args, **(kwargs or {}))
        if func is torch.batch_norm:
            return self._of_torch(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _of_functional(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """With the arguments of `torch.nn.functional.batch_norm`."""
        if not training:
            return _BATCH_NORM(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return _normalised(input, weight, bias, running_mean, running_var, momentum, eps, self.share)

    def _of_torch(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        """With the arguments of `torch.batch_norm`."""
        return self._of_functional(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _normalised(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    share: float,
) -> Tensor:
    """Features `[examples, channels, ...]` by the means of all processes' examples; changes the running ones by them.

    Raises ValueError where all of them together have one number a channel.
    """
    mean, variance = _moments(features.detach())
    number = round(features.numel() // features.shape[1] / share)  # of all; reading it off a GPU would wait for it
    if number < 2:
        raise ValueError("batch normalisation takes more than one value a channel in training")
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (number / (number - 1))).to(running_var.dtype), momentum)
    normalised: Tensor = _Normalisation.apply(features, weight, bias, mean, variance, number, eps)
    return normalised


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (by the number, as normalisation takes it) of each channel.

    Each process tells its own mean, so that no variance is a difference of large sums.
    """
    mean, variance = _moments_here(features)
    here = torch.cat([mean, variance, mean.new_full((1,), features.numel() // features.shape[1])])
    each = [torch.empty_like(here) for _ in range(dist.get_world_size())]
    dist.all_gather(each, here)
    means, variances, counts = torch.stack(each).split([len(mean), len(mean), 1], dim=1)
    parts = counts / counts.sum()
    whole = (parts * means).sum(dim=0)
    return whole, (parts * (variances + (means - whole).square())).sum(dim=0)


def _moments_here(features: Tensor) -> tuple[Tensor, Tensor]:
    if features.device.type == "cpu":  # a tenth of the time of the general way
        exact = torch.promote_types(features.dtype, torch.float32)  # what is found is as exact as what it starts from
        start = torch.zeros(features.shape[1], dtype=exact), torch.ones(features.shape[1], dtype=exact)
        mean, variance = torch.batch_norm_update_stats(features, *start, 0.0)
        return mean, variance
    dims = [0, *range(2, features.dim())]
    variance, mean = torch.var_mean(features.float(), dims, correction=0)
    return mean, variance


class _Normalisation(torch.autograd.Function):
    """With given means and variances, which depend on the features of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        number: int,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(features, weight, mean, variance)
        ctx.number, ctx.eps = number, eps
        return _by(features, weight, bias, mean, variance, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """As if the moments were given; then less what of the loss goes through them, by the sums of all processes."""
        features, weight, mean, variance = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        of_features, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, features, scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        steepness = scale * (variance + ctx.eps).rsqrt() / ctx.number
        of_features -= _by(features, steepness * sums[0], steepness * sums[1], mean, variance, ctx.eps)
        own = (of_weight, of_bias) if weight is not None else (None, None)
        return of_features, *own, None, None, None, None


def _by(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    return torch.native_batch_norm(features, weight, bias, mean, variance, False, 0.0, eps)[0]
