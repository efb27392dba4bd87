"""The losses of a stage: labels alone, or labels together with the soft targets of upstream stages.

Losses take a leading dimension of lanes and return one loss a lane, `[lanes]`. Classes come before examples, as in
torch's own losses over images: a softmax over a last dimension of ten takes a CPU 18 times as long.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from takd.search_spaces import Loss
from takd.search_spaces.registry import TABLES, Method, method

# In the place of KL, which null is. Those that need soft targets: (log q, labels, soft targets, loss) -> by example,
# `[lanes, upstreams, batch]`.
DIVERGENCES: Mapping[str, Method] = TABLES["method"]

# (cross-entropy, T^2 * divergence, lambda) -> loss, each `[lanes]`.
FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    # Mirzadeh et al. 2020, equation 3.
    "convex": lambda hard, soft, weight: (1 - weight) * hard + weight * soft,
    # Lambda weighs the soft targets only.
    "additive": lambda hard, soft, weight: hard + weight * soft,
}

# Of logits that are standardised. Those of a head that starts at zero say nothing of the classes: divided by what they
# differ by, gradients would be 2e5 times as large.
LEAST_DEVIATION = 1e-2


@dataclass(frozen=True)
class SoftTargets:
    """What upstream logits come to at one temperature. `...` is the examples of a transfer set, or lanes and a batch.

    Where the loss is linear in log q (KL), any number of upstreams comes to one distribution p an example:
    KL(p || q) = sum p log p - sum p log q, and only the second part depends on the student.
    """

    probabilities: Tensor  # [examples, upstreams, classes]; of a batch [lanes, upstreams, classes, batch]
    negative_entropy: Tensor  # [examples, upstreams], of a batch [lanes, upstreams, batch]: sum p log p


def soften(upstream: Tensor, temperature: float, loss: Loss) -> SoftTargets:
    """Softmax of upstream logits `[upstreams, examples, classes]` at a temperature.

    Guidance `separate`: the student's loss is the mean of its divergences from the upstreams (dense guidance, Son et
    al. 2021); `ensemble`: it is the divergence from the mean of their probabilities (Hinton et al. 2015). What is
    returned has one upstream unless each must be told apart.
    """
    log_probabilities = F.log_softmax(_scaled(upstream, temperature, loss, classes=-1), dim=-1)
    probabilities = log_probabilities.exp()
    entropy = (probabilities * log_probabilities).sum(dim=-1)
    if loss.guidance == "ensemble":
        probabilities = probabilities.mean(dim=0, keepdim=True)
        entropy = torch.xlogy(probabilities, probabilities).sum(dim=-1)
    elif loss.divergence is None and loss.drop_guides is None:
        probabilities, entropy = (each.mean(dim=0, keepdim=True) for each in (probabilities, entropy))
    return SoftTargets(probabilities.transpose(0, 1).contiguous(), entropy.t().contiguous())


def _scaled(logits: Tensor, temperature: Tensor | float, loss: Loss, classes: int) -> Tensor:
    return (standardized(logits, classes) if loss.standardize else logits) / temperature


def standardized(logits: Tensor, classes: int) -> Tensor:
    """Sun et al. 2024, algorithm 1: mean 0 and standard deviation 1 over an example's classes.

    The student then copies how the upstream ranks the classes, not how large its logits are.
    """
    deviation, mean = torch.std_mean(logits, dim=classes, correction=0, keepdim=True)
    return (logits - mean) / (deviation.clamp_min(LEAST_DEVIATION) + 1e-7)


def labels_only(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    whole: Tensor | None = None,
    mixed: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Cross-entropy of `logits [lanes, classes, batch]` with `labels [batch]`, a mean over the batch.

    Smoothed as in Szegedy et al. 2016: that part of the labels' probability is spread over all classes. With
    `class_weights [classes]` it is a weighted mean, an example having the weight of its class. `whole`: what the
    examples of the whole batch weigh, in the mean, where these are a part of it: then the mean over parts is its own.
    `mixed`: other labels that the examples have too, and the part that is left of their own, `[batch]` each.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    hard = -log_probabilities.gather(1, labels.expand(len(logits), 1, -1)).squeeze(1)
    if mixed is not None:
        others, part = mixed
        hard = part * hard - (1 - part) * log_probabilities.gather(1, others.expand(len(logits), 1, -1)).squeeze(1)
    if smoothing:
        hard = (1 - smoothing) * hard - smoothing * log_probabilities.mean(dim=1)
    if class_weights is None:
        return hard.mean(dim=1)
    weights = example_weights(class_weights, labels, mixed)
    return (hard * weights).sum(dim=1) / (weights.sum() if whole is None else whole * len(labels))


def example_weights(class_weights: Tensor, labels: Tensor, mixed: tuple[Tensor, Tensor] | None) -> Tensor:
    """`[batch]`: each example's of its class, and of two labels as much of each as is in the image."""
    weights = class_weights.index_select(0, labels)
    return weights if mixed is None else class_weights.index_select(0, mixed[0]).lerp(weights, mixed[1])


