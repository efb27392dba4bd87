"""The Optuna side of a study: which configurations to try, what became of each, kept in a durable storage."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from search_spaces import DatasetFingerprint, InputError, Path, Space, space_from
from study.folder import StudyFolder
from study.graph import Proposal, StageGraph

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Search:
    """An Optuna study of a space: `ask` proposes, `tell` records."""

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        self.space = space_from(study.user_attrs["space"], f"study {study.study_name}")
        self.dataset = DatasetFingerprint.model_validate(study.user_attrs["dataset"])

    def enqueue_guaranteed(self) -> None:
        """Queues the trials that run whatever the sampler thinks, those not queued already."""
        have = Counter(_canonical(trial.system_attrs.get("fixed_params", {})) for trial in self._trials())
        for parameters in self.space.guaranteed():
            have[_canonical(parameters)] -= 1
            if have[_canonical(parameters)] < 0:
                self.study.enqueue_trial(parameters)

    def ask(self) -> Proposal | None:
        """The next configuration, with seeds no earlier trial of the same configuration had; None: budget spent."""
        if self.asked >= self.space.budget:
            return None
        trials = self._trials()
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        self._seed_sampler(min(waiting, default=len(trials)))
        return self._propose(self.study.ask())

    def _propose(self, trial: optuna.Trial) -> Proposal:
        choice = self.space.suggest(trial)
        same = sum("seeds" in each.user_attrs and each.params == trial.params for each in self._trials())
        seeds = list(range(same * self.space.seeds, (same + 1) * self.space.seeds))
        paths = self.space.paths(choice, self.dataset, seeds)
        trial.set_user_attr("arm", choice.arm.name)
        trial.set_user_attr("path", str(paths[0]))
        trial.set_user_attr("seeds", seeds)  # last: a trial with seeds was proposed whole
        return Proposal(trial.number, configuration_name(self._trials()[trial.number]), paths)

    def _seed_sampler(self, number: int) -> None:
        """What is drawn for a trial follows from its number, not from what this process drew before."""
        self.study.sampler = _sampler(self.space, number)

    def tell(self, proposal: Proposal, graph: StageGraph) -> None:
        """The mean validation accuracy of the students; failed or pruned where one of them was."""
        keys = {stage.key for path in proposal.paths for stage in path.stages}
        failures = {key: graph.nodes[key].reason for key in keys if graph.nodes[key].state == "failed"}
        accuracies = [node.val_accuracy for node in graph.students(proposal) if node.val_accuracy is not None]
        if failures:
            trial = optuna.trial.Trial(self.study, self._trials()[proposal.number]._trial_id)
            trial.set_user_attr("failures", failures)
            self.study.tell(proposal.number, state=TrialState.FAIL)
        elif len(accuracies) < len(proposal.paths):
            self.study.tell(proposal.number, state=TrialState.PRUNED)
        else:
            self.study.tell(proposal.number, fmean(accuracies))

    def reclaim(self) -> list[Proposal]:
        """Trials that were running when an earlier process ended; what it had not proposed whole is proposed now."""
        return [self._proposal(trial) for trial in self._trials() if trial.state == TrialState.RUNNING]

    def _proposal(self, trial: FrozenTrial) -> Proposal:
        if "seeds" in trial.user_attrs:
            return Proposal(trial.number, configuration_name(trial), self.paths_of(trial))
        self._seed_sampler(trial.number)
        return self._propose(optuna.Trial(self.study, trial._trial_id))

    def finished(self) -> list[tuple[str, str, list[float]]]:
        """Arm, configuration and its students' mean accuracy, once a seed, of the trials that ended well."""
        return [
            (trial.user_attrs["arm"], configuration_name(trial), [trial.value] * len(trial.user_attrs["seeds"]))
            for trial in self.proposed()
            if trial.state == TrialState.COMPLETE and trial.value is not None
        ]

    def paths_of(self, trial: FrozenTrial) -> tuple[Path, ...]:
        """The paths of a stored trial: the same values again."""
        return self.space.paths(self.space.suggest(trial), self.dataset, trial.user_attrs["seeds"])

    def proposed(self) -> list[FrozenTrial]:
        """All trials that were proposed, in order."""
        return [trial for trial in self._trials() if "seeds" in trial.user_attrs]

    @property
    def asked(self) -> int:
        return len(self.proposed())

    @property
    def remaining(self) -> int:
        return max(0, self.space.budget - self.asked)

    @property
    def is_open(self) -> bool:
        """Whether there is something left to try, or to end."""
        return self.remaining > 0 or any(trial.state == TrialState.RUNNING for trial in self._trials())

    def set_budget(self, space: Space) -> None:
        """Budget, resources and words of a space may change between runs."""
        self.study.set_user_attr("space", space.model_dump(mode="json"))
        self.space = space

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


