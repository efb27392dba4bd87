"""The Optuna side of a study: which configurations to try, what became of each, kept in a durable storage."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from takd.search_spaces import (
    TRAINING_REVISION,
    Configuration,
    DatasetFingerprint,
    InputError,
    Path,
    Space,
    Stage,
    one_number,
    some,
    space_from,
    without_code,
)
from takd.search_spaces.factors import same_value, value_text
from takd.study.folder import StudyFolder
from takd.study.search.attributes import KEY_DIGITS, keys_of, outcome_attributes, proposal_attributes, students_of
from takd.study.search.graph import Node, Proposal, StageGraph
from takd.study.search.sampling import AGAIN, Sampling
from takd.study.search.storages import open_optuna
from takd.study.search.stored_choices import AsStored, StoredChoices, parameters_of, told_to
from takd.study.stopping import Stop

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

FIRST_KEPT_REVISION = 2  # of studies that say none
NEVER = "never said"


class Search:
    """An Optuna study of a space: `ask` proposes, `tell` records."""

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        self._known: list[FrozenTrial] | None = None  # all, once this process proposes: then no other changes them
        # Code is run that its user's space names, never what a root says.
        self.space = without_code(space_from(study.user_attrs["space"], f"study {study.study_name}"))
        self.dataset = DatasetFingerprint.model_validate(study.user_attrs["dataset"])
        # Counted once, then kept up to date: one process at a time proposes. A trial that is tried again has its seeds.
        everything = [trial for trial in self._trials() if "seeds" in trial.user_attrs]
        self._proposed = Counter(
            _canonical(parameters_of(trial)) for trial in everything if AGAIN not in trial.user_attrs
        )
        self.asked = len(self.proposed())
        self._choices = StoredChoices(self._trials())
        self._sampling = Sampling(self.space)
        self._begun = 0  # no trial before this one waits

    def enqueue(self) -> None:
        """Queues what the space says of trials before the sampler is asked, as far as it is not queued already."""
        have = Counter(_canonical(told_to(trial)) for trial in self._trials() if AGAIN not in trial.user_attrs)
        for parameters in self.space.queued():
            have[_canonical(parameters)] -= 1
            if have[_canonical(parameters)] < 0:
                self.study.enqueue_trial(self._choices.stored(parameters, self.space.factors))
        self._known = None

    def try_again(self) -> int:
        """Queues anew what failed, unless it would fail again by what its keys say; returns how many trials.

        A trial of Optuna's that has ended stays as it is: another takes its place, with its configuration and seeds.
        """
        failed = self.failed_before
        for trial in failed:
            self.study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
        self.asked -= len(failed)
        self._known = None
        return len(failed)

    @property
    def failed_before(self) -> list[FrozenTrial]:
        """The trials that the next run tries again."""
        return [trial for trial in self.proposed() if trial.state == TrialState.FAIL and not _lasts(trial)]

    @property
    def lasting(self) -> dict[str, str]:
        """The reasons of the stages, by key, that would fail again."""
        found = dict(self.study.user_attrs.get("confirm_lasting", {}))
        for trial in self._trials():
            found |= trial.user_attrs.get("lasting", {})
        return found

    def ask(self) -> Proposal | None:
        """The next configuration, with seeds no earlier trial of the same configuration had; None: budget spent."""
        if self.asked >= self.space.budget:
            return None
        if self._known is None:
            self._known = self._trials()
        while self._begun < len(self._known) and self._known[self._begun].state != TrialState.WAITING:
            self._begun += 1
        self.study.sampler = self._sampling.sampler(self._begun, self._known)
        return self._propose(self._begin(self._begun))

    def _begin(self, number: int) -> optuna.Trial:
        """The trial of this number: the first that waits, else a new one.

        `optuna.Study.ask` does the same, and looks through all trials for one that waits.
        """
        storage = self.study._storage
        if number == len(self._trials()):
            return optuna.Trial(self.study, storage.create_new_trial(self.study._study_id))
        waiting = self._trial(number)._trial_id
        storage.set_trial_state_values(waiting, TrialState.RUNNING)
        return optuna.Trial(self.study, waiting)

    def _propose(self, trial: optuna.Trial) -> Proposal:
        choice = self._suggest(trial)
        parameters = parameters_of(trial)
        configuration = _canonical(parameters)
        if (again := trial.user_attrs.get(AGAIN)) is None:
            same = self._proposed[configuration]
            seeds = list(range(same * self.space.seeds, (same + 1) * self.space.seeds))
        else:
            seeds = self._trial(again).user_attrs["seeds"]
        paths = self.space.paths(choice, self.dataset, seeds)
        trial.set_user_attr("arm", choice.arm.name)
        trial.set_user_attr("path", str(paths[0]))
        for name, value in proposal_attributes(paths).items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("seeds", seeds)  # last: a trial with seeds was proposed whole
        self._look_again(trial.number)
        self._proposed[configuration] += again is None
        self.asked += 1
        cell = self.space.cell(parameters).name
        return Proposal(trial.number, configuration_name(choice.arm.name, parameters), paths, cell=cell)

    def tell(self, proposal: Proposal, graph: StageGraph) -> None:
        """The mean of the metric of the students on validation; failed or pruned where one of them was.

        Of what is confirmed only failures are kept, those of the last run.
        """
        keys = {stage.key for path in proposal.paths for stage in path.stages}
        failures = {key: graph.nodes[key].reason or "" for key in keys if graph.nodes[key].state == "failed"}
        lasting = {key: reason for key, reason in failures.items() if graph.nodes[key].lasting}
        if proposal.phase == "confirm":
            others = {key: reason for key, reason in self.confirm_failures.items() if key not in keys}
            if others | failures != self.confirm_failures:
                self.study.set_user_attr("confirm_failures", others | failures)
            if lasting:
                known = self.study.user_attrs.get("confirm_lasting", {})
                self.study.set_user_attr("confirm_lasting", known | lasting)
            return
        stored = self._trial(proposal.number)
        if stored.state.is_finished():
            return  # a stage of it was trained again
        metric = self.space.goes_by
        values = [value for node in graph.students(proposal) if (value := node.value(metric)) is not None]
        trial = optuna.trial.Trial(self.study, stored._trial_id)
        found = {key: graph.nodes[key].description for key in keys}
        for name, value in outcome_attributes(proposal.paths, found, metric).items():
            trial.set_user_attr(name, value)
        for epoch, value in _intermediate_values(graph.students(proposal)).items():
            if epoch not in stored.intermediate_values:  # else an earlier run was cut off here
                trial.report(value, epoch)
        if failures:
            trial.set_user_attr("failures", failures)
            if lasting:
                trial.set_user_attr("lasting", lasting)
            self.study.tell(proposal.number, state=TrialState.FAIL)
        elif len(values) < len(proposal.paths):
            self.study.tell(proposal.number, state=TrialState.PRUNED)
        else:
            self.study.tell(proposal.number, fmean(values))
        self._look_again(proposal.number)

    def reclaim(self) -> list[Proposal]:
        """Trials that were running when an earlier process ended; what it had not proposed whole is proposed now."""
        return [self._proposal(trial) for trial in self._trials() if trial.state == TrialState.RUNNING]

    def incomplete(self, artifacts: Sequence[str]) -> list[Proposal]:
        """Trials that are complete, a stage of which has no artifact any more: it was found damaged and set aside when
        others had learned from it, and the run ended before it was trained again."""
        there = {key[:KEY_DIGITS] for key in artifacts}
        complete = (trial for trial in self.proposed() if trial.state == TrialState.COMPLETE)
        return [self.proposal_of(trial) for trial in complete if not there.issuperset(keys_of(trial.user_attrs))]

    def _proposal(self, trial: FrozenTrial) -> Proposal:
        if "seeds" in trial.user_attrs:
            return self.proposal_of(trial)
        self.study.sampler = self._sampling.sampler(trial.number, self._trials())
        return self._propose(optuna.Trial(self.study, trial._trial_id))

    def proposal_of(self, trial: FrozenTrial) -> Proposal:
        """What a stored trial proposed."""
        cell = self.space.cell(parameters_of(trial)).name
        return Proposal(trial.number, configuration_of(trial), self.paths_of(trial), cell=cell)

    def finished(self) -> list[tuple[str, str, list[float]]]:
        """Arm, configuration and the metric of its students, of every trial that has some, pruned or not.

        Of a trial that ended well its mean, once a seed. So the best of an arm is the one that the tables show.
        """
        ended = [trial for trial in self.proposed() if trial.state.is_finished()]
        return [(trial.user_attrs["arm"], configuration_of(trial), self._values_of_students(trial)) for trial in ended]

    def students_by_configuration(self) -> dict[tuple[str, str], dict[str, list[float]]]:
        """By cell and arm, then by configuration: the metric of each student that was trained to its end, as people
        read it. A student of several configurations counts for each."""
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for trial in self.proposed():
            if values := students_of(trial.user_attrs):
                place = self.space.cell(parameters_of(trial)).name, trial.user_attrs["arm"]
                found.setdefault(place, {}).setdefault(configuration_of(trial), []).extend(values.values())
        return found

    def _values_of_students(self, trial: FrozenTrial) -> list[float]:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            return [trial.value] * len(trial.user_attrs["seeds"])
        return [value / self.space.goes_by.times for value in students_of(trial.user_attrs).values()]

    def choose(self, best: Iterable[str]) -> None:
        """Records the configurations that are to be confirmed, by their names: one of each arm in each cell."""
        chosen = self._first_of(best)
        if "smallest_effect" not in self.study.user_attrs:
            self.study.set_user_attr("smallest_effect", self.space.smallest_effect)
        if self.study.user_attrs.get("confirmed") != chosen:
            self.study.set_user_attr("confirmed", chosen)
        self.keep_choice()

    def keep_choice(self) -> None:
        """Records that the choice is one from all trials that have ended well so far."""
        if not self.choice_stands:
            self.study.set_user_attr("confirmed_from", self._ended_well)

    @property
    def choice_stands(self) -> bool:
        """Whether no trial has ended well since what is to be confirmed was chosen."""
        return "confirmed" in self.study.user_attrs and self.study.user_attrs.get("confirmed_from") == self._ended_well

    @property
    def choice_is_old(self) -> bool:
        """Whether it was recorded by a version that didn't say from how many trials it was made."""
        return "confirmed" in self.study.user_attrs and self.study.user_attrs.get("confirmed_from") is None

    @property
    def _ended_well(self) -> int:
        return sum(trial.state == TrialState.COMPLETE for trial in self._trials())

    def _first_of(self, best: Iterable[str]) -> list[int]:
        """Of each configuration, by its name, the number of its first trial."""
        first = {configuration_of(trial): trial.number for trial in reversed(self.proposed())}
        return [first[name] for name in best]

    @property
    def smallest_effect_before(self) -> float | None:
        """The smallest difference that matters as it was said when the confirm phase began, where that was another."""
        before = self.study.user_attrs.get("smallest_effect", NEVER)
        return None if before in (NEVER, self.space.smallest_effect) else before or 0.0

    @property
    def late_cells(self) -> set[str]:
        """Names of the cells with a value that its factor got when the confirm phase had begun."""
        before = self.study.user_attrs.get("factors_before", {})
        return {
            cell.name
            for cell in self.space.cells
            for name, values in before.items()
            if not any(same_value(cell.values[name], value) for value in values)
        }

    def note_largest_class(self, images: int) -> None:
        """How many of the validation images are of the largest class, where an older version noted nothing."""
        if self.largest_class is None:
            self.study.set_user_attr("largest_class", images)

    @property
    def largest_class(self) -> int | None:
        """Validation images of the class that has most; None of a study that an older version ran."""
        return self.study.user_attrs.get("largest_class")

    @property
    def confirm_failures(self) -> dict[str, str]:
        return self.study.user_attrs.get("confirm_failures", {})

    def confirming(self, best: Iterable[str] | None = None) -> list[Proposal]:
        """What the confirm phase trains: each chosen configuration from fresh seeds.

        Chosen are those that `choose` recorded, or `best`.
        """
        trials = self._trials()
        numbers = self.study.user_attrs.get("confirmed", []) if best is None else self._first_of(best)
        chosen = [trials[number] for number in numbers]
        paths = [self.space.confirming_paths(self._suggest(trial), self.dataset) for trial in chosen]
        cells = [self.space.cell(parameters_of(trial)).name for trial in chosen]
        return [
            Proposal(-1 - trial.number, configuration_of(trial), each, "confirm", cell)
            for trial, each, cell in zip(chosen, paths, cells, strict=True)
            if each
        ]

    def paths_of(self, trial: FrozenTrial) -> tuple[Path, ...]:
        """The paths of a stored trial: the same values again."""
        return self.space.paths(self._suggest(trial), self.dataset, trial.user_attrs["seeds"])

    def _suggest(self, trial: optuna.Trial | FrozenTrial) -> Configuration:
        """What a trial chooses, from the choices that the study has had."""
        frozen = trial if isinstance(trial, FrozenTrial) else self._trial(trial.number)
        return self.space.suggest(AsStored(trial, frozen, self._choices, self.space.factors))

    def stages(self) -> dict[str, Stage]:
        """All stages of the study by key, of the search and of what is confirmed."""
        return {stage.key: stage for path in self.paths() for stage in path.stages}

    def paths(self) -> Iterator[Path]:
        """All paths of the study, of the search and of what is confirmed."""
        for trial in self.proposed():
            yield from self.paths_of(trial)
        for proposal in self.confirming():
            yield from proposal.paths

    def proposed(self) -> list[FrozenTrial]:
        """All trials that were proposed, in order, but those that failed and in whose place others are."""
        trials = self._trials()
        replaced = {trial.user_attrs.get(AGAIN) for trial in trials}
        return [trial for trial in trials if "seeds" in trial.user_attrs and trial.number not in replaced]

    @property
    def remaining(self) -> int:
        return max(0, self.space.budget - self.asked)

    @property
    def is_open(self) -> bool:
        """Whether there is something left to try, or to end."""
        return self.remaining > 0 or any(trial.state == TrialState.RUNNING for trial in self._trials())

    def set_budget(self, space: Space) -> None:
        """Budget, resources and words of a space may change between runs, and its factors may get values."""
        if "confirmed" in self.study.user_attrs and "factors_before" not in self.study.user_attrs:
            self.study.set_user_attr("factors_before", {name: list(each) for name, each in self.space.factors.items()})
        self.study.set_user_attr("space", space.model_dump(mode="json"))
        self.space, self._sampling = space, Sampling(space)

    def _trials(self) -> list[FrozenTrial]:
        """All. Of ten thousand that takes Optuna's journal milliseconds, and a database longer."""
        return self.study.get_trials(deepcopy=False) if self._known is None else self._known

    def _look_again(self, number: int) -> None:
        """What this process has changed, or added."""
        if self._known is not None:
            self._known[number : number + 1] = [self._trial(number)]

    def _trial(self, number: int) -> FrozenTrial:
        storage, study = self.study._storage, self.study._study_id
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study, number))


