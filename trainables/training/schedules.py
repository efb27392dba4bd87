"""How the learning rate goes over a run: a factor, by the fraction of the run that is done."""

import math
from collections.abc import Callable, Mapping

from takd.search_spaces import Recipe
from takd.search_spaces.registry import TABLES, schedule
from takd.trainables.models.transfer import part_of

# What the learning rate is multiplied by, by the fraction of the run that is done (0 at the first step).
SCHEDULES: Mapping[str, Callable[[float, Recipe], float]] = TABLES["schedule"]


@schedule("constant")
def _constant(done: float, recipe: Recipe) -> float:
    return 1.0


@schedule("cosine")
def _cosine(done: float, recipe: Recipe) -> float:
    return (1 + math.cos(math.pi * done)) / 2


@schedule("one-cycle")
def _one_cycle(done: float, recipe: Recipe) -> float:
    """Smith 2018 as torch's OneCycleLR draws it: up from 1/25 over 30 % of the run, then down to nothing."""
    if done < 0.3:
        return 1 - (24 / 25) * (1 + math.cos(math.pi * done / 0.3)) / 2
    return (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2


@schedule("step")
def _step(done: float, recipe: Recipe) -> float:
    return float((recipe.step_factor or 1) ** sum(done >= mark for mark in recipe.milestones or ()))


WARMUP_START = 0.01  # of the rate, at the first step of a warm-up: torchvision's `lr_warmup_decay`


def rate_factor(recipe: Recipe, at: float) -> float:
    """What the learning rate is multiplied by, `at` so many epochs from the start.

    While it warms up it rises evenly from 1 % of the rate, as torch's LinearLR; the schedule then runs over the rest.
    """
    part, warmup = part_of(recipe, math.floor(at)), recipe.warmup_epochs or 0.0
    done = at - part.start
    if done < warmup:
        return part.factor * (WARMUP_START + (1 - WARMUP_START) * done / warmup)
    return part.factor * SCHEDULES[recipe.schedule]((done - warmup) / (part.epochs - warmup), recipe)
