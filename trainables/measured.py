"""What stages do on the test split, as workers tell it. No torch: the study's process reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Classes = np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True)
class Measured:
    """The metrics of each stage, by key, and the class `[n]` that each chose for an image.

    `labels` `[n]` are the true classes, `names` those of the images where they are known. A stage of which nobody
    knows what it says of these images has no metrics and no classes.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    classes: Mapping[str, Classes]
    labels: Classes
    names: Sequence[str] | None
