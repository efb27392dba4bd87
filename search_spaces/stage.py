"""A stage trains one model; its key names the result, so that no two places train it twice."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from takd.search_spaces.augments import NamedView, ViewName, altering, check_augment, mixes
from takd.search_spaces.methods import METHODS, Needs, reuses_head
from takd.search_spaces.recipe_rules import check_recipe
from takd.search_spaces.values import OWN, Flag, Integer, Number, Value

# Bumped whenever a change of code alters what a stage's training results in: every key changes with it.
TRAINING_REVISION = 2
# Likewise of stages with pretrained weights alone: how their new head starts.
NEW_HEAD = "normal-0.01"

WIDEST = 64  # lanes of one shape trained at once; more gain nothing, and more is at stake when a worker dies
FRESH_SEED = 1_000_000  # the first of the confirm phase; searches count from 0
MOST_PATHS = 10_000  # of the confirm phase
STUDENT_SEEDS = 100_000  # between the students of one of its paths
MEMBER_SEEDS = 10_000  # between the members of an ensemble that are alike; the first has the seed of the lone teacher

Role = Literal["teacher", "assistant", "student"]
Phase = Literal["search", "confirm"]
# What a search goes by on the validation images, and `select: best`. All but the loss are the better the higher.
SearchMetric = Literal["accuracy", "auc", "f1", "loss"]
BINS = 15  # of confidence, for the calibration error, as Guo et al. 2017 have it
ROLES: tuple[Role, ...] = ("teacher", "assistant", "student")


class DatasetFingerprint(Value):
    """Which examples a stage sees: content and split, not where the files are."""

    name: str
    digest: str
    split_seed: Integer
    sizes: dict[str, Integer]


@dataclass(frozen=True)
class Owner:
    """Which field, with what value, uses another."""

    field: str
    value: str | None  # None: any
    words: str

    def uses(self, value: Any) -> bool:
        return value is not None if self.value is None else value == self.value

    def used_in(self, recipe: Mapping[str, Any]) -> bool:
        return self.uses(recipe.get(self.field))


_STEP, _HEAD = Owner("schedule", "step", "schedule: step"), Owner("head_epochs", None, "recipes with head_epochs")
# Fields of a recipe that some recipes alone use.
_ONLY_WITH = {
    "momentum": Owner("optimizer", "sgd", "optimizer: sgd"),
    "nesterov": Owner("optimizer", "sgd", "optimizer: sgd"),
    "milestones": _STEP,
    "step_factor": _STEP,
    "select_by": Owner("select", "best", "select: best"),
    "views": Owner("augment", None, "a recipe with augment"),
    "finetune_from": _HEAD,
    "finetune_factor": _HEAD,
    "patience": Owner("select", "best", "select: best, which keeps the epoch that nothing after it was better than"),
}
# Fields of a recipe that are right or wrong together.
COUPLED = (
    ("optimizer", "momentum", "nesterov"),
    ("schedule", "milestones", "step_factor", "warmup_epochs"),
    ("augment", "views"),
    ("epochs", "head_epochs", "finetune_from", "finetune_factor", "warmup_epochs"),
    ("select", "select_by", "patience"),
    ("batch_size", "accumulate"),
)


def in_use(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those that the others leave unused: where the optimizer is varied, only some have momentum."""
    return {name: each for name, each in recipe.items() if name not in _ONLY_WITH or _ONLY_WITH[name].used_in(recipe)}


