"""Seeded views: augmented copies of the training images, the same for a teacher and for whoever learns from it.

"A good teacher is patient and consistent" (Beyer et al. 2022): soft targets are those of the view that the student
sees. View 0 is the images as they are; epoch e trains on view e modulo the recipe's `views`.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from takd.search_spaces.augments import altering
from takd.search_spaces.registry import TABLES, Augmentation, augmentation
from takd.trainables.training import augmentations

_TAG = 0x7669657773  # of the generators of views, so that nothing else draws the same numbers
AUGMENTATIONS: Mapping[str, Augmentation] = TABLES["augmentation"]
PADDING = 4  # pixels on each side that a crop may move by, as He et al. 2016 have it for 32x32


@dataclass(frozen=True)
class View:
    """What is drawn for each training image of one view, in the dataset's order: uint8 `[n]`.

    `chance`: by part of the augmentation its own draws in [0, 1), float32 `[n, as many as DRAWS says]`. They follow
    from the view's number and the part's name alone, so the same part draws the same beside any other.
    """

    augment: str
    flip: Tensor  # 0 or 1
    down: Tensor  # pixels from the padded image's top; crop
    right: Tensor
    turns: Tensor  # quarter turns; flip-rotate
    chance: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, index: Tensor | slice) -> "View":
        """The view of some of the images."""
        return self._each(lambda drawn: drawn[index])

    def to(self, device: torch.device) -> "View":
        return self._each(lambda drawn: drawn.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "View":
        flip, down, right, turns = (change(each) for each in (self.flip, self.down, self.right, self.turns))
        return View(self.augment, flip, down, right, turns, {name: change(each) for name, each in self.chance.items()})

    def apply(self, images: Tensor, index: Tensor | slice) -> Tensor:
        """The images `[batch, channels, height, width]`, which are those at `index`, as this view has them."""
        drawn = self.of(index)
        for part in altering(self.augment):  # what mixes images does so once all else is done: see `mixing`
            kind = AUGMENTATIONS[part]
            images = kind.function(images, drawn if kind.numbers is None else drawn.chance[part])
        return images


def view(augment: str | None, number: int, examples: int) -> View | None:
    """View `number` of a training set; None for the images as they are."""
    if augment is None or number == 0:
        return None
    random = np.random.Generator(np.random.PCG64([_TAG, number]))
    flip, down, right, turns = (
        torch.from_numpy(random.integers(0, high, examples, dtype=np.uint8))
        for high in (2, 2 * PADDING + 1, 2 * PADDING + 1, 4)
    )
    each = {part: DRAWS.get(part) or AUGMENTATIONS[part].numbers for part in altering(augment)}
    chance = {
        part: torch.from_numpy(generator(number, part).random((examples, numbers), dtype=np.float32))
        for part, numbers in each.items()
        if numbers
    }
    return View(augment, flip, down, right, turns, chance)


def generator(number: int, part: str) -> np.random.Generator:
    """Of what a part of an augmentation draws for a view of that number."""
    return np.random.Generator(np.random.PCG64([_TAG, number, zlib.crc32(part.encode())]))


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
    """One of the eight ways a square lies on a table: tissue has no up or down.

    Each is a transposition or none, then mirrored or not from top to bottom and from left to right: all by what is
    drawn of an image, and no image is looked for, which a GPU would have to wait for.
    """
    turns = drawn.turns[:, None, None, None]
    odd, second, third = turns % 2 == 1, turns == 2, turns == 3
    turned = torch.where(odd, images.transpose(2, 3), images)
    turned = torch.where(second | (turns == 1), turned.flip(2), turned)
    return torch.where((second | third) ^ drawn.flip.bool()[:, None, None, None], turned.flip(3), turned)


@augmentation("random-resized-crop", numbers=None)
def _random_resized_crop(images: Tensor, drawn: View) -> Tensor:
    """A part of 8 to 100 % of the area at the size of the whole, half of them mirrored, as torchvision trains."""
    chance, tries = drawn.chance["random-resized-crop"], augmentations.ATTEMPTS
    areas, ratios, (down, right) = chance[:, :tries], chance[:, tries : 2 * tries], chance[:, 2 * tries :].unbind(1)
    crop = augmentations.crop_of(areas, ratios, down, right, *images.shape[2:])
    return augmentations.mirror(augmentations.resized_crop(images, *crop), drawn.flip)


@augmentation("color-jitter", numbers=4)
def _color_jitter(images: Tensor, drawn: Tensor) -> Tensor:
    """Brightness, contrast and saturation by up to 40 %, hue by up to a tenth of the circle."""
    brightness, contrast, saturation, hue = (2 * drawn - 1).unbind(1)
    return augmentations.jitter(
        images,
        1 + augmentations.BRIGHTNESS * brightness,
        1 + augmentations.CONTRAST * contrast,
        1 + augmentations.SATURATION * saturation,
        augmentations.HUE * hue,
    )


@augmentation("stain-jitter", numbers=6)
def _stain_jitter(images: Tensor, drawn: Tensor) -> Tensor:
    """Each stain of a tissue by up to 5 % more or less."""
    factors, shifts = (augmentations.STAIN * (2 * drawn - 1)).split(3, dim=1)
    return augmentations.stain_jitter(images, 1 + factors, shifts)


augmentation("rand-augment", numbers=2 * augmentations.RAND_OPERATIONS)(augmentations.rand_augment)
augmentation("trivial-augment", numbers=3)(augmentations.trivial_augment)

# How many numbers those draw for an image that use the other fields of `View` as well.
DRAWS = {"random-resized-crop": 2 * augmentations.ATTEMPTS + 2}
