"""The sections of a space: one for each role, and those that say how stages run and what is shown beside them."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from takd.search_spaces.arms import ANY_SIZE
from takd.search_spaces.method_rules import check_name
from takd.search_spaces.methods import KD
from takd.search_spaces.stage import COUPLED, MOST_PATHS, Given, Recipe, in_use
from takd.search_spaces.values import Flag, Integer, Number, Value, explain, shown
from takd.search_spaces.varied import INTEGER_FIELDS, SIZE, Choices, Range, Scalar, Varied, examples_of, refuse_list

LISTS = {"milestones"}  # the fields of a recipe one value of which is a list


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
        for name, value in recipe.items():
            if name not in LISTS:
                refuse_list(name, value)
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
            refuse_list(name, value)
            for place, example in examples_of(value):
                if isinstance(example, bool) or not isinstance(example, int | float):
                    raise ValueError(f"{name}{place} is {shown(example)}; a {name} is a number")
        for place, example in examples_of(self.temperature):
            if example <= 0:
                raise ValueError(f"temperature{place} is {example}; a temperature is > 0")
        return self


class Normalize(Value):
    """By which mean and deviation the images were normalised that a given model was trained on, of pixels in [0, 1]."""

    mean: tuple[Number, ...] = Field(min_length=1, examples=[(0.485, 0.456, 0.406)])
    """By channel, or one for all channels."""
    std: tuple[Number, ...] = Field(min_length=1, examples=[(0.229, 0.224, 0.225)])
    """By channel, or one for all channels."""

    @model_validator(mode="after")
    def _one_or_one_a_channel(self) -> Self:
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"mean is {list(self.mean)}, std is {list(self.std)}; as many of both, and std above 0")
        return self


_NORMALIZE = "dataset, imagenet, or {mean: [...], std: [...]}"


class Existing(Value):
    """What a section may say of a model that exists: it is used as it is, head included, and nothing is trained."""

    checkpoint: str | None = Field(None, examples=["teacher.pth"])
    """A path to the whole weights of `model` (.safetensors or .pth): they are used as they are, nothing is trained."""
    logits: str | None = Field(None, examples=["teacher.npz"])
    """In place of a model: a path to what one says of the images, an .npz with `logits`; see The teacher you have."""
    normalize: Literal["dataset", "imagenet"] | Normalize | None = Field(None, examples=["imagenet"])
    """With `checkpoint` only: the pixels that it expects, `dataset`, `imagenet`, or `{mean:, std:}`, see normalize
    below. Required where the file does not say it."""
    classes: tuple[str, ...] | None = Field(None, examples=[("bees", "ants")])
    """With `checkpoint` or `logits` only: the names of the classes in the file's order. Null: the data set's order."""

    @field_validator("normalize", mode="before")
    @classmethod
    def _pixels_are_known(cls, normalize: Any) -> Any:
        if normalize not in (None, "dataset", "imagenet") and not isinstance(normalize, dict | Normalize):
            raise ValueError(f"{normalize!r} says nothing of pixels; valid: {_NORMALIZE}")
        return Normalize.model_validate(normalize) if isinstance(normalize, dict) else normalize

    @model_validator(mode="after")
    def _one_thing_is_given(self) -> Self:
        if self.checkpoint is not None and self.logits is not None:
            raise ValueError("checkpoint and logits are both given; one of them is the model")
        if self.normalize is not None and self.checkpoint is None:
            raise ValueError(
                "normalize is only for a checkpoint; logits need no pixels, and what is trained has its own"
            )
        if self.classes is not None and not self.exists:
            raise ValueError("classes is only for a checkpoint or logits, whose order of classes may be another")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: each class is named once")
        return self

    @property
    def exists(self) -> bool:
        """Whether there is a file in place of a training."""
        return self.checkpoint is not None or self.logits is not None

    @property
    def kind(self) -> Literal["checkpoint", "logits"]:
        """Which of the two it is, where it exists."""
        return "checkpoint" if self.checkpoint else "logits"

    @property
    def place(self) -> str:
        """The path of the file, as the space has it."""
        return self.checkpoint or self.logits or ""

    def given(self, digest: str) -> Given:
        """What a stage says of it."""
        file = Path(self.place).name
        return Given(file=file, checkpoint=digest) if self.checkpoint else Given(file=file, logits=digest)


LOGITS = "logits"  # what stands in the place of the teacher's model where there is none


class Teacher(Training, Existing):
    """Who is learned from. It learns from the labels alone, with seed 0; or it exists, as a checkpoint or logits."""

    model: str | Choices | None = Field(None, examples=["mlp-1200"])
    """Its model, required but with `logits`. `{choices: [...]}` searches it, to see what a larger teacher changes."""
    members: Integer | tuple[str, ...] | None = Field(None, examples=[3])
    """For the arms `ensemble`: how many teachers of that model there are, at least 2, or a list of their models."""

    @field_validator("model", mode="before")
    @classmethod
    def _models_are_named(cls, model: Any) -> Any:
        refuse_list("model", model)
        for place, example in examples_of(Choices.model_validate(model) if isinstance(model, dict) else model):
            if not isinstance(example, str) and model is not None:
                raise ValueError(f"model{place} is {shown(example)}; expected a model spec such as mlp-1200")
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

    @model_validator(mode="after")
    def _what_exists_is_not_trained(self) -> Self:
        if self.logits is None and self.model is None:
            raise ValueError("model is missing; expected a model spec such as mlp-1200, or logits: PATH")
        if self.logits is not None and self.model is not None:
            raise ValueError(f"model is {self.model!r} beside logits; logits are all that is known of their model")
        if not self.exists:
            return self
        for name in ("pretrained", "recipe", "members"):
            if getattr(self, name):
                raise ValueError(f"{name} is for a teacher that is trained; with {self.kind} nothing is")
        if isinstance(self.model, Choices):
            raise ValueError("model has choices, but a checkpoint is of one model")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """All that a stage may have."""
        if self.logits is not None:
            return (LOGITS,)
        named = self.members if isinstance(self.members, tuple) else ()
        return tuple(dict.fromkeys([*(str(example) for _, example in examples_of(self.model)), *named]))


class GivenAssistant(Existing):
    """An assistant that exists: in `assistants.models` in the place of a model's name."""

    model: str | None = Field(None, examples=["mlp-200"])
    """With `checkpoint`: the model, which is also its name in arms."""
    name: str | None = Field(None, examples=["last-year"])
    """With `logits`: its name in arms."""

    @model_validator(mode="after")
    def _has_one_name(self) -> Self:
        if not self.exists:
            raise ValueError("expected checkpoint: PATH or logits: PATH; a model that is trained is named alone")
        of_checkpoint = self.kind == "checkpoint"
        needed, other = ("model", "name") if of_checkpoint else ("name", "model")
        if getattr(self, needed) is None:
            raise ValueError(f"{needed} is missing; an assistant with {self.kind} has one")
        if getattr(self, other) is not None:
            raise ValueError(f"{other} is only for an assistant with {'logits' if of_checkpoint else 'checkpoint'}")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name is {self.name!r}; expected letters, digits, dots and dashes")
        return self

    @property
    def called(self) -> str:
        """Its name in arms."""
        return self.name or self.model or ""


