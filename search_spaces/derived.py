"""What is derived from a model: computed from weights that exist, and kept once, under a key of its own."""

from functools import cached_property
from typing import Any, Literal, NamedTuple

from takd.search_spaces.augments import LEFT, LeftName, ViewName
from takd.search_spaces.stage import TRAINING_REVISION, DatasetFingerprint, Stage, key_of
from takd.search_spaces.values import Value

What = Literal["soft_targets", "embedding", "map"]
DTYPE = ":"  # in a name, before another dtype than float32
WITH_OWN = "+"  # in a name, before the images that a stage's own come before


class Left(NamedTuple):
    """What a stage leaves for those who learn from it: in one view its logits, or what is inside of its model."""

    what: What = "soft_targets"
    layer: str | None = None  # whose output a map is; an embedding is what enters the head
    view: ViewName = None
    images: str | None = None  # the fingerprint of the data set whose training images they are, as JSON; None: its own
    with_own: bool = False  # whether its own come before those
    dtype: Literal["float16"] | None = None  # None: float32

    @property
    def name(self) -> LeftName:
        """That of the view, of soft targets on the data set's own images."""
        if self.what == "soft_targets" and self.images is None:
            return self.view
        what = f"{self.what}{DTYPE}{self.dtype}" if self.dtype else self.what
        images = WITH_OWN * self.with_own + (self.images or "")
        return LEFT.join((what, self.layer or "", images, self.view or ""))

    @classmethod
    def parse(cls, name: LeftName) -> "Left":
        if name is None or LEFT not in name:
            return cls(view=name)
        kind, layer, images, view = name.split(LEFT)
        what, _, dtype = kind.partition(DTYPE)
        kinds: dict[str, What] = {"map": "map", "embedding": "embedding"}
        others = images.removeprefix(WITH_OWN)
        return cls(
            kinds.get(what, "soft_targets"),
            layer or None,
            view or None,
            others or None,
            images.startswith(WITH_OWN),
            "float16" if dtype else None,
        )


def learned_by(stage: Stage) -> list[tuple[What, str | None]]:
    """What a stage learns from each of its upstream stages, whatever the view: kinds, with the layer of a map."""
    found: list[tuple[What, str | None]] = [("soft_targets", None)] if stage.loss else []
    for term in stage.terms or ():
        if term.needed == "maps":
            found += [("map", layer) for layer in term.teacher_layers or ()]
        else:
            found.append(("soft_targets" if term.needed == "logits" else "embedding", None))
    return list(dict.fromkeys(found))


def needed_by(stage: Stage) -> list[LeftName]:
    """Of that what is derived, in the views of the stage's recipe: all but what its upstream says in the loop."""
    kept = [each for each in learned_by(stage) if each == ("soft_targets", None) or not stage.in_loop]
    return [name for what, layer in kept for name in names_of(stage, what, layer)]


def names_of(stage: Stage, what: What, layer: str | None) -> list[LeftName]:
    """What a stage learns of one kind, in the views of its recipe."""
    images = stage.transfer.model_dump_json() if stage.transfer else None
    dtype = None if what == "soft_targets" else stage.features
    return [Left(what, layer, view, images, bool(stage.with_own), dtype).name for view in stage.recipe.view_names]


class Derived(Value):
    """One array, float32, a row for each training image of a data set in one view of them."""

    weights: str  # SHA-256 of the artifact's file: weights, or given logits
    model: str | None = None  # whose weights they are: two specs may say other things with the same ones
    what: What = "soft_targets"
    layer: str | None = None  # of the model, where what is derived is a layer's
    dataset: DatasetFingerprint
    view: ViewName = None
    dtype: Literal["float16"] | None = None  # null: float32
    with_own: DatasetFingerprint | None = None  # whose training images come before those of the data set
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
    return derived_of(stage, weights, view)


def derived_of(stage: Stage, weights: str, name: LeftName) -> Derived:
    """What a stage leaves by that name; its weights have that digest."""
    left, model = Left.parse(name), stage.model if stage.has_weights else None
    dataset = DatasetFingerprint.model_validate_json(left.images) if left.images else stage.dataset
    what: dict[str, Any] = {"what": left.what, "layer": left.layer, "view": left.view, "dtype": left.dtype}
    what |= {"with_own": stage.dataset} if left.with_own else {}
    return Derived.model_validate({"weights": weights, "model": model, "dataset": dataset, "code": stage.code, **what})