def _intermediate_values(students: Sequence[Node]) -> dict[int, float]:
    """By epoch, the mean metric of the students that came so far; where any may be ended early."""
    by_epoch: dict[int, list[float]] = {}
    for node in students:
        for epoch, value in node.looks.items():
            by_epoch.setdefault(epoch, []).append(value)
    return {epoch: fmean(found) for epoch, found in sorted(by_epoch.items())}


def _lasts(trial: FrozenTrial) -> bool:
    """Whether all that failed of it would fail again."""
    return set(trial.user_attrs.get("lasting", {})) == set(trial.user_attrs.get("failures", {}))


def configuration_of(trial: FrozenTrial) -> str:
    return configuration_name(trial.user_attrs["arm"], parameters_of(trial))


def configuration_name(arm: str, parameters: Mapping[str, Any]) -> str:
    """`kd temperature=4 lambda=0.7`; the values of factors come first."""
    chosen = [f"{name}={value_text(value)}" for name, value in parameters.items() if name != "arm"]
    return " ".join([arm, *chosen])


def create_search(
    folder: StudyFolder,
    space: Space,
    dataset: DatasetFingerprint,
    stop: Stop | None = None,
    storage: optuna.storages.BaseStorage | None = None,
) -> Search:
    """A new study, or the one of that name; raises InputError when that has another space or dataset.

    `stop` ends the waiting for a database that is away. `storage`: the study's, where it is open already.
    """
    storage = storage or open_optuna(folder, stop)
    study = _study_in(storage, folder.name) or optuna.create_study(
        study_name=folder.name, storage=storage, direction=_direction(space), load_if_exists=True
    )
    if "dataset" not in study.user_attrs:
        study.set_user_attr("training_revision", TRAINING_REVISION)
        study.set_user_attr("space", space.model_dump(mode="json"))
        study.set_metric_names([f"mean validation {space.metric}"])
        study.set_user_attr("dataset", dataset.model_dump(mode="json"))  # last: a study with it was created whole
    search = Search(study)
    refuse_to_go_on(search, space, dataset)
    search.set_budget(space)
    search.enqueue()
    return search


