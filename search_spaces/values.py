"""Frozen, typed values: the base class of everything that is read from YAML or written as JSON."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Strict, ValidationError, model_validator

from takd.search_spaces.errors import InputError

# Scalars that are what they say: no "10" for 10, no true for 1.0 (an int is a fine float).
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]


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
        use_attribute_docstrings=True,  # the text below a field says what it means: docs/spaces.md is made of these
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
                    near = difflib.get_close_matches(str(key), valid, n=1)
                    hint = f"did you mean {near[0]!r}? " if near else ""
                    raise ValueError(f"unknown key {str(key)!r}; {hint}valid keys: {', '.join(valid)}")
        return given


def explain(error: ValidationError, source: str) -> InputError:
    """The first problem of a pydantic error as one line: `SOURCE: field is VALUE; what is valid`."""
    first, *others = error.errors()
    # Tags of unions ("range", "choices") and wrapped validators are ours, not the reader's.
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-") and part not in _TAGS)
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        line = f"{place}: {message}" if place else message
    elif first["type"] == "missing":
        line = f"{place} is missing"
    elif place.rpartition(".")[2] in _SCALARS:
        line = f"{place.rpartition('.')[0]} is {first['input']!r}; expected one plain value"
        others = [each for each in others if each["loc"][:-1] != first["loc"][:-1]]
    else:
        message = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        line = f"{place} is {first['input']!r}; expected {message[0].lower()}{message[1:]}"
    more = f" (and {len(others)} more)" if others else ""
    return InputError(f"{source}: {line}{more}".replace("\n", " "))


_SCALARS = {"bool", "int", "float", "str", "none"}  # of a union: the reader named none of them
_TAGS = {"fixed", "list-of", "choices-of", "range-of", "named", "given-of"}
