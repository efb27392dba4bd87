"""A value that may be varied: fixed, one of some choices, or from a range; a sampler suggests it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Protocol, Self, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from takd.search_spaces.errors import InputError
from takd.search_spaces.stage import Recipe
from takd.search_spaces.values import Flag, Integer, Number, Value, shown

Scalar = Flag | Integer | Number | str | None


class Trial(Protocol):
    """The part of an Optuna trial that a space uses (define-by-run)."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


def one_number(value: Any) -> Any:
    """Of numbers that are equal the one that stands for all of them: 5 also for 5.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    """Each value once, in the order of their first places; equal numbers are one value, which true and 1 are not."""
    return tuple({(type(value) is bool, value): value for value in map(one_number, values)}.values())


class Choices(Value):
    """A list of values, of which a trial has one."""

    choices: tuple[Scalar, ...] = Field(min_length=1, examples=[(1, 4, 16)])
    """The values; 5 and 5.0 are one value, and one that is there twice counts once."""

    @field_validator("choices")
    @classmethod
    def _each_value_once(cls, choices: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
        return distinct(choices)

    def suggest(self, trial: Trial, name: str) -> Scalar:
        return trial.suggest_categorical(name, self.choices)

    def examples(self) -> Iterator[tuple[str, Scalar]]:
        """Where a value stands and the value, for every one that needs checking."""
        return ((f".choices.{index}", choice) for index, choice in enumerate(self.choices))

    def grid(self) -> tuple[Scalar, ...]:
        return self.choices


class Range(Value):
    """A range of numbers, of which a trial has one."""

    low: Integer | Number = Field(examples=[1])
    """The lowest value."""
    high: Integer | Number = Field(examples=[20])
    """The highest value."""
    log: Flag = Field(False, examples=[True])
    """Draw the value evenly on a logarithmic scale; not together with `step`."""
    step: Integer | Number | None = Field(None, gt=0, examples=[0.1])
    """The distance between two values; `sampler: grid` needs it. Null: any value between, or any whole number."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, high is {self.high}; low is below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; with log: true low is > 0")
        if self.log and self.step:
            raise ValueError("log and step exclude each other")
        return self

    def suggest(self, trial: Trial, name: str) -> Scalar:
        if name.split(".")[-1] in {*INTEGER_FIELDS, SIZE}:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def examples(self) -> Iterator[tuple[str, Scalar]]:
        yield ".low", self.low
        yield ".high", self.high

    @property
    def middle(self) -> float:
        """Halfway between its ends, on its own scale."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2

    def grid(self) -> tuple[Scalar, ...]:
        if self.step is None:
            raise InputError("has no step; with sampler: grid a range needs one, or use choices")
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return tuple(round(self.low + index * self.step, 12) for index in range(count))


SIZE = "size"  # of an assistant whose size is searched: the last part of the parameter's name
INTEGER_FIELDS = {
    name
    for name, field in Recipe.model_fields.items()
    if field.annotation is int or Integer in get_args(field.annotation)
}


def _kind(given: Any) -> str:
    if isinstance(given, Choices) or (isinstance(given, dict) and not given.keys() & Range.model_fields.keys()):
        return "choices-of"
    if isinstance(given, list | tuple):
        return "list-of"
    return "range-of" if isinstance(given, dict | Range) else "fixed"


# A value that may be varied: fixed (`4`, or a list of numbers), `{choices: [...]}` or `{low:, high:}`.
Varied = Annotated[
    Annotated[Scalar, Tag("fixed")]
    | Annotated[tuple[Scalar, ...], Tag("list-of")]
    | Annotated[Choices, Tag("choices-of")]
    | Annotated[Range, Tag("range-of")],
    Discriminator(_kind),
]


def refuse_list(name: str, value: Any) -> None:
    """Raises ValueError where a list stands in the place of one value: it says nothing of which is tried when."""
    if isinstance(value, list | tuple):
        raise ValueError(f"{name} is {shown(value)}; to try each of these say {name}: {{choices: {shown(value)}}}")


def first_of(name: str, value: "Choices | Range") -> Scalar:
    """What a plan takes for a value that is not known yet: the first one, of a size the one in the middle."""
    if name.split(".")[-1] != SIZE:
        return next(iter(value.examples()))[1]
    if isinstance(value, Choices):
        return value.choices[len(value.choices) // 2]
    steps = round((value.middle - value.low) / int(value.step or 1))
    return int(value.low) + steps * int(value.step or 1)


def sizes_of(value: "Choices | Range") -> Sequence[int]:
    """Every size that may be chosen."""
    if isinstance(value, Choices):
        return [int(str(each)) for each in value.choices]
    return range(int(value.low), int(value.high) + 1, int(value.step or 1))


def examples_of(value: Any) -> Iterable[tuple[str, Any]]:
    """Where a value that may be varied stands and the value, for every one that needs checking: `.low`, 1."""
    return value.examples() if isinstance(value, Choices | Range) else [("", value)]
