"""What a student had reached at the epochs at which it may be ended early. No torch, no Ray."""

from collections.abc import Mapping, Sequence
from typing import Any

from takd.search_spaces.metrics import ACCURACY, Metric

Looks = Mapping[int, float]  # the study's metric on the validation split, by epoch


def looks(epochs: Sequence[Mapping[str, Any]], every: int, metric: Metric = ACCURACY) -> dict[int, float]:
    """At multiples of so many epochs, the metric of the last look at the validation split until there."""
    found: dict[int, float] = {}
    latest, column = None, f"val_{metric.name}"
    for each in epochs:
        latest = each[column] if each.get(column) is not None else latest
        if each["epoch"] % every == 0 and latest is not None:
            found[each["epoch"]] = latest
    return found
