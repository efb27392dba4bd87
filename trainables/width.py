"""How many lanes to train at once: measured, by throughput, within the memory there is."""

import os
import time
from collections.abc import Callable, Sequence

import torch

from takd.search_spaces import WIDEST, Stage
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.families import stacks
from takd.trainables.training.lanes import OPTIMIZERS
from takd.trainables.training.loop import StageTraining

WIDTHS = (1, 4, 16, WIDEST)
WORTH = 1.1  # wider only where it trains this many times as many lanes a second: below it is noise
WARM_UP, STEPS, SECONDS = 2, 6, 0.1  # at least so many steps, and so long: a busy machine interrupts for milliseconds


def widest(stage: Stage, dataset: Dataset) -> int | None:
    """How many lanes the stage's model and optimizer have a form for; None: any number."""
    if not OPTIMIZERS[stage.recipe.optimizer].by_element:
        return 1
    return None if stacks(stage.model, dataset.image_shape, len(dataset.classes)) else 1


def best_width(
    stages: Sequence[Stage], dataset: Dataset, start: Callable[[Sequence[Stage]], StageTraining]
) -> int | None:
    """Lanes that train fastest, by a few steps at each width; None where that takes more stages than there are to tell.

    `start` makes a training of some of the stages, which is thrown away.
    """
    if (limit := widest(stages[0], dataset)) is not None:
        return limit
    best, best_rate = 1, 0.0
    for width in sorted({min(width, len(stages)) for width in WIDTHS}):
        try:
            training = start(stages[:width])
            rate = width / _step_seconds(training)
        except torch.cuda.OutOfMemoryError:
            return best
        if rate < WORTH * best_rate:
            return best
        best, best_rate = width, rate
        if _memory_for(training, factor=4) > _memory_there_is(training.inputs.device):
            return best
    return WIDEST if best >= WIDTHS[-2] else None


def _step_seconds(training: StageTraining) -> float:
    """The shortest of a few steps: what else the machine does only adds."""
    device, examples = training.inputs.device, len(training.inputs.labels)
    batch = torch.arange(min(training.recipe.batch_size, examples), device=device)
    seconds: list[float] = []
    while len(seconds) < WARM_UP + STEPS or sum(seconds) < SECONDS:
        started = time.perf_counter()
        training.train_step(batch, factor=1.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[WARM_UP:])


def _memory_for(training: StageTraining, factor: int) -> float:
    """Bytes that `factor` times as many lanes take: on CUDA as measured, else weights and their gradients and states,
    kept copies, soft targets of the transfer set."""
    inputs = training.inputs
    if inputs.device.type == "cuda":
        return factor * torch.cuda.max_memory_allocated(inputs.device)
    weights = sum(weight.numel() for weight in training.taught.model.parameters())
    targets = len(inputs.labels) * (1 + len(inputs.dataset.classes)) * len(training.running)
    return factor * 4.0 * (6 * weights + 2 * targets)


def _memory_there_is(device: torch.device) -> float:
    """Bytes this worker may count on: half of its share, by the threads it has, of what is free."""
    if device.type == "cuda":
        return 0.8 * torch.cuda.mem_get_info(device)[1]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0.5 * free * torch.get_num_threads() / (os.cpu_count() or 1)
