"""A space says what may be varied; it turns a sampler's suggestions into paths."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from takd.search_spaces.arms import Arm, parse_arm
from takd.search_spaces.errors import InputError
from takd.search_spaces.sections import (
    Asha,
    Assistants,
    CheckpointEvery,
    Confirm,
    Distillation,
    Existing,
    Published,
    Resources,
    Student,
    Teacher,
    Training,
)
from takd.search_spaces.stage import (
    FRESH_SEED,
    MEMBER_SEEDS,
    DatasetFingerprint,
    Given,
    Loss,
    Path,
    Recipe,
    Role,
    Stage,
    check_lambda,
    check_views,
    in_use,
)
from takd.search_spaces.values import Flag, Integer, Value
from takd.search_spaces.varied import Choices, Range, Scalar, Trial, examples_of

# A stage's `pretrained`, or what is given of it, until its study starts; nothing can be trained with it.
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


def whole_roles(given: Mapping[str, Any]) -> dict[str, Any]:
    """A space as it is given, with the sections that short forms stand for: `teacher: mlp-8`, `assistants: [a, b]`."""
    short = {role: {"model": given[role]} for role in ("teacher", "student") if isinstance(given.get(role), str)}
    if isinstance(given.get("assistants"), list | tuple):
        short["assistants"] = {"models": given["assistants"]}
    return {**given, **short}


@dataclass(frozen=True)
class Configuration:
    """An arm with its varied hyperparameters chosen, by the names they have in Optuna."""

    arm: Arm
    chosen: Mapping[str, Scalar]


class Space(Value):
    """What may be varied, with the budget of the search."""

    description: str = Field("", examples=["Which assistant closes the gap on MNIST?"])
    """What the space is for, for people."""
    dataset: str = Field(examples=["mnist"])
    """The name of a dataset that `takd data` lists; `mnist` ships."""
    teacher: Teacher = Field(examples=["mlp-1200"])
    """See teacher below; a model's name alone is its `model`."""
    assistants: Assistants = Field(Assistants(), examples=[("mlp-200", "mlp-32")])
    """See assistants below; a list of models alone is its `models`."""
    student: Student = Field(examples=["mlp-8"])
    """See student below; a model's name alone is its `model`."""
    arms: tuple[str, ...] = Field((), examples=[("labels", "kd", "takd:mlp-200>mlp-32")])
    """The ways to teach the student that are compared; empty: `labels`, `kd`, and `takd:A` for each assistant A."""
    loss: Loss = Field(Loss(), examples=[{"kl_reduction": "mean"}])
    """The loss of all that learns from soft targets, see loss below."""
    trials: Integer | None = Field(None, ge=1, examples=[20])
    """Configurations to try, of all arms together. Required but for `sampler: grid`, where null is the whole grid."""
    seeds: Integer = Field(1, ge=1, examples=[8])
    """Students of each trial, from seeds of their own; a trial is judged by their mean validation accuracy."""
    coverage: Integer = Field(1, ge=0, examples=[5])
    """Trials that every arm gets before the sampler is free to choose arms."""
    sampler: Literal["tpe", "random", "grid"] = Field("tpe", examples=["grid"])
    """Who chooses configurations: Optuna's TPE, chance, or all combinations in turn."""
    sampler_seed: Integer = Field(0, examples=[1])
    """The seed of the sampler."""
    asha: Asha | None = Field(None, examples=[{"grace_epochs": 5}])
    """Ends weak students early, see asha below; null trains all of them to their last epoch."""
    confirm: Confirm | None = Field(Confirm(), examples=[{"seeds": 20}])
    """The confirm phase, see confirm below; null has none, and never reads the test split."""
    resources: dict[Role, Resources] = Field(default_factory=dict, examples=[{"teacher": {"cpu": 2}}])
    """What a worker holds while it trains, by role, see resources below."""
    checkpoint_every: CheckpointEvery = Field(CheckpointEvery(seconds=10.0), examples=[{"epochs": 1}])
    """How often a stage writes a checkpoint, see checkpoint_every below."""
    max_failures: Integer = Field(3, ge=0, examples=[0])
    """How often a stage that trains alone may lose its worker; the next time it has failed."""
    lanes: Integer | Literal["auto"] = Field("auto", examples=[16])
    """How many stages of one model and recipe a worker trains side by side, 1 or more; `auto` measures it."""
    allow_any_size: Flag = Field(False, examples=[True])
    """No warning where an assistant is not between teacher and student in size."""
    published: Published | None = Field(None, examples=[{"source": "a paper", "accuracy": {"kd": 72.57}}])
    """What a paper reports, to be printed beside the table of arms, see published below."""
    weights: dict[Role, dict[str, str]] = Field(default_factory=dict, examples=[{}])
    """Not to be written by hand: the SHA-256 of pretrained weights, and of what is given, by role and model, filled in
    when a study starts."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        """`teacher: mlp-1200` is `{model: mlp-1200}`, `assistants: [a, b]` is `{models: [a, b]}`."""
        if not isinstance(given, dict):
            raise ValueError("a space is a mapping of keys to values")
        return whole_roles(given)

    @field_validator("lanes", mode="before")
    @classmethod
    def _lanes_are_auto_or_a_number(cls, lanes: Any) -> Any:
        if lanes != "auto" and (type(lanes) is not int or lanes < 1):
            raise ValueError(f"{lanes!r} is neither auto nor a whole number of at least 1")
        return lanes

    @model_validator(mode="after")
    def _arms_and_budget_fit(self) -> Self:
        known = self.assistants.names
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
        models = {model for arm in self.all_arms for model in arm.assistants}
        trained = any(self.assistants.existing(model) is None for model in models)
        sections: list[tuple[str, Training]] = [("assistants", self.assistants)] if trained else []
        if not any(arm.distilled for arm in self.all_arms):
            return
        upstream: list[tuple[Recipe, Given | None]] = [
            (each, None) for _, own in sections for each in own.view_recipes()
        ]
        for existing in (self.teacher, *filter(None, map(self.assistants.existing, models))):
            if existing.exists:
                upstream.append((Recipe(), existing.given(UNRESOLVED)))
        if not self.teacher.exists:
            upstream += [(each, None) for each in self.teacher.view_recipes()]
        for place, section in (*sections, ("student", self.student)):
            for own, (theirs, given) in itertools.product(section.view_recipes(), upstream):
                try:
                    check_views(own, theirs, given)
                except ValueError as error:
                    raise ValueError(f"{place}.recipe: {error}") from None

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        names = self.arms or ("labels", "kd", *(f"takd:{model}" for model in self.assistants.names))
        return tuple(parse_arm(name) for name in names)

    @cached_property
    def budget(self) -> int:
        """Trials of the search."""
        return self.trials or len(self.grid())

    @property
    def digests(self) -> set[str]:
        """Of all its pretrained weights, checkpoints and logits, once a study has started."""
        return {digest for by_model in self.weights.values() for digest in by_model.values()}

    def existing(self, role: Role, model: str) -> Existing | None:
        """What the space says of a model that exists; None of one that is trained."""
        if role == "teacher":
            return self.teacher if self.teacher.exists else None
        return self.assistants.existing(model) if role == "assistant" else None

    def resources_of(self, role: Role) -> Resources:
        return self.resources.get(role, Resources())

    def identity(self) -> dict[str, Any]:
        """What may not change when a study goes on; budget, machine and words may."""
        # Weights by what they are, not by where they were found.
        places: Any = {role: {"pretrained", "checkpoint", "logits"} for role in ("teacher", "assistants", "student")}
        found = self.model_dump(mode="json", exclude=places | dict.fromkeys(_CHANGEABLE, True))
        for model in found["assistants"]["models"]:
            for place in ("checkpoint", "logits"):
                if isinstance(model, dict):
                    del model[place]
        return found

    def varied(self, arm: Arm) -> dict[str, Choices | Range]:
        """The parameters a trial of this arm has, by the name they have in Optuna."""
        sections: list[tuple[str, Training]] = [("", self.student)]
        if teaches := self._learns_from_the_teacher(arm):
            sections.append(("teacher.", self.teacher))
        if any(self.assistants.existing(model) is None for model in self._chain(arm)):
            sections.append(("assistant.", self.assistants))
        found: dict[str, Any] = {"label_smoothing": self.student.label_smoothing} if arm.smoothed else {}
        for prefix, section in sections:
            if arm.distilled and isinstance(section, Distillation):
                found |= {f"{prefix}temperature": section.temperature, f"{prefix}lambda": section.lambda_}
            found |= {f"{prefix}{name}": value for name, value in section.recipe.items()}
        if teaches and not (arm.ensemble and isinstance(self.teacher.members, tuple)):
            found["teacher.model"] = self.teacher.model
        return {name: value for name, value in found.items() if isinstance(value, Choices | Range)}

    def _chain(self, arm: Arm) -> tuple[str, ...]:
        """The assistants that the arm's path has: in a chain none before the last that exists, whoever taught it."""
        exist = [place for place, model in enumerate(arm.assistants) if self.assistants.existing(model)]
        return arm.assistants if arm.dense or not exist else arm.assistants[exist[-1] :]

    def _learns_from_the_teacher(self, arm: Arm) -> bool:
        """Whether anybody in the arm's path does."""
        chain = self._chain(arm)
        return arm.distilled and (arm.dense or not chain or self.assistants.existing(chain[0]) is None)

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
        for model in self._chain(arm):
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
        if not self._learns_from_the_teacher(arm):
            return []
        if arm.ensemble and isinstance(members, tuple):
            return [(model, members[:place].count(model)) for place, model in enumerate(members)]
        if self.teacher.exists:
            return [(self.teacher.models[0], 0)]
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
        existing = self.existing(role, model)
        if existing is not None:
            given = existing.given(self.weights.get(role, {}).get(model, UNRESOLVED))
            return Stage(role=role, dataset=dataset, model=model, recipe=Recipe(), seed=0, given=given)
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