RANDOM = "random"  # as an assistant's own `pretrained`: none, whatever the section says


class OwnAssistant(Value):
    """An assistant that is trained by keys of its own, or a family whose size the search chooses: in
    `assistants.models` in the place of a model's name. What it leaves out is as in the section."""

    model: str | None = Field(None, examples=["resnet-8"])
    """The model, which is also its name in arms."""
    family: str | None = Field(None, examples=["mlp"])
    """In place of a model, with `size`: the family's name. In arms it is called `FAMILY-*`, such as `mlp-*`."""
    size: Varied = Field(None, examples=[{"low": 8, "high": 400, "log": True}])
    """With `family` only: which sizes the search may choose, as a range or choices. Each size that it chooses is one
    more assistant to train; a `step`, or few choices, bounds their number."""
    pretrained: str | None = Field(None, examples=["imagenet"])
    """As in the section; `random` is random weights where the section says others."""
    recipe: dict[str, Varied] = Field(default_factory=dict, examples=[{"finetune_from": "layer3"}])
    """The keys of its recipe that differ from those of the section's."""
    temperature: Varied = Field(None, examples=[2])
    """As in the section."""
    lambda_: Varied = Field(None, alias="lambda", examples=[0.5])
    """As in the section."""

    @model_validator(mode="after")
    def _is_a_model_or_a_family(self) -> Self:
        if (self.model is None) == (self.family is None):
            raise ValueError(
                "expected one of model and family; an assistant is {model: mlp-64, ...}, or {family: mlp, size: {low: "
                "8, high: 400}}"
            )
        if (self.family is None) != (self.size is None):
            raise ValueError("family and size come together, such as {family: mlp, size: {low: 8, high: 400}}")
        if self.family is None:
            return self
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.family):
            raise ValueError(f"family is {self.family!r}; expected a family whose sizes are numbers, such as mlp")
        if self.pretrained not in (None, RANDOM):
            raise ValueError("pretrained is for one model; a family whose size is searched starts from random weights")
        if not isinstance(self.size, Range | Choices):
            raise ValueError(f"size is {shown(self.size)}; expected a range such as {{low: 8, high: 400}}, or choices")
        for place, size in (*examples_of(self.size), (".step", getattr(self.size, "step", None) or 1)):
            if type(size) is not int or size < 1:
                raise ValueError(f"size{place} is {shown(size)}; expected a whole number of at least 1")
        if isinstance(self.size, Range) and self.size.step and (self.size.high - self.size.low) % self.size.step:
            raise ValueError(f"size.high is {self.size.high}, which no number of steps of {self.size.step} leads to")
        return self

    @property
    def called(self) -> str:
        """Its name in arms."""
        return f"{self.family}{ANY_SIZE}" if self.family else self.model or ""

    @property
    def varied_size(self) -> Choices | Range | None:
        return self.size if isinstance(self.size, Choices | Range) else None

    @property
    def keys(self) -> set[str]:
        """What of temperature, lambda and the recipe is its own."""
        of_soft_targets = {"temperature": self.temperature, "lambda": self.lambda_}
        return {name for name, value in of_soft_targets.items() if value is not None} | self.recipe.keys()


