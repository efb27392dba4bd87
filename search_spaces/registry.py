"""Who offers what by name: one table a kind, which takd's own modules and a user's code fill by the same decorators.

Pure Python. The tables hold functions; what a table's function is called with, its decorator says. A user's code is
imported by `takd.trainables.own_code`; outside of that, and outside of takd, a decorator checks its words and keeps
nothing, so that a file of decorated functions can be imported by anybody.
"""

import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from takd.search_spaces.errors import InputError
from takd.search_spaces.methods import METHODS, OWN_TEMPERATURE, RESERVED, Needs, Param
from takd.search_spaces.metrics import Metric

Function = TypeVar("Function", bound=Callable[..., Any])

PLUGINS = "takd.plugins"  # the entry points by which an installed package offers the same
PAGE = "docs/own-code.md"  # what says how to bring one's own
NAME = re.compile(
    r"[a-z][a-z0-9_]*"
)  # of a family, what follows whose first - is the size, or a method: as arms have it
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# What tables have as `val_NAME` or `test_NAME` that is no metric's: a test holds that these are all.
COLUMNS = (
    "images",
    "majority",
    "seconds",
    "right",
    "reliability",
    "threshold",
    "ece",
    "agreement",
    "auc_low",
    "auc_high",
    "accuracy_at_threshold",
    "threshold_accuracy",
)


@dataclass(frozen=True)
class Origin:
    """Where something was defined. `digest`: of the code that it is made of; None of what takd has itself."""

    module: str
    file: str
    line: int
    digest: str | None

    def __str__(self) -> str:
        return f"{shown_file(self.file)}:{self.line}" if self.digest else "takd's own"


class Table(dict[str, Any]):
    """What there is of one kind, by name, in the order in which it was defined."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.origins: dict[str, Origin] = {}

    def add(self, name: str, value: Any, origin: Origin) -> None:
        """Raises InputError where there is one of that name."""
        if name in self:
            raise InputError(f"{origin}: {self.kind} {name!r} is there already: {self.origins[name]}")
        self[name], self.origins[name] = value, origin

    def forget(self, files: Collection[str]) -> None:
        """What was defined in these."""
        for name in [name for name, origin in self.origins.items() if origin.file in files]:
            del self[name], self.origins[name]


KINDS = ("model_family", "method", "augmentation", "optimizer", "schedule", "metric", "dataset")
TABLES: Mapping[str, Table] = {kind: Table(kind) for kind in KINDS}


class _Importing:
    """The digest of each module of the code that is being imported, by the module's name."""

    digest_of: Callable[[str], str | None] | None = None
    files: frozenset[str] = frozenset()  # of a user's code that is used in this process
    packages: frozenset[str] = frozenset()  # the folders, or files, of installed ones


@contextmanager
def importing(digest_of: Callable[[str], str | None]) -> Iterator[None]:
    """What is defined meanwhile by modules that have a digest is kept."""
    _Importing.digest_of = digest_of
    try:
        yield
    finally:
        _Importing.digest_of = None


def know_files(files: Collection[str]) -> None:
    """The files whose lines an error names, in place of those before."""
    _Importing.files = frozenset(files)


def know_package(places: Collection[str]) -> None:
    """The folders or files of an installed package, whose lines an error names too."""
    _Importing.packages |= frozenset(places)


def _is_known(file: str) -> bool:
    return file in _Importing.files or any(
        file == place or file.startswith(place + os.sep) for place in _Importing.packages
    )


@dataclass(frozen=True)
class Family:
    """How a family's members are built.

    `build(size, image_shape, classes)`, or with a fourth argument for dropout, gives a module
    `[batch, channels, height, width] -> [batch, classes]`.
    """

    build: Callable[..., Any]
    sizes: str  # what a size may be, for people: "mlp-H with H >= 1 hidden units a layer"
    valid: Callable[[Any], bool] | None = None  # of a size; None: `build` refuses those that can't be
    takes_dropout: bool = False
    dropout: float | None = None  # what `build` gets unless a recipe says otherwise; None: each member has its own
    separator: str = "-"  # between the family's name and a size


def model_family(
    name: str, *, sizes: str | None = None, valid: Callable[[Any], bool] | None = None, separator: str = "-"
) -> Callable[[Function], Function]:
    """Defines a family of models: `small` makes `small-8`, `small-16` and `small` names of models in a space.

    The function is called with the size (a whole number where it is written in digits, None where there is none, text
    otherwise), `image_shape` (channels, height, width) and the number of classes. An argument `dropout` gets the
    recipe's, or its own default; without one the family takes none. A ValueError refuses a size.
    """

    _needs_a_name("model_family", name)

    def define(build: Function) -> Function:
        origin = _origin(2)
        _check_name("model_family", name, NAME, origin)
        parameters = _parameters("model_family", name, build, ("size", "image_shape", "classes"), origin)
        takes, default = "dropout" in parameters, None
        if takes:
            given = parameters["dropout"].default
            default = 0.0 if given is inspect.Parameter.empty else given
        whose = f"{name}-SIZE of {shown_file(origin.file)}" if origin.digest else name
        family = Family(build, sizes or whose, valid, takes, default, separator)
        _add("model_family", name, family, origin)
        return build

    return define


