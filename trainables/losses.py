"""The losses of a stage: labels alone, or labels together with the soft targets of upstream stages.

Losses take a leading dimension of lanes and return one loss a lane, `[lanes]`. Classes come before examples, as in
torch's own losses over images: a softmax over a last dimension of ten takes a CPU 18 times as long.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces import Loss

# (cross-entropy, T^2 * KL, lambda) -> loss, each `[lanes]`.
FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    # Mirzadeh et al. 2020, equation 3.
    "convex": lambda hard, soft, weight: (1 - weight) * hard + weight * soft,
    # Lambda weighs the soft targets only.
    "additive": lambda hard, soft, weight: hard + weight * soft,
}


@dataclass(frozen=True)
class SoftTargets:
    """What upstream logits come to at one temperature, for every example of a transfer set.

    Any number of upstreams comes to one distribution p an example, because the loss is linear in log q:
    KL(p || q) = sum p log p - sum p log q, and only the second part depends on the student.
    """

    probabilities: Tensor  # [examples, classes]
    negative_entropy: Tensor  # [examples]: sum p log p, a mean over upstreams where their KL terms are averaged


def soften(upstream: Tensor, temperature: float, guidance: str) -> SoftTargets:
    """Softmax of upstream logits `[upstreams, examples, classes]` at a temperature.

    `separate`: the student's loss is the mean of the KL terms of the upstreams (dense guidance, Son et al. 2021);
    `ensemble`: it is the KL against the mean of their probabilities (Hinton et al. 2015).
    """
    log_probabilities = F.log_softmax(upstream / temperature, dim=-1)
    probabilities = log_probabilities.exp()
    mean = probabilities.mean(dim=0)
    if guidance == "ensemble":
        return SoftTargets(mean, torch.xlogy(mean, mean).sum(dim=-1))
    return SoftTargets(mean, (probabilities * log_probabilities).sum(dim=-1).mean(dim=0))


def labels_only(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of `logits [lanes, classes, batch]` with `labels [batch]`, a mean over the batch.

    Smoothed as in Szegedy et al. 2016: that part of the labels' probability is spread over all classes.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    hard = -log_probabilities.gather(1, labels.expand(len(logits), 1, -1)).mean(dim=(1, 2))
    return hard if not smoothing else (1 - smoothing) * hard - smoothing * log_probabilities.mean(dim=(1, 2))


def distillation(
    logits: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    negative_entropy: Tensor,
    temperature: Tensor,
    weight: Tensor,
    loss: Loss,
    smoothing: float = 0.0,
) -> Tensor:
    """Hinton et al. 2015: cross-entropy with the labels, and `T^2 * KL(upstream/T || student/T)`.

    logits `[lanes, classes, batch]`, labels `[batch]`, soft targets `[lanes, classes, batch]` with their negative
    entropy `[lanes, batch]`, temperature and weight (lambda) `[lanes]`.
    """
    student = F.log_softmax(logits / temperature[:, None, None], dim=1)
    divergence = (negative_entropy - (probabilities * student).sum(dim=1)).mean(dim=-1)
    if loss.kl_reduction == "mean":
        divergence = divergence / logits.shape[1]
    return FORMS[loss.form](labels_only(logits, labels, smoothing), temperature.square() * divergence, weight)
