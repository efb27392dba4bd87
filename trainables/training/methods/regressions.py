"""What a teacher computes, guessed from what the student does by layers of their own that train beside it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from takd.trainables.training.methods.attention import averaged

Shapes = Sequence[Sequence[int]]  # of what the layers leave of one image: `(width,)`, or `(channels, height, width)`


def hint(student: Tensor, teacher: Tensor, labels: Tensor, *, modules: nn.Module) -> Tensor:
    """Romero et al. 2015, equation 3, on embeddings `[images, d_s]` and `[images, d_t]`: a linear regression.

    The mean of squared differences over images and features; equation 3 halves it. The paper trains this first and
    labels after; here it is one stage, as in Tian et al. 2020, who publish the weight 100 for it beside the
    cross-entropy.
    """
    return F.mse_loss(modules(student), teacher)


def linear(student_shapes: Shapes, teacher_shapes: Shapes, classes: int, examples: int) -> nn.Module:
    """From the student's embedding to one as wide as the teacher's; of `hint`."""
    (own,), (upstream,) = student_shapes[0], teacher_shapes[0]
    return nn.Linear(own, upstream)


def simkd_linear(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Chen et al. 2022, equation 3, on embeddings `[images, d_t]`, of which the student's is projected: linearly.

    The student's network ends in the projector and the teacher's head, so this is all that it learns from: published
    with the weight 1, the cross-entropy 0. For networks without maps; see `simkd`.
    """
    return F.mse_loss(student, teacher)


def fitnet(
    student: tuple[Tensor, ...],
    teacher: tuple[Tensor, ...],
    labels: Tensor,
    *,
    modules: Callable[..., tuple[Tensor, ...]],
) -> Tensor:
    """Romero et al. 2015, equation 3: a regression by convolution, of maps `[images, channels, height, width]`.

    The mean of squared differences, in sum over the layers; equation 3 halves it. One stage and the weight 100 beside
    the cross-entropy, as in Tian et al. 2020, and their regressor: a convolution that fits the sizes, batch
    normalisation and ReLU, so that a teacher's map is best taken after its own ReLU. Of a teacher's map that is larger
    than can be fitted the mean over places is taken.

    torchdistill: its mean squared error, and its `ConvReg` where the sizes fit.
    """
    return torch.stack(
        [
            F.mse_loss(guess, averaged(upstream, *guess.shape[2:]))
            for guess, upstream in zip(modules(student), teacher, strict=True)
        ]
    ).sum()


class ByLayer(nn.ModuleList):
    """One regressor a layer, each for its own maps."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[Any, ...]:
        return tuple(regressor(each) for regressor, each in zip(self, maps, strict=True))


def convolutional(student_shapes: Shapes, teacher_shapes: Shapes, classes: int, examples: int) -> nn.Module:
    """The regressors of `fitnet`."""
    return ByLayer(
        nn.Sequential(_fitting(own, upstream), nn.BatchNorm2d(upstream[0]), nn.ReLU())
        for own, upstream in zip(student_shapes, teacher_shapes, strict=True)
    )


def _fitting(student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
    """The convolution that makes maps of the teacher's channels and, where it can, of its size."""
    (own, height, width), (upstream, their_height, their_width) = student, teacher
    if (height, width) == (2 * their_height, 2 * their_width):
        return nn.Conv2d(own, upstream, 3, stride=2, padding=1)
    if (2 * height, 2 * width) == (their_height, their_width):
        return nn.ConvTranspose2d(own, upstream, 4, stride=2, padding=1)
    if height >= their_height and width >= their_width:
        return nn.Conv2d(own, upstream, (1 + height - their_height, 1 + width - their_width))
    return nn.Conv2d(own, upstream, 3, padding=1)


def simkd(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Chen et al. 2022, equation 3: maps before pooling, `[images, channels, height, width]`, must be alike.

    The student's is projected: its network ends in the projector, a mean over places and the teacher's head, so this is
    all that it learns from: published with the weight 1, the cross-entropy 0. The last of the maps given; where the
    teacher's is larger its places are averaged. torchdistill has no SimKD.
    """
    return F.mse_loss(student[-1], averaged(teacher[-1], *student[-1].shape[2:]))


def vid(
    student: tuple[Tensor, ...],
    teacher: tuple[Tensor, ...],
    labels: Tensor,
    *,
    modules: Callable[..., tuple[tuple[Tensor, Tensor], ...]],
) -> Tensor:
    """Ahn et al. 2019, -log q(t | s): what maps say of the teacher's, `[images, channels, height, width]`.

    The negative logarithm of a normal density, without its constant, whose mean a regressor guesses and whose variance
    is a weight a channel; a mean over images, channels and places, in sum over the layers. Where two maps are not of
    one size the larger is averaged to the smaller's. Published: the weight 1 beside the cross-entropy.

    torchdistill: the same, for maps of one size.
    """
    each = []
    for (mean, variance), upstream in zip(modules(student), teacher, strict=True):
        error = (mean - averaged(upstream, *mean.shape[2:])).square()
        each.append(0.5 * (error / variance + variance.log()).mean())
    return torch.stack(each).sum()


class Variational(nn.Module):
    """The regressor of `vid` for one layer: three 1x1 convolutions, and a variance for each of the teacher's channels.

    The variance is a softplus that starts at 5, and at least 1e-5.
    """

    START, LEAST = 5.0, 1e-5

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        channels = teacher[0]
        self.mean = nn.Sequential(
            nn.Conv2d(student[0], channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
        start = math.log(math.expm1(self.START - self.LEAST))
        self.scale = nn.Parameter(torch.full((channels,), start))
        self.size = min(student[1], teacher[1]), min(student[2], teacher[2])

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(averaged(maps, *self.size)), F.softplus(self.scale)[:, None, None] + self.LEAST


def variational(student_shapes: Shapes, teacher_shapes: Shapes, classes: int, examples: int) -> nn.Module:
    """The regressors of `vid`."""
    return ByLayer(Variational(*pair) for pair in zip(student_shapes, teacher_shapes, strict=True))