def _kind_of_assistant(given: Any) -> str:
    if isinstance(given, GivenAssistant) or (isinstance(given, dict) and {"checkpoint", "logits"} & given.keys()):
        return "given-of"
    return "own-of" if isinstance(given, dict | OwnAssistant) else "named"


Assistant = Annotated[
    Annotated[str, Tag("named")] | Annotated[GivenAssistant, Tag("given-of")] | Annotated[OwnAssistant, Tag("own-of")],
    Discriminator(_kind_of_assistant),
]


class Assistants(Distillation):
    """Models of a size between teacher and student, with seed 0; all of them share this section but for what those
    with keys of their own say."""

    models: tuple[Assistant, ...] = Field((), examples=[("mlp-200", "mlp-32")])
    """Their models, as names. One with keys of its own, or of a family whose size is searched, is a section: see an
    assistant of its own below. So is one that exists, `{model:, checkpoint:}` or `{name:, logits:}`: see an assistant
    that exists below. Without `arms`, each of them gives an arm `takd:MODEL`."""
    temperature: Varied = Field(4.0, examples=[{"choices": [2, 8]}])
    """As for the student, when an assistant learns from the teacher or from a larger assistant."""
    lambda_: Varied = Field(0.7, alias="lambda", examples=[0.5])
    """As for the student."""
    method: str = Field(KD, examples=["dkd"])
    """By which method assistants are taught, whatever teaches the student: so one assistant serves the arms of all
    methods. All but `kd` have the weights that are published."""

    @field_validator("method")
    @classmethod
    def _the_method_is_there(cls, method: str) -> str:
        check_name(method)
        return method

    @model_validator(mode="after")
    def _each_is_there_once(self) -> Self:
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(f"models: {name} is there twice; arms name an assistant by its model, or its name")
        for own in self.models:
            if isinstance(own, OwnAssistant):
                try:
                    self._section(own)
                except ValidationError as error:
                    raise ValueError(str(explain(error, f"models: {own.called}"))) from None
        return self

    def section(self, name: str) -> Distillation:
        """By what one is trained: the section with the keys that are its own in it."""
        return self._own_sections.get(name, self)

    @cached_property
    def _own_sections(self) -> dict[str, Distillation]:
        return {each.called: self._section(each) for each in self.models if isinstance(each, OwnAssistant)}

    def _section(self, own: OwnAssistant) -> Distillation:
        start = own.pretrained or (None if own.family else self.pretrained)
        return Distillation(
            pretrained=None if start == RANDOM else start,
            recipe=self.recipe | own.recipe,
            temperature=self.temperature if own.temperature is None else own.temperature,
            lambda_=self.lambda_ if own.lambda_ is None else own.lambda_,
        )

    def own(self, name: str) -> OwnAssistant | None:
        """What is said of one that has keys of its own."""
        return next((each for each in self.models if isinstance(each, OwnAssistant) and each.called == name), None)

    def parameter(self, name: str, key: str) -> str:
        """What a key of an assistant is called in Optuna, where it is varied: those of all have one value a trial."""
        own = self.own(name)
        return f"{name}.{key}" if own and key in own.keys else f"assistant.{key}"

    def size(self, name: str) -> Choices | Range | None:
        """Which sizes the search may choose of an assistant; None of one model."""
        own = self.own(name)
        return own.varied_size if own else None

    def model(self, name: str, chosen: Mapping[str, Scalar]) -> str:
        """Its model, where its size is chosen with that."""
        own = self.own(name)
        return f"{own.family}-{chosen[f'{name}.{SIZE}']}" if own and own.family else name

    @property
    def names(self) -> tuple[str, ...]:
        """What arms call them."""
        return tuple(each if isinstance(each, str) else each.called for each in self.models)

    @property
    def trained(self) -> tuple[str, ...]:
        """Those that don't exist."""
        return tuple(name for name in self.names if self.existing(name) is None)

    def existing(self, name: str) -> GivenAssistant | None:
        """What is said of one that exists; None of one that is trained."""
        return next((each for each in self.models if isinstance(each, GivenAssistant) and each.called == name), None)


