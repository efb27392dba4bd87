"""What a stage's artifact says of how it came about, whether it was trained or given."""

import os
import platform
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from takd.search_spaces import Stage
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.families import library_of
from takd.trainables.models.stage_models import size_of_stage


def describe_outcome(
    stage: Stage, dataset: Dataset, device: torch.device, threads: int, origin: Mapping[str, str], **own: Any
) -> dict[str, Any]:
    """The part of stage.json that its key does not determine; `own` is what only training, or only a file, has."""
    size = None if stage.given and stage.given.logits else size_of_stage(stage, dataset)
    return {
        "name": stage.name,
        "role": stage.role,
        **own,
        "parameters": size.parameters if size else None,
        "flops_per_image": size.flops if size else None,
        "device": device_name(device),
        "threads": threads,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | (library_of(stage.model) if size else {}),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "origin": dict(origin),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
