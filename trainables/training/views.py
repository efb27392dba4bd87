"""Seeded views: augmented copies of the training images, the same for a teacher and for whoever learns from it.

"A good teacher is patient and consistent" (Beyer et al. 2022): soft targets are those of the view that the student
sees. View 0 is the images as they are; epoch e trains on view e modulo the recipe's `views`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from takd.search_spaces import ViewName
from takd.search_spaces.registry import TABLES, Augmentation, augmentation

_TAG = 0x7669657773  # of the generators of views, so that nothing else draws the same numbers
AUGMENTATIONS: Mapping[str, Augmentation] = TABLES["augmentation"]
PADDING = 4  # pixels on each side that a crop may move by, as He et al. 2016 have it for 32x32


@dataclass(frozen=True)
class View:
    """What is drawn for each training image of one view, in the dataset's order: uint8 `[n]`."""

    augment: str
    flip: Tensor  # 0 or 1
    down: Tensor  # pixels from the padded image's top; crop
    right: Tensor
    turns: Tensor  # quarter turns; flip-rotate
    numbers: Tensor | None = None  # float32 [n, as many as it asks for] from 0 to 1; of a user's augmentation

    def of(self, index: Tensor | slice) -> "View":
        """The view of some of the images."""
        return self._each(lambda drawn: drawn[index])

    def to(self, device: torch.device) -> "View":
        return self._each(lambda drawn: drawn.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "View":
        flip, down, right, turns = (change(each) for each in (self.flip, self.down, self.right, self.turns))
        numbers = None if self.numbers is None else change(self.numbers)
        return View(self.augment, flip, down, right, turns, numbers)

    def apply(self, images: Tensor, index: Tensor | slice) -> Tensor:
        """The images `[batch, channels, height, width]`, which are those at `index`, as this view has them."""
        kind, drawn = AUGMENTATIONS[self.augment], self.of(index)
        changed: Tensor = kind.function(images, drawn if kind.numbers is None else drawn.numbers)
        return changed


def view(augment: str | None, number: int, examples: int) -> View | None:
    """View `number` of a training set; None for the images as they are."""
    if augment is None or number == 0:
        return None
    random = np.random.Generator(np.random.PCG64([_TAG, number]))
    flip, down, right, turns = (
        torch.from_numpy(random.integers(0, high, examples, dtype=np.uint8))
        for high in (2, 2 * PADDING + 1, 2 * PADDING + 1, 4)
    )
    return View(augment, flip, down, right, turns, _numbers(AUGMENTATIONS[augment].numbers, number, examples))


def _numbers(each: int | None, number: int, examples: int) -> Tensor | None:
    """For a user's augmentation, of view `number`."""
    if each is None:
        return None
    random = np.random.Generator(np.random.PCG64([_TAG, number, each]))
    return torch.from_numpy(random.random((examples, each), dtype=np.float32))


def view_named(name: ViewName, examples: int) -> View | None:
    """The view of a training set that a recipe, or what is derived, calls by that name."""
    augment, _, number = (name or "").rpartition(" ")
    return view(augment, int(number), examples) if name else None


@augmentation("crop-flip", numbers=None)
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


@augmentation("flip-rotate", numbers=None)
def _flip_rotate(images: Tensor, drawn: View) -> Tensor:
    """One of the eight ways a square lies on a table: tissue has no up or down."""
    turned = torch.empty_like(images)
    for turns in range(4):
        for flip in range(2):
            chosen = ((drawn.turns == turns) & (drawn.flip == flip)).nonzero().squeeze(1)
            part = torch.rot90(images[chosen], turns, (2, 3))
            turned[chosen] = part.flip(3) if flip else part
    return turned
