"""Pretrained weights: from a library or a file to one canonical form, kept by its digest, and into a new model."""

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from takd.search_spaces import InputError
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.families import check_model, family_of
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.storage import first_line

IMAGENET = "imagenet"
SCALE, SHIFT = "input_scale", "input_shift"  # buffers of a model whose weights expect other pixels than the dataset's
_TOLD = 3  # tensors that don't fit, of those that an error names

# These take normalised images and make of them what their weights were trained on, where torchvision loads the weights.
_INCEPTION = ("googlenet", "inception_v3")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # as torchvision reads its own old files


class MissingWeightsError(InputError):
    """Pretrained weights are not on this machine, and can't be fetched."""


@dataclass(frozen=True)
class Pretrained:
    """Weights and buffers of all but the head; by which mean and deviation of pixels in [0, 1], None: the dataset's."""

    tensors: dict[str, Tensor]
    normalization: Normalization | None


def head_of(module: nn.Module) -> str:
    """The name of the layer that gives the logits: the last that is fully connected or a convolution."""
    return [name for name, each in module.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)][-1]


def without_head(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name, all but the head's."""
    head = f"{head_of(module)}."
    return {name: each for name, each in module.state_dict().items() if not name.startswith(head)}


def canonical_weights(model: str, pretrained: str, image_shape: ImageShape, classes: int) -> bytes:
    """safetensors of all but the head, the same bytes wherever and whatever they were read from.

    `pretrained` is `imagenet` or a path. Raises InputError, and MissingWeightsError where there is no file.
    """
    module = check_model(model, image_shape, classes)
    given = _from_library(model) if pretrained == IMAGENET else _from_file(Path(pretrained).expanduser())
    source = f"pretrained {pretrained}: "
    tensors = _fitting(given.tensors, module, f"{source}these are not the weights of {model}")
    # One entry: safetensors writes several in any order.
    about = {"normalization": json.dumps(given.normalization._asdict())} if given.normalization else None
    return safetensors.torch.save(tensors, about)


def _fitting(given: Mapping[str, Tensor], module: nn.Module, complaint: str) -> dict[str, Tensor]:
    head = f"{head_of(module)}."
    given = {name: each for name, each in given.items() if not name.startswith((head, "aux", "AuxLogits"))}
    expected = without_head(module)
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # old files have none
    wrong = [
        f"{name} is {list(given[name].shape)}, the model's {list(each.shape)}"
        if name in given
        else f"{name} is missing"
        for name, each in expected.items()
        if (name not in given and name not in counters) or (name in given and given[name].shape != each.shape)
    ]
    wrong += [f"{name} is none of the model's" for name in given if name not in expected]
    if wrong:
        more = f" (and {len(wrong) - _TOLD} more)" if len(wrong) > _TOLD else ""
        raise InputError(f"{complaint}: {'; '.join(islice(wrong, _TOLD))}{more}")
    return {
        name: given.get(name, torch.tensor(0)).to(each.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, each in expected.items()
    }


def _from_library(model: str) -> Pretrained:
    library, _, name = model.partition("/")
    read = {"torchvision": _from_torchvision, "timm": _from_timm}.get(library)
    if read is None:
        raise InputError(
            f"pretrained: imagenet is for torchvision/NAME and timm/NAME; for {model} give a path to weights"
        )
    return read(name)


def _from_torchvision(name: str) -> Pretrained:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlsplit(weights.url).path)
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        if file.is_file():
            raise InputError(f"pretrained {file}: can't be read ({first_line(error)}); delete it") from None
        raise MissingWeightsError(
            f"pretrained: imagenet of torchvision/{name} can't be fetched ({first_line(error)}); download "
            f"{weights.url} to {file}"
        ) from None
    about = weights.transforms()
    normalization = (
        Normalization((0.5,) * 3, (0.5,) * 3) if name in _INCEPTION else _normalization(about.mean, about.std)
    )
    return Pretrained({_OLD_DENSENET.sub(r"\1\2", each): tensor for each, tensor in tensors.items()}, normalization)


def _from_timm(name: str) -> Pretrained:
    import timm

    try:
        module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        place = timm.models.get_pretrained_cfg(name)
        hub = f"https://huggingface.co/{place.hf_hub_id}" if place and place.hf_hub_id else "its page of Hugging Face"
        raise MissingWeightsError(
            f"pretrained: imagenet of timm/{name} can't be fetched ({first_line(error)}); download "
            f"model.safetensors of {hub} and give its path as pretrained"
        ) from None
    about = module.pretrained_cfg
    return Pretrained(module.state_dict(), _normalization(about["mean"], about["std"]))


def _from_file(path: Path) -> Pretrained:
    read = {".safetensors": _read_safetensors, ".pth": _read_pth, ".pt": _read_pth}.get(path.suffix)
    if read is None:
        raise InputError(f"pretrained {path}: expected imagenet, or a path to a .safetensors or .pth file")
    if not path.is_file():
        raise MissingWeightsError(f"pretrained {path}: no such file; expected imagenet, or a path to weights")
    try:
        return read(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"pretrained {path}: can't be read as safetensors ({first_line(error)})") from None
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"pretrained {path}: can't be read as weights ({first_line(error)})") from None
    except Exception:  # torch has no base class for what it raises of a file that is something else
        raise InputError(f"pretrained {path}: can't be read as weights; expected tensors by name") from None


