"""What a student had reached at the epochs at which it may be ended early. No torch, no Ray."""

from collections.abc import Mapping, Sequence
from typing import Any

Looks = Mapping[int, float]  # accuracy on the validation split, by epoch


def looks(epochs: Sequence[Mapping[str, Any]], every: int) -> dict[int, float]:
    """At multiples of so many epochs, the accuracy of the last look at the validation split until there."""
    found: dict[int, float] = {}
    latest = None
    for each in epochs:
        latest = each["val_accuracy"] if each.get("val_accuracy") is not None else latest
        if each["epoch"] % every == 0 and latest is not None:
            found[each["epoch"]] = latest
    return found
