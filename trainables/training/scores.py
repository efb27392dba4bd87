"""Metrics: what logits `[images, classes]` say beside labels `[images]`, one function each in the table `metric`.

AUC and F1 are fractions. Of two classes the second one is positive: its AUC, and its F1 at the threshold where that is
highest. Of more classes the mean over classes: of each against all others (Hand and Till 2001 call it one-versus-rest),
and of the F1 of what is chosen. NaN where a class has no image, or all of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from takd.search_spaces.registry import TABLES, metric

Floats = NDArray[np.float64]
MEASURED = ("accuracy", "loss")  # by all lanes at once at each look, whatever else is asked for


def scores(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Of logits `[classes, n]`, by name of a metric."""
    if not names:
        return {}
    told, classes = logits.detach().t().float().cpu().contiguous(), labels.cpu()
    return {name: float(TABLES["metric"][name].function(told.clone(), classes.clone())) for name in names}


@metric("accuracy")
def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())


@metric("auc", title="AUC")
def auc(logits: Tensor, labels: Tensor) -> float:
    """Ties count a half."""
    probabilities, classes = _probabilities(logits), labels.numpy()
    positives = [1] if len(probabilities) == 2 else range(len(probabilities))
    return float(np.mean([_area(probabilities[each], classes == each) for each in positives]))


@metric("f1", title="F1")
def f1(logits: Tensor, labels: Tensor) -> float:
    probabilities, classes = _probabilities(logits), labels.numpy()
    if len(probabilities) == 2:
        return _highest_f1(probabilities[1], classes == 1)
    chosen = probabilities.argmax(axis=0)
    return float(np.mean([_f1(chosen == each, classes == each) for each in range(len(probabilities))]))


@metric("loss", higher=False, fraction=False)
def loss(logits: Tensor, labels: Tensor) -> float:
    """Cross-entropy."""
    return float(F.cross_entropy(logits, labels.long()))


def _probabilities(logits: Tensor) -> Any:
    """`[classes, images]`"""
    return logits.double().softmax(dim=1).t().numpy()


def _area(values: Floats, positive: NDArray[np.bool_]) -> float:
    inside = int(positive.sum())
    outside = len(positive) - inside
    if not inside or not outside:
        return float("nan")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - inside * (inside + 1) / 2) / (inside * outside))


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
