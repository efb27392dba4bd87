"""What a student had reached at the epochs at which it may be ended early. No torch, no Ray."""

from collections.abc import Mapping, Sequence
from typing import Any

Looks = Mapping[int, float]  # the study's metric on the validation split, by epoch


def looks(epochs: Sequence[Mapping[str, Any]], every: int, metric: str = "accuracy") -> dict[int, float]:
    """At multiples of so many epochs, the metric of the last look at the validation split until there."""
    found: dict[int, float] = {}
    latest = None
    for each in epochs:
        latest = each[f"val_{metric}"] if each.get(f"val_{metric}") is not None else latest
        if each["epoch"] % every == 0 and latest is not None:
            found[each["epoch"]] = latest
    return found