@dataclass(frozen=True)
class Method:
    """What teaches beside the labels, or in the place of `T^2 * KL`.

    `needs` says what it is called with: see `method`; or `soft_targets`, with all lanes and upstreams at once
    (`takd.trainables.training.losses`). Of one of takd's own, `params` and what follows it are in
    `takd.search_spaces.methods`.
    """

    function: Callable[..., Any]
    needs: Needs | Literal["soft_targets"]
    params: Mapping[str, Param] = field(default_factory=dict)
    modules: Callable[..., Any] | None = None
    temperature: float | None = None
    takes: frozenset[str] = frozenset()  # the names of the function's arguments
    by_lane: bool = False  # a user's: called a lane at a time, since it may do what `torch.func.vmap` can't do

    @property
    def is_divergence(self) -> bool:
        """Whether it may stand in the place of KL."""
        return self.needs == "soft_targets" or (self.needs == "logits" and not self.params and not self.modules)


def method(
    name: str,
    *,
    needs: Needs | Literal["soft_targets"] = "logits",
    params: Mapping[str, Param | float] | None = None,
    modules: Callable[..., Any] | None = None,
    temperature: float | None = None,
) -> Callable[[Function], Function]:
    """Defines a way to teach, for arms such as `NAME`, `NAME+kd` and `NAME:mlp-64`.

    The function is called for one model and one that teaches it, with `student` and `teacher`, `labels` `[images]`, and
    the parameters by their names. What the first two are, `needs` says: `logits` `[images, classes]`; `embedding`,
    what enters the head, float32 `[images, features]`, of each as many as it has; `maps`, tuples of float32
    `[images, channels, height, width]`, in pairs by layer. It returns what is to fall, by image `[images]` or as one
    number, a mean. The loss is the cross-entropy with the labels and that, times the weight that a space gives it.

    One that needs logits gets `temperature` too, a number; it may also be named by `loss: {divergence: NAME}`, where
    `form` and lambda make of it what they make of `T^2 * KL`. It has no factor T^2 but its own.

    `modules(student_shapes, teacher_shapes, classes, examples, **params)` gives a module whose weights are trained
    beside the student, and whose buffers are in its checkpoint: the function then gets it as `modules`. Shapes are
    those of one image. A function with an argument `indices` gets `[images]`, their places in the transfer set.
    """

    _needs_a_name("method", name)

    def define(function: Function) -> Function:
        origin = _origin(2)
        _check_name("method", name, NAME if needs != "soft_targets" else WORD, origin)
        if needs not in (valid := ("logits", "embedding", "maps", "soft_targets")):
            raise InputError(f"{_at(origin)}: method {name!r}: needs is {needs!r}; valid: {', '.join(valid[:3])}")
        if needs == "soft_targets":
            _parameters("method", name, function, ("student", "labels", "temperature", "loss"), origin)
            _add("method", name, Method(function, needs), origin)
            return function
        made = _method(name, function, needs, params or {}, modules, temperature, origin)
        _add("method", name, made, origin)
        return function

    return define


def _method(
    name: str,
    function: Callable[..., Any],
    needs: Needs,
    params: Mapping[str, Param | float],
    modules: Callable[..., Any] | None,
    temperature: float | None,
    origin: Origin,
) -> Method:
    """Raises InputError where the function has not the arguments that it is called with."""
    numbers = {key: each if isinstance(each, Param) else Param(float(each)) for key, each in params.items()}
    if name in METHODS and not origin.digest:
        numbers, temperature = dict(METHODS[name].params), METHODS[name].temperature
        needs_none = temperature is None
    else:
        needs_none = needs != "logits"
        temperature = None if needs_none else temperature or OWN_TEMPERATURE
    positional = ("student", "teacher", "labels") + (() if needs_none else ("temperature",))
    takes, made_with = (set(_names(each)) for each in (function, modules))
    own = [key for key in numbers if key in takes or key not in made_with]  # the others are the modules' alone
    named = [*own, *(["modules"] if modules else []), *(["indices"] if "indices" in takes else [])]
    _parameters("method", name, function, positional, origin, named)
    return Method(function, needs, numbers, modules, temperature, frozenset(takes), origin.digest is not None)


def _names(function: Callable[..., Any] | None) -> Iterable[str]:
    """Of its arguments."""
    try:
        return inspect.signature(function).parameters if function else ()
    except (TypeError, ValueError):
        return ()