def configuration_name(trial: FrozenTrial) -> str:
    """`kd temperature=4 lambda=0.7`"""
    chosen = [
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()
    ]
    return " ".join([trial.user_attrs["arm"], *(each for each in chosen if not each.startswith("arm="))])


def create_search(folder: StudyFolder, space: Space, dataset: DatasetFingerprint) -> Search:
    """A new study, or the one of that name; raises InputError when that has another space or dataset."""
    study = _load(folder) or optuna.create_study(
        study_name=folder.name, storage=open_optuna(folder), direction="maximize", load_if_exists=True
    )
    if "dataset" not in study.user_attrs:
        study.set_user_attr("space", space.model_dump(mode="json"))
        study.set_metric_names(["mean validation accuracy"])
        study.set_user_attr("dataset", dataset.model_dump(mode="json"))  # last: a study with it was created whole
    search = Search(study)
    _refuse_another_space(search, space, dataset)
    search.set_budget(space)
    search.enqueue_guaranteed()
    return search


def open_search(folder: StudyFolder) -> Search:
    """The study of a folder, for looking; raises InputError where there is none."""
    search = find_search(folder)
    if search is None:
        raise InputError(f"study {folder.name}: none in {folder.optuna}; `takd run` starts one")
    return search


def find_search(folder: StudyFolder) -> Search | None:
    """The study of a folder, for looking; None where there is none. Writes nothing."""
    study = _load(folder)
    return Search(study) if study and "dataset" in study.user_attrs else None


def _load(folder: StudyFolder) -> optuna.Study | None:
    if folder.journal and not folder.journal.exists():
        return None
    try:
        return optuna.load_study(study_name=folder.name, storage=open_optuna(folder))
    except KeyError:
        return None


def open_optuna(folder: StudyFolder) -> BaseStorage:
    """The journal in the study's folder, or the database of its URL; raises InputError on one that can't be opened."""
    if folder.journal:
        return JournalStorage(Journal(str(folder.journal)))
    try:
        return RDBStorage(folder.database, engine_kwargs={"pool_pre_ping": True})
    except (ArgumentError, NoSuchModuleError, OperationalError, ImportError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"--storage {folder.optuna}: can't be opened ({reason})") from None


class Journal(JournalFileBackend):
    """A journal file that survives a writer that was cut off in the middle of a line."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._file = file
        self._drop_half_line()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError:
            self._drop_half_line()
            raise

    def _drop_half_line(self) -> None:
        """What was not written to its line's end never happened; Optuna can't read past it."""
        if _ends_whole(self._file):
            return
        lock = JournalFileSymlinkLock(self._file)
        lock.acquire()  # whoever is still writing ends first
        try:
            with open(self._file, "r+b") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
        finally:
            lock.release()


def _ends_whole(file: str) -> bool:
    with open(file, "rb") as journal:
        size = journal.seek(0, os.SEEK_END)
        if size == 0:
            return True
        journal.seek(-1, os.SEEK_END)
        return journal.read(1) == b"\n"


# From a seed.
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    # Conditional parameters are modelled by arm (group), running trials counted as bad (constant liar).
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),  # draws nothing: a grid is enqueued whole
}


def _sampler(space: Space, trial: int) -> optuna.samplers.BaseSampler:
    seed = space.sampler_seed + 1_000_003 * trial
    return SAMPLERS[space.sampler](seed)


def refuse_another_space(folder: StudyFolder, space: Space, dataset: DatasetFingerprint) -> None:
    """Raises InputError with the differences where the folder has a study of another space. Writes nothing."""
    if search := find_search(folder):
        _refuse_another_space(search, space, dataset)


def _refuse_another_space(search: Search, space: Space, dataset: DatasetFingerprint) -> None:
    old: dict[str, Any] = {"dataset": search.dataset.model_dump(mode="json"), "space": search.space.identity()}
    new: dict[str, Any] = {"dataset": dataset.model_dump(mode="json"), "space": space.identity()}
    differences = list(_differences(old["space"], new["space"])) + list(_differences(old["dataset"], new["dataset"]))
    if differences:
        raise InputError(
            f"study {search.study.study_name} exists with another space: {'; '.join(differences)}; "
            "use another --name, or the space it was run with"
        )


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[str] = []
        for name in {**old, **new}:
            found += _differences(old.get(name), new.get(name), f"{place}.{name}".lstrip("."))
        return found
    return [] if old == new else [f"{place} was {json.dumps(old)}, is {json.dumps(new)}"]


def _canonical(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)
