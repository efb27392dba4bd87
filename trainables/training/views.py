"""Seeded views: augmented copies of the training images, the same for a teacher and for whoever learns from it.

"A good teacher is patient and consistent" (Beyer et al. 2022): soft targets are those of the view that the student
sees. View 0 is the images as they are; epoch e trains on view e modulo the recipe's `views`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from takd.search_spaces import ViewName

_TAG = 0x7669657773  # of the generators of views, so that nothing else draws the same numbers
PADDING = 4  # pixels on each side that a crop may move by, as He et al. 2016 have it for 32x32


@dataclass(frozen=True)
class View:
    """What is drawn for each training image of one view, in the dataset's order: uint8 `[n]`."""

    augment: str
    flip: Tensor  # 0 or 1
    down: Tensor  # pixels from the padded image's top; crop
    right: Tensor
    turns: Tensor  # quarter turns; flip-rotate

    def of(self, index: Tensor | slice) -> "View":
        """The view of some of the images."""
        return View(self.augment, self.flip[index], self.down[index], self.right[index], self.turns[index])

    def to(self, device: torch.device) -> "View":
        drawn = (each.to(device) for each in (self.flip, self.down, self.right, self.turns))
        return View(self.augment, *drawn)

    def apply(self, images: Tensor, index: Tensor | slice) -> Tensor:
        """The images `[batch, channels, height, width]`, which are those at `index`, as this view has them."""
        return AUGMENTATIONS[self.augment](images, self.of(index))


def view(augment: str | None, number: int, examples: int) -> View | None:
    """View `number` of a training set; None for the images as they are."""
    if augment is None or number == 0:
        return None
    random = np.random.Generator(np.random.PCG64([_TAG, number]))
    flip, down, right, turns = (
        torch.from_numpy(random.integers(0, high, examples, dtype=np.uint8))
        for high in (2, 2 * PADDING + 1, 2 * PADDING + 1, 4)
    )
    return View(augment, flip, down, right, turns)


def view_named(name: ViewName, examples: int) -> View | None:
    """The view of a training set that a recipe, or what is derived, calls by that name."""
    augment, _, number = (name or "").rpartition(" ")
    return view(augment, int(number), examples) if name else None


def _crop_flip(images: Tensor, drawn: View) -> Tensor:
    """Moved by up to 4 pixels, black where nothing was, and half of them mirrored left to right (He et al. 2016)."""
    number, channels, height, width = images.shape
    count = torch.arange(max(number, channels, height, width), device=images.device)
    across = count[:width].expand(number, width)
    across = torch.where(drawn.flip[:, None].bool(), width - 1 - across, across) + drawn.right[:, None]
    rows = count[:height] + drawn.down[:, None]
    padded = F.pad(images, (PADDING,) * 4)
    return padded[
        count[:number, None, None, None],
        count[None, :channels, None, None],
        rows[:, None, :, None],
        across[:, None, None, :],
    ]


def _flip_rotate(images: Tensor, drawn: View) -> Tensor:
    """One of the eight ways a square lies on a table: tissue has no up or down.

    Each is a transposition or none, then mirrored or not from top to bottom and from left to right: all by what is
    drawn of an image, and no image is looked for, which a GPU would have to wait for.
    """
    turns = drawn.turns[:, None, None, None]
    odd, second, third = turns % 2 == 1, turns == 2, turns == 3
    turned = torch.where(odd, images.transpose(2, 3), images)
    turned = torch.where(second | (turns == 1), turned.flip(2), turned)
    return torch.where((second | third) ^ drawn.flip.bool()[:, None, None, None], turned.flip(3), turned)


AUGMENTATIONS: dict[str, Callable[[Tensor, View], Tensor]] = {
    "crop-flip": _crop_flip,
    "flip-rotate": _flip_rotate,
}
