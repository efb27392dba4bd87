"""What is derived from a model: computed from weights that exist, and kept once, under a key of its own."""

from functools import cached_property
from typing import Any, Literal

from takd.search_spaces.augments import ViewName
from takd.search_spaces.stage import TRAINING_REVISION, DatasetFingerprint, Stage, key_of
from takd.search_spaces.values import Value


class Derived(Value):
    """One array, float32, a row for each training image of a data set in one view of them."""

    weights: str  # SHA-256 of the artifact's file: weights, or given logits
    model: str | None = None  # whose weights they are: two specs may say other things with the same ones
    what: Literal["soft_targets"] = "soft_targets"
    layer: str | None = None  # of the model, where what is derived is a layer's
    dataset: DatasetFingerprint
    view: ViewName = None
    code: dict[str, str] | None = None  # of a user's, by which model and views are what they are

    def key_input(self) -> dict[str, Any]:
        """Everything that determines the array, as JSON; what is null is left out."""
        return {"training_revision": TRAINING_REVISION, **self.model_dump(mode="json", exclude_none=True)}

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) over the canonical JSON of `key_input()`."""
        return key_of(self.key_input())


def soft_targets_of(stage: Stage, weights: str, view: ViewName) -> Derived:
    """The logits of a stage's model, whose weights have that digest."""
    model = stage.model if stage.has_weights else None
    return Derived(weights=weights, model=model, dataset=stage.dataset, view=view, code=stage.code)
