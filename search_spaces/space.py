"""A space says what may be varied; it turns a sampler's suggestions into paths."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator

from takd.search_spaces.arms import Arm, parse_arm
from takd.search_spaces.augments import mixes
from takd.search_spaces.errors import InputError
from takd.search_spaces.factors import (
    cell_name,
    check_factors,
    combinations,
    in_turn,
    same_value,
    with_values,
    without_places,
)
from takd.search_spaces.method_rules import as_published, check_section, completed, taught
from takd.search_spaces.methods import (
    DKD,
    EMBEDDING,
    KD,
    METHODS,
    STAGE,
    TEMPERATURE,
    WEIGHT,
    Needs,
    compared_stages,
    reuses_head,
)
from takd.search_spaces.metrics import METRICS, Metric
from takd.search_spaces.sections import (
    Asha,
    Assistants,
    CheckpointEvery,
    Confirm,
    Distillation,
    Existing,
    Features,
    Published,
    Resources,
    Student,
    Teacher,
    Training,
    Transfer,
)
from takd.search_spaces.stage import (
    BELOW,
    FRESH_SEED,
    HEAD,
    MEMBER_SEEDS,
    ROLES,
    STUDENT_SEEDS,
    DatasetFingerprint,
    Given,
    Kept,
    Loss,
    Path,
    Recipe,
    Role,
    SearchMetric,
    Stage,
    Term,
    check_labels,
    check_lambda,
    check_term,
    check_views,
    in_use,
    names_in,
)
from takd.search_spaces.values import NO_CODE, OWN, Flag, Integer, Number, Value, explain, may_be_own, shown
from takd.search_spaces.varied import SIZE, Choices, Range, Scalar, Trial, Varied, examples_of, first_of

# A stage's `pretrained`, or what is given of it, until its study starts; nothing can be trained with it.
UNRESOLVED = "unresolved"
UNKNOWN_IMAGES = DatasetFingerprint(name=UNRESOLVED, digest="", split_seed=0, sizes={"train": 1})

FIXED_LANES = (
    16  # of `deterministic: true` with `lanes: auto`: wider gains little where one trial's students are so many
)

# Fields of a space that say nothing about what is searched.
_CHANGEABLE = {
    "published",
    "confirm",
    "smallest_effect",
    "description",
    "trials",
    "resources",
    "checkpoint_every",
    "max_failures",
    "lanes",
    "allow_any_size",
    "code",  # its digests may not
    "inside",
    "loops",
    "metric_of_code",
}


def whole_roles(given: Mapping[str, Any]) -> dict[str, Any]:
    """A space as it is given, with the sections that short forms stand for: `teacher: mlp-8`, `assistants: [a, b]`."""
    short = {role: {"model": given[role]} for role in ("teacher", "student") if isinstance(given.get(role), str)}
    if isinstance(given.get("assistants"), list | tuple):
        short["assistants"] = {"models": given["assistants"]}
    elif isinstance(given.get("assistants"), Mapping) and isinstance(given["assistants"].get("models"), Mapping):
        short["assistants"] = {**given["assistants"], "models": [given["assistants"]["models"]]}
    return {**given, **short}


@dataclass(frozen=True)
class Configuration:
    """An arm with its varied hyperparameters chosen, by the names they have in Optuna."""

    arm: Arm
    chosen: Mapping[str, Scalar]
    factors: Mapping[str, Scalar] = field(default_factory=dict)  # the values of its cell


@dataclass(frozen=True)
class Cell:
    """One combination of the values of factors; the whole of a space that has none."""

    name: str  # `teacher.model=mlp-200 student.model=mlp-4`; empty where there are no factors
    values: Mapping[str, Scalar]  # by factor
    space: "Space"  # with these values in it, and no factors

    @property
    def where(self) -> str:
        """What an error or a warning about its space says first."""
        return f"with {self.name}: " if self.name else ""


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
    code: tuple[str, ...] = Field((), examples=[("nets.py",)])
    """Python files or packages of yours, one or a list, relative to the space: what they define can be named here."""
    arms: tuple[str, ...] = Field((), examples=[("labels", "kd", "takd:mlp-200>mlp-32")])
    """The ways to teach the student that are compared, see Arms above; empty: `labels`, `kd`, and `takd:A` for each
    assistant A."""
    factors: dict[str, tuple[Scalar, ...]] = Field(
        default_factory=dict, examples=[{"teacher.model": ("mlp-200", "mlp-1200"), "examples": (500, 2000)}]
    )
    """What is compared beside arms, and never optimised: lists of values by the place in the space, or by `examples`,
    which sets the transfer set of every role that is trained. Every arm is searched, chosen and confirmed in each
    combination of them, a cell."""
    loss: Loss = Field(Loss(), examples=[{"kl_reduction": "mean"}])
    """The loss of all that learns from soft targets, see loss below."""
    methods: dict[str, dict[str, Varied]] = Field(
        default_factory=dict, examples=[{"rkd": {"weight": {"choices": [0.1, 1]}, "angle": 50}}]
    )
    """What arms' methods weigh, by their names, each key a plain value, a choice or a range; see [Methods](methods.md).
    What is left out is as published, but for `weight`, which is searched around that."""
    transfer: Transfer | None = Field(None, examples=[{"dataset": "photos-unlabelled"}])
    """Other images that students are taught on, without labels, see transfer below; null: the dataset's own."""
    features: Features = Field(Features(), examples=[{"cache_gb": 2}])
    """What is kept of the inside of models, see features below."""
    trials: Integer | None = Field(None, ge=1, examples=[20])
    """Configurations to try, of all arms together, in each cell of `factors`. Required but for `sampler: grid`, where
    null is the whole grid."""
    metric: Annotated[SearchMetric, OWN] = Field("accuracy", examples=["auc"])
    """What the search goes by on the validation images, `select: best` and `asha` too: `accuracy`, `loss`
    (cross-entropy), `auc` (of the second class; of more than two the mean over classes, each against the others), or
    `f1` (of the second class at the threshold where it is highest; of more than two the mean over classes), or one of
    your code. Choices, differences between arms and `takd export` go by it too."""
    seeds: Integer = Field(1, ge=1, examples=[8])
    """Students of each trial, from seeds of their own; a trial is judged by their mean `metric`."""
    coverage: Integer = Field(1, ge=0, examples=[5])
    """Trials that every arm gets in each cell before the sampler is free to choose arms."""
    sampler: Literal["tpe", "random", "grid"] = Field("tpe", examples=["grid"])
    """Who chooses configurations: Optuna's TPE, chance, or all combinations in turn."""
    sampler_seed: Integer = Field(0, examples=[1])
    """The seed of the sampler."""
    asha: Asha | None = Field(None, examples=[{"grace_epochs": 5}])
    """Ends weak students early, see asha below; null trains all of them to their last epoch."""
    confirm: Confirm | None = Field(Confirm(), examples=[{"seeds": 20}])
    """The confirm phase, see confirm below; null has none, and never reads the test split."""
    smallest_effect: Number | None = Field(None, gt=0, examples=[0.3])
    """The smallest difference that matters in what `metric` says, in percentage points; of a loss as it is. Null: no
    arm is called as good as another, only that they can't be told apart."""
    resources: dict[Role, Resources] = Field(default_factory=dict, examples=[{"teacher": {"cpu": 2}}])
    """What a worker holds while it trains, by role, see resources below."""
    checkpoint_every: CheckpointEvery = Field(CheckpointEvery(seconds=10.0), examples=[{"epochs": 1}])
    """How often a stage writes a checkpoint, see checkpoint_every below."""
    max_failures: Integer = Field(3, ge=0, examples=[0])
    """How often a stage that trains alone may lose its worker; the next time it has failed."""
    lanes: Integer | Literal["auto"] = Field("auto", examples=[16])
    """How many stages of one model and recipe a worker trains side by side, 1 or more; `auto` measures it."""
    deterministic: Flag = Field(False, examples=[True])
    """The same study on one machine gives the same numbers to the last digit, whatever its timing: the students of one
    trial train together and with no others, at most `lanes` at once (16 for `auto`), on as many threads as `resources`
    says. It takes longer. Not with `sampler: tpe` or `asha`, which learn from what has ended first."""
    allow_any_size: Flag = Field(False, examples=[True])
    """No warning where an assistant is not between teacher and student in size."""
    published: Published | None = Field(None, examples=[{"source": "a paper", "accuracy": {"kd": 72.57}}])
    """What a paper reports, to be printed beside the table of arms, see published below."""
    weights: dict[Role, dict[str, str]] = Field(default_factory=dict, examples=[{}])
    """Not to be written by hand: the SHA-256 of pretrained weights, and of what is given, by role and model, filled in
    when a study starts."""
    code_digests: dict[str, str] = Field(default_factory=dict, examples=[{}])
    """Not to be written by hand: the SHA-256 of what is used of `code`, by kind and name, filled in when a study
    starts."""
    needs: dict[str, Needs] = Field(default_factory=dict, examples=[{}])
    """Not to be written by hand: what methods of your code compare, where that is not logits, filled in when a study
    starts."""
    transfer_data: str | None = Field(None, examples=[None])
    """Not to be written by hand: the fingerprint of what `transfer` names, as JSON, filled in when a study starts."""
    inside: dict[str, dict[str, tuple[Integer, ...]]] = Field(default_factory=dict, examples=[{}])
    """Not to be written by hand: of models that methods look into the shapes of what is compared, by layer, filled in
    when a study starts."""
    loops: tuple[str, ...] = Field((), examples=[()])
    """Not to be written by hand: of which students the model that teaches them runs in every step, since that was
    measured to be faster than to keep what it leaves; filled in when a study starts."""
    metric_of_code: Metric | None = Field(None, examples=[None])
    """Not to be written by hand: how people read a `metric` of your code, filled in when a study starts."""
    flops: dict[str, Integer] = Field(default_factory=dict, examples=[{}])
    """Not to be written by hand: FLOPs of one image by model, filled in when a study with an arm `kd@ARM` starts."""

    @model_validator(mode="wrap")
    @classmethod
    def _without_code_all_names_are_known(cls, given: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        none = isinstance(given, dict) and not given.get("code") and not given.get("code_digests")
        token = NO_CODE.set(none)
        try:
            return check(given)
        finally:
            NO_CODE.reset(token)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        """`teacher: mlp-1200` is `{model: mlp-1200}`, `assistants: [a, b]` is `{models: [a, b]}`."""
        if not isinstance(given, dict):
            raise ValueError("a space is a mapping of keys to values")
        whole = whole_roles(given)
        return cls._with_factors(whole) if given.get("factors") else whole

    @classmethod
    def _with_factors(cls, given: dict[str, Any]) -> dict[str, Any]:
        """With the values of the first cell, once all cells are valid. What is wrong in all of them is no cell's."""
        check_factors(given)
        cells = [
            (cell_name(values), with_values(given, values) | {"factors": {}})
            for values in combinations(given["factors"])
        ]
        wrong: dict[str, str] = {}
        for name, space in cells:
            try:
                cls.model_validate(space)
            except ValidationError as error:
                wrong[name] = str(explain(error, "space")).removeprefix("space: ")
        if wrong and (len(cells) == 1 or len(wrong) < len(cells) or len(set(wrong.values())) > 1):
            name, message = next(iter(wrong.items()))
            raise ValueError(f"factors: with {name}: {message}")
        return cells[0][1] | {"factors": given["factors"]}

    @field_validator("code", mode="before")
    @classmethod
    def _one_file_or_several(cls, code: Any) -> Any:
        files = [code] if isinstance(code, str) else code or ()
        if not isinstance(files, list | tuple) or not all(isinstance(each, str) and each for each in files):
            raise ValueError(f"{shown(code)}; expected a file such as nets.py, a package's folder, or a list of them")
        return tuple(files)

    @field_validator("arms")
    @classmethod
    def _arms_are_known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        for name in arms:
            parse_arm(name, any_method=may_be_own("method"))
        return arms

    @field_validator("methods")
    @classmethod
    def _methods_have_what_is_said_of_them(cls, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, section in methods.items():
            check_section(name, section)
        return methods

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
            arm = parse_arm(name, any_method=True)
            shape = arm.costs_as or arm
            for assistant in shape.assistants:
                if assistant not in known:
                    raise ValueError(
                        f"arms: {name!r} uses {assistant!r}; assistants.models has: {', '.join(known) or 'none'}"
                    )
            if arm.costs_as:
                self._what_an_assistant_costs_is_fixed(arm)
            if shape.ensemble and self.teacher.members is None:
                raise ValueError(
                    f"arms: {name!r} has an ensemble; say what it is made of in teacher.members, such as 3"
                )
        if self.deterministic and (self.asha or self.sampler == "tpe"):
            learns = "asha" if self.asha else "sampler: tpe"
            raise ValueError(
                f"deterministic is true, but {learns} learns from what has ended first, which is a matter of timing; "
                "use sampler: grid or random, and no asha"
            )
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("arms: each arm is named once")
        self._arms_are_not_the_same()
        self._transfer_teaches_classes()
        self._ranks_can_train()
        self.refuse_methods({name: facts.needs for name, facts in METHODS.items()})
        own = [(f"assistants.models: {each}", self.assistants.section(each)) for each in self.assistants.names]
        for place, section in (("assistants", self.assistants), *own, ("student", self.student)):
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

    def _arms_are_not_the_same(self) -> None:
        named: dict[Arm, str] = {}
        for arm in self.all_arms:
            if (other := named.setdefault(arm.meaning, arm.name)) != arm.name:
                raise ValueError(f"arms: {other!r} and {arm.name!r} are two names of one arm; leave one of them out")

    def _transfer_teaches_classes(self) -> None:
        """Of images without labels a student learns classes from soft targets alone."""
        for arm in self.all_arms if self.transfer is not None else ():
            if arm.distilled and not {KD, DKD, "dist"} & {*arm.methods} and not any(map(reuses_head, arm.methods)):
                told = "+".join([*arm.methods, KD])
                raise ValueError(
                    f"arms: {arm.name!r}: transfer uses no labels, and {arm.name} has nothing else that says what a "
                    f"class is; add kd: {told}"
                )
            if arm.costs_as:
                raise ValueError(f"arms: {arm.name!r}: with transfer epochs are over other images; leave it out")
        if self.transfer is not None and any(mixes(each.augment) for each in self.student.view_recipes()):
            raise ValueError("student.recipe.augment mixes the labels of images, and transfer uses none; leave one out")

    def _ranks_can_train(self) -> None:
        """What several ranks train is one stage, by what each of them can say of its part of a batch."""
        for role in (each for each in ROLES if self.resources_of(each).together > 1):
            own = self.resources_of(role)
            asked = f"resources.{role}.{'ranks' if own.ranks else 'gpu'} is {own.together}"
            if self.deterministic:
                raise ValueError(f"deterministic is true, which is for one process a stage, and {asked}")
            if role == "student" and self.lanes not in ("auto", 1):
                raise ValueError(f"lanes is {self.lanes}, and {asked}; over several ranks a stage trains alone")
            taught_by = {"teacher": (), "assistant": [self.assistants.method], "student": self._student_methods()}
            divergence = self.loss.divergence if self.loss.divergence != "decoupled" else None
            ways = [divergence or each if each == KD else each for each in taught_by[role]]
            if bad := next((each for each in ways if each not in (KD, DKD)), None):
                raise ValueError(
                    f"{asked}, each with its part of a batch; {bad} compares the examples of a batch, or what is "
                    "inside of models: use kd or dkd, or one device"
                )

    def _student_methods(self) -> list[str]:
        return [method for arm in self.all_arms for method in arm.methods]

    def refuse_methods(self, needs: Mapping[str, str]) -> None:
        """Raises ValueError where a method needs what is inside a model, and who teaches has no such thing.

        `needs` has what each method needs, by its name; of those of a user's code it is known once that is imported.
        """
        ways = [(f"arms: {arm.name!r}: ", arm, method) for arm in self.all_arms for method in arm.methods]
        chains = [arm for arm in self.all_arms if arm.assistants]
        ways += [("assistants.method: ", arm, self.assistants.method) for arm in chains]
        for where, arm, method in ways:
            if reuses_head(method) and where.startswith("assistants"):
                raise ValueError(f"{where}a student of {method} ends in its teacher's head; assistants have their own")
            if needs.get(method, "logits") == "logits":
                continue
            what = f"{method} compares what is inside of models"
            if needs[method] == "maps" and arm.dense:
                raise ValueError(f"{where}{method} compares maps with those of one model, and dense/ has several")
            none = "no single embedding" if needs[method] == "embedding" else "no maps of its own"
            if arm.ensemble and not (arm.assistants and where.startswith("arms")):
                raise ValueError(f"{where}{what}, and an ensemble has {none}; use kd, dkd or dist")
            if self.teacher.logits is not None and self._learns_from_the_teacher(arm):
                raise ValueError(f"{where}{what}; of the teacher logits alone are given: give its checkpoint")
            for name in arm.assistants if where.startswith("arms") else ():
                existing = self.assistants.existing(name)
                if existing and existing.logits is not None:
                    raise ValueError(f"{where}{what}; of {name} logits alone are given: give its checkpoint")

    def _what_an_assistant_costs_is_fixed(self, arm: Arm) -> None:
        assistants = arm.costs_as.assistants if arm.costs_as else ()
        sections: list[tuple[str, Training]] = [(each, self.assistants.section(each)) for each in assistants]
        for whose, section in (*sections, ("student", self.student)):
            if any(each is not None for _, each in examples_of(section.recipe.get("patience"))):
                raise ValueError(
                    f"arms: {arm.name!r} costs as much as another, which recipe.patience of {whose} leaves open"
                )
        for assistant in assistants:
            own = self.assistants.own(assistant)
            if self.assistants.size(assistant):
                raise ValueError(
                    f"arms: {arm.name!r} costs what assistants cost, and the size of {assistant} is searched; name one "
                    "size, such as kd@takd:mlp-64 with mlp-64 among assistants.models"
                )
            for name in ("epochs", "examples", "head_epochs", "augment"):
                if isinstance(self.assistants.section(assistant).recipe.get(name), Choices | Range):
                    place = f"assistants.models: {assistant}: " if own and name in own.recipe else "assistants."
                    raise ValueError(
                        f"arms: {arm.name!r} costs what assistants cost, and {place}recipe.{name} is varied; fix it, "
                        "or make it a factor"
                    )

    def _soft_targets_of_every_view(self) -> None:
        models = {model: None for arm in self.all_arms for model in arm.assistants}
        sections: list[tuple[str, Training]] = [
            (f"assistants.models: {model}: " if self.assistants.own(model) else "assistants.", section)
            for model in models
            if self.assistants.existing(model) is None
            for section in [self.assistants.section(model)]
        ]
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
        for place, section in (*sections, ("student.", self.student)):
            for own in section.view_recipes():
                try:
                    self._check_taught(section, own)
                except ValueError as error:
                    raise ValueError(f"{place}recipe: {error}") from None
            for own, (theirs, given) in itertools.product(section.view_recipes(), upstream):
                try:
                    check_views(own, theirs, given)
                except ValueError as error:
                    raise ValueError(f"{place}recipe: {error}") from None

    def _check_taught(self, section: Training, recipe: Recipe) -> None:
        """Raises ValueError where a recipe has images that what teaches can't take."""
        check_labels(recipe, self.loss)
        parts = [each for _, each in examples_of(section.recipe.get("accumulate"))] or [None]
        for arm in self.all_arms:
            methods = arm.methods if section is self.student else (self.assistants.method,) * bool(arm.assistants)
            loss, terms = taught({each: as_published(each) for each in methods}, arm.standardized, self.loss)
            if loss is not None:
                check_labels(recipe, loss)
            for each, term in itertools.product(parts, terms):
                check_term(recipe.model_copy(update={"accumulate": each}), term)

    @property
    def goes_by(self) -> Metric:
        """Its `metric`; one of code only where that was read."""
        return METRICS.get(self.metric) or self.metric_of_code or Metric(self.metric, self.metric)

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        names = self.arms or ("labels", "kd", *(f"takd:{model}" for model in self.assistants.names))
        return tuple(parse_arm(name, any_method=True) for name in names)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every combination of the values of factors; without factors there is one, this space."""
        if not self.factors:
            return (Cell("", {}, self),)
        given = self.model_dump(mode="json")
        found = []
        for values in combinations(self.factors):
            space = Space.model_validate(with_values(given, values) | {"factors": {}})
            found.append(Cell(cell_name(values), values, space))
        return tuple(found)

    def cell(self, values: Mapping[str, Any]) -> Cell:
        """The one that has these values, by factor; other names beside them are not looked at."""
        return self._cells_by_name[cell_name({name: values[name] for name in self.factors})]

    @cached_property
    def _cells_by_name(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in self.cells}

    @cached_property
    def budget(self) -> int:
        """Trials of the search, in all cells together."""
        if self.factors:
            return sum(cell.space.budget for cell in self.cells)
        return self.trials or len(self.grid())

    @property
    def fixed_lanes(self) -> int | None:
        """How many stages train together at most, whatever is ready; None where that is a matter of timing."""
        if not self.deterministic:
            return None
        return FIXED_LANES if self.lanes == "auto" else self.lanes

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
        places |= {"features": {"cache_gb"}}
        changeable = _CHANGEABLE - {"lanes", "resources"} if self.deterministic else _CHANGEABLE
        found = self.model_dump(mode="json", exclude=places | dict.fromkeys(changeable, True))
        for model in found["assistants"]["models"]:
            for place in ("pretrained", "checkpoint", "logits"):
                if isinstance(model, dict):
                    model.pop(place, None)
        if self.factors:  # their order is that of names, and of Optuna's choices
            found = without_places(found, self.factors) | {"factors": [[*each] for each in self.factors.items()]}
        return found

    def with_factors_of(self, before: "Space") -> "Space":
        """As it was before values were added to its factors: of those that an earlier space has; else itself.

        What is filled in for models that came with them is left out too.
        """
        if list(self.factors) != list(before.factors) or not all(
            any(same_value(value, each) for each in self.factors[name])
            for name, values in before.factors.items()
            for value in values
        ):
            return self
        weights = {
            role: {model: digest for model, digest in by_model.items() if model in before.weights.get(role, {})}
            for role, by_model in self.weights.items()
        }
        known = {
            "factors": before.factors,
            "weights": {role: by_model for role, by_model in weights.items() if by_model or role in before.weights},
            "flops": {model: flops for model, flops in self.flops.items() if model in before.flops},
        }
        return self.model_copy(update=known)

    def varied(self, arm: Arm) -> dict[str, Choices | Range]:
        """The parameters a trial of this arm has, by the name they have in Optuna."""
        sections: list[tuple[str, Training]] = [("", self.student)]
        if teaches := self._learns_from_the_teacher(arm):
            sections.append(("teacher.", self.teacher))
        found: dict[str, Any] = {"label_smoothing": self.student.label_smoothing} if arm.smoothed else {}
        for method in sorted(arm.methods):
            found |= {
                f"{method}.{key}": value for key, value in completed(method, self.methods.get(method, {})).items()
            }
        for prefix, section in sections:
            if KD in arm.methods and isinstance(section, Distillation):
                found |= {f"{prefix}temperature": section.temperature, f"{prefix}lambda": section.lambda_}
            if self.transfer is not None and not prefix:
                found.pop("lambda", None)
            found |= {f"{prefix}{name}": value for name, value in section.recipe.items()}
        for name in self._chain(arm):
            if self.assistants.existing(name) is None:
                found |= self._varied_of(name)
        if teaches and not (arm.ensemble and isinstance(self.teacher.members, tuple)):
            found["teacher.model"] = self.teacher.model
        return {name: value for name, value in found.items() if isinstance(value, Choices | Range)}

    def _varied_of(self, assistant: str) -> dict[str, Any]:
        """All values of one that is trained, by the names they have in Optuna."""
        section = self.assistants.section(assistant)
        values = {"temperature": section.temperature, "lambda": section.lambda_, **section.recipe}
        found = {self.assistants.parameter(assistant, key): value for key, value in values.items()}
        return found | {f"{assistant}.{SIZE}": self.assistants.size(assistant)}

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

        Long paths first: what others wait for is trained first. Cells take turns.
        """
        if self.factors:
            return self._of_cells([cell.space.guaranteed() for cell in self.cells])
        if self.sampler == "grid":
            return self.grid()[: self.budget]
        return [{"arm": arm.name} for _ in range(self.coverage) for arm in self._long_paths_first()]

    def queued(self) -> list[dict[str, Scalar]]:
        """What is told to Optuna before it is asked: the guaranteed trials. Of a space with factors also the others,
        which then have the values of their cell and nothing else: no sampler chooses a cell."""
        found = self.guaranteed()
        if not self.factors:
            return found
        free: list[list[dict[str, Scalar]]] = [
            [{}] * (cell.space.budget - len(cell.space.guaranteed())) for cell in self.cells
        ]
        return found + self._of_cells(free)

    def _of_cells(self, by_cell: Sequence[Sequence[Mapping[str, Scalar]]]) -> list[dict[str, Scalar]]:
        """Trials, each with the values of its cell; cells take turns."""
        whole = [[{**cell.values, **each} for each in own] for cell, own in zip(self.cells, by_cell, strict=True)]
        return list(in_turn(whole))

    def _long_paths_first(self) -> list[Arm]:
        return sorted(self.all_arms, key=lambda arm: (arm.distilled, len(arm.assistants)), reverse=True)

    def grid(self) -> list[dict[str, Scalar]]:
        """Every combination of every arm, for `sampler: grid`; raises InputError on a range without a step.

        Arms take turns, so that what any of them waits for is trained early; and so do cells.
        """
        if self.factors:
            return self._of_cells([cell.space.grid() for cell in self.cells])
        return list(in_turn([self._points(arm) for arm in self._long_paths_first()]))

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
        factors = {name: trial.suggest_categorical(name, values) for name, values in self.factors.items()}
        space = self.cell(factors).space
        arm = parse_arm(trial.suggest_categorical("arm", [arm.name for arm in self.all_arms]), any_method=True)
        chosen = {name: value.suggest(trial, name) for name, value in space.varied(arm).items()}
        return Configuration(arm, chosen, factors)

    def paths(self, choice: "Configuration", dataset: DatasetFingerprint, seeds: Sequence[int]) -> tuple[Path, ...]:
        """The configuration as one path a student seed."""
        space = self.cell(choice.factors).space
        return tuple(space.path(choice.arm, choice.chosen, dataset, seed) for seed in seeds)

    def confirming_paths(self, choice: "Configuration", dataset: DatasetFingerprint) -> tuple[Path, ...]:
        """The configuration from seeds that no search has, one path a student; the same seeds for every arm.

        A student's seeds follow from its numbers alone: where there are more paths or students, the others stay.
        """
        if self.confirm is None:
            return ()
        if self.factors:
            own = self.cell(choice.factors).space
            return own.confirming_paths(Configuration(choice.arm, choice.chosen), dataset)
        path = partial(self.path, choice.arm, choice.chosen, dataset)
        if self.confirm.paths is None:
            seeds = range(FRESH_SEED, FRESH_SEED + self.confirm.seeds)
            if self.confirm.reseed_path:
                return tuple(path(seed, seed, replicate=seed - FRESH_SEED) for seed in seeds)
            return tuple(map(path, seeds))
        numbers = itertools.product(range(self.confirm.paths), range(self.confirm.seeds))
        return tuple(
            path(FRESH_SEED + number + STUDENT_SEEDS * student, FRESH_SEED + number, FRESH_SEED + number, number)
            for number, student in numbers
        )

    @property
    def redrawn(self) -> tuple[str, ...]:
        """What each path of the confirm phase has of its own beside its students, in words."""
        if self.confirm is None or self.confirm.replicates is None:
            return ()
        arms = [arm for arm in self.all_arms if arm.distilled]
        models = dict.fromkeys(model for arm in arms for model in arm.assistants)
        trained = [model for model in models if self.assistants.existing(model) is None]
        own = ["teacher"] if arms and not self.teacher.exists else []
        own += ["assistants"] if trained else []
        if self.confirm.reseed_path:
            return tuple(own)
        sections: list[Training] = [self.student, *([self.teacher] if own[:1] == ["teacher"] else [])]
        sections += [self.assistants.section(model) for model in trained]
        drawn = [examples for each in sections for _, examples in examples_of(each.recipe.get("examples"))]
        drawn += [self.transfer.examples] if self.transfer and arms else []
        if any(examples is not None for examples in drawn):
            own.append("transfer set")
        return (*own, "order of examples")

    def path(
        self,
        arm: Arm,
        chosen: Mapping[str, Scalar],
        dataset: DatasetFingerprint,
        seed: int,
        upstream_seed: int = 0,
        drawn_by: int | None = None,
        replicate: int | None = None,
    ) -> Path:
        """The path of an arm with the chosen hyperparameters, for a student's seed and one of all it learns from.

        `drawn_by` is added to the seeds of the order of examples, and of the transfer set where there is one.
        """
        stage = partial(self._stage, chosen=chosen, dataset=dataset, drawn_by=drawn_by)
        upstream = tuple(
            stage("teacher", model, self.teacher, seed=upstream_seed + member * MEMBER_SEEDS, upstream=())
            for model, member in self._teachers(arm, chosen)
        )
        for name in self._chain(arm):
            model, section = self.assistants.model(name, chosen), self.assistants.section(name)
            assistant = stage("assistant", model, section, seed=upstream_seed, upstream=upstream, called=name)
            upstream = (*upstream, assistant) if arm.dense else (assistant,)
        own: dict[str, Any] = {}  # of its recipe
        if arm.smoothed:
            own["label_smoothing"] = self._value("label_smoothing", self.student.label_smoothing, chosen)
        if arm.costs_as:
            own["epochs"] = self._epochs_for(arm.costs_as, chosen, dataset)
        student = stage("student", self.student.model, self.student, seed=seed, upstream=upstream, own=own, arm=arm)
        return Path(arm=arm.name, student=student, replicate=replicate)

    def _epochs_for(self, arm: Arm, chosen: Mapping[str, Scalar], dataset: DatasetFingerprint) -> int:
        """Of a student of `kd`, so that its path costs as many training FLOPs as that of an arm, or as little more as
        whole epochs allow. Where the arm's path is the cheaper one, as of an assistant that exists, the recipe's."""
        whatever = {name: first_of(name, value) for name, value in self.varied(arm).items()}
        student, costs = None, []
        for each in (arm, parse_arm("kd")):
            path = self.path(each, whatever | dict(chosen), dataset, seed=0)
            student = path.student
            costs.append(sum(self._flops_of(stage) * _images_seen(stage) for stage in path.stages))
        assert student is not None
        an_epoch = self._flops_of(student) * student.images
        more = math.ceil((costs[0] - costs[1]) / an_epoch - 1e-9)
        return student.recipe.epochs + max(0, more)

    def _flops_of(self, stage: Stage) -> int:
        """Of one image, and of its training alone; raises InputError before a study has started."""
        if stage.given:
            return 0
        if stage.model not in self.flops:
            raise InputError(f"the FLOPs of {stage.model} are not known; they are filled in when a study starts")
        return self.flops[stage.model]

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
        drawn_by: int | None,
        own: Mapping[str, Any] | None = None,
        called: str | None = None,
        arm: Arm | None = None,
    ) -> Stage:
        """`called` is the name of an assistant, where that is not its model; `arm` is that of a student."""
        existing = self.existing(role, called or model)
        if existing is not None:
            given = existing.given(self.weights.get(role, {}).get(model, UNRESOLVED))
            own_code = self.code_of(model)
            return Stage(role=role, dataset=dataset, model=model, recipe=Recipe(), seed=0, given=given, code=own_code)

        def value(name: str, given: Any) -> Any:
            place = (
                self.assistants.parameter(called, name) if called else name if role == "student" else f"{role}.{name}"
            )
            return self._value(place, given, chosen)

        recipe = {name: value(name, given) for name, given in section.recipe.items()} | dict(own or {})
        if recipe.get("select") == "best" and recipe.get("select_by") is None:
            recipe["select_by"] = self.metric
        if drawn_by is not None:
            recipe["order_seed"] = recipe.get("order_seed", 0) + drawn_by
            if recipe.get("examples") is not None or (role == "student" and self.transfer and self.transfer.examples):
                recipe["examples_seed"] = recipe.get("examples_seed", 0) + drawn_by
        fields: dict[str, Any] = {}
        if upstream and role == "student" and self.transfer is not None:
            known = self.transfer_data
            fields["transfer"] = DatasetFingerprint.model_validate_json(known) if known else UNKNOWN_IMAGES
            fields["with_own"] = self.transfer.with_own
            recipe["examples"] = self.transfer.examples
        if upstream and isinstance(section, Distillation):
            ensemble = len({stage.role for stage in upstream}) == 1 and len(upstream) > 1
            loss = self.loss.of_ensemble() if ensemble else self.loss
            methods, standardized = (arm.methods, arm.standardized) if arm else ((self.assistants.method,), False)
            weights = {each: self._weights(each, chosen if arm else None) for each in methods}
            fields["loss"], terms = taught(weights, standardized, loss)
            if KD in methods:
                fields["temperature"] = float(value("temperature", section.temperature))
                fields["lambda"] = 1.0 if "transfer" in fields else float(value("lambda", section.lambda_))
            elif DKD in methods:
                fields["temperature"] = float(weights[DKD][TEMPERATURE])
                fields["lambda"] = float(weights[DKD][WEIGHT])
            terms = tuple(self._with_layers(self._with_needs(term), model, upstream) for term in terms)
            fields["terms"] = terms or None
        if section.pretrained is not None:
            fields["pretrained"] = self.weights.get(role, {}).get(model, UNRESOLVED)
        whole = Recipe.model_validate(in_use(recipe))
        of_images = fields.get("transfer", dataset).sizes.get("train", 0)
        of_images += dataset.sizes.get("train", 0) if fields.get("with_own") else 0
        if self.features.dtype == "float16" and any(term.needed != "logits" for term in fields.get("terms") or ()):
            fields["features"] = "float16"
        if self._is_too_much(fields.get("terms") or (), upstream, whole, of_images):
            fields["in_loop"] = True
        alone = self.resources_of(role).together == 1  # else each rank runs them, in every step
        if section.pretrained is not None and whole.head_epochs is not None and alone:
            fields["frozen"] = self._kept(model, whole, whole.examples or of_images, dataset.sizes)
        stage = Stage(
            role=role,
            dataset=dataset,
            model=model,
            recipe=whole,
            seed=seed,
            upstream=upstream,
            code=self.code_of(model, whole, fields.get("loss"), fields.get("terms") or ()),
            **fields,
        )
        return stage.model_copy(update={"in_loop": True}) if stage.loop in self.loops else stage

    def _with_needs(self, term: Term) -> Term:
        return term.model_copy(update={"needs": self.needs[term.method]}) if term.method in self.needs else term

    def _with_layers(self, term: Term, model: str, upstream: tuple[Stage, ...]) -> Term:
        """Of a method that compares maps those that it compares, once a study has started."""
        if term.needed != "maps":
            return term
        own, theirs = compared_stages(term.method, *(self._stages_of(each) for each in (model, upstream[0].model)))
        layers = {"student_layers": term.student_layers or own, "teacher_layers": term.teacher_layers or theirs}
        return term.model_copy(update=layers)

    def _stages_of(self, model: str) -> list[str]:
        """The last layer of each, by the mark that it has there."""
        return [layer.removeprefix(STAGE) for layer in self.inside.get(model, {}) if layer.startswith(STAGE)]

    def _is_too_much(self, terms: tuple[Term, ...], upstream: tuple[Stage, ...], recipe: Recipe, images: int) -> bool:
        """Whether what one of them would leave for a stage is more than is kept."""
        layers = {layer for term in terms if term.needed == "maps" for layer in term.teacher_layers or ()}
        layers |= {EMBEDDING} if any(term.needed == "embedding" for term in terms) else set()
        for each in upstream if layers else ():
            shapes = self.inside.get(each.model, {})
            numbers = sum(math.prod(shapes.get(layer) or shapes.get(STAGE + layer) or (0,)) for layer in layers)
            each_takes = 2 if self.features.dtype == "float16" else 4
            if each_takes * numbers * images * recipe.view_count > 1e9 * self.features.cache_gb:
                return True
        return False

    def _kept(self, model: str, recipe: Recipe, images: int, sizes: Mapping[str, int]) -> Kept | None:
        """Below which layers what stands still is kept, once a study has started: where that is possible, and not too
        much."""
        inside, head = self.inside.get(model, {}), recipe.head_epochs or 0
        found: dict[str, str | None] = {}
        parts = (("head", HEAD, range(head)), ("rest", recipe.finetune_from, range(head, recipe.epochs)))
        for whose, layer, epochs in parts:
            views = len({epoch % recipe.view_count for epoch in epochs})
            numbers = math.prod(inside.get(f"{BELOW}{layer}", (0,))) * (images * views + sizes.get("validation", 0))
            if epochs and 0 < 4 * numbers <= 1e9 * self.features.cache_gb:
                found[whose] = layer
        return Kept(**found) if found else None

    def _weights(self, method: str, chosen: Mapping[str, Scalar] | None) -> dict[str, Any]:
        """What a method weighs, by key, where it is varied as chosen; None: as published, as assistants are taught."""
        if chosen is None:
            return as_published(method)
        values = completed(method, self.methods.get(method, {}))
        return {key: self._value(f"{method}.{key}", value, chosen) for key, value in values.items()}

    def code_of(
        self, model: str, recipe: Recipe | None = None, loss: Loss | None = None, terms: tuple[Term, ...] = ()
    ) -> dict[str, str] | None:
        """The digests of the user's code that a stage uses; None where it uses none."""
        named = names_in(model, recipe, loss, terms)
        if recipe is None:  # it exists, and says what others ask of it, of any view
            named += [name for name in self.code_digests if name.startswith("augmentation ")]
        return {name: digest for name, digest in self.code_digests.items() if name in named} or None


def _images_seen(stage: Stage) -> float:
    """By a training of all layers that would cost as much; none where nothing is trained. As `takd.analysis.cost`."""
    return stage.recipe.whole_epochs * stage.images