def _direction(space: Space) -> Literal["minimize", "maximize"]:
    return "maximize" if space.goes_by.higher else "minimize"


def open_search(folder: StudyFolder) -> Search:
    """The study of a folder, for looking; raises InputError where there is none."""
    search = find_search(folder)
    if search is None:
        raise InputError(f"study {folder.name}: none in {folder.optuna}; `takd run` starts one")
    _refuse_another_revision(search)
    return search


def find_search(folder: StudyFolder, stop: Stop | None = None) -> Search | None:
    """The study of a folder, for looking; None where there is none. Writes nothing but the tables of a new database."""
    study = _load(folder, stop)
    return Search(study) if study and "dataset" in study.user_attrs else None


def _load(folder: StudyFolder, stop: Stop | None = None) -> optuna.Study | None:
    if folder.journal and not os.path.exists(folder.journal):
        return None
    return _study_in(open_optuna(folder, stop), folder.name)


def _study_in(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study | None:
    """Where it is there; else None. Unlike `create_study` it writes nothing."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def delete_search(folder: StudyFolder, others: Sequence[str] = ()) -> None:
    """Takes a study out of a database, and others that belong to it; what isn't there is fine."""
    storage = open_optuna(folder)
    for name in (folder.name, *others):
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=storage)


def refuse_to_go_on(search: Search, space: Space, dataset: DatasetFingerprint) -> None:
    """Raises InputError with the differences where a study has another space or data set."""
    _refuse_another_revision(search)
    if lacking := _left_out(search.space, space):
        raise InputError(
            f"study {search.study.study_name} has compared {lacking}, which the space leaves out; a factor may get "
            "values and lose none: use another --name, or the space it was run with"
        )
    same = space.with_factors_of(search.space)
    old: dict[str, Any] = {"dataset": search.dataset.model_dump(mode="json"), "space": search.space.identity()}
    new: dict[str, Any] = {"dataset": dataset.model_dump(mode="json"), "space": same.identity()}
    code = _changed_code(old["space"].pop("code_digests"), new["space"].pop("code_digests"))
    differences = _differences(old["space"], new["space"]) + _differences(old["dataset"], new["dataset"]) + code
    if differences:
        raise InputError(
            f"study {search.study.study_name} exists with another space: {'; '.join(differences)}; "
            "use another --name (what both have is not trained again), or the space it was run with"
        )


