"""Arms: the shape of a path without its hyperparameters, and how a name becomes one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from takd.search_spaces.errors import InputError
from takd.search_spaces.methods import KD, METHODS, RESERVED, SOFTENED, STANDARDIZE, reuses_head
from takd.search_spaces.registry import NAME, PAGE, nearest


@dataclass(frozen=True)
class Arm:
    """`labels` learns from no one, `kd` from the teacher, `takd:a>b` from the last of a chain of assistants.

    All others are `[dense/ | ensemble/] METHOD[+METHOD...] [: MODEL[>MODEL...]]`: how the student is taught, and
    through which assistants. `kd:a>b` is `takd:a>b` by another name, `dense/kd:a>b` is `dense:a>b`, `ensemble/kd` is
    `ensemble`. `+standardize` beside `kd` or `dkd` standardises logits (Sun et al. 2024).

    `dense:a>b` learns from the teacher and all assistants, each of which learns from all larger ones (Son et al. 2021);
    `label_smoothing` from smoothed labels: what distillation does beyond that is the teacher's (Yuan et al. 2020).
    `ensemble` and `ensemble:a>b` are `kd` and `takd` with an ensemble in the teacher's place (Hinton et al. 2015).
    `kd@takd:a` is `kd` whose student is trained for as many epochs as make both paths cost the same: an assistant costs
    training that `kd` could have had. An assistant `mlp-*` is of a family whose size the search chooses.
    """

    name: str
    distilled: bool
    assistants: tuple[str, ...] = ()
    dense: bool = False
    smoothed: bool = False
    ensemble: bool = False
    costs_as: "Arm | None" = None  # whose path's training FLOPs this one's path has too
    methods: tuple[str, ...] = ()  # by which the student is taught, beside its labels
    standardized: bool = False

    @property
    def paper_name(self) -> str:
        """What Mirzadeh et al. 2020, and for `dense` Son et al. 2021, call it in their tables."""
        if self.distilled and (self.methods != (KD,) or self.standardized):
            return "-"
        if self.dense:
            return "DGKD"
        if self.smoothed or self.ensemble or self.costs_as:
            return "-"
        return "TAKD" if self.assistants else "BLKD" if self.distilled else "NOKD"

    @property
    def meaning(self) -> "Arm":
        """The same for two names of one arm."""
        costs_as = self.costs_as.meaning if self.costs_as else None
        return replace(self, name="", methods=tuple(sorted(self.methods)), costs_as=costs_as)


ANY_SIZE = "-*"  # what the name of an assistant ends with whose size is searched


def is_called(name: str, model: str) -> bool:
    """Whether an assistant of this name may be of that model: `mlp-*` may be any size of its family."""
    if not name.endswith(ANY_SIZE):
        return name == model
    return re.fullmatch(re.escape(name.removesuffix("*")) + "[0-9]+", model) is not None


_SIMPLE = {
    "labels": Arm("labels", distilled=False),
    "label_smoothing": Arm("label_smoothing", distilled=False, smoothed=True),
    "kd": Arm("kd", distilled=True, methods=(KD,)),
    "ensemble": Arm("ensemble", distilled=True, ensemble=True, methods=(KD,)),
}
_CHAINS = ("takd", "dense", "ensemble")
_KINDS = ("", "dense", "ensemble")  # before the / of an arm
_MATCHED = "kd@"
_VALID = (
    f"{', '.join(_SIMPLE)}, {', '.join(f'{kind}:MODEL>MODEL' for kind in _CHAINS)} (one model or more, larger first; "
    "FAMILY-* where a size is searched), METHOD[+METHOD][:MODEL>MODEL] and dense/ or ensemble/ before it (methods: "
    f"{', '.join(METHODS)}, and {STANDARDIZE} beside {' or '.join(SOFTENED)}), "
    f"{_MATCHED}ARM (kd trained for as long as ARM costs, which is one with assistants or an ensemble)"
)


def parse_arm(name: str, any_method: bool = False) -> Arm:
    """`labels`, `kd`, `takd:mlp-200`, `dkd+standardize`, `dense/rkd+kd:mlp-400>mlp-100`, `kd@takd:mlp-200`.

    Raises InputError on others. With `any_method` a method may also be one that a user's code has.
    """
    if name in _SIMPLE:
        return _SIMPLE[name]
    if name.startswith(_MATCHED):
        rest = name.removeprefix(_MATCHED)
        other = None if rest.startswith(_MATCHED) else parse_arm(rest, any_method)
        if other is None or not (other.assistants or other.ensemble):
            raise InputError(f"{name!r} is no arm: {rest!r} has no assistant or ensemble to pay for; valid: {_VALID}")
        return Arm(name, distilled=True, costs_as=other, methods=(KD,))
    head, colon, chain = name.partition(":")
    assistants = tuple(chain.split(">")) if colon else ()
    if not all(assistants) or len(set(assistants)) < len(assistants):
        raise _no_arm(name)
    kind, slash, methods = head.rpartition("/")
    if not slash and head in _CHAINS:
        if not assistants:
            raise _no_arm(name)
        kind, methods = head.removeprefix("takd"), KD
    elif slash and (not kind or kind not in _KINDS):
        raise _no_arm(name)
    named = methods.split("+")
    own = tuple(each for each in named if each != STANDARDIZE)
    for wrong in _wrong_methods(named, own, any_method):
        raise _no_arm(name, wrong)
    if kind == "dense" and not assistants:
        raise _no_arm(name, "dense/ has no assistant")
    if kind == "dense" and any(map(reuses_head, own)):
        raise _no_arm(name, f"a student of {methods} ends in the head of one model, and dense/ has several")
    return Arm(
        name,
        distilled=True,
        assistants=assistants,
        dense=kind == "dense",
        ensemble=kind == "ensemble",
        methods=own,
        standardized=len(own) < len(named),
    )


def _wrong_methods(named: list[str], own: tuple[str, ...], any_method: bool) -> Iterator[str]:
    """What is wrong with the methods of an arm; empty where its name says nothing of what was meant."""
    for each in own:
        if each not in METHODS and (not any_method or not NAME.fullmatch(each) or each in RESERVED):
            yield f"{nearest(each, [*METHODS])}".removesuffix(" ")
    softened = [each for each in own if each in SOFTENED]
    if len(set(named)) < len(named):
        yield "a method is there twice"
    if len(softened) > 1:
        yield f"{' and '.join(softened)} stand in the same place of the loss; name one of them"
    for each in own:
        if reuses_head(each) and len(named) > 1:
            yield f"{each} is all that its student learns by; name it alone"
    if STANDARDIZE in named and not softened:
        yield f"{STANDARDIZE} is of logits that are softened: say kd+{STANDARDIZE} or dkd+{STANDARDIZE}"


def _no_arm(name: str, why: str = "") -> InputError:
    near = why if why.endswith("?") else ""
    said = f": {why}" if why and not near else ""
    return InputError(
        f"{name!r} is no arm{said}; valid: {_VALID}; {near} {PAGE} says how to bring a method of your own".replace(
            "  ", " "
        )
    )
