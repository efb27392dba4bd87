"""A lane's checkpoint as bytes: a line of JSON, then safetensors. No pickle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import safetensors.torch
from torch import Tensor

from takd.trainables.training.lanes import EpochMetrics, Lane, Lanes
from takd.trainables.training.teaching import Teaching

CHECKPOINT_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """All that training a lane from the end of an epoch on depends on."""

    epochs: list[EpochMetrics]
    tensors: dict[str, Tensor]  # `model.*`, `best.*`, `optimizer.WEIGHT.*`, `teaching.*`, `ema.*`

    @classmethod
    def of(cls, lane: Lane, taught: Lanes, teaching: Teaching) -> "Checkpoint":
        number = taught.running.index(lane)
        parts = {"model": taught.model.weights(number), "best": lane.best_weights or {}}
        parts |= {f"optimizer.{name}": state for name, state in taught.optimizer.state(number).items()}
        parts["teaching"] = teaching.state(number)
        parts["ema"] = taught.average.state(number) if taught.average is not None else {}
        tensors = {f"{part}.{name}": each for part, state in parts.items() for name, each in state.items()}
        return cls(list(lane.epochs), tensors)

    def content(self) -> bytes:
        head = {"format": CHECKPOINT_FORMAT, "epochs": [each.row() for each in self.epochs]}
        tensors = {name: each.detach().cpu().contiguous() for name, each in self.tensors.items()}
        return json.dumps(head).encode() + b"\n" + safetensors.torch.save(tensors)

    @classmethod
    def parse(cls, content: bytes) -> "Checkpoint":
        """What `content` wrote. Raises ValueError on bytes that are no checkpoint."""
        head, _, tensors = content.partition(b"\n")
        try:
            about = json.loads(head)
            if about["format"] != CHECKPOINT_FORMAT:
                raise ValueError(f"its format is {about['format']}")
            return cls([EpochMetrics.of_row(epoch) for epoch in about["epochs"]], safetensors.torch.load(tensors))
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(f"no checkpoint: {error}") from None

    def tensors_of(self, prefix: str) -> dict[str, Tensor]:
        """`{"model.a": x, ...}` of `model`: `{"a": x}`"""
        start = f"{prefix}."
        return {name.removeprefix(start): each for name, each in self.tensors.items() if name.startswith(start)}


def restore(checkpoints: Sequence[Checkpoint], taught: Lanes, teaching: Teaching) -> int:
    """Goes on from a checkpoint of every lane, all made after the same epoch, which is returned.

    Raises ValueError on one of another model.
    """
    weights = taught.optimizer.weights
    try:
        taught.model.load([each.tensors_of("model") for each in checkpoints])
        taught.optimizer.load(
            [{name: each.tensors_of(f"optimizer.{name}") for name in weights} for each in checkpoints]
        )
        teaching.load([each.tensors_of("teaching") for each in checkpoints])
        if taught.average is not None:
            taught.average.load([each.tensors_of("ema") for each in checkpoints])
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"a checkpoint of another model: {error}") from None
    for lane, each in zip(taught.all, checkpoints, strict=True):
        lane.best_weights = each.tensors_of("best") or None
        lane.epochs = list(each.epochs)
    [epoch] = {len(each.epochs) for each in checkpoints}
    return epoch
