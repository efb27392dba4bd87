"""Whether a user's code can do what a space asks of it: imported, found by name, and tried on a few numbers.

Models are tried where all models are built (`takd.trainables.models.families.check_model`).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor, nn

from takd.search_spaces import InputError, Recipe, Space, Training, examples_of
from takd.search_spaces.augments import altering
from takd.search_spaces.methods import LAYERS, METHODS, TEMPERATURE, WARMUP, WEIGHT, Needs
from takd.search_spaces.registry import (
    PAGE,
    TABLES,
    Augmentation,
    Method,
    Origin,
    blamed,
    metric_named,
    nearest,
    origin_of,
)
from takd.search_spaces.stage import names_in
from takd.trainables.datasets.dataset import read_by_code
from takd.trainables.own_code import Code, read_code, use
from takd.trainables.training.terms import made_by

IMAGES, CLASSES, SHAPE = 8, 10, (3, 32, 32)  # that functions are tried on
DONE = (0.0, 0.5, 0.99)  # of a run

# Fields of a recipe that name what a user's code may define.
FIELDS = {"optimizer": "optimizer", "schedule": "schedule", "augment": "augmentation", "select_by": "metric"}


def use_code(space: Space, source: str) -> Code:
    """Imports what a space names as its code, reads the data set where that is of it, and returns the code.

    Raises InputError.
    """
    try:
        code = read_code(space.code)
        use(code)
        for name in (space.dataset, *([space.transfer.dataset] if space.transfer else [])):
            read_by_code(name)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return code


def with_code(space: Space, source: str) -> Space:
    """The space with the digests of the code that it uses; raises InputError on names that nobody has.

    What is used is tried, and what it raises comes with the user's file and line.
    """
    digests: dict[str, str] = {}
    for place, kind, name in _named(space):
        origin = origin_of(kind, name)
        if origin is None and f"{kind} {name}" in space.code_digests:
            raise InputError(f"{source}: {kind} {name!r} is of code that is not given; give the space that names it")
        if origin is None and kind != "model_family":  # a model's error lists them
            valid = [each for each in TABLES[kind] if place != "loss.divergence" or TABLES[kind][each].is_divergence]
            raise InputError(
                f"{source}: {place} is {name!r}; valid: {', '.join(valid)}; "
                f"{nearest(name, valid)}{PAGE} says how to bring one of your own"
            )
        if place == "loss.divergence" and not TABLES["method"][name].is_divergence:
            raise InputError(
                f"{source}: loss.divergence is {name!r}, which has parameters of its own or compares other things than "
                f"logits; name it in an arm: {name}, or {name}+kd"
            )
        if origin and origin.digest and f"{kind} {name}" not in digests:
            digests[f"{kind} {name}"] = origin.digest
            try:
                _try(kind, name, origin)
            except InputError as error:
                raise InputError(f"{source}: {error}") from None
    try:
        needs = _needs(space)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    own = metric_named(space.metric) if f"metric {space.metric}" in digests else None
    return space.model_copy(update={"code_digests": digests, "metric_of_code": own, "needs": needs})


def _needs(space: Space) -> dict[str, Needs]:
    """What methods of a user's code compare, where that is not logits.

    Raises ValueError where the space says what they have not, or where who teaches has not what they need.
    """
    own = {
        name: kind for name, kind in TABLES["method"].items() if name not in METHODS and kind.needs != "soft_targets"
    }
    for cell in space.cells:
        for name, section in cell.space.methods.items():
            if name not in own:
                continue
            kind: Method = own[name]
            valid = [WEIGHT, *kind.params, *([TEMPERATURE] if kind.temperature else []), WARMUP]
            valid += LAYERS if kind.needs == "maps" else ()
            for key in section.keys() - set(valid):
                raise ValueError(f"methods: {name} has no {key}; valid: {', '.join(valid)}")
            for key, param in kind.params.items():
                for place, value in examples_of(section.get(key, param.default)):
                    if wrong := param.wrong(value):
                        raise ValueError(f"methods: {name}.{key}{place} is {value}; expected {wrong}")
        cell.space.refuse_methods({name: kind.needs for name, kind in own.items()})
    used = {name for arm in space.all_arms for name in arm.methods} | {space.assistants.method}
    return {name: kind.needs for name, kind in own.items() if name in used and kind.needs != "logits"}


def _named(space: Space) -> Iterator[tuple[str, str, str]]:
    """All that a space names of what a user's code may define: where, the kind, and the name."""
    for cell in space.cells:
        own = cell.space
        if own.loss.divergence:
            yield "loss.divergence", "method", own.loss.divergence
        yield "metric", "metric", own.metric
        for name in dict.fromkeys(name for arm in own.all_arms for name in arm.methods):
            if name not in METHODS:
                yield "arms: a method", "method", name
        if own.assistants.method not in METHODS:
            yield "assistants.method", "method", own.assistants.method
        sections: list[tuple[str, Training]] = [("teacher", own.teacher), ("student", own.student)]
        sections += [("assistants", own.assistants)]
        sections += [(f"assistants.models.{each}", own.assistants.section(each)) for each in own.assistants.names]
        for role, section in sections:
            for field, kind in FIELDS.items():
                for place, value in examples_of(section.recipe.get(field)):
                    parts = altering(value) if field == "augment" else [value]
                    for part in parts if value is not None else ():
                        yield f"{role}.recipe.{field}{place}", kind, str(part)
        for model in (*own.teacher.models, *own.assistants.names, own.student.model):
            [family] = names_in(model)
            yield model, *family.split(" ", 1)  # type: ignore[misc]


