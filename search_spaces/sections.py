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

    pretrained: str | None = Field(None, examples=["imagenet"])
    """`imagenet`, or a path to weights (.safetensors or .pth); the last layer is new. Null: random weights."""
    recipe: dict[str, Varied] = Field(default_factory=dict, examples=[{"epochs": 20, "learning_rate": 1e-3}])
    """How it is trained: see recipe below. Each of its keys may be a plain value, a choice or a range."""

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
        for name, why in (("head_epochs", "whose head alone is new"), ("freeze_norm", "which has what is kept")):
            if self.pretrained is None and any(each for _, each in examples_of(self.recipe.get(name))):
                raise ValueError(f"recipe.{name} is only for a role with pretrained, {why}")
        return self


class Distillation(Training):
    """A role that may learn from soft targets: temperature and lambda, each fixed or varied."""

    temperature: Varied = Field(Range(low=1.0, high=20.0, log=True), examples=[{"choices": [1, 4, 16]}])
    """What the logits of student and guide are divided by before their softmax; above 0."""
    lambda_: Varied = Field(Range(low=0.1, high=0.95), alias="lambda", examples=[0.7])
    """The weight of the soft targets; between 0 and 1 where `loss.form` is `convex`."""

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
    """Who is learned from. It learns from the labels alone, with seed 0."""

    model: str | Choices = Field(examples=["mlp-1200"])
    """Its model. `{choices: [...]}` searches it, to see what a larger teacher changes."""
    members: Integer | tuple[str, ...] | None = Field(None, examples=[3])
    """For the arms `ensemble`: how many teachers of that model there are, at least 2, or a list of their models."""

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
    """Models of a size between teacher and student; all of them share this section, and have seed 0."""

    models: tuple[str, ...] = Field((), examples=[("mlp-200", "mlp-32")])
    """Their models. Without `arms`, each of them gives an arm `takd:MODEL`."""
    temperature: Varied = Field(4.0, examples=[{"choices": [2, 8]}])
    """As for the student, when an assistant learns from the teacher or from a larger assistant."""
    lambda_: Varied = Field(0.7, alias="lambda", examples=[0.5])
    """As for the student."""


class Student(Distillation):
    """Who is taught and measured, with a seed for each of the space's `seeds`."""

    model: str = Field(examples=["mlp-8"])
    """Its model."""
    label_smoothing: Varied = Field(0.1, examples=[{"choices": [0.05, 0.1, 0.2]}])
    """Of the arm `label_smoothing` alone: the part of a label's probability that is spread over all classes."""

    @field_validator("label_smoothing")
    @classmethod
    def _smoothing_leaves_something(cls, value: Any) -> Any:
        for place, example in examples_of(value):
            if isinstance(example, bool) or not isinstance(example, int | float) or not 0 < example < 1:
                raise ValueError(f"label_smoothing{place} is {example!r}; it is between 0 and 1")
        return value


class Resources(Value):
    """What one worker of a role (`teacher`, `assistant` or `student`) holds while it trains."""

    cpu: Integer = Field(1, ge=1, examples=[2])
    """CPU cores."""
    gpu: Number | None = Field(None, ge=0, examples=[0.25])
    """GPUs, or a part of one. Null: where there are GPUs, one for a teacher or assistant, a quarter for a student."""


class CheckpointEvery(Value):
    """How much training a killed machine may cost: one of the two keys, and never less than an epoch."""

    epochs: Integer | None = Field(None, ge=1, examples=[1])
    """Write a checkpoint after so many epochs."""
    seconds: Number | None = Field(None, ge=0, examples=[10])
    """Write a checkpoint after the first epoch that ends so many seconds after the last one."""

    @model_validator(mode="after")
    def _one_is_given(self) -> Self:
        if (self.epochs is None) == (self.seconds is None):
            raise ValueError("expected epochs or seconds, such as {seconds: 10}")
        return self


class Asha(Value):
    """Asynchronous successive halving (Li et al. 2020): ends students of the search early that are behind others."""

    grace_epochs: Integer = Field(1, ge=1, examples=[5])
    """Epochs that every student is trained before it may be ended."""
    reduction_factor: Integer = Field(3, ge=2, examples=[4])
    """At each look one in so many students goes on."""


class Confirm(Value):
    """After the search each arm's best configuration is trained from fresh seeds; then the test split is read."""

    seeds: Integer = Field(5, ge=1, examples=[20])
    """Fresh seeds of each arm, the same ones for every arm."""
    reseed_path: Flag = Field(False, examples=[True])
    """Train teacher and assistants again for each seed too, so that intervals also cover their chance."""


class Published(Value):
    """What a paper reports for the arms of a space, to stand beside what was measured."""

    source: str = Field(min_length=1, examples=["Mirzadeh et al. 2020, table 1"])
    """Where the numbers are from."""
    accuracy: dict[str, Number] = Field(examples=[{"labels": 70.16, "kd": 72.57}])
    """Test accuracy in percent, by arm."""
