"""A parameter's choices as a study's trials have them: Optuna takes no others for a name than those it had first.

So a value that is added to a factor later has a parameter of its own, `student.model+1`, which only trials with such a
value have. No one but Optuna and its dashboard sees these names.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from takd.search_spaces import distinct, one_number
from takd.search_spaces.factors import same_value


def parameters_of(trial: Any) -> dict[str, Any]:
    """What a trial of Optuna's has chosen, by the names that a space has."""
    return _by_name(trial.params)


def told_to(trial: Any) -> dict[str, Any]:
    """The values that a trial had before its sampler was asked."""
    return _by_name(trial.system_attrs.get("fixed_params", {}))


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_name_of(own): value for own, value in values.items()}


def _name_of(own: str) -> str:
    return re.sub(r"\+\d+$", "", own)


class StoredChoices:
    """The choices that a study's parameters have had, by the names that Optuna has."""

    def __init__(self, trials: Iterable[Any]) -> None:
        self._by_own: dict[str, Sequence[Any]] = {}
        for trial in trials:
            for own in trial.distributions.keys() - self._by_own.keys():
                if (choices := getattr(trial.distributions[own], "choices", None)) is not None:
                    self._by_own[own] = choices

    def stored(self, told: Mapping[str, Any], factors: Collection[str]) -> dict[str, Any]:
        """What a trial is told, by the names that Optuna has."""
        return {self._own(name, value) if name in factors else name: value for name, value in told.items()}

    def _own(self, name: str, value: Any) -> str:
        """The parameter that has this value among its choices, or will have it."""
        groups = self._groups(name)
        of_value = (own for own, choices in groups.items() if any(same_value(value, each) for each in choices))
        return next(of_value, f"{name}+{len(groups)}" if groups else name)

    def _groups(self, name: str) -> dict[str, Sequence[Any]]:
        return {own: choices for own, choices in self._by_own.items() if _name_of(own) == name}

    def offered(self, own: str, now: Sequence[Any]) -> Sequence[Any]:
        """The choices that a parameter was first offered with, else those that no other of its name has."""
        if own in self._by_own:
            return self._by_own[own]
        known = [each for choices in self._groups(_name_of(own)).values() for each in choices]
        return [value for value in now if not any(same_value(value, each) for each in known)]


class AsStored:
    """A trial that is offered a parameter's choices as its study has them: an older one may have 1 and 1.0 as two."""

    def __init__(self, trial: Any, frozen: Any, stored: StoredChoices, factors: Collection[str]) -> None:
        """`frozen` is the trial as it is stored."""
        self._trial, self._stored, self._factors = trial, stored, factors
        names = [*frozen.system_attrs.get("fixed_params", {}), *frozen.params]
        self._own = {_name_of(own): own for own in names}
        self.suggest_int, self.suggest_float = trial.suggest_int, trial.suggest_float

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        own = self._own.get(name, name)
        before = self._stored.offered(own, choices)
        offered = before if name in self._factors or distinct(before) == distinct(choices) else choices
        return one_number(self._trial.suggest_categorical(own, offered))
