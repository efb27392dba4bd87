"""How many lanes to train at once: measured, by throughput, within the memory there is."""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from takd.search_spaces import WIDEST, Stage
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.families import stacks
from takd.trainables.models.frozen import trains_heads
from takd.trainables.training.devices import let_go, room_on
from takd.trainables.training.lanes import OPTIMIZERS
from takd.trainables.training.loop import StageTraining

WIDTHS = (1, 4, 16, WIDEST)
WORTH = 1.1  # wider only where it trains this many times as many lanes a second: below it is noise
WARM_UP, STEPS, SECONDS = 2, 6, 0.1  # at least so many steps, and so long: a busy machine interrupts for milliseconds
SHARE = 0.05  # of the time that a stage takes in all, after which steps enough are measured: the choice saves no more


def widest(stage: Stage, dataset: Dataset) -> int | None:
    """How many lanes what trains of a stage, and its optimizer, have a form for; None: any number."""
    if not OPTIMIZERS[stage.recipe.optimizer].by_element:
        return 1
    if trains_heads(stage, dataset.image_shape, len(dataset.classes)):
        return None
    return whole_lanes(stage, dataset)


def whole_lanes(stage: Stage, dataset: Dataset) -> int | None:
    """Likewise of whole models."""
    return None if stacks(stage.model, dataset.image_shape, len(dataset.classes)) else 1


def best_width(
    stages: Sequence[Stage],
    dataset: Dataset,
    start: Callable[[Sequence[Stage]], StageTraining],
    memory: float | None = None,
) -> int | None:
    """Lanes that train fastest, by a few steps at each width; None where that takes more stages than there are to tell.

    `start` makes a training of some of the stages, which is thrown away before the next is made. All fits into so many
    bytes of `memory`, by default what this worker may count on.
    """
    if (limit := widest(stages[0], dataset)) is not None:
        return limit
    best, best_rate = 1, 0.0
    for width in sorted({min(width, len(stages)) for width in WIDTHS}):
        measured = None
        with suppress(torch.OutOfMemoryError):
            measured = _measure(stages[:width], start, memory)
        if measured is None:
            return best
        seconds, wider_fits = measured
        rate = width / seconds
        if rate < WORTH * best_rate:
            return best
        best, best_rate = width, rate
        if not wider_fits:
            return best
    return WIDEST if best >= WIDTHS[-2] else None


def _measure(
    stages: Sequence[Stage], start: Callable[[Sequence[Stage]], StageTraining], memory: float | None
) -> tuple[float, bool]:
    """Seconds of a step of these stages, and whether four times as many have room."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()  # else that of stages before
    training = start(stages)
    device = training.inputs.device
    seconds = _step_seconds(training)
    need = _memory_for(training, factor=4)
    del training
    let_go(device)
    return seconds, need <= (_memory_there_is(device) if memory is None else memory)


def _step_seconds(training: StageTraining) -> float:
    """The shortest of a few steps: what else the machine does only adds. Short stages have few steps to choose by."""
    device, examples = training.inputs.device, len(training.inputs.labels)
    batch = torch.arange(min(training.recipe.batch_size, examples), device=device)
    of_a_stage = training.recipe.epochs * math.ceil(examples / len(batch))
    seconds: list[float] = []
    while len(seconds) < WARM_UP + STEPS or sum(seconds) < min(SECONDS, SHARE * of_a_stage * min(seconds)):
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
        images = inputs.images.nbytes + inputs.validation.nbytes  # which lanes share
        return images + factor * (torch.cuda.max_memory_allocated(inputs.device) - images)
    weights = sum(weight.numel() for weight in training.taught.model.parameters())
    targets = len(inputs.labels) * (1 + len(inputs.dataset.classes)) * len(training.running)
    return factor * sum(bytes_of(weights, targets))


def bytes_of(weights: int, targets: int) -> tuple[float, float]:
    """That weights take with their gradients, states and kept copies; and so many numbers that are learned from."""
    return 4.0 * 6 * weights, 4.0 * 2 * targets


def _memory_there_is(device: torch.device) -> float:
    """Bytes this worker may count on: of a GPU what is left of its share, else half of its share, by the threads it
    has, of what is free."""
    if device.type == "cuda":
        return room_on(device)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0.5 * free * torch.get_num_threads() / (os.cpu_count() or 1)