class Student(Distillation):
    """Who is taught and measured, with a seed for each of the space's `seeds`."""

    model: str = Field(examples=["mlp-8"])
    """Its model."""
    label_smoothing: Varied = Field(0.1, examples=[{"choices": [0.05, 0.1, 0.2]}])
    """Of the arm `label_smoothing` alone: the part of a label's probability that is spread over all classes."""

    @field_validator("label_smoothing")
    @classmethod
    def _smoothing_leaves_something(cls, value: Any) -> Any:
        refuse_list("label_smoothing", value)
        for place, example in examples_of(value):
            if isinstance(example, bool) or not isinstance(example, int | float) or not 0 < example < 1:
                raise ValueError(f"label_smoothing{place} is {shown(example)}; it is between 0 and 1")
        return value


GPU_DIGITS = 4  # after the point: Ray counts parts of a GPU no finer


class Resources(Value):
    """What one worker of a role (`teacher`, `assistant` or `student`) holds while it trains."""

    cpu: Integer = Field(1, ge=1, examples=[2])
    """CPU cores; of each rank, where several train a stage."""
    gpu: Number | None = Field(None, ge=0, examples=[0.25])
    """GPUs, a whole number, or a part of one. Several train a stage together, a rank on each, on one node or more.
    Null: where there are GPUs, one for a teacher or assistant, a quarter for a student."""
    ranks: Integer | None = Field(None, ge=1, examples=[2])
    """Processes that train a stage together on CPUs, each with `cpu` cores. On GPUs there are as many as GPUs."""

    @field_validator("gpu")
    @classmethod
    def _whole_ones_or_a_part_of_one(cls, gpu: float | None) -> float | None:
        if gpu is not None and gpu > 1 and gpu != int(gpu):
            raise ValueError(f"gpu is {gpu:g}; expected a whole number of GPUs, or a part of one such as 0.5")
        if gpu is not None and round(gpu, GPU_DIGITS) != gpu:
            raise ValueError(f"gpu is {gpu:.10g}; a part of a GPU has at most {GPU_DIGITS} digits, such as 0.3333")
        return gpu

    @model_validator(mode="after")
    def _ranks_are_of_cpus(self) -> Self:
        if self.ranks is not None and self.gpu:
            ways = f"gpu: {self.ranks} for a rank on each of {self.ranks} GPUs, or ranks: {self.ranks} on CPUs alone"
            raise ValueError(f"ranks is {self.ranks} and gpu {self.gpu:g}; say one of the two: {ways}")
        return self

    @property
    def together(self) -> int:
        """How many processes train a stage: its ranks."""
        return self.ranks or max(1, int(self.gpu or 0))


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

    paths: Integer | None = Field(None, ge=1, le=MOST_PATHS, examples=[10])
    """Whole paths of each arm, the same ones for every arm: each with teacher, assistants, transfer set and order of
    examples drawn anew. They are what intervals count. Null: the one path of the search, and intervals hold for it."""
    seeds: Integer = Field(5, ge=1, examples=[4])
    """Students of each path, from fresh seeds, the same ones for every arm."""
    reseed_path: Flag = Field(False, examples=[True])
    """As in older studies: `{paths: seeds, seeds: 1}`, with teacher and assistants drawn anew and nothing else."""

    @model_validator(mode="after")
    def _paths_are_counted_once(self) -> Self:
        if self.reseed_path and self.paths is not None:
            raise ValueError("reseed_path is beside paths; paths alone says how many there are")
        return self

    @property
    def replicates(self) -> int | None:
        """How many paths are drawn anew; None where students alone are."""
        return self.seeds if self.reseed_path else self.paths

    @property
    def students(self) -> int:
        """Of each arm, over all its paths."""
        return self.seeds * (self.paths or 1)


