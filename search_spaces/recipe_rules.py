"""What fields of a recipe must be to each other. Each rule raises ValueError with what was given and what would do."""

from typing import Protocol


class Fields(Protocol):
    """Those of a recipe that rules look at."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def momentum(self) -> float | None: ...
    @property
    def nesterov(self) -> bool | None: ...
    @property
    def schedule(self) -> str: ...
    @property
    def warmup_epochs(self) -> float | None: ...
    @property
    def head_epochs(self) -> int | None: ...
    @property
    def accumulate(self) -> int | None: ...


def check_recipe(recipe: Fields) -> None:
    """All rules of this page."""
    for rule in (_nesterov_has_momentum, _warmup_leaves_something, _parts_have_examples):
        rule(recipe)


def _nesterov_has_momentum(recipe: Fields) -> None:
    if recipe.nesterov and not recipe.momentum:
        raise ValueError("nesterov is true, but momentum is 0; it is a momentum above 0, or leave nesterov out")


def _warmup_leaves_something(recipe: Fields) -> None:
    warmup = recipe.warmup_epochs
    if warmup is None:
        return
    if recipe.schedule == "one-cycle":
        raise ValueError(
            f"warmup_epochs is {warmup:g}, but schedule: one-cycle warms up by itself; leave one of the two out"
        )
    parts = {"the run": recipe.epochs}
    if recipe.head_epochs is not None:
        parts = {"head_epochs": recipe.head_epochs, "what follows head_epochs": recipe.epochs - recipe.head_epochs}
    for part, epochs in parts.items():
        if epochs and warmup >= epochs:
            raise ValueError(f"warmup_epochs is {warmup:g}, and {part} has {epochs}; the schedule needs some: say less")


def _parts_have_examples(recipe: Fields) -> None:
    if recipe.accumulate is not None and recipe.accumulate > recipe.batch_size:
        raise ValueError(
            f"accumulate is {recipe.accumulate} parts of a batch of {recipe.batch_size}; a part has an example at least"
        )
