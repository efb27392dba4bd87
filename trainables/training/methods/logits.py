"""What is learned from logits, beside KL and the decoupled KL (`takd.trainables.training.losses`)."""

import torch
from torch import Tensor

# A student's deviations, at least, as a part of its teacher's: see `dist`.
LEAST_DEVIATION = 1e-2
ROUNDING = 1e-12  # squared, of what is compared


def dist(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    tau: float = 4.0,
    beta: float = 2.0,
    gamma: float = 2.0,
) -> Tensor:
    """Huang et al. 2022, L_inter and L_intra of DIST: `tau^2 * (beta * inter + gamma * intra)`.

    student and teacher are logits `[images, classes]`. Both terms are 1 - Pearson's correlation of softened
    probabilities: `inter` over an image's classes, `intra` over a class's images, which are those of the batch.
    Published: beta and gamma 2 beside the cross-entropy, tau 4 on CIFAR-100 and 1 on ImageNet; the factor tau^2 is that
    of the published code.

    torchdistill: the same but for beta, gamma and tau 1, and for a student whose probabilities hardly differ, such as
    one whose head starts at zero. What they deviate by is then in the denominator, and the gradient has no bound; here
    it counts as a hundredth of what the teacher's deviate by, at least.
    """
    own, upstream = ((each / tau).softmax(dim=1) for each in (student, teacher))
    inter, intra = 1 - _correlation(own, upstream).mean(), 1 - _correlation(own.mT, upstream.mT).mean()
    return tau**2 * (beta * inter + gamma * intra)


def _correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Pearson's, by row; 0 where the teacher's is constant but for rounding."""
    own, upstream = (each - each.mean(dim=1, keepdim=True) for each in (student, teacher))
    scale = upstream.square().sum(dim=1)
    least = (LEAST_DEVIATION**2 * scale).maximum(ROUNDING * student.detach().square().sum(dim=1)).clamp_min(1e-16)
    deviation = own.square().sum(dim=1).maximum(least)
    alike = (own * upstream).sum(dim=1) / deviation.sqrt() / scale.clamp_min(1e-16).sqrt()
    return torch.where(scale > ROUNDING * teacher.square().sum(dim=1), alike, 0.0)
