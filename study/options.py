"""What a run may choose without changing the study, and the check of its space, with which it begins."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from takd.search_spaces import DatasetFingerprint, InputError, Space
from takd.trainables.own_code import NO_CODE, Code

Mode = Literal["online", "offline", "disabled"]  # of W&B

# Begun in another process (`apart.begin`), which loads torch while this one loads the rest.
CHECK = "takd.study.checks:check"


class Checked(NamedTuple):
    """A space that can run."""

    space: Space  # with the digests of its pretrained weights
    data: DatasetFingerprint
    largest_class: int  # validation images of the class that has most
    warnings: list[str]
    code: Code = NO_CODE  # that the space names, as it was read and checked
    # Of the data and what `transfer` names what a user's files were converted to, which a node may not have.
    own_data: tuple[DatasetFingerprint, ...] = ()


Checking = Callable[[], Checked]  # waits for it


@dataclass(frozen=True)
class RunOptions:
    """What a run of a study may choose without changing the study; raises InputError on what can't be chosen."""

    wandb: Mode | None = None
    slots: int | None = None  # CPU slots of a local Ray; None: as many as there are cores
    address: str | None = None  # of a running Ray cluster; None: a local Ray of our own
    tensorboard: bool = False
    profile: bool = False  # say where the time went

    def __post_init__(self) -> None:
        if self.wandb not in (None, *get_args(Mode)):
            raise InputError(f"wandb is {self.wandb!r}; expected {', '.join(get_args(Mode))}, or None")
        if self.slots is not None and (type(self.slots) is not int or self.slots < 1):
            raise InputError(f"slots is {self.slots!r}; expected a whole number of at least 1")
        if self.slots is not None and self.address is not None:
            raise InputError(f"slots is {self.slots} and address {self.address}; a running cluster has its own slots")


def more_than_asked(started: int, budget: int) -> str:
    """Of a study that was given fewer trials than it has."""
    return f"{started} trials are there already and {budget} are asked for: no trial is added, and none is taken away"
