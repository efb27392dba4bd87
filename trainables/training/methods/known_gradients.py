"""Losses whose gradients are worked out together with them, since that is cheaper or since later is too late."""

import torch
from torch import Tensor


def with_gradients(loss: Tensor, *known: tuple[Tensor, Tensor]) -> Tensor:
    """The loss, whose gradient with respect to each tensor is the one beside it; it has no other, and no second one."""
    parts = [((tensor - tensor.detach()) * gradient).sum() for tensor, gradient in known]
    return loss.detach() + torch.stack(parts).sum()
