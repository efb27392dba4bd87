"""Which images are for training, validation and test, where the user's files do not say."""

import numpy as np

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import SPLITS, Bytes, Indices, Labels, Source

SPLIT_SEED = 0


def generator(seed: int) -> np.random.Generator:
    """Named in full: NumPy's default generator may change, and the splits with it."""
    return np.random.Generator(np.random.PCG64(seed))


def held_out(labels: Labels, source: Source) -> Indices:
    """Sorted indices of the training examples that are for validation, by the split seed.

    Their number is the source's own, or a tenth. Where it is stratified, each class gives its share by largest
    remainder and keeps one example at least. Raises InputError where that can't be.
    """
    examples = a_tenth(len(labels)) if source.validation is None else source.validation
    available = np.bincount(labels, minlength=len(source.classes))
    most = len(labels) - np.count_nonzero(available)
    if not 1 <= examples <= most:
        raise InputError(
            f"validation is {examples}; at least 1 and at most {most} of the {len(labels)} images in train can be held "
            "out, as every class keeps one"
        )
    order = generator(SPLIT_SEED).permutation(len(labels))
    if not source.stratified:
        return np.sort(order[:examples])
    exact = available * examples / len(labels)
    share = np.floor(exact).astype(np.int64)
    while left := examples - share.sum():
        able = np.flatnonzero(share < available - 1)
        share[able[np.argsort((share - exact)[able], kind="stable")][:left]] += 1
    return np.sort(np.concatenate([order[labels[order] == label][:number] for label, number in enumerate(share)]))


def a_tenth(examples: int) -> int:
    return max(1, round(examples / 10))


def divided(labels: Labels, shares: tuple[float, ...]) -> Bytes:
    """Of each image the number in SPLITS, by the split seed: of each class its share, by largest remainder.

    `shares` are fractions that add up to 1. Every class keeps one example in train.
    """
    order, found = generator(SPLIT_SEED).permutation(len(labels)), np.zeros(len(labels), np.uint8)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        exact = np.array(shares) * len(members)
        number = np.floor(exact).astype(np.int64)
        number[np.argsort(number - exact, kind="stable")[: len(members) - number.sum()]] += 1
        if not number[0]:
            number[0], number[np.argmax(number)] = 1, number.max() - 1
        found[members] = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), number)
    return found


def divided_by_group(labels: Labels, groups: Indices, shares: tuple[float, ...]) -> Bytes:
    """As `divided`, but a group is never in two splits.

    The groups come largest first, and each goes where it brings the classes' numbers nearest to their shares.
    """
    numbers, which = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(numbers), int(labels.max()) + 1))
    np.add.at(counts, (which, labels), 1)
    total = np.maximum(counts.sum(axis=0), 1)
    missing = np.outer(shares, counts.sum(axis=0))  # [splits, classes]
    chosen = np.zeros(len(numbers), np.uint8)
    order = generator(SPLIT_SEED).permutation(len(numbers))
    for group in order[np.argsort(-counts[order].sum(axis=1), kind="stable")]:
        worse = ((missing - counts[group]) ** 2 - missing**2) / total
        chosen[group] = np.argmin(worse.sum(axis=1))
        missing[chosen[group]] -= counts[group]
    return chosen[which]
