"""What a look at a split says beside loss and accuracy: AUC and F1 of logits `[classes, n]`, as fractions.

Of two classes the second one is positive: its AUC, and its F1 at the threshold where that is highest. Of more classes
the mean over classes: of each against all others (Hand and Till 2001 call it one-versus-rest), and of the F1 of what is
chosen. NaN where a class has no image, or all of them.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def scores(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """By name of SCORES."""
    if not names:
        return {}
    probabilities, classes = logits.double().softmax(dim=0).cpu().numpy(), labels.cpu().numpy()
    return {name: SCORES[name](probabilities, classes) for name in names}


def auc(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Ties count a half."""
    positives = [1] if len(probabilities) == 2 else range(len(probabilities))
    return float(np.mean([_area(probabilities[each], labels == each) for each in positives]))


def _area(values: Floats, positive: NDArray[np.bool_]) -> float:
    inside = int(positive.sum())
    outside = len(positive) - inside
    if not inside or not outside:
        return float("nan")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - inside * (inside + 1) / 2) / (inside * outside))


def f1(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    if len(probabilities) == 2:
        return _highest_f1(probabilities[1], labels == 1)
    chosen = probabilities.argmax(axis=0)
    return float(np.mean([_f1(chosen == each, labels == each) for each in range(len(probabilities))]))


def _f1(chosen: NDArray[np.bool_], positive: NDArray[np.bool_]) -> float:
    if not positive.any() or positive.all():
        return float("nan")
    return 2 * int((chosen & positive).sum()) / int(chosen.sum() + positive.sum())


def _highest_f1(values: Floats, positive: NDArray[np.bool_]) -> float:
    """Over all thresholds between two values."""
    if not positive.any() or positive.all():
        return float("nan")
    order = np.argsort(-values)
    right, number = np.cumsum(positive[order]), np.arange(1, len(values) + 1)
    possible = np.append(np.diff(values[order]) != 0, True)  # equal values are chosen together
    return float((2 * right[possible] / (number[possible] + positive.sum())).max())


# From probabilities `[classes, n]` and labels `[n]`.
SCORES: Mapping[str, Callable[[Floats, NDArray[np.int64]], float]] = {"auc": auc, "f1": f1}