def try_metric(name: str, labels: Tensor, classes: int) -> None:
    """One number of the labels of a split, the same whenever it is asked, and in the direction that its words say.

    Raises InputError with the user's file and line; of takd's own nothing is tried.
    """
    origin = origin_of("metric", name)
    if origin is None or not origin.digest:
        return
    kind, about = TABLES["metric"][name], f"{origin}: metric {name!r}"
    right = 5 * nn.functional.one_hot(labels.long(), classes).float()
    noise = torch.randn(len(labels), classes, generator=torch.Generator().manual_seed(0))
    found = {}
    for what, logits in (
        ("random answers", noise),
        ("right answers", right + noise / 9),
        ("wrong ones", noise / 9 - right),
    ):
        given, told = logits.clone(), labels.clone()
        try:
            values = [kind.function(given, told) for _ in range(2)]
        except Exception as error:
            raise blamed(error, about) from None
        if not (torch.equal(given, logits) and torch.equal(told, labels)):
            raise InputError(f"{about} changes what it is given; expected a function that only reads it")
        value, again = values
        many = isinstance(value, Tensor | np.ndarray) and value.ndim > 0
        if many or isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
            got = f"{value.dtype} {list(value.shape)}" if many else type(value).__name__
            raise InputError(f"{about} gives {got} of {len(labels)} images; expected one number")
        found[what] = float(value)
        if not math.isfinite(found[what]):
            raise InputError(f"{about} gives {found[what]} of {what} to the validation images; expected a number")
        if float(again) != found[what]:
            raise InputError(
                f"{about} gives {found[what]:g} and then {float(again):g} of the same; expected one number"
            )
        if kind.fraction and not -1e-6 <= found[what] <= 1 + 1e-6:
            raise InputError(
                f"{about} gives {found[what]:g} of {what}; expected a fraction, or fraction=False in the decorator"
            )
    best, worst = found["right answers"], found["wrong ones"]
    if best == worst:
        raise InputError(f"{about} gives {best:g} of right answers and of wrong ones: nothing can be chosen by it")
    if (best < worst) if kind.higher else (best > worst):
        more, other = ("more", "higher=False") if kind.higher else ("less", "higher=True")
        raise InputError(
            f"{about} gives {best:g} of right answers and {worst:g} of wrong ones, where {more} is better; say {other} "
            "in the decorator"
        )


def _try(kind: str, name: str, origin: Origin) -> None:
    tried: Mapping[str, Any] = {
        "method": _try_method,
        "augmentation": _try_augmentation,
        "optimizer": _try_optimizer,
        "schedule": _try_schedule,
    }
    if kind not in tried:
        return
    about = f"{origin}: {kind} {name!r}"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tried[kind](TABLES[kind][name], about)
    except InputError:
        raise
    except Exception as error:
        raise blamed(error, about) from None


