"""Writes the reference of every key of a space into docs/spaces.md: python tools/spaces_reference.py

What stands above MARK in that file is written by hand. Below it are tables made from the models of
`takd.search_spaces`: types and defaults from the fields, meanings from the text below each field, examples from
`Field(examples=...)`. `tests/search_spaces/test_reference.py` holds that page and models agree.
"""

import ast
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import Discriminator
from pydantic.fields import FieldInfo

from takd.search_spaces import Loss, Recipe, Role, Space
from takd.search_spaces.metrics import Metric
from takd.search_spaces.sections import (
    Asha,
    Assistants,
    CheckpointEvery,
    Confirm,
    Features,
    GivenAssistant,
    Normalize,
    OwnAssistant,
    Published,
    Resources,
    Student,
    Teacher,
    Transfer,
)
from takd.search_spaces.values import Value
from takd.search_spaces.varied import Choices, Range, Scalar, Varied

PAGE = Path(__file__).parents[1] / "docs" / "spaces.md"
MARK = "<!-- From here on this page is made by tools/spaces_reference.py: change the models, then run it. -->"

# In the order of the page, by the heading of each.
SECTIONS: Mapping[str, type[Value]] = {
    "The space": Space,
    "teacher": Teacher,
    "assistants": Assistants,
    "An assistant of its own": OwnAssistant,
    "An assistant that exists": GivenAssistant,
    "normalize": Normalize,
    "student": Student,
    "recipe": Recipe,
    "loss": Loss,
    "transfer": Transfer,
    "features": Features,
    "asha": Asha,
    "confirm": Confirm,
    "resources": Resources,
    "checkpoint_every": CheckpointEvery,
    "published": Published,
    "A choice": Choices,
    "A range": Range,
}
VARIED = "plain value, choice or range"
PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null"}
PLURALS = {
    "whole number": "whole numbers",
    "text": "text",
    "number": "numbers",
    "plain value": "plain values",
    "section": "sections",
}


def reference() -> str:
    """All tables, as Markdown."""
    return "\n\n".join("\n".join(section(title, model)) for title, model in SECTIONS.items()) + "\n"


def section(title: str, model: type[Value]) -> Iterator[str]:
    yield f"### {title}\n"
    yield " ".join((model.__doc__ or "").split()) + "\n"
    yield "| key | type | default | meaning | example |"
    yield "|---|---|---|---|---|"
    for name, field in sorted(model.model_fields.items(), key=lambda each: not each[1].is_required()):
        key = field.alias or name
        cells = (f"`{key}`", type_of(field), default_of(field), meaning_of(model, name), example_of(key, field))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def meaning_of(model: type[Value], name: str) -> str:
    """The text below a field; raises ValueError where there is none."""
    for owner in model.__mro__:
        if issubclass(owner, Value) and name in owner.__annotations__:
            if text := texts_below(owner).get(name):
                return " ".join(text.split())
            raise ValueError(f"{owner.__name__}.{name} has no meaning; write one below the field, as a docstring")
    raise ValueError(f"{model.__name__} has no field {name}")


@cache
def texts_below(model: type[Value]) -> dict[str, str]:
    """By field of a class the text that follows it in its source.

    Pydantic's `use_attribute_docstrings` does the same in each process that imports a model, which takes a quarter of a
    second.
    """
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = ast.literal_eval(text.value)
    return found


def example_of(key: str, field: FieldInfo) -> str:
    """Raises ValueError where there is none."""
    if not field.examples:
        raise ValueError(f"{key} has no example; give the field one: Field(..., examples=[...])")
    return f"`{key}: {as_yaml(field.examples[0])}`"


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Value):
        default = default.model_dump(mode="json", exclude_defaults=True)
        if not default:
            return "the section's defaults"
    return f"`{as_yaml(default)}`" if default != "" else "empty"


def as_yaml(value: Any) -> str:
    """On one line, as it stands in a space."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def type_of(field: FieldInfo) -> str:
    """For people: `whole number (at least 1) or null`."""
    if any(isinstance(each, Discriminator) for each in field.metadata):
        return VARIED
    kinds = kinds_of(field.annotation)
    limits = [words for each in field.metadata if (words := limit_of(each))]
    if limits:
        kinds[0] = f"{kinds[0]} ({', '.join(limits)})"
    return " or ".join(kinds)


def limit_of(constraint: Any) -> str | None:
    match constraint:
        case annotated_types.Ge(ge=limit):
            return f"at least {limit}"
        case annotated_types.Gt(gt=limit):
            return f"above {limit}"
        case annotated_types.Lt(lt=limit):
            return f"below {limit}"
        case annotated_types.MinLen():
            return "not empty"
    return None


def kinds_of(annotation: Any) -> list[str]:
    """What a value may be, each in words; `null` last."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation == Varied:
        return [VARIED]
    if annotation == Scalar:
        return ["plain value"]
    if origin is Annotated:
        return kinds_of(parts[0])
    if origin in (Union, UnionType):
        found = list(dict.fromkeys(kind for part in parts for kind in kinds_of(part)))
        if {"number", "whole number"} <= set(found):
            found.remove("whole number")
        return sorted(found, key="null".__eq__)
    if origin is Literal:
        return [f"`{part}`" for part in parts]
    if origin is tuple:
        return [f"list of {' or '.join(PLURALS[kind] for kind in kinds_of(parts[0]))}"]
    if origin is dict:
        by = "role" if parts[0] == Role else "name"
        return ["section"] if parts[1] == Varied else [f"{' or '.join(kinds_of(parts[1]))} by {by}"]
    if annotation is Choices:
        return ["choice"]
    return ["section"] if issubclass(annotation, Value | Metric) else [PLAIN[annotation]]


def page(now: str) -> str:
    """The page with its tables made anew; raises ValueError where the mark is gone."""
    by_hand, mark, _ = now.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE}: the line is missing below which tables are written: {MARK}")
    return f"{by_hand}{MARK}\n\n{reference()}"


if __name__ == "__main__":
    try:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    except ValueError as error:
        sys.exit(str(error))
