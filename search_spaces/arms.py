"""Arms: the shape of a path without its hyperparameters, and how a name becomes one."""

import re
from dataclasses import dataclass

from takd.search_spaces.errors import InputError


@dataclass(frozen=True)
class Arm:
    """`labels` learns from no one, `kd` from the teacher, `takd:a>b` from the last of a chain of assistants.

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

    @property
    def paper_name(self) -> str:
        """What Mirzadeh et al. 2020, and for `dense` Son et al. 2021, call it in their tables."""
        if self.dense:
            return "DGKD"
        if self.smoothed or self.ensemble or self.costs_as:
            return "-"
        return "TAKD" if self.assistants else "BLKD" if self.distilled else "NOKD"


ANY_SIZE = "-*"  # what the name of an assistant ends with whose size is searched


def is_called(name: str, model: str) -> bool:
    """Whether an assistant of this name may be of that model: `mlp-*` may be any size of its family."""
    if not name.endswith(ANY_SIZE):
        return name == model
    return re.fullmatch(re.escape(name.removesuffix("*")) + "[0-9]+", model) is not None


_SIMPLE = {
    "labels": Arm("labels", distilled=False),
    "label_smoothing": Arm("label_smoothing", distilled=False, smoothed=True),
    "kd": Arm("kd", distilled=True),
    "ensemble": Arm("ensemble", distilled=True, ensemble=True),
}
_CHAINS = ("takd", "dense", "ensemble")
_MATCHED = "kd@"
_VALID = (
    f"{', '.join(_SIMPLE)}, {', '.join(f'{kind}:MODEL>MODEL' for kind in _CHAINS)} (one model or more, larger first; "
    "FAMILY-* where a size is searched), "
    f"{_MATCHED}ARM (kd trained for as long as ARM costs, which is one with assistants or an ensemble)"
)


def parse_arm(name: str) -> Arm:
    """`labels`, `kd`, `takd:mlp-200`, `dense:mlp-400>mlp-100`, `kd@takd:mlp-200`; raises InputError on others."""
    if name in _SIMPLE:
        return _SIMPLE[name]
    if name.startswith(_MATCHED):
        rest = name.removeprefix(_MATCHED)
        other = None if rest.startswith(_MATCHED) else parse_arm(rest)
        if other is None or not (other.assistants or other.ensemble):
            raise InputError(f"{name!r} is no arm: {rest!r} has no assistant or ensemble to pay for; valid: {_VALID}")
        return Arm(name, distilled=True, costs_as=other)
    kind, _, chain = name.partition(":")
    assistants = tuple(chain.split(">"))
    if kind not in _CHAINS or not all(assistants) or len(set(assistants)) < len(assistants):
        raise InputError(f"{name!r} is no arm; valid: {_VALID}")
    return Arm(name, distilled=True, assistants=assistants, dense=kind == "dense", ensemble=kind == "ensemble")
