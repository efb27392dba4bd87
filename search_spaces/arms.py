"""Arms: the shape of a path without its hyperparameters, and how a name becomes one."""

from dataclasses import dataclass

from search_spaces.errors import InputError


@dataclass(frozen=True)
class Arm:
    """`labels` learns from no one, `kd` from the teacher, `takd:a>b` from the last of a chain of assistants."""

    name: str
    distilled: bool
    assistants: tuple[str, ...] = ()

    @property
    def paper_name(self) -> str:
        """What Mirzadeh et al. 2020 call it in their tables."""
        return "TAKD" if self.assistants else "BLKD" if self.distilled else "NOKD"


def parse_arm(name: str) -> Arm:
    """`labels`, `kd`, `takd:mlp-200` or `takd:mlp-400>mlp-100`; raises InputError on anything else."""
    if name == "labels":
        return Arm(name, distilled=False)
    if name == "kd":
        return Arm(name, distilled=True)
    kind, _, chain = name.partition(":")
    assistants = tuple(chain.split(">"))
    if kind != "takd" or not all(assistants) or len(set(assistants)) < len(assistants):
        raise InputError(f"{name!r} is no arm; valid: labels, kd, takd:MODEL, takd:MODEL>MODEL (larger first)")
    return Arm(name, distilled=True, assistants=assistants)