class Transfer(Value):
    """Other images that students are taught on, by who teaches them alone: whatever their labels say, none is used."""

    dataset: str = Field(examples=["photos-unlabelled"])
    """A dataset that `takd data` lists, with images of the same channels, height and width. Its training images are
    taken; the search, and the confirm phase, measure on the space's own."""
    examples: Integer | None = Field(None, ge=1, examples=[20000])
    """How many of them, drawn by `examples_seed` of the student's recipe; null is all of them."""
    with_own: Flag | None = Field(None, examples=[True])
    """`true`: on the space's own training images as well, whose labels are not used either; null and false: on the
    others alone. `examples` are then drawn from both."""

    @field_validator("with_own")
    @classmethod
    def _one_way_to_say_no(cls, flag: bool | None) -> bool | None:
        return flag or None


class Features(Value):
    """What is kept of the inside of models: for methods that compare embeddings or maps, and of layers that stand still
    while those above them train."""

    cache_gb: Number = Field(8.0, ge=0, examples=[2])
    """How many gigabytes what one model leaves for one student may take, and what layers give that stand still below
    one stage. Where it is more the model, or these layers, run in every step: the numbers are the same, and it takes
    longer."""
    dtype: Literal["float32", "float16"] = Field("float32", examples=["float16"])
    """In which numbers embeddings and maps are kept and taught. `float16` takes half the room. It rounds them, so it is
    in the key of those that learn from them. Logits are always `float32`."""


class Published(Value):
    """What a paper reports for the arms of a space, to stand beside what was measured."""

    source: str = Field(min_length=1, examples=["Mirzadeh et al. 2020, table 1"])
    """Where the numbers are from."""
    accuracy: dict[str, Number] = Field(examples=[{"labels": 70.16, "kd": 72.57}])
    """Test accuracy in percent, by arm."""
