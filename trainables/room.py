"""What a stage takes of its worker's memory, in words, before it is trained."""

import math

import torch

from takd.search_spaces import Stage
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.families import parameters_of
from takd.trainables.training.devices import USED, images_stay, larger_part
from takd.trainables.width import bytes_of

LARGE = 1e9  # bytes of pixels, from which on it is said of a CPU where they are


def on_cpu(dataset: Dataset) -> str | None:
    """Where the images are that a CPU trains on; None where they are few."""
    pixels = _pixels(dataset, dataset.sizes["train"])
    if dataset.encoded is not None:
        return (
            f"training images: {_size(dataset.encoded)} encoded, {_size(pixels)} as pixels; each worker decodes them a "
            "few batches ahead, in a process for each of its CPUs, and keeps none"
        )
    if pixels < LARGE:
        return None
    return (
        f"training images: {_size(pixels)} of pixels, mapped from the cache; workers share the pages that the node has "
        "memory for, and the others are read again in every epoch"
    )


def on_gpu(stage: Stage, dataset: Dataset, gpu: float, memory: float | None) -> str:
    """How a stage's worker would use its part of a GPU of so many bytes; None: there is none here."""
    images = _pixels(dataset, stage.images + dataset.sizes["validation"])
    targets = stage.images * (1 + len(dataset.classes))
    weights = parameters_of(stage.model, dataset.image_shape, len(dataset.classes))
    model, learned = bytes_of(weights, targets)
    lane = f"each lane {_size(model)} for weights and optimizer and {_size(learned)} for targets"
    who = f"{stage.role} {stage.model} with gpu {gpu:g}"
    if memory is None:
        return f"{who}: images take {_size(images)}, {lane}; there is no GPU here whose memory would say what fits"
    room = USED * gpu * memory
    where = "stay there"
    if not images_stay(images, room):
        form = "decoded" if dataset.encoded is not None else "mapped"
        where, images = f"are {form} in the worker's process and go there a batch at a time", 0
    fits = room >= images + model + learned
    said = f"{who}, {_size(room)} of memory: {_size(_pixels(dataset, stage.images))} of training images {where}, {lane}"
    if fits:
        return f"{said}, beside what a step computes"
    tried = " or ".join(larger_part(stage.role, gpu)) or "a larger GPU"
    return f"{said}: that has no room; try {tried}"


def memory_of_gpu() -> float | None:
    """Bytes of this machine's first; None where it has none."""
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _pixels(dataset: Dataset, images: int) -> float:
    return float(images * math.prod(dataset.image_shape))


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
