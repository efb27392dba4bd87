"""A space says what may be varied; it turns a sampler's suggestions into paths."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Protocol, Self

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from search_spaces.arms import Arm, parse_arm
from search_spaces.errors import InputError
from search_spaces.stage import (
    COUPLED,
    FRESH_SEED,
    MEMBER_SEEDS,
    DatasetFingerprint,
    Loss,
    Path,
    Recipe,
    Role,
    Stage,
    check_lambda,
    check_views,
    in_use,
)
from search_spaces.values import Flag, Integer, Number, Value, explain

Scalar = Flag | Integer | Number | str | None


class Trial(Protocol):
    """The part of an Optuna trial that a space uses (define-by-run)."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


class Choices(Value):
    """`{choices: [1, 2, 4]}`"""

    choices: tuple[Scalar, ...] = Field(min_length=1)

    def suggest(self, trial: Trial, name: str) -> Scalar:
        return trial.suggest_categorical(name, self.choices)

    def examples(self) -> Iterator[tuple[str, Scalar]]:
        """Where a value stands and the value, for every one that needs checking."""
        return ((f".choices.{index}", choice) for index, choice in enumerate(self.choices))

    def grid(self) -> tuple[Scalar, ...]:
        return self.choices


class Range(Value):
    """`{low: 1, high: 20, log: true}`, optionally with a step."""

    low: Integer | Number
    high: Integer | Number
    log: Flag = False
    step: Integer | Number | None = Field(None, gt=0)

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
        if name.split(".")[-1] in _INTEGER_FIELDS:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def examples(self) -> Iterator[tuple[str, Scalar]]:
        yield ".low", self.low
        yield ".high", self.high

    def grid(self) -> tuple[Scalar, ...]:
        if self.step is None:
            raise InputError("has no step; with sampler: grid a range needs one, or use choices")
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return tuple(round(self.low + index * self.step, 12) for index in range(count))


_INTEGER_FIELDS = {
    name for name, field in Recipe.model_fields.items() if field.annotation in (int, Integer, Integer | None)
}


def _kind(given: Any) -> str:
    if isinstance(given, Choices) or (isinstance(given, dict) and "choices" in given):
        return "choices-of"
    if isinstance(given, list | tuple):
        return "list-of"
    return "range-of" if isinstance(given, dict | Range) else "fixed"


# A value that may be varied: fixed (`4`, or a list of numbers), `{choices: [...]}` or `{low:, high:}`.
Varied = Annotated[
    Annotated[Scalar, Tag("fixed")]
    | Annotated[tuple[Number, ...], Tag("list-of")]
    | Annotated[Choices, Tag("choices-of")]
    | Annotated[Range, Tag("range-of")],
    Discriminator(_kind),
]


def examples_of(value: Any) -> Iterable[tuple[str, Any]]:
    """Where a value that may be varied stands and the value, for every one that needs checking: `.low`, 1."""
    return value.examples() if isinstance(value, Choices | Range) else [("", value)]


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
            if name in _INTEGER_FIELDS and isinstance(value, Range) and isinstance(value.step, float):
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


# A stage's `pretrained` until its study starts; nothing can be trained with it.
UNRESOLVED = "unresolved"

# Fields of a space that say nothing about what is searched.
_CHANGEABLE = {
    "published",
    "confirm",
    "description",
    "trials",
    "resources",
    "checkpoint_every",
    "max_failures",
    "lanes",
    "allow_any_size",
}


@dataclass(frozen=True)
class Configuration:
    """An arm with its varied hyperparameters chosen, by the names they have in Optuna."""

    arm: Arm
    chosen: Mapping[str, Scalar]


