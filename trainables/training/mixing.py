"""Two images in one, and the labels of both: `mixup` (Zhang et al. 2018), `cutmix` (Yun et al. 2019) as seeded views.

The partner of each image is drawn within its transfer set, once a view, and so is its part. So whoever is taught sees
the image that the teacher's soft targets are of ("function matching", Beyer et al. 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from takd.search_spaces import MIXING
from takd.trainables.training.views import generator


@dataclass(frozen=True)
class Mix:
    """Of each example of a transfer set, in its order: with which other one it is mixed, and how much of it is left."""

    partner: Tensor  # [n], where in the transfer set
    part: Tensor  # [n], of its own label
    box: Tensor | None  # [n, 4] what cutmix takes of the partner, in pixels: from x, from y, to x, to y; None: mixup

    def to(self, device: torch.device) -> "Mix":
        box = None if self.box is None else self.box.to(device)
        return Mix(self.partner.to(device), self.part.to(device), box)

    def apply(self, pixels: Tensor, others: Tensor, index: Tensor | slice) -> Tensor:
        """The examples at `index` and their partners, float `[batch, channels, height, width]`, in one."""
        part = self.part[index][:, None, None, None]
        if self.box is None:
            return others.lerp(pixels, part)
        rows, columns = (torch.arange(size, device=pixels.device) for size in pixels.shape[2:])
        left, top, right, bottom = (each[:, None] for each in self.box[index].unbind(1))
        across, along = (columns >= left) & (columns < right), (rows >= top) & (rows < bottom)
        return torch.where((along.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1), others, pixels)


def mix(augment: str | None, number: int, examples: int, image_shape: Sequence[int]) -> Mix | None:
    """How view `number` mixes a transfer set of images (channels, height, width); None where it doesn't."""
    how = (augment or "").split("+")[-1]
    if how not in MIXING or number == 0:
        return None
    random = generator(number, how)
    partner = torch.from_numpy(random.permutation(examples))
    part = random.random(examples)  # evenly, which is Beta(1, 1)
    if how == "mixup":
        return Mix(partner, torch.from_numpy(part.astype(np.float32)), None)
    height, width = image_shape[1:]
    x, y = (random.integers(0, size, examples) for size in (width, height))
    half = 0.5 * np.sqrt(1 - part)
    across, along = (half * width).astype(np.int64), (half * height).astype(np.int64)
    edges = [np.maximum(x - across, 0), np.maximum(y - along, 0)]
    edges += [np.minimum(x + across, width), np.minimum(y + along, height)]
    area = (edges[2] - edges[0]) * (edges[3] - edges[1])
    box = torch.from_numpy(np.stack(edges, axis=1))
    return Mix(partner, torch.from_numpy((1 - area / (width * height)).astype(np.float32)), box)
