"""Factors: what a study compares and never optimises. One combination of their values is a cell.

Here they are plain data, as a space's YAML has them; `takd.search_spaces.space.Cell` has the space of each cell.
"""

import copy
import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from takd.search_spaces.sections import Assistants, Student, Teacher
from takd.search_spaces.stage import Loss, Recipe
from takd.search_spaces.values import Value, shown
from takd.search_spaces.varied import one_number

EXAMPLES = "examples"  # sets `recipe.examples` of every role that is trained
# Fields that have no plain value, or name a file that stands for a model.
_NO_PLACES = {"recipe", "models", "checkpoint", "logits", "normalize", "classes"}
_NOT_PLAIN = {"milestones"}
_ROLES: Mapping[str, type[Value]] = {"teacher": Teacher, "assistants": Assistants, "student": Student}


def _places() -> list[str]:
    found = [EXAMPLES]
    for role, section in _ROLES.items():
        fields = {field.alias or name for name, field in section.model_fields.items()} - _NO_PLACES
        found += [f"{role}.{name}" for name in sorted(fields)]
        found += [f"{role}.recipe.{name}" for name in Recipe.model_fields if name not in _NOT_PLAIN]
    return [*found, *(f"loss.{name}" for name in Loss.model_fields)]


PLACES = _places()


def combinations(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The values of every cell, by factor; the last factor changes first."""
    return [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]


def cell_name(values: Mapping[str, Any]) -> str:
    """`teacher.model=mlp-200 student.model=mlp-4`, as the names of its configurations have it."""
    return " ".join(f"{name}={value_text(value)}" for name, value in values.items())


def value_text(value: Any) -> str:
    """Of a number four digits where they are all there is: two values never have one text, and equal ones have one."""
    value = one_number(value)
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.4g}"
    return short if float(short) == value else repr(value)


def check_factors(given: Mapping[str, Any]) -> None:
    """Raises ValueError where the `factors` of a space, which is plain data, can't be compared."""
    factors = given["factors"]
    if not isinstance(factors, Mapping):
        raise ValueError(
            f"factors is {shown(factors)}; expected places with lists of values, such as student.model: [a, b]"
        )
    for name, values in factors.items():
        if name not in PLACES:
            near = difflib.get_close_matches(str(name), PLACES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"factors: {name!r} is no place that can be compared; {hint}valid: {EXAMPLES}, and what has a plain "
                "value below teacher, assistants, student and loss, such as teacher.model or student.recipe.epochs"
            )
        if not isinstance(values, list | tuple):
            raise ValueError(f"factors.{name} is {shown(values)}; expected a list of values")
        if not values:
            raise ValueError(f"factors.{name} is empty; expected at least one value")
        for number, value in enumerate(values):
            if isinstance(value, dict | list | tuple):
                raise ValueError(f"factors.{name}.{number} is {shown(value)}; expected one plain value")
            if any(same_value(value, other) for other in values[:number]):
                raise ValueError(f"factors.{name} has {shown(value)} twice; each value is compared once")
    for name in factors:
        for place in targets(given, name):
            _check_place(given, name, place)


def _check_place(given: Mapping[str, Any], name: str, place: str) -> None:
    """What the space itself says at the place of a factor: nothing, or one of the factor's values."""
    factors = given["factors"]
    if place != name and place in factors:
        raise ValueError(f"factors: {name} sets {place}, which is a factor of its own; leave one of them out")
    there = _read(given, place)
    if isinstance(there, Mapping | Value):
        raise ValueError(f"{place} is varied, and factors has {name} as well; a factor is compared and never searched")
    if there is not _NOTHING and not any(same_value(there, value) for value in factors[name]):
        raise ValueError(
            f"{place} is {shown(there)}, and factors has {name}: {shown(list(factors[name]))}; leave it out, or add it "
            "there"
        )


def same_value(one: Any, other: Any) -> bool:
    """1 and 1.0 are; 1 and true are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def targets(given: Mapping[str, Any], name: str) -> list[str]:
    """The places that a factor sets."""
    if name != EXAMPLES:
        return [name]
    return [f"{role}.recipe.examples" for role in _ROLES if _is_trained(given, role)]


def _is_trained(given: Mapping[str, Any], role: str) -> bool:
    if role == "assistants":
        models = _read(given, "assistants.models")
        return isinstance(models, list | tuple) and any(
            isinstance(model, str) or (isinstance(model, Mapping) and not {"checkpoint", "logits"} & _given_in(model))
            for model in models
        )
    return all(_read(given, f"{role}.{file}") in (_NOTHING, None) for file in ("checkpoint", "logits"))


def _given_in(section: Mapping[str, Any]) -> set[str]:
    return {name for name, value in section.items() if value is not None}


def with_values(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A space, as plain data, with the values of factors in their places."""
    changed = dict(given)
    for name, value in values.items():
        for place in targets(given, name):
            _set(changed, place.split("."), value)
    return changed


def without_places(given: dict[str, Any], factors: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same in all cells: a copy without the values at the places of factors."""
    changed = copy.deepcopy(given)
    for name in factors:
        for place in targets(given, name):
            *parents, last = place.split(".")
            section = changed
            for parent in parents:
                section = section[parent]
            section.pop(last, None)
    return changed


class _Nothing:
    """No value, where null would be one."""


_NOTHING = _Nothing()


def _read(given: Any, place: str) -> Any:
    for name in place.split("."):
        given = given.model_dump(mode="json") if isinstance(given, Value) else given
        given = given.get(name, given.get(f"{name}_", _NOTHING)) if isinstance(given, Mapping) else _NOTHING
    return given


def _set(section: dict[str, Any], place: Sequence[str], value: Any) -> None:
    """Changes no part that the section shares with the data it came from."""
    name, *below = place
    section.pop(f"{name}_", None)  # a field whose name in YAML is a word of Python's has two
    if not below:
        section[name] = value
        return
    part = section.get(name)
    part = part.model_dump(mode="json") if isinstance(part, Value) else part
    if part is not None and not isinstance(part, Mapping):
        return  # the ordinary validation says what is wrong with it
    section[name] = dict(part or {})
    _set(section[name], below, value)


def in_turn(lists: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """The first of each list, then the second of each; shorter ones end earlier."""
    missing = object()
    turns = itertools.zip_longest(*lists, fillvalue=missing)
    return (each for turn in turns for each in turn if each is not missing)