class Space(Value):
    """What may be varied, with the budget of the search."""

    description: str = ""
    dataset: str
    teacher: Teacher
    assistants: Assistants = Assistants()
    student: Student
    arms: tuple[str, ...] = Field((), description="default: labels, kd and takd:A for each assistant A")
    loss: Loss = Loss()
    trials: Integer | None = Field(None, ge=1, description="configurations tried; grid: default all")
    seeds: Integer = Field(1, ge=1, description="student seeds a configuration; its score is their mean")
    coverage: Integer = Field(1, ge=0, description="trials every arm gets before the sampler is free")
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    sampler_seed: Integer = 0
    asha: Asha | None = None
    confirm: Confirm | None = Field(Confirm(), description="null: no confirm phase, the test split is never read")
    resources: dict[Role, Resources] = Field(default_factory=dict)
    checkpoint_every: CheckpointEvery = CheckpointEvery(seconds=10.0)
    max_failures: Integer = Field(3, ge=0, description="a stage whose worker dies more often has failed")
    lanes: Integer | Literal["auto"] = Field(
        "auto", description="stages of the same model and recipe trained side by side; auto: measured"
    )
    allow_any_size: Flag = Field(False, description="no warning about an assistant's size")
    published: Published | None = Field(None, description="shown beside the table of arms")
    weights: dict[Role, dict[str, str]] = Field(
        default_factory=dict, description="SHA-256 of the pretrained weights by model; filled in when a study starts"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        """`teacher: mlp-1200` is `{model: mlp-1200}`, `assistants: [a, b]` is `{models: [a, b]}`."""
        if not isinstance(given, dict):
            raise ValueError("a space is a mapping of keys to values")
        short = {role: {"model": given[role]} for role in ("teacher", "student") if isinstance(given.get(role), str)}
        if isinstance(given.get("assistants"), list):
            short["assistants"] = {"models": given["assistants"]}
        return given | short

    @field_validator("lanes", mode="before")
    @classmethod
    def _lanes_are_auto_or_a_number(cls, lanes: Any) -> Any:
        if lanes != "auto" and (type(lanes) is not int or lanes < 1):
            raise ValueError(f"{lanes!r} is neither auto nor a whole number of at least 1")
        return lanes

    @model_validator(mode="after")
    def _arms_and_budget_fit(self) -> Self:
        known = self.assistants.models
        for name in self.arms:
            for assistant in parse_arm(name).assistants:
                if assistant not in known:
                    raise ValueError(f"arms: {name!r} uses {assistant!r}; assistants.models has: {', '.join(known)}")
            if parse_arm(name).ensemble and self.teacher.members is None:
                raise ValueError(
                    f"arms: {name!r} has an ensemble; say what it is made of in teacher.members, such as 3"
                )
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("arms: each arm is named once")
        for place, section in (("assistants", self.assistants), ("student", self.student)):
            for where, value in examples_of(section.lambda_):
                try:
                    check_lambda(value, self.loss.form)
                except ValueError as error:
                    raise ValueError(f"{place}.lambda{where}: {error}") from None
        smoothings = (self.student.label_smoothing, self.student.recipe.get("label_smoothing"))
        if "label_smoothing" in self.arms and all(isinstance(each, Choices | Range) for each in smoothings):
            raise ValueError("student.label_smoothing and student.recipe.label_smoothing are both varied; fix one")
        self._soft_targets_of_every_view()
        if self.sampler == "grid":
            combinations = len(self.grid())  # a range without a step says so now
            if self.trials is not None and self.trials > combinations:
                raise ValueError(f"trials is {self.trials}; the grid has {combinations} combinations")
        elif self.trials is None:
            raise ValueError("trials is missing; how many configurations to try")
        elif self.trials < (needed := self.coverage * len(self.all_arms)):
            raise ValueError(
                f"trials is {self.trials}; a coverage of {self.coverage} for {len(self.all_arms)} arms takes {needed}"
            )
        return self

    def _soft_targets_of_every_view(self) -> None:
        sections = [("assistants", self.assistants)] if any(arm.assistants for arm in self.all_arms) else []
        if any(arm.distilled for arm in self.all_arms):
            for place, section in (*sections, ("student", self.student)):
                for _, upstream in [("teacher", self.teacher), *sections]:
                    for own, theirs in itertools.product(section.view_recipes(), upstream.view_recipes()):
                        try:
                            check_views(own, theirs)
                        except ValueError as error:
                            raise ValueError(f"{place}.recipe: {error}") from None

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        names = self.arms or ("labels", "kd", *(f"takd:{model}" for model in self.assistants.models))
        return tuple(parse_arm(name) for name in names)

    @cached_property
    def budget(self) -> int:
        """Trials of the search."""
        return self.trials or len(self.grid())

    @property
    def digests(self) -> set[str]:
        """Of all its pretrained weights, once a study has started."""
        return {digest for by_model in self.weights.values() for digest in by_model.values()}

    def resources_of(self, role: Role) -> Resources:
        return self.resources.get(role, Resources())

    def identity(self) -> dict[str, Any]:
        """What may not change when a study goes on; budget, machine and words may."""
        # Pretrained weights by what they are, not by where they were found.
        places: Any = {role: {"pretrained"} for role in ("teacher", "assistants", "student")}
        return self.model_dump(mode="json", exclude=places | dict.fromkeys(_CHANGEABLE, True))

    def varied(self, arm: Arm) -> dict[str, Choices | Range]:
        """The parameters a trial of this arm has, by the name they have in Optuna."""
        sections: list[tuple[str, Training]] = [("", self.student)]
        if arm.distilled:
            sections.append(("teacher.", self.teacher))
        if arm.assistants:
            sections.append(("assistant.", self.assistants))
        found: dict[str, Any] = {"label_smoothing": self.student.label_smoothing} if arm.smoothed else {}
        for prefix, section in sections:
            if arm.distilled and isinstance(section, Distillation):
                found |= {f"{prefix}temperature": section.temperature, f"{prefix}lambda": section.lambda_}
            found |= {f"{prefix}{name}": value for name, value in section.recipe.items()}
        if arm.distilled and not (arm.ensemble and isinstance(self.teacher.members, tuple)):
            found["teacher.model"] = self.teacher.model
        return {name: value for name, value in found.items() if isinstance(value, Choices | Range)}

    def guaranteed(self) -> list[dict[str, Scalar]]:
        """The trials, in part or whole, that are run whatever the sampler thinks: the grid, or every arm's coverage.

        Long paths first: what others wait for is trained first.
        """
        if self.sampler == "grid":
            return self.grid()[: self.budget]
        return [{"arm": arm.name} for _ in range(self.coverage) for arm in self._long_paths_first()]

    def _long_paths_first(self) -> list[Arm]:
        return sorted(self.all_arms, key=lambda arm: (arm.distilled, len(arm.assistants)), reverse=True)

    def grid(self) -> list[dict[str, Scalar]]:
        """Every combination of every arm, for `sampler: grid`; raises InputError on a range without a step.

        Arms take turns, so that what any of them waits for is trained early.
        """
        by_arm = [self._points(arm) for arm in self._long_paths_first()]
        turns = itertools.zip_longest(*by_arm)
        return [point for turn in turns for point in turn if point is not None]

    def _points(self, arm: Arm) -> list[dict[str, Scalar]]:
        axes: dict[str, tuple[Scalar, ...]] = {"arm": (arm.name,)}
        for name, value in self.varied(arm).items():
            try:
                axes[name] = value.grid()
            except InputError as error:
                raise InputError(f"{name} {error}") from None
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def suggest(self, trial: Trial) -> "Configuration":
        """What an Optuna trial chooses: a live one, or a stored one that repeats what it was told."""
        arm = parse_arm(trial.suggest_categorical("arm", [arm.name for arm in self.all_arms]))
        return Configuration(arm, {name: value.suggest(trial, name) for name, value in self.varied(arm).items()})

    def paths(self, choice: "Configuration", dataset: DatasetFingerprint, seeds: Sequence[int]) -> tuple[Path, ...]:
        """The configuration as one path a student seed."""
        return tuple(self.path(choice.arm, choice.chosen, dataset, seed) for seed in seeds)

    def confirming_paths(self, choice: "Configuration", dataset: DatasetFingerprint) -> tuple[Path, ...]:
        """The configuration from seeds that no search has, one path a seed; the same seeds for every arm."""
        if self.confirm is None:
            return ()
        seeds = range(FRESH_SEED, FRESH_SEED + self.confirm.seeds)
        reseed = self.confirm.reseed_path
        return tuple(self.path(choice.arm, choice.chosen, dataset, seed, seed if reseed else 0) for seed in seeds)

    def path(
        self,
        arm: Arm,
        chosen: Mapping[str, Scalar],
        dataset: DatasetFingerprint,
        seed: int,
        upstream_seed: int = 0,
    ) -> Path:
        """The path of an arm with the chosen hyperparameters, for a student's seed and one of all it learns from."""
        stage = partial(self._stage, chosen=chosen, dataset=dataset)
        upstream = tuple(
            stage("teacher", model, self.teacher, seed=upstream_seed + member * MEMBER_SEEDS, upstream=())
            for model, member in self._teachers(arm, chosen)
        )
        for model in arm.assistants:
            assistant = stage("assistant", model, self.assistants, seed=upstream_seed, upstream=upstream)
            upstream = (*upstream, assistant) if arm.dense else (assistant,)
        smoothing = self._value("label_smoothing", self.student.label_smoothing, chosen) if arm.smoothed else None
        student = stage(
            "student", self.student.model, self.student, seed=seed, upstream=upstream, label_smoothing=smoothing
        )
        return Path(arm=arm.name, student=student)

    def _teachers(self, arm: Arm, chosen: Mapping[str, Scalar]) -> list[tuple[str, int]]:
        """The models at the head of a path, each with its number among those that are alike."""
        members = self.teacher.members
        if not arm.distilled:
            return []
        if arm.ensemble and isinstance(members, tuple):
            return [(model, members[:place].count(model)) for place, model in enumerate(members)]
        model = self._value("teacher.model", self.teacher.model, chosen)
        return [(model, member) for member in range(members if arm.ensemble and isinstance(members, int) else 1)]

    @staticmethod
    def _value(name: str, given: Any, chosen: Mapping[str, Scalar]) -> Any:
        """What was chosen where a value is varied, else the value."""
        return chosen[name] if isinstance(given, Choices | Range) else given

    def _stage(
        self,
        role: Role,
        model: str,
        section: Training,
        *,
        seed: int,
        upstream: tuple[Stage, ...],
        chosen: Mapping[str, Scalar],
        dataset: DatasetFingerprint,
        label_smoothing: float | None = None,
    ) -> Stage:
        prefix = "" if role == "student" else f"{role}."

        def value(name: str, given: Any) -> Any:
            return self._value(prefix + name, given, chosen)

        recipe = {name: value(name, given) for name, given in section.recipe.items()}
        if label_smoothing is not None:
            recipe["label_smoothing"] = label_smoothing
        fields: dict[str, Any] = {}
        if upstream and isinstance(section, Distillation):
            ensemble = len({stage.role for stage in upstream}) == 1 and len(upstream) > 1
            fields["loss"] = self.loss.of_ensemble() if ensemble else self.loss
            fields["temperature"] = float(value("temperature", section.temperature))
            fields["lambda"] = float(value("lambda", section.lambda_))
        if section.pretrained is not None:
            fields["pretrained"] = self.weights.get(role, {}).get(model, UNRESOLVED)
        return Stage(
            role=role,
            dataset=dataset,
            model=model,
            recipe=Recipe.model_validate(in_use(recipe)),
            seed=seed,
            upstream=upstream,
            **fields,
        )


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-3` is a number, which is text in YAML 1.1, and a key that is there twice an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                earlier = first.setdefault((key.tag, key.value), key)
                if earlier is not key:
                    there = f"{key.value} is there twice; first in line {earlier.start_mark.line + 1}"
                    raise yaml.composer.ComposerError(None, None, there, key.start_mark)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)

PRESETS = FilePath(__file__).parent


def presets() -> list[str]:
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load_space(space: str, overrides: Sequence[str] = ()) -> Space:
    """A preset's name or a path to a YAML file, with `KEY=VALUE` overrides (dotted keys, YAML values)."""
    file = PRESETS / f"{space}.yaml" if space in presets() else FilePath(space)
    source = f"space {space}"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{source}: {reason}; presets: {', '.join(presets())}") from None
    given = _parse_yaml(text, source)
    for override in overrides:
        _override(given, override)
    return space_from(given, source)


def space_from(given: Any, source: str) -> Space:
    """A space from plain data; `source` names it in errors."""
    try:
        return Space.model_validate(given)
    except ValidationError as error:
        raise explain(error, source) from None


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return _unshared(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}:{line} not YAML: {getattr(error, 'problem', error)}") from None
    except (ValueError, RecursionError) as error:  # a date that is none, an anchor in itself
        raise InputError(f"{source}: not YAML of plain values: {str(error) or type(error).__name__}") from None


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's anchors share is apart, so that an override changes one place."""
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


def _override(given: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: expected KEY=VALUE, such as student.temperature=4")
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(given, dict) and isinstance(given.get(parent), str):
            given[parent] = {"model": given[parent]}  # the short form of a role
        given = given.setdefault(parent, {}) if isinstance(given, dict) else None
    if not isinstance(given, dict):
        raise InputError(f"--set {override}: {'.'.join(parents)} is a value, not a section")
    given[last] = _parse_yaml(text, f"--set {key}")
