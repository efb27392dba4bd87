"""Whether what a teacher leaves is read or said anew in every step: the same numbers, measured once a study."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from takd.search_spaces import Space, Stage, learned_by
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.families import build, stacks
from takd.trainables.training.devices import device_of
from takd.trainables.training.features import Frozen
from takd.trainables.training.lanes import form_of

IMAGES = 16  # of which the time is taken
TIMES = 3


@dataclass(frozen=True)
class Seconds:
    """Of one image: to say what is learned of it, to write that, and to read it."""

    say: float
    write: float
    read: float

    def faster_in_loop(self, derived: float, seen: float) -> bool:
        """`derived` images are said and written once for all students, who together see `seen`."""
        return seen * self.say < derived * (self.say + self.write) + seen * self.read


def faster_in_loop(space: Space, kinds: Iterator[list[Stage]], dataset: Dataset, gpu: float) -> tuple[str, ...]:
    """Of a checked space the names (`Stage.loop`) of students beside whom who teaches them runs in every step.

    `kinds` are stages that cost the same. Students that train as lanes read, as one reading serves them all; and where
    timing must decide nothing all do.
    """
    found: dict[str, bool] = {}
    about = dataset.image_shape, len(dataset.classes)
    for stage, *_ in kinds if not space.deterministic else ():
        looks_inside = any(term.needed != "logits" for term in stage.terms or ())
        if looks_inside and stage.loop not in found and not stage.in_loop and not stacks(stage.model, *about):
            derived, seen = images_of(space, stage)
            seconds = [measured(stage, each, dataset, device_of(gpu)) for each in stage.upstream]
            whole = Seconds(*(sum(parts) for parts in zip(*((s.say, s.write, s.read) for s in seconds), strict=True)))
            found[stage.loop] = whole.faster_in_loop(derived, seen)
    return tuple(name for name, faster in found.items() if faster)


def images_of(space: Space, stage: Stage) -> tuple[float, float]:
    """How many images are derived for all stages of one kind, and how many these see, at most."""
    trained = not any(each.given for each in stage.upstream)
    paths = (space.confirm.replicates or 0) if space.confirm and trained else 0
    students = -(-space.budget // len(space.all_arms)) * space.seeds + (space.confirm.students if space.confirm else 0)
    number = students if stage.role == "student" else 1 + paths
    whole = (stage.transfer or stage.dataset).sizes["train"] + (stage.dataset.sizes["train"] if stage.with_own else 0)
    return (1 + paths) * whole * stage.recipe.view_count, number * stage.recipe.epochs * stage.images


def measured(stage: Stage, upstream: Stage, dataset: Dataset, device: torch.device) -> Seconds:
    """By a model of random weights and images of noise."""
    form, layout = form_of(upstream.model, dataset)
    module = build(upstream.model, dataset.image_shape, len(dataset.classes))
    frozen = Frozen(form([module]).to(device, memory_format=layout), upstream.model, dataset)  # type: ignore[call-overload]
    images = torch.randn(IMAGES, *dataset.image_shape, device=device).contiguous(memory_format=layout)
    kinds = [layer for what, layer in learned_by(stage) if what != "soft_targets"]
    layers = [layer for layer in kinds if layer is not None]
    said = frozen.of(images, layers, None in kinds)
    values = [each.cpu().contiguous().numpy() for each in said.values()]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.npy" for number in range(len(values))]

        def say() -> None:
            for each in frozen.of(images, layers, None in kinds).values():
                each.flatten()[0].item()  # once it is there

        def write() -> None:
            for file, each in zip(files, values, strict=True):
                np.save(file, each)

        def read() -> None:
            order = torch.randperm(IMAGES)
            for file in files:
                torch.from_numpy(np.load(file, mmap_mode="c")).index_select(0, order).to(device)

        return Seconds(*(_seconds(each) / IMAGES for each in (say, write, read)))


def _seconds(act: Callable[[], None]) -> float:
    """Of one call: the median of a few, after one that warms up."""
    taken = []
    for _ in range(1 + TIMES):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return median(taken[1:])
