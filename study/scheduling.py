"""The Ray side of a study: hands Tune the stages that may train, and hears what became of them."""

import logging
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

# Read when Ray is first imported: a Ray of our own has its node on 127.0.0.1, so that all it opens is on loopback.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

import search_spaces
import trainables
from search_spaces import ROLES, InputError, Role, Space
from study.graph import Node, Proposal, StageGraph
from study.observers import Observers
from study.optimization import Search
from study.stopping import Stop
from trainables.artifacts import ArtifactStore
from trainables.stage_trainable import StageTrainable
from trainables.storage import FULL

STOP_SECONDS = 10  # that a stage may take to end its epoch and write a checkpoint when the study stops

# Tune's own state files, loggers and table are not used: what must last is in the two durable places.
_TUNE_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are ours: `study.stopping`
    "TUNE_FORCE_TRIAL_CLEANUP_S": str(STOP_SECONDS),
}

log = logging.getLogger("takd")


class PathSearcher(Searcher):
    """Turns the sampler's paths into stages that may train now; a path that waits holds no device."""

    def __init__(
        self, search: Search, graph: StageGraph, root: str, slots: int, observers: Observers, stop: Stop
    ) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self.search, self.graph, self.root, self.observers = search, graph, root, observers
        self.slots, self.stop = slots, stop
        self.artifacts = ArtifactStore(root)
        self.resources = resources(search.space, reachable_resources())
        self.guaranteed = len(search.space.guaranteed())
        self.given: dict[str, list[str]] = {}  # Tune's trial -> stage keys
        for arm, configuration, accuracies in search.finished():
            graph.note(arm, configuration, accuracies)
        for proposal in search.reclaim():
            graph.add(proposal)
        self._close_finished()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.stop.requested:
            return None
        node = self.graph.take_ready()
        while node is None and self._may_ask() and (proposal := self._ask()):
            self.graph.add(proposal)
            self._close_finished()
            node = self.graph.take_ready()
        if node is None:
            return None if self.graph.open or self.stop.requested else str(Searcher.FINISHED)
        self.given[trial_id] = [node.stage.key]
        self.observers.graph_changed(self.graph, self.search.remaining)
        return self._config([node])

    def _may_ask(self) -> bool:
        """Guaranteed trials are asked for as early as there is room; free ones late, when the sampler knows more."""
        return self.search.asked < self.guaranteed or len(self.graph.open) < 2 * self.slots

    def _ask(self) -> Proposal | None:
        with self._room_needed():
            return self.search.ask()
        return None

    @contextmanager
    def _room_needed(self) -> Iterator[None]:
        """A full disk stops the study, which goes on when there is room; it is no fault of a stage's."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.stop.request(f"{error.filename or self.root}: {error.strerror}")

    def _config(self, nodes: list[Node]) -> dict[str, Any]:
        space, role = self.search.space, nodes[0].stage.role
        study = self.search.study.study_name
        return {
            "stages": [node.stage.model_dump(mode="json") for node in nodes],
            "root": self.root,
            "origin": {node.stage.key: {"study": study, "use": node.first_use} for node in nodes},
            "checkpoint_every": space.checkpoint_every.model_dump(exclude_none=True),
            "report_epochs": space.asha.grace_epochs if space.asha and role == "student" else None,
            **self.resources[role],
        }

    def trial_started(self, trial_id: str) -> None:
        for key in self.given[trial_id]:
            self.graph.start(key)
            self.observers.stage_started(self.graph.nodes[key])
        self.observers.graph_changed(self.graph, self.search.remaining)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        for state in result["stages"]:
            self._tell_epochs(state)
        self.observers.graph_changed(self.graph, self.search.remaining)

    def _tell_epochs(self, state: dict[str, Any]) -> None:
        """Those not told before: after a retry a worker repeats some."""
        node = self.graph.nodes[state["key"]]
        epochs = [each for each in state["epochs"] if each["epoch"] > node.epoch]
        node.epoch = epochs[-1]["epoch"] if epochs else node.epoch
        self.observers.stage_reported(node, epochs)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result is None or error:
            return  # `trial_failed` follows, with the reason
        self.given.pop(trial_id)
        for state in result["stages"]:
            self._tell_epochs(state)
            self._end(state)
        self._close_finished()

    def _end(self, state: dict[str, Any]) -> None:
        key = state["key"]
        if state["state"] == "done":
            self.graph.finish(key)
        elif state["state"] == "failed":
            self.graph.fail(key, state["reason"])
        elif state["state"] == "no room":
            self.graph.give_back(key)
            self.stop.request(state["reason"])
            return
        else:
            self.graph.prune(key)
        if state["state"] != "done":
            self.artifacts.drop_checkpoint(key)
        self.observers.stage_ended(self.graph.nodes[key])

    def trial_failed(self, trial_id: str, reason: str) -> None:
        for key in self.given.pop(trial_id, []):
            self.graph.fail(key, reason)
            self.observers.stage_ended(self.graph.nodes[key])
        self._close_finished()

    def _close_finished(self) -> None:
        for proposal in self.graph.close_finished():
            with self._room_needed():
                self.search.tell(proposal, self.graph)
        self.observers.graph_changed(self.graph, self.search.remaining)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles a searcher beside its experiment; there is nothing in this one that a restart would need."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: Optuna's storage and the artifact store have it all."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as above."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("studies go on from Optuna's storage and the artifact store: run again")


class TrialEvents(tune.Callback):
    """What Tune tells callbacks but not searchers: that a trial has its resources, and why one failed."""

    def __init__(self, searcher: PathSearcher) -> None:
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.searcher.trial_started(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        text = FilePath(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        log.debug("trial %s: %s", trial.trial_id, text)
        self.searcher.trial_failed(trial.trial_id, _reason(text))


def _reason(error_text: str) -> str:
    """The line that says what happened: the last of a traceback, the first of Ray's own explanation of a dead actor."""
    lines = [line.strip() for line in error_text.splitlines() if line.strip() and not line.startswith("Failure #")]
    if not lines:
        return "ended without an error message"
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
    return (raised or lines)[-1 if raised else 0][:500]


