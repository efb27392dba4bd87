"""Where a network looks: which places of its maps are strong."""

import torch
import torch.nn.functional as F
from torch import Tensor

from takd.trainables.training.methods.relations import directions


def at(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Zagoruyko & Komodakis 2017, equation 2 with p 2: attention maps of length 1 must be alike.

    An attention map is the mean of the squares over the channels of a map `[images, channels, height, width]`. Where
    two are not of one size the larger is averaged to the smaller's. As in the published code, and unlike equation 2,
    it is the mean of squared differences over places and images, in sum over the layers; the weight of 1000 that Tian
    et al. 2020 publish belongs to this form.

    torchdistill: the same with `mode: code`, for maps of one size.
    """
    each = []
    for own, upstream in zip(student, teacher, strict=True):
        own, upstream = of_one_size(own, upstream)
        each.append((_attention(own) - _attention(upstream)).square().mean())
    return torch.stack(each).sum()


def _attention(maps: Tensor) -> Tensor:
    """`[images, height * width]`."""
    return directions(maps.square().mean(dim=1).flatten(1))


def of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Each averaged to the smaller of both heights and widths."""
    height, width = (min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return averaged(student, height, width), averaged(teacher, height, width)


def averaged(maps: Tensor, height: int, width: int) -> Tensor:
    return maps if tuple(maps.shape[2:]) == (height, width) else F.adaptive_avg_pool2d(maps, (height, width))