@dataclass(frozen=True)
class Augmentation:
    """How a view changes images uint8 `[images, channels, height, width]`, by what is drawn for each of them.

    That is float32 `[images, numbers]`, from 0 to 1; without `numbers` what takd's own draw, a `View`.
    """

    function: Callable[..., Any]
    numbers: int | None


def augmentation(name: str, *, numbers: int | None = 1) -> Callable[[Function], Function]:
    """Defines an augmentation, for `recipe: {augment: NAME}`.

    The function is called with images, uint8 `[images, channels, height, width]`, and `drawn`, float32
    `[images, numbers]` from 0 to 1: all chance that it has, the same for a teacher and who learns from it. It returns
    images of the same shape and type.
    """

    _needs_a_name("augmentation", name)

    def define(function: Function) -> Function:
        origin = _origin(2)
        _check_name("augmentation", name, WORD, origin)
        if (numbers is None and origin.digest) or (numbers is not None and (type(numbers) is not int or numbers < 1)):
            raise InputError(f"{_at(origin)}: augmentation {name!r}: numbers is {numbers!r}; it is at least 1")
        _parameters("augmentation", name, function, ("images", "drawn"), origin)
        _add("augmentation", name, Augmentation(function, numbers), origin)
        return function

    return define


@dataclass(frozen=True)
class OptimizerKind:
    """What makes an optimizer; `by_element`: its steps treat every weight alike, whatever the others are."""

    function: Callable[..., Any]
    by_element: bool

    def __call__(self, weights: list[Any], learning_rate: float, recipe: Any) -> Any:
        return self.function(weights, learning_rate, recipe)


def optimizer(name: str, *, by_element: bool = False) -> Callable[[Function], Function]:
    """Defines an optimizer, for `recipe: {optimizer: NAME}`.

    The function is called with a list of weights, the learning rate and the recipe, and returns one of torch's, or one
    that is used as these are; all that it keeps by weight must be tensors. With `by_element` a step of a weight depends
    on its own gradients alone, so that several stages may train as lanes of one model.
    """

    _needs_a_name("optimizer", name)

    def define(function: Function) -> Function:
        origin = _origin(2)
        _check_name("optimizer", name, WORD, origin)
        _parameters("optimizer", name, function, ("weights", "learning_rate", "recipe"), origin)
        _add("optimizer", name, OptimizerKind(function, by_element), origin)
        return function

    return define


def schedule(name: str) -> Callable[[Function], Function]:
    """Defines a schedule, for `recipe: {schedule: NAME}`.

    The function is called with the part of the run that is done, from 0 to 1, and the recipe, and returns what the
    learning rate is multiplied by.
    """

    _needs_a_name("schedule", name)

    def define(function: Function) -> Function:
        origin = _origin(2)
        _check_name("schedule", name, WORD, origin)
        _parameters("schedule", name, function, ("done", "recipe"), origin)
        _add("schedule", name, function, origin)
        return function

    return define


@dataclass(frozen=True)
class MetricKind:
    """What measures logits `[images, classes]` beside labels `[images]`, and how people read what it says."""

    function: Callable[..., Any]
    title: str
    higher: bool
    fraction: bool


def metric(
    name: str, *, title: str | None = None, higher: bool = True, fraction: bool = True
) -> Callable[[Function], Function]:
    """Defines a metric, for `metric: NAME` and `recipe: {select: best, select_by: NAME}`.

    The function is called with what a model says of all images of a split, logits float32 `[images, classes]`, and
    their labels `[images]`, both on the CPU, and returns one number. `title` is what people read (the name); `higher`
    says that more is better; `fraction` that it lies between 0 and 1 and is shown in percent.
    """

    _needs_a_name("metric", name)

    def define(function: Function) -> Function:
        origin = _origin(2)
        _check_name("metric", name, WORD, origin)
        if name in COLUMNS:
            raise InputError(f"{_at(origin)}: metric {name!r}: tables have something else of that name; rename it")
        for what, value, kind in (
            ("title", title, str | None),
            ("higher", higher, bool),
            ("fraction", fraction, bool),
        ):
            if not isinstance(value, kind):
                expected = "text" if what == "title" else "True or False"
                raise InputError(f"{_at(origin)}: metric {name!r}: {what} is {value!r}; expected {expected}")
        _parameters("metric", name, function, ("logits", "labels"), origin)
        _add("metric", name, MetricKind(function, title or name.replace("_", " "), higher, fraction), origin)
        return function

    return define


def metric_named(name: str) -> Metric:
    """Of the table."""
    kind, origin = TABLES["metric"][name], TABLES["metric"].origins[name]
    return Metric(name, kind.title, kind.higher, kind.fraction, origin.digest)