class StudentsOnly(ASHAScheduler):
    """ASHA that never ends a stage others learn from, and measures no student against one."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not _is_student(trial):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if _is_student(trial):
            super().on_trial_complete(tune_controller, trial, result)


def _is_student(trial: Trial) -> bool:
    return trial.config["stages"][0]["role"] == "student"


def resources(space: Space, cluster: Mapping[str, float]) -> dict[Role, dict[str, float]]:
    """CPUs and GPUs of a stage by role: what the space says, no more CPUs than the cluster has.

    Where the space says nothing of GPUs and there are any, others' models get a whole one and four students share one.
    """
    found: dict[Role, dict[str, float]] = {}
    for role in ROLES:
        wanted = space.resources_of(role)
        shared = 0.25 if role == "student" else 1.0
        gpu = wanted.gpu if wanted.gpu is not None else shared if cluster.get("GPU") else 0.0
        found[role] = {"cpu": min(wanted.cpu, max(1, int(cluster.get("CPU", 1)))), "gpu": gpu}
    return found


def lacking_gpus(space: Space) -> str | None:
    """What a stage of the space would wait for in vain, as far as the cluster tells."""
    there = reachable_resources().get("GPU", 0)
    for role in ROLES:
        if (wanted := space.resources_of(role).gpu or 0) > there:
            return f"resources.{role}.gpu is {wanted:g}; Ray has {there:g} GPUs"
    return None


def start_ray(slots: int | None, address: str | None = None) -> int:
    """A Ray of our own on this machine, on loopback, or the running cluster at an address; returns its CPU slots."""
    os.environ.update(_TUNE_ENVIRONMENT)
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ray.is_initialized():
        with _signals_kept():
            _init(slots, address)
    return int(reachable_resources().get("CPU", 1))


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which exits; what comes meanwhile is an interruption."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _init(slots: int | None, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(address="local", num_cpus=slots, include_dashboard=False, **quiet)
    else:
        _join(address, quiet)


def _join(address: str, quiet: dict[str, Any]) -> None:
    """The code travels with the job, so that every node trains with the driver's."""
    packages = [str(FilePath(module.__file__).parent) for module in (search_spaces, trainables) if module.__file__]
    try:
        ray.init(address=address, runtime_env={"py_modules": packages}, **quiet)
    except ray.exceptions.AuthenticationError:
        raise InputError(
            f"--address {address}: the cluster wants its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers ({str(error).splitlines()[0]})") from None


def reachable_resources() -> dict[str, float]:
    """What the cluster has, or can grow to where it has an autoscaler."""
    now = ray.cluster_resources()
    grown = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return now | {name: max(most, now.get(name, 0)) for name, most in grown.items()}


def run_stages(search: Search, graph: StageGraph, root: str, slots: int, observers: Observers, stop: Stop) -> None:
    """Runs until the search's budget is spent and every stage has ended, or `stop` is requested.

    Then stages in training write a checkpoint, and those that take longer than STOP_SECONDS are cut off.
    """
    searcher = PathSearcher(search, graph, root, slots, observers, stop)
    scratch = FilePath(tempfile.mkdtemp(prefix="takd-tune-"))
    try:
        tune.Tuner(
            StageTrainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=_scheduler(search.space), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=str(scratch),
                stop=_WhenAsked(stop),
                callbacks=[TrialEvents(searcher)],
                failure_config=tune.FailureConfig(max_failures=search.space.max_failures),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _WhenAsked(tune.Stopper):
    """Ends all trials when a stop is requested."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stop.requested

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _scheduler(space: Space) -> TrialScheduler:
    if space.asha is None:
        return FIFOScheduler()
    return StudentsOnly(
        time_attr="epoch",
        metric="val_accuracy",
        mode="max",
        grace_period=space.asha.grace_epochs,
        reduction_factor=space.asha.reduction_factor,
        max_t=10**9,  # a student ends by its recipe
    )
