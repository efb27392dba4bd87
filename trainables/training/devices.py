"""What a worker trains on, how much of its memory is this worker's, and how exactly it computes there."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

USED = 0.9  # of what is left of a worker's share: libraries take their own memory beside torch's

IMAGES = 0.5  # of that room, that images may take: what trains needs the rest

log = logging.getLogger("takd")


def device_of(gpus: float) -> torch.device:
    """What a worker trains on that was given so many GPUs: a GPU where it was given any part of one, else the CPU.

    What the process can see decides nothing: Ray shows a worker without GPUs all of them, where it is told to.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        log.warning("%g GPUs are given to a worker on a node where torch %s finds none", gpus, torch.__version__)
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def keep_within(device: torch.device, gpus: float) -> None:
    """This process takes no more of a GPU's memory than its part of the GPU; more raises OutOfMemoryError."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpus), device)


def room_on(device: torch.device) -> float:
    """Bytes that tensors of this process may still take on a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    return room_left(
        share=torch.cuda.get_per_process_memory_fraction(device) * total,
        free=free,
        cached=torch.cuda.memory_reserved(device),
        held=torch.cuda.memory_allocated(device),
    )


def room_left(share: float, free: float, cached: float, held: float) -> float:
    """Of a share of the memory: not what this process holds, nor what others have taken already.

    What torch has cached is free for this process, though the device says that it is not.
    """
    return max(0.0, USED * min(share - held, free + cached - held))


def images_stay(images: float, room: float) -> bool:
    """Whether images of so many bytes stay on a GPU with room for so many; else they go there a batch at a time."""
    return images <= IMAGES * room


def can_stream(device: torch.device) -> bool:
    """Whether images may be elsewhere than on the device: on a CPU they are mapped or encoded, and never copied."""
    return device.type != "cpu"


def no_room(what: str, device: torch.device, whose: str, gpus: float, fits: Sequence[str]) -> str:
    """The line about what had no room on a device, whose part of it was full, and what a space may say instead."""
    there = f"{room_on(device) / 1e9:.1f} GB" if device.type == "cuda" else "memory"
    tried = " or ".join(fits) or "a larger GPU"
    return f"{what} has no room in the {there} that {whose} with gpu {gpus:g} has; try {tried}"


def larger_part(role: str, gpus: float) -> list[str]:
    """What a space may say for more of a GPU, where workers of a role have a part of one."""
    return [f"resources.{role}.gpu: {min(1.0, 2 * gpus):g}"] if 0 < gpus < 1 else []


def let_go(device: torch.device) -> None:
    """Gives back to the device what no tensor needs any more: others share it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may compute products and convolutions of float32 in TF32 (10 bits of 23) inside.

    torch allows it for convolutions unless it is told otherwise. The flags are the process's: all threads have them.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def fix_algorithms() -> None:
    """On a GPU, of what can be computed in several orders always the same one; what has no such way raises.

    cuBLAS reads `CUBLAS_WORKSPACE_CONFIG` when it is first used: a worker has that in its environment before.
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
