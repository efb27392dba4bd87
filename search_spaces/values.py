"""Frozen, typed values: the base class of everything that is read from YAML or written as JSON."""

import difflib
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Strict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from takd.search_spaces.errors import InputError
from takd.search_spaces.registry import PAGE, PLUGINS, WORD, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Scalars that are what they say: no "10" for 10, no true for 1.0 (an int is a fine float).
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]


NO_CODE: ContextVar[bool] = ContextVar("no code", default=False)  # whether what is read is known to name no code


@lru_cache
def _plugins() -> bool:
    """Whether an installed package may offer names."""
    return bool(entry_points(group=PLUGINS))


def _own(name: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """One of takd's names, or where there is code any: who has imported the code checks these."""
    try:
        return check(name)
    except ValidationError:
        if may_be_own(name):
            return name
        raise


def may_be_own(name: Any) -> bool:
    """Whether a name that takd has not may be one of code or of an installed package."""
    return isinstance(name, str) and bool(WORD.fullmatch(name)) and (not NO_CODE.get() or _plugins())


OWN = WrapValidator(_own)

MISSPELT = 0.8  # how alike a key and a valid one are, of 1: less alike, another thing was meant


class Value(BaseModel):
    """An immutable value; an unknown key or a wrong type is an error, never a default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but what was computed from the values (`cached_property`) is computed anew."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            valid = [field.alias or name for name, field in cls.model_fields.items()]
            for key in given:
                if key not in valid and key not in cls.model_fields:
                    near = meant_by(str(key), valid)
                    hint = f"did you mean {near!r}? " if near else ""
                    raise ValueError(f"unknown key {str(key)!r}; {hint}valid keys: {', '.join(valid)}")
        return given


_SHORT = {"lr": "learning_rate", "wd": "weight_decay"}  # as many write them


def meant_by(key: str, valid: Sequence[str]) -> str | None:
    """The valid key that is like one which is not: misspelt, or a part of the one that has it, or has it as a part."""
    if near := difflib.get_close_matches(key, valid, n=1, cutoff=MISSPELT):
        return near[0]
    if _SHORT.get(key) in valid:
        return _SHORT[key]
    parts = [each for each in valid if len(min(key, each, key=len)) > 2 and (_has(each, key) or _has(key, each))]
    return parts[0] if len(parts) == 1 else None


def _has(one: str, other: str) -> bool:
    """Whether one begins with the other, or ends with it as a word."""
    return one.startswith(other) or one.endswith(f"_{other}")


def explain(error: ValidationError, source: str) -> InputError:
    """The first problem of a pydantic error as one line: `SOURCE: field is VALUE; what is valid`."""
    first, *others = error.errors()
    # Tags of unions ("range", "choices") and wrapped validators are ours, not the reader's.
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-") and part not in _TAGS)
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        line = f"{place}: {message}" if place else message
    elif first["loc"][-1:] == ("[key]",):
        section, _, key = place.removesuffix(".[key]").rpartition(".")
        line = f"{section}: unknown key {key!r}; valid keys: {_expected(first)}"
    elif first["type"] == "missing":
        line = f"{place} is missing"
    elif place.rpartition(".")[2] in _SCALARS:
        line = f"{place.rpartition('.')[0]} is {shown(first['input'])}; expected {_plain(error.errors(), first)}"
        others = [each for each in others if each["loc"][:-1] != first["loc"][:-1]]
    else:
        line = f"{place} is {shown(first['input'])}; expected {_expected(first)}"
    more = f" (and {len(others)} more)" if others else ""
    return InputError(f"{source}: {line}{more}".replace("\n", " "))


def _plain(errors: "Sequence[ErrorDetails]", first: "ErrorDetails") -> str:
    """What a union of plain values takes."""
    kinds = {str(each["loc"][-1]) for each in errors if each["loc"][:-1] == first["loc"][:-1]}
    return "a number" if kinds <= {"int", "float"} else "one plain value"


def shown(value: Any) -> str:
    """A value as it stands in YAML, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {shown(each)}' for name, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return (
        {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else repr(value)
    )


def _expected(error: "ErrorDetails") -> str:
    """What would be valid, in a reader's words."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind in ("tuple_type", "list_type") and isinstance(error["input"], str | int | float):
        return f"a list, such as [{shown(error['input'])}]"
    if error["loc"][-2:] == ("student", "model") and isinstance(error["input"], list | tuple):
        return f"one model; to compare several say factors: {{student.model: {shown(error['input'])}}}"
    if (name := limits.get("class_name")) in _SECTIONS:
        return _SECTIONS[name]
    if kind in _WORDS:
        return _WORDS[kind].format(**limits)
    message = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    hint = f"; {_hint(error)}" if kind == "literal_error" and _CODED & set(error["loc"]) else ""
    return f"{message[0].lower()}{message[1:]}{hint}"


_CODED = {"optimizer", "schedule", "augment", "divergence", "metric", "select_by"}  # what a user's code may define


def _hint(error: "ErrorDetails") -> str:
    names = re.findall(r"'([^']*)'", error["ctx"]["expected"])
    return f"{nearest(str(error['input']), names)}{PAGE} says how to bring one of your own"


_WORDS = {  # by pydantic's type of error; its own words are those of Python
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "none_required": "null",
    "too_short": "a list of at least {min_length}",
    "string_too_short": "text, not an empty one",
}
_SECTIONS = {  # by the class of what has keys and values
    "Teacher": "a model such as mlp-8, or a section of keys and values",
    "Student": "a model such as mlp-8, or a section of keys and values",
    "Assistants": "a list of models such as [mlp-64], or a section of keys and values",
    "Confirm": "a section of keys and values such as {seeds: 5}, or null",
    "Asha": "a section of keys and values such as {grace_epochs: 5}, or null",
    "Loss": "a section of keys and values such as {kl_reduction: mean}",
    "Resources": "a section of keys and values such as {cpu: 2}",
    "CheckpointEvery": "a section of keys and values such as {seconds: 10}",
}
_SCALARS = {"bool", "int", "float", "str", "none"}  # of a union: the reader named none of them
_TAGS = {"fixed", "list-of", "choices-of", "range-of", "named", "given-of", "own-of"}
