"""What `augment` of a recipe may say, and the names of views."""

from dataclasses import dataclass

from takd.search_spaces.values import may_be_own

# What `takd.trainables.training.views` and `mixing` have by these names.
ALTERING = (
    "crop-flip",
    "flip-rotate",
    "random-resized-crop",
    "color-jitter",
    "stain-jitter",
    "rand-augment",
    "trivial-augment",
)
MIXING = ("mixup", "cutmix")  # two images into one, with the labels of both

# One seeded copy of the training images, `crop-flip 3`; None: the images as they are, which is view 0 of any kind.
# Where images are mixed within a transfer set, of so many images by that seed: `crop-flip+mixup@2000.0 3`.
ViewName = str | None
# What a stage leaves for others, by name: soft targets by their view's alone, all else `WHAT|LAYER|IMAGES|VIEW`.
LeftName = str | None
LEFT = "|"


def altering(augment: str | None) -> list[str]:
    """The parts of an augmentation that change an image by itself, in turn."""
    return [part for part in augment.split("+") if part not in MIXING] if augment else []


def check_augment(augment: str) -> None:
    """Raises ValueError where there is no such augmentation, and no code that may have one."""
    parts = augment.split("+")
    for part in parts:
        if part not in (*ALTERING, *MIXING) and not may_be_own(part):
            raise ValueError(
                f"augment is {augment!r}; expected {', '.join((*ALTERING, *MIXING))}, or several of them joined by +, "
                "such as random-resized-crop+color-jitter"
            )
        if parts.count(part) > 1:
            raise ValueError(f"augment is {augment!r}; {part} is there twice, and each is applied once")
    mixing = [part for part in parts if part in MIXING]
    if len(mixing) > 1:
        raise ValueError(f"augment is {augment!r}; images are mixed in one way: {' or '.join(mixing)}")
    if mixing and parts[-1] != mixing[0]:
        last = "+".join([part for part in parts if part not in mixing] + mixing)
        raise ValueError(f"augment is {augment!r}; images are mixed when all else is done: say {last}")


def mixes(augment: str | None) -> bool:
    """Whether it makes one image of two."""
    return augment is not None and augment.split("+")[-1] in MIXING


@dataclass(frozen=True)
class NamedView:
    """A view by its name; `examples` and `examples_seed` where images are mixed within a part of the training set."""

    augment: str
    number: int
    examples: int | None = None
    examples_seed: int = 0

    @classmethod
    def parse(cls, name: str) -> "NamedView":
        what, _, number = name.rpartition(" ")
        augment, _, among = what.partition("@")
        examples, _, seed = among.partition(".")
        return cls(augment, int(number), *((int(examples), int(seed)) if among else ()))

    def __str__(self) -> str:
        among = "" if self.examples is None else f"@{self.examples}.{self.examples_seed}"
        return f"{self.augment}{among} {self.number}"


def view_number(name: LeftName) -> int:
    """Of a view by its name, or of what is left in it; the images as they are have 0."""
    name = name.rpartition(LEFT)[2] if name else name
    return NamedView.parse(name).number if name else 0
