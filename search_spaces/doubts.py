"""What of a space can run and should be thought about: sentences, none of which stops a study."""

import math
from collections.abc import Iterator, Mapping

from takd.search_spaces.sections import Training
from takd.search_spaces.space import Space
from takd.search_spaces.varied import examples_of

FEW = 100  # validation images: with fewer, one of them is more than a point
EMA_STEPS = 3  # a run is at least so many times as long as what its moving average is over


def doubts(space: Space, examples: int, validation: int) -> list[str]:
    """Of all cells; `examples` are those of the training split, `validation` are the images that choose."""
    found = [each for cell in space.cells for each in _of_one(cell.space, examples)]
    return list(dict.fromkeys([*_few_that_choose(space, validation), *found]))


def _few_that_choose(space: Space, images: int) -> Iterator[str]:
    if images < FEW and any(space.varied(arm) for arm in space.all_arms):
        yield (
            f"dataset {space.dataset}: configurations are chosen by {images} validation images, and each of them is "
            f"{100 / images:.1f} points of accuracy; hold more out when the data set is converted (--validation)"
        )


def _of_one(space: Space, examples: int) -> Iterator[str]:
    upstream: Mapping[str, Training] = {"teacher": space.teacher, "assistants": space.assistants}
    distilled = [arm for arm in space.all_arms if arm.distilled]
    used = {name for arm in space.all_arms for name in arm.methods}
    for name in space.methods:
        if name not in used:
            yield f"methods: {name} is in no arm, so what is said of it changes nothing"
    for role, section in upstream.items():
        smoothed = max((each for _, each in examples_of(section.recipe.get("label_smoothing")) if each), default=0)
        taught = distilled if role == "teacher" else [arm for arm in distilled if arm.assistants]
        if smoothed and taught:
            yield (
                f"{role}.recipe.label_smoothing is {smoothed:g}: who learned from smoothed labels teaches less (Müller "
                "et al. 2019), which favours the arms that nobody teaches; leave it out: label_smoothing has its own"
            )
    for role, section in (*upstream.items(), ("student", space.student)):
        yield from _short_for_its_average(role, section, examples)


def _short_for_its_average(role: str, section: Training, examples: int) -> Iterator[str]:
    def values(name: str, default: int) -> list[float]:
        return [each or default for _, each in examples_of(section.recipe.get(name, default))]

    longest = max((each for _, each in examples_of(section.recipe.get("ema")) if each), default=0.0)
    steps = min(values("epochs", 10)) * math.ceil(min(values("examples", examples)) / max(values("batch_size", 256)))
    if longest and EMA_STEPS / (1 - longest) > steps:
        enough = max(0.0, 1 - 10 / steps)
        yield (
            f"{role}.recipe.ema is {longest:g}, an average over some {1 / (1 - longest):.0f} steps, and a run has "
            f"{steps:.0f}: what is kept is near the first weights; {enough:.2g} would be over a tenth of the run"
        )
