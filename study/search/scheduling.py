"""The Ray side of a study: hands Tune the stages that may train, and hears what became of them."""

import logging
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

# Read when Ray is first imported: a Ray of our own has its node on 127.0.0.1, so that all it opens is on loopback.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

import takd
from takd import search_spaces, trainables
from takd.search_spaces import ROLES, WIDEST, InputError, Role, Space
from takd.study.search.graph import Group, Node, Proposal, StageGraph
from takd.study.search.optimization import Search
from takd.study.stopping import Stop
from takd.study.tracking.observers import Observers
from takd.trainables.halving import start_halving
from takd.trainables.stage_trainable import StageTrainable
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.storage import FULL

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
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are ours: `takd.study.stopping`
    "TUNE_FORCE_TRIAL_CLEANUP_S": str(STOP_SECONDS),
}

log = logging.getLogger("takd")


@dataclass
class Batch:
    """What one trial of Tune's trains."""

    group: Group
    keys: set[str]  # of its stages that have not ended


class PathSearcher(Searcher):
    """Turns the sampler's paths into stages that may train now; a path that waits holds no device.

    `confirm` is called once when the search is over; what it returns is trained too.
    """

    def __init__(
        self,
        search: Search,
        graph: StageGraph,
        root: str,
        observers: Observers,
        stop: Stop,
        confirm: Callable[[], Sequence[Proposal]] | None = None,
    ) -> None:
        super().__init__()
        self.confirm = confirm
        self.search, self.graph, self.root, self.observers = search, graph, root, observers
        self.stop = stop
        self.artifacts = ArtifactStore(root)
        self.cluster = reachable_resources()
        self.resources = resources(search.space, self.cluster)
        self.guaranteed = len(search.space.guaranteed())
        self.halving = start_halving(**search.space.asha.model_dump()) if search.space.asha else None
        self.given: dict[str, Batch] = {}  # by Tune's trial
        self.widths: dict[str, int] = {}  # lanes that go fastest, by shape, as workers measured
        for arm, configuration, accuracies in search.finished():
            graph.note(arm, configuration, accuracies)
        for proposal in search.reclaim():
            graph.add(proposal)
        self._close_finished()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.stop.requested:
            return None if self.given else str(Searcher.FINISHED)  # Tune looks at its stopper when a trial reports
        group = self.graph.next_group()
        while self._wants_more(group) and (proposal := self._ask()):
            self.graph.add(proposal)
            self._close_finished()
            group = self.graph.next_group()
        if not self.graph.open and self.confirm and not self.search.remaining:
            group = self._start_confirming(self.confirm)
        size = self._batch_size(group) if group else 0
        if group is None or size == 0:
            return None if self.graph.open or self.stop.requested else str(Searcher.FINISHED)
        nodes = self.graph.take(group, size)
        self.given[trial_id] = Batch(group, {node.stage.key for node in nodes})
        self.observers.graph_changed(self.graph, self.search.remaining)
        return self._config(group, nodes)

    def _start_confirming(self, confirm: Callable[[], Sequence[Proposal]]) -> Group | None:
        """The search is over: what it chose is trained from fresh seeds."""
        self.confirm = None
        with self._room_needed():
            for proposal in confirm():
                self.graph.add(proposal)
        self._close_finished()
        return self.graph.next_group()

    def _wants_more(self, group: Group | None) -> bool:
        """Whether to ask the sampler now: early for guaranteed trials, for free ones late, when it knows more."""
        if group and (group.role != "student" or self.graph.ready(group) >= self._width(group)):
            return False
        free = self.search.asked >= self.guaranteed
        unknown = 1 if free else WIDEST
        width = self._width(group, unknown) if group else max(self.widths.values(), default=unknown)
        slots = self._slots("student")
        return len(self.graph.open) < max(2 * slots, slots * width // self.search.space.seeds)

    def _width(self, group: Group, unknown: int = WIDEST) -> int:
        lanes = self.search.space.lanes
        width = self.widths.get(group.shape, lanes if isinstance(lanes, int) else unknown)
        return min(width, group.most_lanes or width)

    def _batch_size(self, group: Group) -> int:
        """A fair share of what is ready for each idle device, so that the last ones end together.

        Where no device is idle a batch would only wait: then none that is small while others may still join it.
        """
        width, ready = self._width(group), self.graph.ready(group)
        if idle := self._idle(group.role):
            return min(width, -(-ready // idle))
        small = -(-width // 4)
        if ready < small and (self.graph.has_waiting or self.search.remaining):
            return 0
        return min(width, max(small, -(-ready // self._slots(group.role))))

    def _slots(self, role: Role) -> int:
        """How many batches of a role the cluster trains at once."""
        return self._room(role, self.cluster.get("CPU", 1), self.cluster.get("GPU", 0)) or 1

    def _idle(self, role: Role) -> int:
        held = [self.resources[batch.group.role] for batch in self.given.values()]
        cpus, gpus = (sum(each[kind] for each in held) for kind in ("cpu", "gpu"))
        return self._room(role, self.cluster.get("CPU", 1) - cpus, self.cluster.get("GPU", 0) - gpus)

    def _room(self, role: Role, cpus: float, gpus: float) -> int:
        """How many batches of a role so many CPUs and GPUs have room for."""
        wanted = self.resources[role]
        by_cpu = int(cpus // wanted["cpu"])
        return max(0, min(by_cpu, int(gpus / wanted["gpu"] + 1e-9)) if wanted["gpu"] else by_cpu)

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

    def _config(self, group: Group, nodes: list[Node]) -> dict[str, Any]:
        space, study = self.search.space, self.search.study.study_name
        return {
            "stages": [node.stage.model_dump(mode="json") for node in nodes],
            "root": self.root,
            "origin": {node.stage.key: {"study": study, "use": node.first_use} for node in nodes},
            "measure_width": space.lanes == "auto" and group.shape not in self.widths,
            "halving": self.halving if (group.role, group.phase) == ("student", "search") else None,
            "halving_epochs": space.asha.grace_epochs if space.asha else None,
            "checkpoint_every": space.checkpoint_every.model_dump(exclude_none=True),
            **self.resources[group.role],
        }

    def trial_started(self, trial_id: str) -> None:
        for key in self.given[trial_id].keys:
            self.graph.start(key)
            self.observers.stage_started(self.graph.nodes[key])
        self.observers.graph_changed(self.graph, self.search.remaining)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._hear(self.given[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result is None or error:
            return  # `trial_failed` follows, with the reason
        self._hear(self.given.pop(trial_id), result)

    def _hear(self, batch: "Batch", result: dict[str, Any]) -> None:
        if result["width"] is not None:
            self.widths[batch.group.shape] = result["width"]
        for state in result["stages"]:
            self._tell_epochs(state)
            if state["state"] != "running" and state["key"] in batch.keys:
                batch.keys.remove(state["key"])
                self._end(state)
        self._close_finished()

    def _tell_epochs(self, state: dict[str, Any]) -> None:
        """Those not told before: after a retry a worker repeats some."""
        node = self.graph.nodes[state["key"]]
        epochs = [each for each in state["epochs"] if each["epoch"] > node.epoch]
        node.epoch = epochs[-1]["epoch"] if epochs else node.epoch
        self.observers.stage_reported(node, epochs)

    def _end(self, state: dict[str, Any]) -> None:
        key = state["key"]
        if state["state"] in ("returned", "no room"):
            self.graph.give_back(key)
            if state["state"] == "no room":
                self.stop.request(state["reason"])
            return
        if state["state"] == "done":
            self.graph.finish(key)
        elif state["state"] == "failed":
            self.graph.fail(key, state["reason"])
        else:
            self.graph.prune(key)
        if state["state"] != "done":
            self.artifacts.drop_checkpoint(key)
        self.observers.stage_ended(self.graph.nodes[key])
        self.graph.nodes[key].forget_epochs()

    def trial_failed(self, trial_id: str, reason: str) -> None:
        """Its worker died. Tune's own retries are not used: they give up a trial whose reused worker dies early."""
        keys = sorted(self.given.pop(trial_id).keys)
        self.graph.retry(keys, reason, self.search.space.max_failures)
        for node in (self.graph.nodes[key] for key in keys):
            if node.state == "failed":
                self.observers.stage_ended(node)
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
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It says of a trial whose worker died that it did not complete; its stages do, in another.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
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
    try:
        with _staged_code() as package:
            ray.init(address=address, runtime_env={"py_modules": [str(package)]}, **quiet)
    except ray.exceptions.AuthenticationError:
        raise InputError(
            f"--address {address}: the cluster wants its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers ({str(error).splitlines()[0]})") from None


@contextmanager
def _staged_code() -> Iterator[FilePath]:
    """A folder `takd` of what a worker imports, until Ray has sent it: Ray takes folders by the names they have."""
    with tempfile.TemporaryDirectory(prefix="takd-code-") as temporary:
        package = FilePath(temporary) / "takd"
        package.mkdir()
        shutil.copy(_file(takd), package)
        for part in (search_spaces, trainables):
            name = part.__name__.rpartition(".")[2]
            shutil.copytree(_file(part).parent, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        yield package


def _file(module: ModuleType) -> FilePath:
    assert module.__file__ is not None
    return FilePath(module.__file__)


def reachable_resources() -> dict[str, float]:
    """What the cluster has, or can grow to where it has an autoscaler."""
    now = ray.cluster_resources()
    grown = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return now | {name: max(most, now.get(name, 0)) for name, most in grown.items()}


def run_stages(searcher: PathSearcher) -> None:
    """Runs until the search's budget is spent and every stage has ended, or the searcher's `stop` is requested.

    Then stages in training write a checkpoint, and those that take longer than STOP_SECONDS are cut off.
    """
    scratch = FilePath(tempfile.mkdtemp(prefix="takd-tune-"))
    try:
        tune.Tuner(
            StageTrainable,
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="study",
                storage_path=str(scratch),
                stop=_WhenAsked(searcher.stop),
                callbacks=[TrialEvents(searcher)],
                failure_config=tune.FailureConfig(max_failures=0),
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
