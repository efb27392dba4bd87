"""Where single models agree: of these students, not of others, and of these test images. Nothing here is of a method.

Arrays of classes, or of right and wrong, are `[..., images]`; what stands before pairs the students of two arms.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special


@dataclass(frozen=True)
class Discordance:
    """McNemar's table of two arms, in images, the mean over their pairs of students; and whose the images are.

    `won` are the images that more students of the arm have right than of the reference, `lost` the others that differ.
    `p` is McNemar's, two-sided, exact with mid-p: whether as many are lost as won, asked of these students over images.
    """

    both_right: float
    arm_only: float
    reference_only: float
    both_wrong: float
    won: int
    lost: int
    p: float


def agreement(classes: ArrayLike, others: ArrayLike) -> float:
    """The part of the images to which paired models give the same class; a teacher may be `[paths, 1, images]`."""
    return float(np.mean(np.asarray(classes) == np.asarray(others)))


def discordance(arm: ArrayLike, reference: ArrayLike) -> Discordance:
    """Of right and wrong, `[..., images]` each, paired."""
    arm, reference = np.asarray(arm, bool), np.asarray(reference, bool)
    images = arm.shape[-1]
    both, arm_only, reference_only, neither = (
        float(each.mean() * images) for each in (arm & reference, arm & ~reference, ~arm & reference, ~arm & ~reference)
    )
    gained = gain(arm, reference)
    won, lost = int((gained > 0).sum()), int((gained < 0).sum())
    return Discordance(both, arm_only, reference_only, neither, won, lost, mid_p(won, lost))


def gain(arm: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """By image, the part of the arm's students that are right minus the reference's: 1 where the arm won it wholly."""
    sums: list[Any] = [np.asarray(each, float).reshape(-1, np.shape(each)[-1]) for each in (arm, reference)]
    return np.asarray(sums[0].mean(axis=0) - sums[1].mean(axis=0))


def mid_p(won: int, lost: int) -> float:
    """Two-sided mid-p of the sign test; 1 where nothing differs (Fagerland, Lydersen, Laake 2013)."""
    fewer, of = min(won, lost), won + lost
    if won == lost:
        return 1.0
    return float(special.bdtr(fewer, of, 0.5) + (special.bdtr(fewer - 1, of, 0.5) if fewer else 0.0))