def _left_out(before: Space, now: Space) -> str:
    """The values of a factor that a study has and a space lacks, in words; empty where there are none."""
    for name, values in before.factors.items():
        new = now.factors.get(name, values)
        lacking = [value for value in values if not any(same_value(value, each) for each in new)]
        if lacking:
            return f"{name} {some([value_text(value) for value in lacking])}"
    return ""


def _changed_code(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What of a user's code is another, or was not used before, by the digests of both."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted({**old, **new}):
        if old.get(name) != new.get(name):
            found.setdefault((old.get(name, "none"), new.get(name, "none")), []).append(name)
    return [
        f"the code of {some(names)} had the digest {before[:12]}, has {after[:12]}"
        for (before, after), names in found.items()
    ]


def _refuse_another_revision(search: Search) -> None:
    """Its stages have keys that this version doesn't find: it would look as if nothing had been trained."""
    revision = search.study.user_attrs.get("training_revision", FIRST_KEPT_REVISION)
    if revision != TRAINING_REVISION:
        raise InputError(
            f"study {search.study.study_name} was trained at training revision {revision}; this version of takd is at "
            f"{TRAINING_REVISION}, which trains otherwise; use another --name, or the version it was run with"
        )


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[str] = []
        for name in {**old, **new}:
            found += _differences(old.get(name), new.get(name), f"{place}.{name}".lstrip("."))
        return found
    return [] if old == new else [f"{place} was {json.dumps(old)}, is {json.dumps(new)}"]


def _canonical(parameters: Mapping[str, Any]) -> str:
    return json.dumps({name: one_number(value) for name, value in parameters.items()}, sort_keys=True)
