"""What a stage has learned: its weights, without those that still are what it started from.

64 heads on a network that stands still are 64 heads below a root, and not 64 networks.
"""

from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

from takd.search_spaces import Stage
from takd.trainables.models.pretrained import read_weights
from takd.trainables.models.weights_files import Pretrained, Start, completed, start_in
from takd.trainables.store.artifacts import WEIGHTS, ArtifactStore


def learned(weights: Mapping[str, Tensor], digest: str | None, start: Pretrained | None) -> bytes:
    """safetensors of a stage's weights; of those that it started from, which have that digest, the names alone."""
    if start is None or digest is None:
        return safetensors.torch.save(dict(weights))
    own = {name: each for name, each in weights.items() if not _equal(each, start.tensors.get(name))}
    return safetensors.torch.save(own, Start(digest, [name for name in weights if name not in own]).metadata())


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one.cpu(), other)


def weights_of(stage: Stage, store: ArtifactStore) -> dict[str, Tensor]:
    """Of a finished stage's model, or of a given one, by name.

    Raises FileNotFoundError where the store has none, ValueError where they are damaged.
    """
    if stage.given:
        return safetensors.torch.load(store.pretrained(stage.given.digest))
    content = store.read(stage.key, WEIGHTS)
    own, start = safetensors.torch.load(content), start_in(content)
    return completed(own, start, read_weights(store, start.digest).tensors) if start else own