def _try_method(kind: Method, about: str) -> None:
    """It gives a finite number, or one an image, with a gradient of what the student says."""
    if kind.needs == "soft_targets":
        return
    params = {name: int(each.default) if each.whole else each.default for name, each in kind.params.items()}
    for temperature in (1.0, 4.0) if kind.temperature else (0.0,):
        labels = torch.arange(IMAGES) % CLASSES
        leaf, student, teacher = _tried_on(kind)
        named: dict[str, Any] = {name: each for name, each in params.items() if name in kind.takes}
        named |= {"indices": torch.arange(IMAGES)} if "indices" in kind.takes else {}
        if kind.modules:
            named["modules"] = made_by(kind, student, teacher, CLASSES, labels, params)
        given, told = _copied(teacher), labels.clone()
        torch.manual_seed(1)
        found = kind.function(student, given, told, *([temperature] if temperature else []), **named)
        if not (_same(given, teacher) and torch.equal(told, labels)):
            raise InputError(f"{about} changes what it is given; expected a function that only reads it")
        if not isinstance(found, Tensor) or found.shape not in ((), (IMAGES,)):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"{about} gives {got} of {IMAGES} images; expected one number, or [{IMAGES}]")
        if not found.isfinite().all():
            raise InputError(f"{about} gives {found.mean().item()} at temperature {temperature:g}; expected numbers")
        if not found.requires_grad:
            raise InputError(f"{about} has no gradient of the student's {kind.needs}")
        if not kind.modules:  # which may count how often they were called
            torch.manual_seed(2)
            again = kind.function(student, _copied(teacher), labels, *([temperature] if temperature else []), **named)
            if not torch.allclose(found, again):
                raise InputError(
                    f"{about} gives {found.mean().item():g} and then {again.mean().item():g} of the same {kind.needs}; "
                    "it may draw no random numbers"
                )
        found.mean().backward()
        if leaf.grad is None or not leaf.grad.isfinite().all() or not leaf.grad.any():
            what = "no" if leaf.grad is None or not leaf.grad.any() else "no finite"
            at = f" at temperature {temperature:g}" if temperature else ""
            raise InputError(f"{about} has {what} gradient of the student's {kind.needs}{at}")


WIDTHS = (6, 12)  # of the embeddings that methods are tried on, student's and teacher's; and channels of maps of:
SIDES = (8, 8)


def _tried_on(kind: Method) -> tuple[Tensor, Any, Any]:
    """A student's numbers, and what the method gets of student and teacher."""
    if kind.needs == "logits":
        leaf = torch.randn(IMAGES, CLASSES, requires_grad=True)
        return leaf, leaf, 3 * torch.randn(IMAGES, CLASSES)
    if kind.needs == "embedding":
        leaf = torch.randn(IMAGES, WIDTHS[0], requires_grad=True)
        return leaf, leaf, torch.randn(IMAGES, WIDTHS[1])
    leaf = torch.randn(IMAGES, WIDTHS[0], *SIDES, requires_grad=True)
    return leaf, (leaf,), (torch.randn(IMAGES, WIDTHS[1], *SIDES),)


def _copied(given: Any) -> Any:
    return tuple(each.clone() for each in given) if isinstance(given, tuple) else given.clone()


def _same(given: Any, other: Any) -> bool:
    pairs = zip(given, other, strict=True) if isinstance(given, tuple) else [(given, other)]
    return all(torch.equal(one, two) for one, two in pairs)


def _try_augmentation(kind: Augmentation, about: str) -> None:
    """It gives images as it takes them, and the same ones where the same is drawn."""
    images = torch.randint(0, 256, (IMAGES, *SHAPE), dtype=torch.uint8)
    drawn = torch.rand(IMAGES, kind.numbers or 1)
    found, again = (kind.function(images.clone(), drawn.clone()) for _ in range(2))
    if not isinstance(found, Tensor) or found.shape != images.shape or found.dtype != images.dtype:
        got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"{about} gives {got}; expected images as it takes them, {images.dtype} {list(images.shape)}")
    if not torch.equal(found, again):
        raise InputError(f"{about} draws random numbers of its own; expected none but those in `drawn`")


def _try_optimizer(kind: Any, about: str) -> None:
    """It moves weights by their gradients, and keeps nothing but tensors."""
    weight = nn.Parameter(torch.randn(3, 2))
    before = weight.detach().clone()
    optimizer = kind([weight], 0.1, Recipe())
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    if torch.equal(before, weight):
        raise InputError(f"{about} does not move a weight that has a gradient")
    if not weight.isfinite().all():
        raise InputError(f"{about} gives weights that are no finite numbers")
    kept = optimizer.state[weight]
    odd = [name for name, each in kept.items() if not isinstance(each, Tensor)]
    if odd:
        raise InputError(f"{about} keeps {odd[0]!r} of a weight as no tensor, which no checkpoint can hold")


def _try_schedule(kind: Any, about: str) -> None:
    for done in DONE:
        factor = kind(done, Recipe())
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < float("inf"):
            raise InputError(f"{about} gives {factor!r} after {done:g} of a run; expected a number of at least 0")
