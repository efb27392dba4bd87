"""The reference of a space's keys in docs/spaces.md: it is what the models say, and what it shows is valid."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field, TypeAdapter

from takd.search_spaces import Space, space_from
from takd.search_spaces.values import Value

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from spaces_reference import PAGE, SECTIONS, page, section  # noqa: E402

KEYS = [(model, name) for model in SECTIONS.values() for name in model.model_fields]
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_page_and_models_agree():
    now = PAGE.read_text()
    assert page(now) == now, "run: python tools/spaces_reference.py"


def test_a_key_without_a_meaning_is_refused():
    class Silent(Value):
        """Says nothing of its key."""

        key: int = Field(1, examples=[2])

    with pytest.raises(ValueError, match=r"Silent\.key has no meaning"):
        list(section("silent", Silent))


def test_a_key_without_an_example_is_refused():
    class Bare(Value):
        """Shows no example."""

        key: int = 1
        """What it means."""

    with pytest.raises(ValueError, match="key has no example"):
        list(section("bare", Bare))


def test_every_section_of_a_space_is_on_the_page():
    assert set(sections_in(Space)) <= set(SECTIONS.values())


def sections_in(model: type[Value]) -> Iterator[type[Value]]:
    """The models that a key of this one may hold, and those in them."""
    for field in model.model_fields.values():
        for kind in parts_of(field.annotation):
            if isinstance(kind, type) and issubclass(kind, Value):
                yield kind
                yield from sections_in(kind)


def parts_of(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from parts_of(part)


@pytest.mark.parametrize(("model", "name"), KEYS, ids=lambda each: getattr(each, "__name__", each))
def test_the_example_of_a_key_is_valid(model, name):
    field = model.model_fields[name]
    if (model, name) in {(Space, "teacher"), (Space, "assistants"), (Space, "student")}:
        given = {"dataset": "mnist", "teacher": "mlp-9", "student": "mlp-8", "trials": 9}
        space_from(given | {name: plain(field.examples[0])}, "example")  # the short form, which the space knows
    else:
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        TypeAdapter(kind).validate_python(plain(field.examples[0]))


def plain(example: Any) -> Any:
    """As YAML gives it."""
    return list(example) if isinstance(example, tuple) else example


@pytest.mark.parametrize("text", BLOCKS)
def test_what_the_page_shows_is_part_of_a_space(text):
    whole = {"dataset": "mnist", "teacher": "mlp-32", "student": "mlp-8", "trials": 20}
    space_from(
        whole | yaml.safe_load(text.replace("1e-4", "0.0001").replace("1e-3", "0.001").replace("1e-2", "0.01")), "page"
    )