class Recipe(Value):
    """How one model is trained. All of it is in the stage's key."""

    epochs: Integer = Field(10, ge=1, examples=[60])
    """Passes over the training examples."""
    batch_size: Integer = Field(256, ge=1, examples=[128])
    """Examples of one training step."""
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd", "rmsprop", "nadam", "radam", "adamax", "adagrad", "adadelta"], OWN
    ] = Field("adam", examples=["sgd"])
    """What turns gradients into steps, as PyTorch has it, with PyTorch's own values of what is not said here; or one of
    your code."""
    learning_rate: Number = Field(1e-3, gt=0, examples=[3e-3])
    """The rate that the schedule's factor is applied to; `one-cycle` reaches it after 30 % of the run."""
    momentum: Number | None = Field(None, ge=0, lt=1, examples=[0.9])
    """Of `optimizer: sgd`, and only with it; null is 0.9."""
    weight_decay: Number = Field(0.0, ge=0, examples=[5e-4])
    """Added to the gradient (L2); decoupled from it with `optimizer: adamw`."""
    schedule: Annotated[Literal["constant", "cosine", "one-cycle", "step"], OWN] = Field("cosine", examples=["step"])
    """How the learning rate changes during the run; or one of your code."""
    milestones: tuple[Number, ...] | None = Field(None, examples=[(0.5, 0.75)])
    """With `schedule: step` only: the fractions of the run at which the rate falls; null is 0.5 and 0.75."""
    step_factor: Number | None = Field(None, gt=0, lt=1, examples=[0.2])
    """With `schedule: step` only: what the rate is multiplied by at each milestone; null is 0.1."""
    label_smoothing: Number | None = Field(None, ge=0, lt=1, examples=[0.1])
    """The part of a label's probability that is spread over all classes; null is none."""
    dropout: Number | None = Field(None, ge=0, lt=1, examples=[0.5])
    """The chance that a unit is dropped, where the model has dropout; null is what its family has."""
    precision: Literal["float32", "tf32", "bfloat16"] = Field("float32", examples=["bfloat16"])
    """Of training steps; evaluation is always float32. `tf32` is float32 with shorter products on a GPU that has it."""
    examples: Integer | None = Field(None, ge=1, examples=[2000])
    """Size of the transfer set, a class-balanced part of the training images; null is all of them."""
    examples_seed: Integer = Field(0, ge=0, examples=[1])
    """Chooses which images are in the transfer set, where `examples` is given."""
    order_seed: Integer = Field(0, ge=0, examples=[1])
    """Chooses the order of the examples in every epoch."""
    augment: str | None = Field(None, examples=["random-resized-crop+color-jitter"])
    """How views change the training images: `crop-flip`, `flip-rotate`, `random-resized-crop`, `color-jitter`,
    `stain-jitter`, `rand-augment`, `trivial-augment`, `mixup`, `cutmix`, one of your code, or several of them joined by
    `+`, in turn."""
    views: Integer | Literal["per-epoch"] | None = Field(None, examples=["per-epoch"])
    """With `augment` only: how many seeded copies of the images there are, 2 or more, used in turn by epoch;
    `per-epoch` has one for each epoch. The first view, of the first epoch, is the images as they are. Null is 8."""
    class_weights: Literal["balanced"] | None = Field(None, examples=["balanced"])
    """`balanced` weighs the loss on labels so that all classes count the same; null weighs all examples alike."""
    evaluate_every: Integer = Field(1, ge=1, examples=[5])
    """Epochs between two looks at the validation images; the last epoch is always looked at."""
    select: Literal["best", "last"] = Field("last", examples=["best"])
    """The epoch whose weights are kept: the first that is best on the validation images, or the last."""
    select_by: Annotated[SearchMetric, OWN] | None = Field(None, examples=["auc"])
    """With `select: best` only: the metric that it goes by, or one of your code; null is the space's `metric`."""
    head_epochs: Integer | None = Field(None, ge=1, examples=[5])
    """With `pretrained` only: how many of the epochs train the new last layer alone, before the others train too."""
    finetune_from: str | None = Field(None, examples=["layer3"])
    """With `head_epochs` only: the first layer that trains after them, by its name in the model; null is all layers."""
    finetune_factor: Number | None = Field(None, gt=0, examples=[0.05])
    """With `head_epochs` only: what the learning rate is multiplied by after them; null is 0.1."""
    freeze_norm: Flag | None = Field(None, examples=[True])
    """With `pretrained` only: batch normalisation keeps its means, variances, scale and shift; null trains it."""
    nesterov: Flag | None = Field(None, examples=[True])
    """With `optimizer: sgd` and a momentum above 0 only: Nesterov's momentum; null and false are the plain one."""
    warmup_epochs: Number | None = Field(None, gt=0, examples=[5])
    """How many epochs, or which part of one, the learning rate rises step by step from 1 % of itself; the schedule then
    runs over the epochs that are left. With `head_epochs` each of the two parts begins so. Null: no warm-up."""
    clip_norm: Number | None = Field(None, gt=0, examples=[1.0])
    """The longest that the gradient of all weights together may be; a longer one is made that long. Null: any."""
    ema: Number | None = Field(None, gt=0, lt=1, examples=[0.999])
    """What an exponential moving average of the weights keeps of itself at a step. The average, also of what batch
    normalisation counts, is looked at and kept in the place of the last weights. Null: these."""
    decay_norm_and_bias: Flag | None = Field(None, examples=[False])
    """`false` leaves biases, and the scales and shifts of normalisation, out of `weight_decay`; null and true decay all
    weights."""
    patience: Integer | None = Field(None, ge=1, examples=[5])
    """With `select: best` only: training ends after so many looks at the validation images in a row that were no better
    than the best one. The schedule is that of all `epochs`. Null: it never ends early."""
    accumulate: Integer | None = Field(None, ge=2, examples=[4])
    """In how many parts, one after the other, a batch goes through the model before the one step that it makes: less
    memory for the same step. Batch normalisation sees the parts alone. Null: whole."""

    @model_validator(mode="before")
    @classmethod
    def _fill_what_only_some_use(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for field in set(given) - set(in_use(given)):
            if given[field] is not None:
                raise ValueError(f"{field} is only for {_ONLY_WITH[field].words}")
        defaults: dict[str, Any] = {"momentum": 0.9, "milestones": (0.5, 0.75), "step_factor": 0.1, "views": 8}
        defaults["finetune_factor"] = 0.1
        missing = [name for name in defaults if given.get(name) is None and _ONLY_WITH[name].used_in(given)]
        return given | {name: defaults[name] for name in missing}

    @property
    def view_count(self) -> int:
        """How many views it trains on, the images as they are among them."""
        return self.epochs if self.views == "per-epoch" else self.views or 1

    @property
    def view_names(self) -> tuple[ViewName, ...]:
        """The views that it trains on, by their numbers."""
        if self.augment is None:
            return (None,)
        among = (self.examples, self.examples_seed) if mixes(self.augment) and self.examples is not None else ()
        return (None, *(str(NamedView(self.augment, number, *among)) for number in range(1, self.view_count)))

    @property
    def left_views(self) -> tuple[ViewName, ...]:
        """Of these, those whose soft targets its training leaves at its end, before anybody learns from it.

        Where each epoch has a view of its own none: they are many, and trials of their own derive them side by side.
        What is mixed within a transfer set is derived for those who have that set.
        """
        if self.views == "per-epoch":
            return ()
        return (None,) if mixes(self.augment) and self.examples is not None else self.view_names

    @property
    def whole_epochs(self) -> float:
        """How many epochs of all layers cost as much: while the head alone trains, the rest has no backward pass.

        That is a third of an epoch; without views once, as what the rest gives is kept, and with views in every one.
        """
        head = self.head_epochs or 0
        return self.epochs - head + (head if self.views else min(head, 1)) / 3

    @field_validator("select_by")
    @classmethod
    def _one_way_to_say_accuracy(cls, select_by: str | None) -> str | None:
        return None if select_by == "accuracy" else select_by

    @field_validator("augment")
    @classmethod
    def _augment_is_known(cls, augment: str | None) -> str | None:
        if augment is not None:
            check_augment(augment)
        return augment

    @field_validator("views", mode="before")
    @classmethod
    def _views_are_per_epoch_or_a_number(cls, views: Any) -> Any:
        if views not in (None, "per-epoch") and (type(views) is not int or views < 2):
            raise ValueError(f"{views!r} is neither per-epoch nor a whole number of at least 2")
        return views

    @field_validator("freeze_norm", "nesterov")
    @classmethod
    def _one_way_to_say_no(cls, flag: bool | None) -> bool | None:
        return flag or None

    @field_validator("decay_norm_and_bias")
    @classmethod
    def _one_way_to_say_yes(cls, flag: bool | None) -> bool | None:
        return None if flag else flag

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        check_recipe(self)
        return self

    @model_validator(mode="after")
    def _milestones_rise(self) -> Self:
        marks = self.milestones or ()
        if any(not 0 < mark < 1 for mark in marks) or list(marks) != sorted(set(marks)):
            raise ValueError(f"milestones is {list(marks)}; expected rising fractions of the run, each between 0 and 1")
        return self

    @model_validator(mode="after")
    def _the_head_part_is_a_part(self) -> Self:
        if self.head_epochs is not None and self.head_epochs > self.epochs:
            raise ValueError(f"head_epochs is {self.head_epochs} of {self.epochs} epochs; it is at most all of them")
        return self


class Loss(Value):
    """The loss of a stage that learns from soft targets; `takd.trainables.training.losses` has the formulas."""

    form: Literal["convex", "additive"] = Field("convex", examples=["additive"])
    """`convex`: (1 - lambda) CE + lambda T^2 KL. `additive`: CE + lambda T^2 KL, in which lambda may exceed 1."""
    kl_reduction: Literal["batchmean", "mean"] = Field("batchmean", examples=["mean"])
    """`batchmean` sums the KL over classes; `mean` divides it by the number of classes as well."""
    guidance: Literal["separate", "ensemble"] = Field("separate", examples=["ensemble"])
    """Of several guides: the mean of the KL to each of them, or the KL to their mean."""
    drop_guides: Number | None = Field(None, gt=0, lt=1, examples=[0.3])
    """With `guidance: separate` only: the chance that a batch lacks a guide (Son et al. 2021); null drops none."""
    divergence: Annotated[Literal["decoupled"], OWN] | None = Field(None, examples=["decoupled"])
    """What stands in the place of KL: `decoupled` is that of Zhao et al. 2022, or a method of your code; null is KL."""
    alpha: Number | None = Field(None, ge=0, examples=[1.0])
    """With `divergence: decoupled` only: the weight of the label's class against all others; null is 1."""
    beta: Number | None = Field(None, ge=0, examples=[8.0])
    """With `divergence: decoupled` only: the weight of the divergence among the other classes; null is 8."""
    standardize: Flag | None = Field(None, examples=[True])
    """Bring logits to mean 0 and deviation 1 over classes before T (Sun et al. 2024); null and false leave them."""
    warmup: Number | None = Field(None, ge=0, le=1, examples=[0.1])
    """The part of the run over which the weight of the soft targets rises, epoch by epoch, to what lambda says; null
    and 0 are none."""

    @model_validator(mode="before")
    @classmethod
    def _fill_what_only_some_use(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("divergence") == "decoupled":
            return {"alpha": 1.0, "beta": 8.0} | {name: each for name, each in given.items() if each is not None}
        for name in ("alpha", "beta"):
            if given.get(name) is not None:
                raise ValueError(f"{name} is only for divergence: decoupled")
        return given

    @model_validator(mode="after")
    def _guides_are_apart(self) -> Self:
        if self.drop_guides is not None and self.guidance == "ensemble":
            raise ValueError("drop_guides is only for guidance: separate")
        return self

    def of_ensemble(self) -> "Loss":
        """As it is where the upstream stages are an ensemble's members: their mean is the teacher."""
        return self.model_copy(update={"guidance": "ensemble", "drop_guides": None})

    @field_validator("standardize", "warmup")
    @classmethod
    def _one_way_to_say_no(cls, value: Any) -> Any:
        return value or None


class Term(Value):
    """A method that adds to a stage's loss: the cross-entropy, or what `Loss` says, and `weight` times its own."""

    method: str
    weight: Number = Field(1.0, ge=0)
    temperature: Number | None = Field(None, gt=0)
    params: dict[str, Number] | None = None  # all of one of takd's; of a user's those that the space says
    warmup: Number | None = Field(None, ge=0, le=1)  # the part of the run over which its weight rises
    student_layers: tuple[str, ...] | None = None  # of a method that needs maps; null: those that the family knows
    teacher_layers: tuple[str, ...] | None = None
    needs: Needs | None = None  # of a user's, where it needs other things than logits; takd's own are known

    @property
    def needed(self) -> Needs:
        """What it compares of student and upstream."""
        return self.needs or (METHODS[self.method].needs if self.method in METHODS else "logits")

    @field_validator("warmup", "params")
    @classmethod
    def _one_way_to_say_none(cls, value: Any) -> Any:
        return value or None

    @property
    def form(self) -> dict[str, Any]:
        """What those that train side by side have in common."""
        return self.model_dump(mode="json", exclude={"weight"}, exclude_none=True)


class Given(Value):
    """What exists in place of a training: a whole model, or what one says. Both as they are kept, by their SHA-256."""

    file: str  # the name of the user's, for people: not in the key
    checkpoint: str | None = None  # weights with their head, classes and pixels as the data set has them
    logits: str | None = None  # by split, in the data set's order of images and classes

    @property
    def digest(self) -> str:
        """Of the one that it has."""
        return self.checkpoint or self.logits or ""


class Kept(Value):
    """Of layers that stand still, below which layer what they give is kept, so that they don't run in every step."""

    head: str | None = None  # HEAD, while it trains alone
    rest: str | None = None  # `finetune_from`, after that


# Whichever layers that are: no layer has a name with a space in it.
HEAD = "the head"
# Before these, among what a space knows of a model's inside: the shape of what enters them.
BELOW = "below "


class Stage(Value):
    """Train one model: on labels alone, or also from the soft targets of its upstream stages.

    One that is `given` is not trained: nothing of its recipe and seed is used.
    """

    role: Role  # what it is for; not in the key, so that a path can use another path's result
    dataset: DatasetFingerprint
    model: str
    recipe: Recipe
    seed: Integer = Field(ge=0)
    upstream: tuple["Stage", ...] = ()
    pretrained: str | None = Field(None, description="SHA-256 of the weights it starts from; null: random ones")
    given: Given | None = None
    code: dict[str, str] | None = None  # SHA-256 of the user's code that it uses, by `KIND NAME`; null: none
    loss: Loss | None = None
    temperature: Number | None = None
    lambda_: Number | None = Field(None, alias="lambda")
    terms: tuple[Term, ...] | None = None  # methods beside that, or in its place; by their names
    transfer: DatasetFingerprint | None = None  # whose training images it learns from, without labels; null: its own
    with_own: Flag | None = None  # whether it learns from its own training images too, without labels
    features: Literal["float16"] | None = None  # in which embeddings and maps are taught; null: float32
    in_loop: Flag | None = None  # whether its upstream runs beside it; not in the key: the numbers are the same
    frozen: Kept | None = None  # what is kept of its own layers that stand still; not in the key either

    @model_validator(mode="after")
    def _distillation_is_whole(self) -> Self:
        given = [self.loss, self.temperature, self.lambda_]
        if self.upstream and None in given and (given != [None, None, None] or not self.terms):
            raise ValueError("a stage with upstream stages needs loss, temperature and lambda, or a method")
        if self.transfer and not self.upstream:
            raise ValueError("a stage that learns from images without labels needs an upstream stage")
        if not self.upstream and (given != [None, None, None] or self.terms is not None):
            raise ValueError("a stage on labels alone has no loss form, temperature, lambda or method")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; a temperature is > 0")
        if self.lambda_ is not None and self.loss is not None:
            check_lambda(self.lambda_, self.loss.form)
        if self.loss is not None:
            check_labels(self.recipe, self.loss)
        for term in self.terms or ():
            check_term(self.recipe, term)
        for upstream in self.upstream:
            check_views(self.recipe, upstream.recipe, upstream.given)
        return self

    def key_input(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON; what is null is left out."""
        if self.given:
            return self._given_input(self.given)
        everything: dict[str, Any] = {
            "training_revision": TRAINING_REVISION,
            "dataset": self.dataset.model_dump(mode="json"),
            "model": self.model,
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "seed": self.seed,
            "upstream": [stage.key for stage in self.upstream],
            "pretrained": self.pretrained,
            "code": self.code,
            "new_head": NEW_HEAD if self.pretrained else None,
            "loss": self._loss_input(),
            "temperature": self.temperature,
            "lambda": self.lambda_,
            "terms": [term.model_dump(mode="json", exclude_none=True) for term in self.terms] if self.terms else None,
            "transfer": self.transfer.model_dump(mode="json") if self.transfer else None,
            "with_own": self.with_own,
            "features": self.features,
        }
        return {name: value for name, value in everything.items() if value is not None}

    def _given_input(self, given: Given) -> dict[str, Any]:
        everything: dict[str, Any] = {
            "training_revision": TRAINING_REVISION,
            "dataset": self.dataset.model_dump(mode="json"),
            "model": self.model if self.has_weights else None,
            "checkpoint": given.checkpoint,
            "logits": given.logits,
            "code": self.code,
        }
        return {name: value for name, value in everything.items() if value is not None}

    def _loss_input(self) -> dict[str, Any] | None:
        # How several upstreams are combined says nothing where there is one.
        left_out = {"guidance", "drop_guides"} if len(self.upstream) < 2 else set()
        return self.loss.model_dump(mode="json", exclude=left_out, exclude_none=True) if self.loss else None

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) over the canonical JSON of `key_input()`."""
        return key_of(self.key_input())

    @cached_property
    def shape(self) -> str:
        """What stages that train together share: all but seed, learning rate, T, lambda and upstream."""
        recipe = self.recipe.model_dump(mode="json", exclude={"learning_rate"})
        shared: list[Any] = [self.dataset.model_dump(mode="json"), self.model, self.pretrained, recipe]
        shared += [self._loss_input(), len(self.upstream)]
        shared += [self.given.digest] if self.given else []
        shared += [self.code] if self.code else []
        shared += [self.transfer.model_dump(mode="json"), self.with_own] if self.transfer else []
        if self.terms:  # what a layer gives has as many features as its model says
            shared += [[term.form for term in self.terms], [each.model for each in self.upstream], self.in_loop]
            shared += [self.features] if self.features else []
        shared += [self.frozen.model_dump(mode="json")] if self.frozen else []
        return json.dumps(shared, sort_keys=True)

    @property
    def divisible(self) -> bool:
        """Whether several ranks can train it: what it learns by looks neither at other examples nor inside a model."""
        return not self.terms and (self.loss is None or self.loss.divergence in (None, "decoupled"))

    @property
    def images(self) -> int:
        """That it is trained on."""
        if self.given:
            return 0
        own = self.dataset.sizes["train"] if self.with_own else 0
        return self.recipe.examples or own + (self.transfer or self.dataset).sizes["train"]

    @property
    def loss_name(self) -> str:
        """For people: `convex`, `cross-entropy`, `cross-entropy + 0.1 rkd`."""
        form = [self.loss.form] if self.loss else [] if self.transfer else ["cross-entropy"]
        if self.head_of is not None:
            return self.methods
        return " + ".join([*form, *(f"{term.weight:g} {term.method}" for term in self.terms or ())])

    @property
    def methods(self) -> str:
        """That teach it beside labels and soft targets, and cost something: `rkd`, or `crd+rkd`; empty: none."""
        return "+".join(term.method for term in self.terms or ())

    @property
    def head_of(self) -> "Stage | None":
        """Whose head its model ends in, as that stands, and there are no labels in its loss; mostly nobody's."""
        return self.upstream[0] if any(reuses_head(term.method) for term in self.terms or ()) else None

    @property
    def loop(self) -> str:
        """Of whom it is measured whether their upstream runs beside them: `plain-2 by at <- plain-4`."""
        return f"{self.model} by {self.methods} <- {'+'.join(each.model for each in self.upstream)}"

    @property
    def has_weights(self) -> bool:
        """Or will have; of a stage that is given as logits these are all that is known."""
        return self.given is None or self.given.logits is None

    @property
    def phase(self) -> Phase:
        """That it was first needed in; teachers and assistants of the search are used in both."""
        return "confirm" if self.seed >= FRESH_SEED else "search"

    @property
    def member(self) -> int:
        """Its number among the members of an ensemble that are alike; 0 is also the lone teacher."""
        return self.seed % FRESH_SEED // MEMBER_SEEDS

    @property
    def name(self) -> str:
        """For people: `student mlp-8 <- mlp-64 <- mlp-1200 T=4 λ=0.7 s1`."""
        models, upstream = [self.model], self.upstream
        while upstream:
            models.append("+".join(stage.model for stage in upstream))
            upstream = upstream[0].upstream
        distilled = f" T={self.temperature:.3g} λ={self.lambda_:.2g}" if self.loss else ""
        distilled += "".join(f" {term.method}={term.weight:.3g}" for term in self.terms or ())
        return f"{self.role} {' <- '.join(models)}{distilled} {'given' if self.given else f's{self.seed}'}"


def names_in(
    model: str, recipe: Recipe | None = None, loss: Loss | None = None, terms: tuple[Term, ...] = ()
) -> list[str]:
    """All that a stage names and a user's code may define, each as `KIND NAME`."""
    found = [f"model_family {model.partition('/' if '/' in model else '-')[0]}"]
    if recipe:
        found += [f"optimizer {recipe.optimizer}", f"schedule {recipe.schedule}"]
        found += [f"augmentation {part}" for part in altering(recipe.augment)]
        found += [f"metric {recipe.select_by}"] if recipe.select_by else []
    found += [f"method {loss.divergence}"] if loss and loss.divergence else []
    return [*found, *(f"method {term.method}" for term in terms)]


def check_lambda(value: float, form: str) -> None:
    """Raises ValueError when a lambda is outside what the loss form allows."""
    if value < 0 or (form == "convex" and value > 1):
        valid = "in [0, 1] for the convex loss" if form == "convex" else ">= 0"
        raise ValueError(f"lambda is {value}; a lambda is {valid}")


def check_labels(recipe: Recipe, loss: Loss) -> None:
    """Raises ValueError where a loss is told the one label that images have not that are mixed."""
    if loss.divergence and mixes(recipe.augment):
        raise ValueError(
            f"augment is {recipe.augment}, whose images have two labels, but loss.divergence: {loss.divergence} takes "
            "one; leave one of them out"
        )


def check_term(recipe: Recipe, term: Term) -> None:
    """Raises ValueError where a recipe does to a batch what a method can't take."""
    if mixes(recipe.augment):
        raise ValueError(
            f"augment is {recipe.augment}, whose images have two labels, but the method {term.method} takes one; leave "
            "one of them out"
        )
    if recipe.head_epochs is not None and reuses_head(term.method):
        raise ValueError(
            f"head_epochs is {recipe.head_epochs}, but a student of {term.method} has no head of its own to train; "
            "leave it out"
        )
    if recipe.accumulate is not None:
        raise ValueError(
            f"accumulate is {recipe.accumulate}, but the method {term.method} compares the images of a whole batch; "
            "leave it out"
        )


def check_views(recipe: Recipe, upstream: Recipe, given: Given | None = None) -> None:
    """Raises ValueError where a recipe has views that what it learns from has no soft targets of.

    View 0 is the images as they are, so a recipe without views can learn from any; and a given model says what is
    asked of it, of any view.
    """
    if recipe.augment and given and given.logits:
        raise ValueError(
            f"augment is {recipe.augment} with {recipe.views} views, but logits {given.file} are of the images as they "
            "are; leave augment out, or give the model itself as checkpoint"
        )
    if given:
        return
    few = recipe.views != "per-epoch" and recipe.view_count > upstream.view_count  # each of many is derived by itself
    if recipe.augment and (recipe.augment != upstream.augment or (few and upstream.views != "per-epoch")):
        found = f"{upstream.augment} with {upstream.views}" if upstream.augment else "none"
        raise ValueError(
            f"augment is {recipe.augment} with {recipe.views} views, but what it learns from has {found}; "
            "give both the same, upstream with at least as many views"
        )


def key_of(key_input: dict[str, Any]) -> str:
    """SHA-256 (hex) over canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(key_input, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Path(Value):
    """Teacher -> assistant... -> student, as one arm proposes it for one student seed.

    `replicate` is its number among the paths that the confirm phase draws anew; None where that draws students alone.
    """

    arm: str
    student: Stage
    replicate: Integer | None = None

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage of the path once, each after its upstream; the student is last."""
        found: dict[str, Stage] = {}

        def visit(stage: Stage) -> None:
            for upstream in stage.upstream:
                visit(upstream)
            found.setdefault(stage.key, stage)

        visit(self.student)
        return tuple(found.values())

    def __str__(self) -> str:
        """For people: `mlp-1200 > mlp-64 > mlp-8`; an ensemble in brackets."""
        teachers = [stage.model for stage in self.stages if stage.role == "teacher"]
        others = [stage.model for stage in self.stages if stage.role != "teacher"]
        return " > ".join([f"({' + '.join(teachers)})", *others] if len(teachers) > 1 else [*teachers, *others])
