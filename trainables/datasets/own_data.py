"""A data set that a function of a user's code reads: checked, and brought into the form in which sources are."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from takd.search_spaces import InputError
from takd.search_spaces.registry import Origin, blamed
from takd.trainables.datasets.listing import check_learnable, check_learned, labels_of
from takd.trainables.datasets.sources import SPLITS, RawSplit, Source

Read = Callable[[], Mapping[str, Any]]


def own_source(name: str, read: Read, classes: Sequence[str], validation: int | None, origin: Origin) -> Source:
    """What `read` gives as a source: by split (images uint8 `[n, channels, height, width]`, labels `[n]`)."""
    return Source(partial(_read, f"{origin}: dataset {name!r}", read, tuple(classes)), tuple(classes), None, validation)


def _read(about: str, read: Read, classes: tuple[str, ...]) -> dict[str, RawSplit]:
    """Raises InputError, with the user's line, where it is not what a data set is."""
    try:
        given = read()
    except Exception as error:
        raise blamed(error, about) from None
    parts = sorted(given) if isinstance(given, Mapping) else []
    if not {"train", "test"} <= set(parts) or not set(parts) <= set(SPLITS):
        got = ", ".join(parts) or type(given).__name__
        raise InputError(f"{about} gives {got}; expected train and test, and validation where it is not held out")
    found = {part: _split(f"{about}: {part}", given[part], classes) for part in SPLITS if part in parts}
    check_learned(classes, found["train"].labels, about)
    shapes = {part: split.images.shape[1:] for part, split in found.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"{about} has images of {shapes}; expected one shape")
    for part, split in found.items():
        places = [f"{about}: {part}: image {row}" for row in range(len(split.labels))]
        check_learnable(classes, split.labels, places, found["train"].labels)
    return found


def _split(about: str, given: Any, classes: Sequence[str]) -> RawSplit:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(f"{about} is {type(given).__name__}; expected (images, labels)")
    images, labels = (np.asarray(each) for each in given)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"{about} has images {images.dtype} {list(images.shape)}; expected uint8 [n, channels, height, width], "
            "with 1 or 3 channels"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or not len(labels):
        raise InputError(
            f"{about} has labels {labels.dtype} {list(labels.shape)} of {len(images)} images; expected one whole "
            "number an image, at least one"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(f"{about} has labels {labels.min()} to {labels.max()}; classes are 0 to {len(classes) - 1}")
    return RawSplit(images, labels_of(labels, classes))
