"""Which of Optuna's samplers draws for a trial, and what it is shown of a study's other trials."""

import copy
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from takd.search_spaces import Space
from takd.study.search.stored_choices import told_to

# From a seed.
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    # Conditional parameters are modelled by arm (group), running trials counted as bad (constant liar).
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),  # draws nothing: a grid is enqueued whole
}

# What a sampler sees of the trials that have ended: its time grows with their number, and of more it finds nothing
# better. TPE models the best 25 and all others.
NEWEST = 150
BEST = 50  # of those that are no longer among the newest
RUNNING = 64  # of those that run, the newest: where each of a thousand counts as bad nothing but the edges is left

AGAIN = "again"  # what a trial says of the failed one in whose place it is: its number


class Sampling:
    """The sampler of each trial of a study, which is shown the trials of its cell alone.

    What is drawn for a trial follows from its number, not from what this process drew before. Trials that are tried
    again count for nothing: all others draw what they would have drawn without them.

    Each trial is read once when it comes and once when it has ended, however many there are.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._again: list[int] = []  # the numbers of the trials that are in place of others
        self._of_cells: dict[tuple[Any, ...], list[int]] = {}  # those of all trials, by the values of their factors
        self._read = 0
        self._histories: dict[tuple[Any, ...], History] = {}

    def sampler(self, number: int, trials: Sequence[FrozenTrial]) -> optuna.samplers.BaseSampler:
        """For the trial of this number, which may not be there yet: then the space has no factors."""
        for trial in trials[self._read :]:
            if AGAIN in trial.user_attrs:
                self._again.append(trial.number)
            self._of_cells.setdefault(self._cell_of(trial), []).append(trial.number)
        self._read = len(trials)
        cell = self._cell_of(trials[number]) if self.space.factors else ()
        space = self.space.cell(dict(zip(self.space.factors, cell, strict=True))).space if cell else self.space
        numbers = self._of_cells.get(cell, [])
        spent = _spent_arms(space, number, (trials[each] for each in numbers))
        history = self._histories.setdefault((cell, spent), History(spent, lowest=not space.goes_by.higher))
        draw = number - bisect_left(self._again, number)
        sampler = SAMPLERS[space.sampler]((space.sampler_seed + 1_000_003 * draw) % 2**32)
        return Shown(OtherArms(sampler, spent) if spent else sampler, history.seen(numbers, trials))

    def _cell_of(self, trial: FrozenTrial) -> tuple[Any, ...]:
        if not self.space.factors:
            return ()
        told = told_to(trial)
        return tuple(told[name] for name in self.space.factors)


def _spent_arms(space: Space, number: int, trials: Iterable[FrozenTrial]) -> frozenset[str]:
    """Arms that have nothing to tune and had their coverage, or one trial, before this one: others learn from more."""
    idle = {arm.name for arm in space.all_arms if not space.varied(arm)}
    had: Counter[str] = Counter()
    spent: set[str] = set()
    if not idle:
        return frozenset()
    for each in trials:  # the first ones say it: the others are not looked at
        if each.number >= number or spent == idle:
            break
        if (arm := each.params.get("arm")) in idle and AGAIN not in each.user_attrs:
            had[arm] += 1
            spent |= {arm} if had[arm] >= max(1, space.coverage) else set()
    return frozenset(spent if len(spent) < len(space.all_arms) else ())


class History:
    """What a sampler is shown of the trials of a cell that are of arms not spent.

    Each is read once when it was proposed, and once when it has ended.
    """

    def __init__(self, spent: Container[str] = (), lowest: bool = False) -> None:
        """With `lowest` the best are those with the lowest value."""
        self.spent, self.sign = spent, 1.0 if lowest else -1.0
        self._read = 0  # how many of the cell's trials were
        self._unfinished: dict[int, FrozenTrial] = {}  # by their numbers, as they are shown
        self._newest: list[int] = []  # the numbers of those that have ended
        self._best: list[tuple[float, int]] = []  # of the others that have ended well, the best first

    def seen(self, numbers: Sequence[int], trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """In their order. Of all trials of the study those with these numbers are of the cell; more may have come since
        the last call, and some have ended."""
        for number in numbers[self._read :]:
            if "arm" not in trials[number].params:
                break  # it waits, and so do those that follow
            self._read += 1
            if trials[number].params["arm"] not in self.spent:
                self._unfinished[number] = _as_it_runs(trials[number])
        for number in [each for each in self._unfinished if trials[each].state.is_finished()]:
            del self._unfinished[number]
            self._note(trials, number)
        shown = [*(number for _, number in self._best[:BEST]), *self._newest]
        running = list(self._unfinished.values())[-RUNNING:]
        return sorted([*(trials[each] for each in shown), *running], key=lambda trial: trial.number)

    def _note(self, trials: Sequence[FrozenTrial], ended: int) -> None:
        if trials[ended].state == TrialState.FAIL:
            return
        insort(self._newest, ended)
        if len(self._newest) > NEWEST:
            older = trials[self._newest.pop(0)]
            if older.state == TrialState.COMPLETE:
                insort(self._best, (self.sign * older.values[0], older.number))


def _as_it_runs(trial: FrozenTrial) -> FrozenTrial:
    """A trial with what it chose, and without what TPE drew for it beside that, of the arms that it is not of."""
    shown = copy.copy(trial)
    shown.system_attrs = {}
    return shown


class Shown(optuna.samplers.BaseSampler):
    """A sampler that sees some trials of a study."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, seen: Sequence[FrozenTrial]) -> None:
        self.sampler, self.seen = sampler, seen

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Which follows from the sets of parameters that there are: one trial of each says it."""
        kinds = {(frozenset(each.distributions), each.state): each for each in reversed(self.seen)}
        one_of_each = _Seen(study, [*reversed(kinds.values())])
        return self.sampler.infer_relative_search_space(one_of_each, trial)  # type: ignore[arg-type]

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self.sampler.sample_relative(_Seen(study, self.seen), trial, search_space)  # type: ignore[arg-type]

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        seen = _Seen(study, self.seen)
        return self.sampler.sample_independent(seen, trial, name, distribution)  # type: ignore[arg-type]


class _Seen:
    """An Optuna study with some of its trials."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]

    get_trials = _get_trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


DRAWS = 20  # of an arm, until one comes that is not spent


class OtherArms(optuna.samplers.BaseSampler):
    """A sampler that draws from some arms no more."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, spent: Container[str]) -> None:
        self.sampler, self.spent = sampler, spent

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for _ in range(DRAWS):
            drawn = self.sampler.sample_relative(study, trial, search_space)
            if drawn.get("arm") not in self.spent:
                return drawn
        return drawn | {"arm": self._other(trial, search_space["arm"])}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        for _ in range(DRAWS):
            drawn = self.sampler.sample_independent(study, trial, name, distribution)
            if name != "arm" or drawn not in self.spent:
                return drawn
        return self._other(trial, distribution)

    def _other(self, trial: FrozenTrial, arms: Any) -> Any:
        """Where the sampler insists, the others take turns."""
        others = [arm for arm in arms.choices if arm not in self.spent]
        return others[trial.number % len(others)]
