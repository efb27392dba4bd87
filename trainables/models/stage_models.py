"""A stage's model: that of its spec, or, taught by SimKD, one that ends in a projector and its teacher's head."""

from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from takd.search_spaces import InputError, Stage
from takd.search_spaces.registry import check_digests
from takd.search_spaces.stage import Term
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.families import ModelSize, build, size_of, size_of_module
from takd.trainables.models.pretrained import heads_of, restore

# In the place of a student's head, or after its last map, is what it projects with; in the head's place its teacher's.
BODY, PROJECTOR, HEAD = "body", "projector", "head"


def module_of(stage: Stage, image_shape: ImageShape, classes: int) -> nn.Module:
    """With freshly initialised weights, from torch's global random state, on torch's default device."""
    module = build(stage.model, image_shape, classes, stage.recipe.dropout)
    return with_head(module, stage, image_shape, classes)


def with_head(module: nn.Module, stage: Stage, image_shape: ImageShape, classes: int) -> nn.Module:
    """The module of a stage's spec as the stage has it: a head of its teacher's form in the place of its own."""
    if (teacher := stage.head_of) is None:
        return module
    [term] = stage.terms or ()
    return ending_in_head(module, stage.model, term, teacher.model, image_shape, classes)


def ending_in_head(
    module: nn.Module, model: str, term: Term, teacher: str, image_shape: ImageShape, classes: int
) -> nn.Module:
    """The module of a model with a projector and a head of the form that another model's has."""
    own, theirs = _head(model, module), _head_of(teacher, image_shape, classes)
    linear = module.get_submodule(own)
    assert isinstance(linear, nn.Linear)
    head = nn.Linear(theirs.in_features, theirs.out_features, bias=theirs.bias is not None)
    parts: list[tuple[str, nn.Module]] = [(HEAD, head)]
    if term.needed == "maps":
        assert term.student_layers, "known once a study has started"
        assert term.teacher_layers
        layer = term.student_layers[-1]
        size = _map_size(teacher, image_shape, classes, term.teacher_layers[-1])
        projector = Projector(linear.in_features, theirs.in_features, size)
        body = module.get_submodule(layer)
        _replace(module, layer, nn.Sequential(OrderedDict([(BODY, body), (PROJECTOR, projector)])))
    else:
        parts.insert(0, (PROJECTOR, nn.Linear(linear.in_features, theirs.in_features)))
    _replace(module, own, nn.Sequential(OrderedDict(parts)))
    return module


def reused_head(model: str, image_shape: ImageShape, classes: int) -> str:
    """Of a student's model that ends in its teacher's head, the name of that layer."""
    return f"{_name_of_head(model, image_shape, classes)}.{HEAD}"


def put_head(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """The head of a teacher, `weight` and maybe `bias`, which then stands still."""
    head = module.get_submodule(heads_of(module)[-1])
    for name, weight in head.named_parameters():
        with torch.no_grad():
            weight.copy_(weights[name])
    head.requires_grad_(False)


def head_weights(model: str, weights: Mapping[str, Tensor], image_shape: ImageShape, classes: int) -> dict[str, Tensor]:
    """Of all weights of a model those of its head, by `weight` and `bias`."""
    start = f"{_name_of_head(model, image_shape, classes)}."
    return {name.removeprefix(start): each for name, each in weights.items() if name.startswith(start)}


class Projector(nn.Sequential):
    """Chen et al. 2022, section 3.3: 1x1, 3x3 and 1x1 convolutions through half of the teacher's channels.

    Maps `[images, channels, height, width]`; what is larger than the teacher's map is averaged to its size first.
    """

    def __init__(self, student: int, teacher: int, size: tuple[int, int]) -> None:
        inner = max(teacher // 2, 1)
        super().__init__(
            nn.Conv2d(student, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, teacher, 1, bias=False),
            nn.BatchNorm2d(teacher),
            nn.ReLU(),
        )
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        height, width = (min(pair) for pair in zip(maps.shape[2:], self.size, strict=True))
        if (height, width) != tuple(maps.shape[2:]):
            maps = functional.adaptive_avg_pool2d(maps, (height, width))
        return super().forward(maps)


def _replace(module: nn.Module, name: str, other: nn.Module) -> None:
    path, _, last = name.rpartition(".")
    module.get_submodule(path)._modules[last] = other


def _head(model: str, module: nn.Module) -> str:
    """The name of a model's head; raises InputError where that can't be another model's."""
    names = heads_of(module)
    if len(names) > 1 or not isinstance(module.get_submodule(names[0]), nn.Linear):
        raise InputError(f"the head of {model} is no single layer that is fully connected")
    return names[0]


@lru_cache
def _name_of_head(model: str, image_shape: ImageShape, classes: int) -> str:
    with torch.device("meta"):
        return _head(model, build(model, image_shape, classes))


def _head_of(model: str, image_shape: ImageShape, classes: int) -> nn.Linear:
    """As it is on the meta device."""
    with torch.device("meta"):
        module = build(model, image_shape, classes)
    head = module.get_submodule(_head(model, module))
    assert isinstance(head, nn.Linear)
    return head


@lru_cache
def _map_size(model: str, image_shape: ImageShape, classes: int, layer: str) -> tuple[int, int]:
    """Height and width of what a layer gives of one image."""
    try:
        with torch.device("meta"), torch.no_grad():
            found = _watched(build(model, image_shape, classes), torch.empty(2, *image_shape), layer)[0]
    except (NotImplementedError, RuntimeError):  # a user's code, which does something with numbers
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = _watched(build(model, image_shape, classes), torch.zeros(2, *image_shape), layer)[0]
    return found.shape[2], found.shape[3]


def _watched(module: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor | None]:
    """What a layer gives, and what enters the head."""
    found: list[Tensor] = []
    entered: list[Tensor] = []
    names = heads_of(module)
    hooks = [
        module.get_submodule(layer).register_forward_hook(lambda _, __, result: found.append(result.clone())),
        module.get_submodule(names[-1]).register_forward_pre_hook(lambda _, given: entered.append(given[0].clone())),
    ]
    try:
        module.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0], entered[0] if entered else None


@torch.no_grad()
def check_takes_means(model: str, image_shape: ImageShape, classes: int, layer: str) -> None:
    """Raises InputError where what enters a model's head is not the means of a layer's maps over their places."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(model, image_shape, classes)
        maps, entered = _watched(module, torch.randn(2, *image_shape), layer)
    _head(model, module)
    if entered is None or not _close(entered, maps.mean(dim=(2, 3))):
        raise InputError(
            f"the head of {model} does not take the means of the maps of {layer} over their places, which the "
            "projected maps stand for; take simkd_linear"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def check_heads(*models: str, image_shape: ImageShape, classes: int) -> None:
    """Raises InputError where one of them has no head that may stand in another's place."""
    for model in models:
        _name_of_head(model, image_shape, classes)


def size_of_stage(stage: Stage, dataset: Dataset) -> ModelSize:
    """On the meta device."""
    about = dataset.image_shape, len(dataset.classes)
    if stage.head_of is None:
        return size_of(stage.model, *about)
    with torch.device("meta"):
        return size_of_module(module_of(stage, *about).eval(), dataset.image_shape)


def finished_module(stage: Stage, dataset: Dataset, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model of a stage, with the weights of `weights_of`."""
    check_digests(stage.code)
    return restore(module_of(stage, dataset.image_shape, len(dataset.classes)), weights)