def measure(logits: Tensor, labels: Tensor) -> list[tuple[float, float]]:
    """Cross-entropy, and accuracy as a fraction, of logits `[lanes, classes, n]`, one pair a lane."""
    losses = labels_only(logits, labels)
    right = (logits.max(dim=1).indices == labels).sum(dim=1)  # a fifth of the time of argmax; the first of equals too
    return [(loss, count / len(labels)) for loss, count in zip(losses.tolist(), right.tolist(), strict=True)]


def distillation(
    hard: Tensor,
    logits: Tensor,
    labels: Tensor,
    targets: SoftTargets,
    temperature: Tensor,
    weight: Tensor,
    loss: Loss,
    guides: Tensor | None = None,
    rise: Tensor | None = None,
) -> Tensor:
    """Hinton et al. 2015: the loss on labels `hard [lanes]`, and `T^2 * KL(upstream/T || student/T)`.

    logits `[lanes, classes, batch]`, labels `[batch]`, soft targets of the batch, temperature and weight (lambda)
    `[lanes]`. `guides [lanes, upstreams]`: what each upstream counts for, 1 in sum; None: all the same. `rise []`:
    what the second is multiplied by; None: 1.
    """
    student = F.log_softmax(_scaled(logits, temperature[:, None, None], loss, classes=1), dim=1)
    own = DIVERGENCES[loss.divergence].function if loss.divergence else None
    diverged = own(student, labels, targets, loss) if own else kl(student, targets)
    divergence = diverged.mean(dim=(1, 2)) if guides is None else (diverged.mean(dim=2) * guides).sum(dim=1)
    if loss.kl_reduction == "mean":
        divergence = divergence / logits.shape[1]
    soft = temperature.square() * divergence
    return FORMS[loss.form](hard, soft if rise is None else rise * soft, weight)


def kl(student: Tensor, targets: SoftTargets) -> Tensor:
    """KL(p || q) by example, `[lanes, upstreams, batch]`, from `log q [lanes, classes, batch]`."""
    return targets.negative_entropy - (targets.probabilities * student.unsqueeze(1)).sum(dim=2)


@method("decoupled", needs="soft_targets")
def decoupled(student: Tensor, labels: Tensor, targets: SoftTargets, loss: Loss) -> Tensor:
    """Zhao et al. 2022, equation 7, by example: `alpha * KL(b(p) || b(q)) + beta * KL(p' || q')`.

    b is how the probability is shared between the label's class and all others, p' and q' how it is shared among the
    others. KL itself is the same with alpha 1 and beta 1 - p[label]: there what the upstream is sure of teaches little.
    """
    one_hot = torch.arange(student.shape[1], device=labels.device)[:, None] == labels  # [classes, batch]
    others = targets.probabilities.masked_fill(one_hot, 0.0)
    other = others.sum(dim=2)  # 1 - p[label], without its rounding
    label = (targets.probabilities * one_hot).sum(dim=2)
    q_label = student.masked_fill(~one_hot, 0.0).sum(dim=1, keepdim=True)  # logarithms
    q_other = student.masked_fill(one_hot, -torch.inf).logsumexp(dim=1, keepdim=True)
    binary = torch.xlogy(label, label) + torch.xlogy(other, other) - label * q_label - other * q_other
    share = others / other.clamp_min(torch.finfo(other.dtype).tiny).unsqueeze(2)
    rest = (torch.xlogy(share, share) - share * (student - q_other).unsqueeze(1)).sum(dim=2)
    return (loss.alpha or 0.0) * binary + (loss.beta or 0.0) * rest


def by_method(kind: Method, student: Tensor, teacher: Tensor, labels: Tensor, temperatures: Sequence[float]) -> Tensor:
    """What a method that needs logits says of each lane and upstream, a mean over the batch: `[lanes, upstreams]`.

    student `[lanes, classes, batch]`, teacher `[lanes, upstreams, classes, batch]`, labels `[batch]`, a temperature
    a lane. A lane at a time: a user's function knows no lanes.
    """
    found = []
    for own, theirs, degrees in zip(student, teacher, temperatures, strict=True):
        each = [kind.function(own.t(), upstream.t(), labels, degrees) for upstream in theirs]
        found.append(torch.stack([said.mean() for said in each]))
    return torch.stack(found)