def _needs_a_name(kind: str, name: Any) -> None:
    """Raises InputError where a decorator was put on a function itself, which would define nothing."""
    if callable(name):
        called = getattr(name, "__name__", "NAME")
        raise InputError(f"{_at(_origin(3))}: @takd.{kind} takes a name: @takd.{kind}({called!r})")


def _check_name(kind: str, name: Any, valid: "re.Pattern[str]", origin: Origin) -> None:
    if not isinstance(name, str) or not valid.fullmatch(name):
        dash = ", - " if valid is WORD else " "
        letters = "small letters" if valid is NAME else "letters"
        raise InputError(f"{_at(origin)}: {kind} {name!r}: a name is {letters}, digits{dash}and _, a letter first")
    if kind == "method" and origin.digest and (name in RESERVED or name in METHODS):
        raise InputError(f"{_at(origin)}: {kind} {name!r}: takd has that name in arms; choose another")


def _parameters(
    kind: str,
    name: str,
    function: Callable[..., Any],
    expected: tuple[str, ...],
    origin: Origin,
    named: Iterable[str] = (),
) -> Mapping[str, inspect.Parameter]:
    """The function's, which must be callable with as many values as are expected, and others by their names.

    Raises InputError.
    """
    try:
        signature = inspect.signature(function)
        others = dict.fromkeys([*named, *(["dropout"] if "dropout" in signature.parameters else [])], 0.0)
        signature.bind(*expected, **others)
    except (TypeError, ValueError) as error:
        told = ", ".join([*expected, *(f"{each}=" for each in named)])
        raise InputError(
            f"{_at(origin)}: {kind} {name!r}: is called with ({told}), which it does not take: {error}"
        ) from None
    return signature.parameters


def _at(origin: Origin) -> str:
    return f"{shown_file(origin.file)}:{origin.line}"


def _origin(above: int) -> Origin:
    """Where a decorator is put on something, that many calls above here: a function, a class, or what another made."""
    frame = sys._getframe(above)
    module = str(frame.f_globals.get("__name__", ""))
    digest = _Importing.digest_of(module) if _Importing.digest_of else None
    return Origin(module, frame.f_code.co_filename, frame.f_lineno, digest)


def define(kind: str, name: str, value: Callable[[Origin], Any]) -> None:
    """For decorators of kinds that are defined elsewhere: puts what `value` makes of the origin into the table."""
    origin = _origin(3)
    _check_name(kind, name, WORD, origin)
    _add(kind, name, value(origin), origin)


def _add(kind: str, name: str, value: Any, origin: Origin) -> None:
    """To the table, where that is done by takd or by code that is being imported."""
    if origin.digest is not None or origin.module.startswith("takd."):
        TABLES[kind].add(name, value, origin)


def shown_file(file: str) -> str:
    """As people find it: relative to where they are, where it is below that."""
    here = os.getcwd()
    return os.path.relpath(file, here) if file.startswith(here + os.sep) else file


def blamed(error: BaseException, otherwise: str) -> InputError:
    """What a user's code raised, as one line with the user's file and line; `otherwise` where no line is the user's."""
    place = line_of(error) or otherwise
    if isinstance(error, SyntaxError) and error.filename in _Importing.files:
        return InputError(f"{shown_file(error.filename)}:{error.lineno}: is not Python: {error.msg}")
    said = " ".join(str(error).split()) or "no reason is given"
    meant = isinstance(error, ValueError | AssertionError) and _raised_by_the_user(error)
    kind = "" if meant or isinstance(error, InputError) else f"{type(error).__name__}: "
    return InputError(f"{place}: {kind}{said[:300]}")


def line_of(error: BaseException) -> str | None:
    """The innermost line of a user's code that an error came through; None where there is none."""
    trace, found = error.__traceback__, None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if _is_known(file):
            found = f"{shown_file(file)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _raised_by_the_user(error: BaseException) -> bool:
    """Rather than by what the user's code calls."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _is_known(trace.tb_frame.f_code.co_filename)


def nearest(name: str, valid: Mapping[str, Any] | list[str]) -> str:
    """`did you mean 'mlp'? ` where a name that there is is like it; empty else."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def origin_of(kind: str, name: str) -> Origin | None:
    """None of what is not there."""
    return TABLES[kind].origins.get(name)


def check_digests(expected: Mapping[str, str] | None) -> None:
    """Raises InputError unless the code in use is the very code that `expected` says, by `KIND NAME`."""
    for place, digest in (expected or {}).items():
        kind, _, name = place.partition(" ")
        origin = origin_of(kind, name)
        if origin is None:
            raise InputError(
                f"{kind} {name!r} is of code that is not given, and none of a root is run; give the file that defines "
                "it, as the space does: takd export NAME --code nets.py"
            )
        if origin.digest != digest:
            raise InputError(
                f"{origin}: {kind} {name!r} has the digest {str(origin.digest)[:12]}, what was trained by it "
                f"{digest[:12]}: the code has changed"
            )
