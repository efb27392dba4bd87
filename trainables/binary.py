"""What two classes add: the ROC curve's area with its interval, and a threshold chosen on validation."""

from typing import Any

import numpy as np
from scipy.special import ndtri

Floats = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


def auc_interval(scores: Floats, positive: Flags, confidence: float = 0.95) -> tuple[float, float, float]:
    """The area under the ROC curve and its interval over images, within [0, 1] (DeLong et al. 1988; Sun and Xu 2014).

    scores `[n]`: higher means more likely positive; ties count a half. Raises ValueError where a class is missing.
    """
    inside, outside = scores[positive], scores[~positive]
    m, n = len(inside), len(outside)
    if not m or not n:
        raise ValueError("an AUC needs examples of both classes")
    from scipy.stats import rankdata  # a second, which tasks of more classes need not wait for

    among_all = rankdata(np.concatenate([inside, outside]))
    above = (among_all[:m] - rankdata(inside)) / n  # of each positive, the part of the negatives it is above
    below = 1 - (among_all[m:] - rankdata(outside)) / m
    area = float(above.mean())
    variance = sum(values.var(ddof=1) / len(values) for values in (above, below) if len(values) > 1)
    half = float(ndtri((1 + confidence) / 2) * np.sqrt(variance))
    return area, max(0.0, area - half), min(1.0, area + half)


def f1(chosen: Flags, positive: Flags) -> float:
    """Of the positive class; 0 where nothing was chosen rightly."""
    right = int((chosen & positive).sum())
    return 2 * right / max(1, int(chosen.sum() + positive.sum()))


def best_threshold(scores: Floats, positive: Flags) -> float:
    """The probability from which on an example counts as positive, midway between two scores, with the highest F1.

    Of equally good ones the one nearest to a half.
    """
    levels = np.unique(scores)
    thresholds = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    order = np.argsort(scores)
    right = positive.sum() - np.concatenate([[0], np.cumsum(positive[order])])
    below = np.searchsorted(scores[order], thresholds)  # examples that a threshold leaves out
    found = 2 * right[below] / np.maximum(1, len(scores) - below + positive.sum())
    good = thresholds[found >= found.max() - 1e-12]
    return float(good[np.abs(good - 0.5).argmin()])


def binary_metrics(scores: Floats, positive: Flags, threshold: float) -> dict[str, float]:
    """Of a test split at a threshold that was chosen elsewhere; fractions."""
    area, low, high = auc_interval(scores, positive)
    chosen = scores >= threshold
    return {
        "test_auc": area,
        "test_auc_low": low,
        "test_auc_high": high,
        "test_f1": f1(chosen, positive),
        "test_accuracy_at_threshold": float((chosen == positive).mean()),
        "test_threshold": threshold,
    }