def _read_safetensors(path: Path) -> Pretrained:
    return _parsed(path.read_bytes())


def _parsed(content: bytes) -> Pretrained:
    tensors = safetensors.torch.load(content)  # first: it checks that there is a header
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Pretrained(tensors, _described(header.get("__metadata__", {})))


def _described(about: Mapping[str, str]) -> Normalization | None:
    """By a file's metadata: `mean` and `std`, or both in `normalization` as here; raises ValueError on what is none."""
    given = json.loads(about["normalization"]) if "normalization" in about else about
    if "mean" not in given or "std" not in given:
        return None
    mean, std = (json.loads(each) if isinstance(each, str) else each for each in (given["mean"], given["std"]))
    return _normalization(mean, std)


def _normalization(mean: Any, std: Any) -> Normalization:
    """Raises ValueError, or TypeError, on what are no numbers by channel."""
    found = Normalization(tuple(map(float, mean)), tuple(map(float, std)))
    if len(found.mean) not in (1, 3) or len(found.std) != len(found.mean) or min(found.std) <= 0:
        raise ValueError(f"mean {mean} and std {std} are not three numbers each, or one")
    return found


def _read_pth(path: Path) -> Pretrained:
    content = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(map(_is_weight, content.items())):
        raise ValueError("expected a state dict: tensors by name")
    return Pretrained(content, None)


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, tensor = item
    return isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided


def check_takes_pretrained(model: str) -> None:
    """Raises InputError on a family that trains several as one, whose weights belong to no library."""
    if family_of(model)[0].stacks:
        raise InputError(f"pretrained: the family of {model} takes no pretrained weights")


@lru_cache(maxsize=2)
def read_weights(store: ArtifactStore, digest: str) -> Pretrained:
    """Raises FileNotFoundError where a root has none, ValueError where they are damaged."""
    return _parsed(store.pretrained(digest))


def start_from(pretrained: Pretrained, module: nn.Module, dataset: Normalization) -> None:
    """Puts the weights into a new model, whose head stays as it is, and gives it the pixels they expect.

    A model takes images as its dataset normalises them: what is between is in two buffers, and so with its weights.
    """
    module.load_state_dict(pretrained.tensors, strict=False)
    if pretrained.normalization is not None:
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in pretrained.normalization)
        own_mean, own_std = (torch.tensor(each).view(-1, 1, 1) for each in dataset)
        _expect(module, own_std / std, (own_mean - mean) / std)


def restore(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A new model with the weights of a finished stage, whatever that started from."""
    if SCALE in weights:
        _expect(module, weights[SCALE], weights[SHIFT])
    module.load_state_dict(weights)
    return module


def _expect(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    module.register_buffer(SCALE, scale.clone())
    module.register_buffer(SHIFT, shift.clone())
    module.register_forward_pre_hook(_as_expected)


def _as_expected(module: nn.Module, images: tuple[Tensor]) -> Tensor:
    return images[0] * module.get_buffer(SCALE) + module.get_buffer(SHIFT)
