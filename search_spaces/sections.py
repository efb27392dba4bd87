"""The sections of a space: one for each role, and those that say how stages run and what is shown beside them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from takd.search_spaces.stage import COUPLED, Recipe, in_use
from takd.search_spaces.values import Flag, Integer, Number, Value, explain
from takd.search_spaces.varied import INTEGER_FIELDS, Choices, Range, Varied, examples_of


def _combinations(recipe: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every choice of some fields with the first of all others, and where in the recipe its choices stand."""
    first = {name: next(iter(examples_of(value)))[1] for name, value in recipe.items()}
    there = [name for name in names if name in recipe]
    for chosen in itertools.product(*(examples_of(recipe[name]) for name in there)):
        places = [f"{name}{place}" for name, (place, _) in zip(there, chosen, strict=True) if place]
        yield ", ".join(places), first | {name: value for name, (_, value) in zip(there, chosen, strict=True)}


def _check_recipe(fields: Mapping[str, Any], places: str) -> None:
    try:
        Recipe.model_validate(fields)
    except ValidationError as error:
        raise ValueError(str(explain(error, places or "recipe")).removeprefix("recipe: ")) from None


class Training(Value):
    """What every role's section holds: the recipe, any field of which may be varied."""

    pretrained: str | None = Field(None, description="imagenet, or a path to weights; null: from random ones")
    recipe: dict[str, Varied] = Field(default_factory=dict)

    @field_validator("recipe")
    @classmethod
    def _every_recipe_in_it_is_valid(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        single = [(name,) for name in recipe if not any(name in names for names in COUPLED)]
        for names in (*COUPLED, *single):
            combinations = [*_combinations(recipe, names)]
            used = {name for _, fields in combinations for name in in_use(fields)}
            for places, fields in combinations:
                idle = {name: fields[name] for name in names if name in fields and name not in used}
                _check_recipe(in_use(fields) | idle, places)  # what no choice uses is refused
        for name, value in recipe.items():
            if name in INTEGER_FIELDS and isinstance(value, Range) and isinstance(value.step, float):
                raise ValueError(f"{name}.step is {value.step}; expected a whole number")
        return recipe

    def view_recipes(self) -> list[Recipe]:
        """Of every choice of augmentation and views, that part of the recipe."""
        return [Recipe.model_validate(in_use(fields)) for _, fields in _combinations(self.recipe, ("augment", "views"))]

    @model_validator(mode="after")
    def _a_new_head_needs_an_old_rest(self) -> Self:
        if self.pretrained is None and any(each is not None for _, each in examples_of(self.recipe.get("head_epochs"))):
            raise ValueError("recipe.head_epochs is only for a role with pretrained, whose head alone is new")
        return self


class Distillation(Training):
    """A role that may learn from soft targets: temperature and lambda, each fixed or varied."""

    temperature: Varied = Range(low=1.0, high=20.0, log=True)
    lambda_: Varied = Field(Range(low=0.1, high=0.95), alias="lambda")

    @model_validator(mode="after")
    def _temperatures_are_positive(self) -> Self:
        for name, value in (("temperature", self.temperature), ("lambda", self.lambda_)):
            for place, example in examples_of(value):
                if isinstance(example, bool) or not isinstance(example, int | float):
                    raise ValueError(f"{name}{place} is {example!r}; a {name} is a number")
        for place, example in examples_of(self.temperature):
            if example <= 0:
                raise ValueError(f"temperature{place} is {example}; a temperature is > 0")
        return self


class Teacher(Training):
    """The model may be varied: what does a larger teacher change? Arms with an ensemble learn from its members."""

    model: str | Choices = Field(description="fixed or {choices: [...]}")
    members: Integer | tuple[str, ...] | None = Field(None, description="of an ensemble: how many, or their models")

    @field_validator("model", mode="before")
    @classmethod
    def _models_are_named(cls, model: Any) -> Any:
        for place, example in examples_of(Choices.model_validate(model) if isinstance(model, dict) else model):
            if not isinstance(example, str):
                raise ValueError(f"model{place} is {example!r}; expected a model spec such as mlp-1200")
        return model

    @field_validator("members", mode="before")
    @classmethod
    def _an_ensemble_has_several(cls, members: Any) -> Any:
        count = len(members) if isinstance(members, list | tuple) else members
        if count is not None and (type(count) is not int or count < 2):
            raise ValueError(
                f"{members!r} is no ensemble; expected a number of at least 2, or a list of two models or more"
            )
        return members

    @property
    def models(self) -> tuple[str, ...]:
        """All that a stage may train."""
        named = self.members if isinstance(self.members, tuple) else ()
        return tuple(dict.fromkeys([*(str(example) for _, example in examples_of(self.model)), *named]))


class Assistants(Distillation):
    models: tuple[str, ...] = ()
    temperature: Varied = 4.0
    lambda_: Varied = Field(0.7, alias="lambda")


class Student(Distillation):
    model: str
    label_smoothing: Varied = Field(0.1, description="of the arm label_smoothing")

    @field_validator("label_smoothing")
    @classmethod
    def _smoothing_leaves_something(cls, value: Any) -> Any:
        for place, example in examples_of(value):
            if isinstance(example, bool) or not isinstance(example, int | float) or not 0 < example < 1:
                raise ValueError(f"label_smoothing{place} is {example!r}; it is between 0 and 1")
        return value


class Resources(Value):
    """What one stage of a role holds while it trains. gpu null: chosen by what the cluster has."""

    cpu: Integer = Field(1, ge=1)
    gpu: Number | None = Field(None, ge=0)


class CheckpointEvery(Value):
    """How much training a killed machine may cost: `{seconds: 10}` or `{epochs: 1}`, and never less than an epoch."""

    epochs: Integer | None = Field(None, ge=1)
    seconds: Number | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_is_given(self) -> Self:
        if (self.epochs is None) == (self.seconds is None):
            raise ValueError("expected epochs or seconds, such as {seconds: 10}")
        return self


class Asha(Value):
    """Asynchronous successive halving on students (Li et al. 2020)."""

    grace_epochs: Integer = Field(1, ge=1)
    reduction_factor: Integer = Field(3, ge=2)


class Confirm(Value):
    """After the search each arm's best configuration is trained from fresh seeds; then the test split is read."""

    seeds: Integer = Field(5, ge=1)
    reseed_path: Flag = Field(False, description="teacher and assistants too are trained again, a path a seed")


class Published(Value):
    """What a paper reports for the arms of a space, to stand beside what was measured."""

    source: str = Field(min_length=1)
    accuracy: dict[str, Number] = Field(description="percent, by arm")
