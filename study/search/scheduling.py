"""The Ray side of a study: hands Tune the stages that may train, and hears what became of them."""

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

# Read when Ray is first imported: a Ray of our own has its node on 127.0.0.1, so that all it opens is on loopback.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray import tune
from ray._common.network_utils import parse_address
from ray._private.node import Node as RayNode
from ray._private.services import canonicalize_bootstrap_address
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

import takd
from takd import search_spaces, trainables
from takd.search_spaces import WIDEST, InputError, Role, Stage
from takd.study.folder import StorageAwayError
from takd.study.search.graph import ENDED, Group, Node, Part, Proposal, StageGraph
from takd.study.search.measuring import Measuring
from takd.study.search.optimization import Search
from takd.study.search.pruned import Pruned, looks_before
from takd.study.search.workers import ELSEWHERE, KEPT_SECONDS, Batch, Need, Nodes, Use, Worker, Workers, fitted
from takd.study.stopping import Stop, StoppedError
from takd.study.tracking.observers import Observers
from takd.trainables.halving import start_halving
from takd.trainables.own_code import NO_CODE, Code
from takd.trainables.stage_trainable import StageTrainable
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.shared_root import SharedRoot
from takd.trainables.store.storage import FULL, RootAwayError

NODES = "nodes"  # in the study's folder, while it runs: what shows that every node sees the root
LOCAL = "local"  # Ray's word for one that is started here
LOOK_SECONDS = 1.0  # between two looks at the cluster's nodes
HOMELESS_SECONDS = 30.0  # that stages wait for a node before they are fitted to those that there are
ANSWER_SECONDS = 15.0  # that a cluster may take to answer
UNLIMITED = 1000  # nodes of a kind, where an autoscaler has no limit
STOP_SECONDS = 10  # that a stage may take to end its epoch and write a checkpoint when the study stops

# Ray speaks gRPC, and so HTTP/2: both sides begin with their settings, a frame of type 4.
HTTP2, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", b"\4"

# Tune's own state files, loggers and table are not used: what must last is in the two durable places. Nor are the
# processes that Ray starts ahead, one a CPU, for tasks without an environment of their own.
_RAY_ENVIRONMENT = {
    "RAY_prestart_worker_first_driver": "0",
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
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # how many workers start at a time is decided here
}

# What a Ray of our own, of one node, starts besides: Python processes that watch a dashboard, what is to be printed of
# workers, and nodes to come. None is here, and they would take two seconds of CPU, and some all the time.
_UNUSED = ("start_api_server", "start_log_monitor", "start_monitor")

log = logging.getLogger("takd")

# What confirms arms, each with the name of its cell, whose search is complete; None: all, once and for all.
Confirm = Callable[[Collection[tuple[str, str]] | None], Sequence[Proposal]]


class PathSearcher(Searcher):
    """Turns the sampler's paths into stages that may train now; a path that waits holds no device.

    A trial of Tune's is a worker. Tune asks `suggest` for new ones, and `report` gives each the stages that it trains
    next: which worker starts, trains and goes is decided here, and not by Tune's reuse of actors, which takes away
    every worker that is starting where another has just become free.

    `confirm` says what confirms the search, which is trained too: of some arms, each with the name of its cell, where
    their search is complete and others' is not, so that no slot is idle meanwhile, and of all when the search is over.
    When all has ended, what `test` has is measured on the test split, by the workers that are there.
    """

    def __init__(
        self,
        search: Search,
        graph: StageGraph,
        root: str,
        observers: Observers,
        stop: Stop,
        confirm: Confirm | None = None,
        code: Code = NO_CODE,
        test: Measuring | None = None,
    ) -> None:
        super().__init__()
        self.confirm, self.code, self.test = confirm, code, test
        self.search, self.graph, self.root, self.observers = search, graph, root, observers
        self.stop = stop
        self.artifacts = ArtifactStore(root)
        self.shared_root = SharedRoot(root, f"{search.study.study_name}/{NODES}")
        self.fits = fitted(search.space, possible_nodes())
        self.needs = self.fits.needs
        self.guaranteed = len(search.space.guaranteed())
        self.pruned = Pruned(self.artifacts, search.study.study_name)
        self.halving = self._start_halving()
        self.workers, self.use = Workers(reachable_nodes()), Use()
        self.looked = time.monotonic()  # at the cluster's nodes
        self.homeless_since: float | None = None  # stages wait for a node that could hold them
        self.failed_starts = 0  # workers in a row that died before they had started
        self.widths: dict[str, int] = {}  # lanes that go fastest, by shape, as workers measured
        self.over = False  # nothing is left to train
        cells = [cell.name for cell in search.space.cells]
        self.places = {(cell, arm.name) for cell in cells for arm in search.space.all_arms}  # of whose search is left
        self.confirming: set[int] = set()  # the numbers of the proposals that confirm, so far
        for arm, configuration, accuracies in search.finished():
            graph.note(arm, configuration, accuracies)
        for proposal in (*search.reclaim(), *search.incomplete(self.artifacts.keys())):
            graph.add(proposal)
        self._close_finished()

    def _start_halving(self) -> Any:
        """None where no student is ended early."""
        if (asha := self.search.space.asha) is None:
            return None
        halving = start_halving(**asha.model_dump(), metric=self.search.space.goes_by)
        if before := looks_before(self.search, self.artifacts, self.pruned.read(), asha.grace_epochs):
            halving.record.remote(before)
        return halving

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A new worker where stages are ready for one and the cluster has room."""
        self._look_at_the_cluster()
        if not self.stop.requested:
            self._fill()
        if self.stop.requested or self.over:
            return None if self.workers.living else str(Searcher.FINISHED)  # Tune's stopper ends those that live
        need = self._lacking()
        if need is None:
            return None
        self.workers.start(trial_id, need)
        return {
            "root": self.root,
            "sign": self.shared_root.sign,
            "cpu": need.cpu,
            "gpu": need.gpu,
            "ranks": need.ranks,
            "deterministic": self.search.space.deterministic,
            "code": self.code,
        }

    def _look_at_the_cluster(self) -> None:
        if (now := time.monotonic()) - self.looked >= LOOK_SECONDS:
            self.workers.nodes, self.looked = reachable_nodes(), now
            if self.fits.lacking or self._homeless(now):
                self._fit()

    def _homeless(self, now: float) -> bool:
        """Whether stages have waited a while for a node that is gone, or has not come."""
        needs = {self._need(group.role) for group in self.graph.groups()}
        if all(need.among(self.workers.nodes.values()) for need in needs):
            self.homeless_since = None
            return False
        self.homeless_since = self.homeless_since or now
        return now - self.homeless_since > HOMELESS_SECONDS

    def _fit(self) -> None:
        """What workers get, to the nodes that there are now."""
        before, self.fits = self.fits, fitted(self.search.space, possible_nodes())
        self.needs = self.fits.needs
        for warning in self.fits.warnings:
            if warning not in before.warnings:
                log.warning("%s", warning)
        if self.fits.lacking and not before.lacking:
            log.warning("%s now; stages wait until it has", self.fits.lacking)

    def _fill(self) -> None:
        """Asks the sampler until enough is ready; once the search is over, begins the confirm phase."""
        while self._wants_more(group := next(self.graph.groups(), None)) and (proposal := self._ask()):
            self.graph.add(proposal)
            self._close_finished()
        if self.confirm and not self.search.remaining:
            self._start_confirming(self.confirm)
        training = any(worker.batch for worker in self.workers.living.values())  # also what no open path needs
        left = group is not None or training or self.graph.open or self.confirm or self.search.remaining
        if self.test and self.test.waiting is None and not left:
            self.test.begin(self.workers.most(self._need("student")))
        self.over = not left and not (self.test and self.test.left)

    def _start_confirming(self, confirm: Confirm) -> None:
        """What the search chose is trained from fresh seeds, of each arm as soon as nothing is left of its search.

        Where it is fixed who trains with whom, that follows from the order of all proposals: then of all at once.
        """
        searched = {(each.cell, each.arm) for each in self.graph.open.values() if each.phase == "search"}
        if not searched:
            self.confirm = None
            self._add_confirming(lambda: confirm(None))
        elif self.search.space.fixed_lanes is None and (ended := self.places - searched):
            self.places -= ended
            self._add_confirming(lambda: confirm(ended))

    def _add_confirming(self, find: Callable[[], Sequence[Proposal]]) -> None:
        with self._room_needed():
            for proposal in find():
                if proposal.number not in self.confirming:
                    self.confirming.add(proposal.number)
                    self.graph.add(proposal)
        self._close_finished()

    def _wants_more(self, group: Group | None) -> bool:
        """Whether to ask the sampler now: early for guaranteed trials, for free ones late, when it knows more."""
        if group and (group.role != "student" or self.graph.ready(group) >= self._width(group)):
            return False
        free = self.search.asked >= self.guaranteed
        unknown = 1 if free else WIDEST
        width = self._width(group, unknown) if group else max(self.widths.values(), default=unknown)
        slots = self.workers.most(self._need("student"))
        kinds = 1 if free else len(self.search.space.all_arms)  # of students, which train with none of another kind
        return len(self.graph.open) < max(2 * slots, kinds * slots * width // self.search.space.seeds)

    def _width(self, group: Group, unknown: int = WIDEST) -> int:
        if group.work == "derive" or self._need(group.role).ranks > 1:
            return 1
        lanes = self.search.space.fixed_lanes or self.search.space.lanes
        width = self.widths.get(group.shape, lanes if isinstance(lanes, int) else unknown)
        return min(width, group.most_lanes or width)

    def _need(self, role: Role) -> Need:
        return self.needs[role]

    def _lacking(self) -> Need | None:
        """The kind of worker to start now. What others learn from comes first: no other kind takes its room."""
        wanted: dict[Need, int] = {}
        kept: frozenset[str] = frozenset()
        for group in self.graph.groups():
            need = self._need(group.role)
            wanted[need] = wanted.get(need, 0) + self._batches(group)
            if wanted[need] > self.workers.waiting(need):
                if self.workers.room(need, besides=kept):
                    return need
                kept = kept or self.workers.kept_for(need)
        if self.test and self.test.left > sum(self.workers.waiting(each) for each in set(self.needs.values())):
            need = self._need("student")
            return need if self.workers.room(need) else None
        return None

    def _batches(self, group: Group) -> int:
        """Into how many batches the ready stages of a group are worth dividing; a chunk is not divided."""
        if group.chunk is not None:
            return -(-self.graph.ready(group) // self._width(group))
        return -(-self.graph.ready(group) // _small(self._width(group, unknown=1)))

    def _batch_size(self, group: Group) -> int:
        """A fair share of all that is ready for each worker that could take some, so that the last ones end together.

        Where other groups have enough for the other workers one takes all of this: lanes are worth more than an early
        end. So neither workers that are not there yet leave a share small, nor those that train.
        """
        need, width = self._need(group.role), self._width(group)
        if group.chunk is not None:
            return min(self.graph.ready(group), width)
        ready = sum(self.graph.ready(each) for each in self.graph.groups() if self._need(each.role) == need)
        if (idle := self.workers.idle(need)) > 1:
            least = -(-ready // idle)
        else:
            least = max(_small(self._width(group, unknown=1)), -(-ready // self.workers.most(need)))
        return min(least, width)

    def report(self, trial_id: str, result: dict[str, Any]) -> bool:
        """A worker reports; it is given stages where it has none. Returns whether it goes."""
        worker = self.workers.living[trial_id]
        if "actor" in result:
            others = result.get("others", ())
            worker.introduce(result["node"], result["actor"], time.monotonic(), [each["node"] for each in others])
            self.failed_starts = 0
            for each in (result, *others):
                if problem := self.shared_root.problem(each):
                    self.stop.request(problem)
        if worker.batch:
            self._hear(worker.batch, result)
        if not result["idle"]:
            return False
        if worker.batch:
            self.workers.end(worker, time.monotonic())
        goes = self.stop.requested or not (self._give_stages(worker) or self._is_kept(worker))
        if goes:
            self.workers.go(trial_id, time.monotonic())
        self._note_use()
        return goes

    def _give_stages(self, worker: Worker) -> bool:
        """Whether there were any. A worker on whose node one of another kind is to start, for stages that come first,
        gets none."""
        self._fill()
        for group in self.graph.groups():
            if self._need(group.role) == worker.need:
                self._assign(worker, group)
                return True
            if self._gives_way(worker, group):
                return False
        if self.test and self.test.left:
            self._assign_measuring(worker, self.test.take())
            return True
        return False

    def _gives_way(self, worker: Worker, group: Group) -> bool:
        need = self._need(group.role)
        return (
            self._batches(group) > self.workers.waiting(need)
            and not self.workers.room(need)
            and bool(self.workers.kept_for(need) & worker.nodes)
        )

    def _is_kept(self, worker: Worker) -> bool:
        """Whether a worker with nothing to train stays: not for long, and not where another kind needs its place."""
        if self.over or any(self._gives_way(worker, group) for group in self.graph.groups()):
            return False
        return time.monotonic() - worker.idle_since < KEPT_SECONDS

    def _assign(self, worker: Worker, group: Group) -> None:
        nodes = self.graph.take(group, self._batch_size(group))
        parts = {node.stage.key: node.parts[-1] for node in nodes} if group.work == "derive" else {}
        below = "layers that stand still" if nodes[0].frozen else ""
        keys = {node.stage.key for node in nodes}
        self.workers.begin(worker, Batch(group, keys, time.monotonic(), parts, untold=below))
        # Before the step that Tune asks for next: a worker does in order what this process asks of it.
        worker.actor.assign.remote(self._given(group, nodes, parts))
        for node in nodes:
            self.graph.start(node.stage.key)
            if not node.frozen:
                self.observers.stage_started(node)
        self.observers.graph_changed(self.graph, self.search.remaining)

    def _assign_measuring(self, worker: Worker, stages: list[Stage]) -> None:
        """Finished stages, which any worker has room for: it held as much when it trained."""
        group = Group("student", "confirm", "", None, "measure")
        batch = Batch(group, set(), time.monotonic(), measured=stages, untold="the test split")
        self.workers.begin(worker, batch)
        space = self.search.space
        worker.actor.assign.remote(
            {
                "work": "measure",
                "stages": [stage.model_dump(mode="json") for stage in stages],
                "threads": space.resources_of("student").cpu if space.deterministic else None,
                "metric": space.goes_by,
            }
        )

    def _given(self, group: Group, nodes: list[Node], parts: Mapping[str, Part]) -> dict[str, Any]:
        space, study = self.search.space, self.search.study.study_name
        return {
            "work": group.work,
            "views": {key: sorted(part, key=str) for key, part in parts.items()},
            "stages": [node.stage.model_dump(mode="json") for node in nodes],
            "origin": {node.stage.key: {"study": study, "use": node.first_use} for node in nodes},
            "measure_width": space.lanes == "auto" and not space.deterministic and group.shape not in self.widths,
            # The rounding of sums depends on them, and what a worker holds on how many slots there are.
            "threads": space.resources_of(group.role).cpu if space.deterministic else None,
            "whole": space.deterministic,
            "metric": space.goes_by,
            "halving": self.halving if (group.role, group.phase) == ("student", "search") else None,
            "halving_epochs": space.asha.grace_epochs if space.asha else None,
            "checkpoint_every": space.checkpoint_every.model_dump(exclude_none=True),
        }

    def _note_use(self) -> None:
        self.use.note(time.monotonic(), self.workers.busy_part, next(self.graph.groups(), None) is not None)

    def _ask(self) -> Proposal | None:
        with self._room_needed():
            return self.search.ask()
        return None

    @contextmanager
    def _room_needed(self) -> Iterator[None]:
        """A full disk stops the study, as a database does that is away for long: it is no fault of a stage's."""
        try:
            yield
        except (StorageAwayError, RootAwayError) as error:
            self.stop.request(str(error))
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.stop.request(f"{error.filename or self.root}: {error.strerror}")

    def _hear(self, batch: Batch, result: dict[str, Any]) -> None:
        if (measured := result.get("measured")) is not None and self.test:
            with self._room_needed():
                self.test.end(measured)
            return
        if result["width"] is not None:
            self.widths[batch.group.shape] = result["width"]
        for state in result["stages"]:
            self._tell_epochs(state)
            if state["state"] != "running" and state["key"] in batch.keys:
                batch.keys.remove(state["key"])
                self._end(state, batch.parts.get(state["key"]))
        self._close_finished()

    def _tell_epochs(self, state: dict[str, Any]) -> None:
        """Those not told before: after a retry a worker repeats some."""
        node = self.graph.nodes[state["key"]]
        epochs = [each for each in state["epochs"] if each["epoch"] > node.epoch]
        node.epoch = epochs[-1]["epoch"] if epochs else node.epoch
        self.observers.stage_reported(node, epochs)

    def _end(self, state: dict[str, Any], part: Part | None) -> None:
        key = state["key"]
        if state["state"] in ("returned", "no room"):
            self.graph.give_back(key, part)
            if state["state"] == "no room":
                self.stop.request(state["reason"])
            return
        if state["state"] == "done":
            self.graph.finish(key, part)
        elif state["state"] == "no memory":  # not what it is but where it was to train: another run tries again
            self.graph.fail(key, state["reason"])
        elif state["state"] == "failed":
            self.graph.fail(key, state["reason"], lasting=True)  # else the worker would have raised it
        else:
            with self._room_needed():
                self.pruned.note(key, state["epochs"])
            self.graph.prune(key, state["epochs"])
        if state["state"] not in ("done", "no memory"):
            self.artifacts.drop_checkpoint(key)
        if self.graph.nodes[key].description is None and self.graph.nodes[key].state not in ENDED:
            return  # what its layers give that stand still is there, and it is to be trained
        self.observers.stage_ended(self.graph.nodes[key])
        self.graph.nodes[key].forget_epochs()

    def worker_failed(self, trial_id: str, reason: str) -> None:
        """It died, or what it trained raised. Tune's own retries are not used: they know nothing of stages."""
        worker = self.workers.living[trial_id]
        batch = worker.batch
        keys, parts = (sorted(batch.keys), batch.parts) if batch else ([], {})
        self.workers.go(trial_id, time.monotonic())
        if not worker.started:
            self.failed_starts += 1
            if self.failed_starts > self.search.space.max_failures:
                self.stop.request(f"no worker starts: {reason}")
        if batch and batch.measured and self.test:
            self.test.give_back(batch.measured)
            if self.test.deaths > self.search.space.max_failures:
                self.stop.request(f"the test split could not be measured: {reason}")
        self.graph.retry(keys, reason, self.search.space.max_failures, parts)
        if self.search.space.deterministic and any(self.graph.nodes[key].most_lanes for key in keys):
            log.warning(
                "deterministic: workers died over and over; %d stages train on apart from those they began with, which "
                "may change their last digits",
                len(keys),
            )
        for node in (self.graph.nodes[key] for key in keys):
            if node.state == "failed":
                self.observers.stage_ended(node)
        self._close_finished()
        self._note_use()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `report` said that the worker goes, or `worker_failed` follows."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: `report` has heard it."""

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


class _Failures(tune.Callback):
    """What Tune tells callbacks but not searchers: why a worker failed."""

    def __init__(self, searcher: PathSearcher) -> None:
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        text = FilePath(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        log.debug("trial %s: %s", trial.trial_id, text)
        self.searcher.worker_failed(trial.trial_id, _reason(text))


class _Reports(tune.Stopper):
    """What Tune asks about each report, before anybody else hears of it: whether the worker goes."""

    def __init__(self, searcher: PathSearcher) -> None:
        self.searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.searcher.report(trial_id, result)

    def stop_all(self) -> bool:
        return self.searcher.stop.requested or self.searcher.over

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _small(width: int) -> int:
    """Stages that make a batch worth its worker, of a shape of which so many train fastest."""
    return -(-width // 4)


def _reason(error_text: str) -> str:
    """The line that says what happened: the last of a traceback, the first of Ray's own explanation of a dead actor."""
    lines = [line.strip() for line in error_text.splitlines() if line.strip() and not line.startswith("Failure #")]
    if not lines:
        return "ended without an error message"
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
    return (raised or lines)[-1 if raised else 0][:500]


_begun: str | None = None  # the address of the Ray that `start_ray` began or joined in this process


def start_ray(slots: int | None, address: str | None = None, stop: Stop | None = None) -> int:
    """A Ray of our own on this machine, on loopback, or the running cluster at an address; returns its CPU slots.

    Where Ray runs in this process already it is used as it is; raises InputError where `address` names another, or no
    cluster answers there, StoppedError where none starts here, as on a machine that is too busy, and KeyboardInterrupt
    where `stop` is requested while it is waited for.
    """
    global _begun
    os.environ.update(_RAY_ENVIRONMENT)
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It says of a trial whose worker died that it did not complete; its stages do, in another.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if not ray.is_initialized():
        if address is not None:
            _wait_for_answer(address, stop or Stop())
        with _signals_kept():
            _init(slots, address)
        _begun = address or LOCAL
    elif address not in (None, _begun):
        raise InputError(f"address {address}: Ray runs in this process already, elsewhere; ray.shutdown() ends it")
    return int(reachable_resources().get("CPU", 1))


def leave_ray() -> None:
    """Ends what `start_ray` began, with the workers; a Ray that somebody else began in this process stays."""
    if _begun is not None:
        ray.shutdown()


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


def _wait_for_answer(address: str, stop: Stop) -> None:
    """Ray itself would try a wrong address for minutes, and hear of no Ctrl-C meanwhile."""
    reasons: list[str] = []
    asking = threading.Thread(target=lambda: reasons.append(_why_no_answer(address)), daemon=True)
    asking.start()
    until = time.monotonic() + ANSWER_SECONDS
    while asking.is_alive() and time.monotonic() < until:
        if stop.requested:
            raise KeyboardInterrupt(stop.reason)
        asking.join(0.1)
    if reason := reasons[0] if reasons else f"nothing in {ANSWER_SECONDS:.0f} s":
        raise InputError(f"--address {address}: no Ray cluster answers ({reason})")


def _why_no_answer(address: str) -> str:
    """What is wrong with an address; empty where something answers as Ray does."""
    try:
        found = canonicalize_bootstrap_address(address.removeprefix("ray://"))
        host, port = parse_address(found) if found else ("", "")
        if not found:
            return "none is known on this machine; give HOST:PORT"
        with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS / 3) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""
            connection.sendall(HTTP2)
            answer = connection.recv(9)
    except OSError as error:
        return str(error)
    except (ValueError, TypeError):
        return "this is no HOST:PORT"
    return "" if answer[3:4] == SETTINGS else "what listens there is no Ray"


def _init(slots: int | None, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        _join(address, quiet)
        return
    try:
        with _nothing_unused():
            ray.init(address=LOCAL, num_cpus=slots, include_dashboard=False, **quiet)
    except Exception as error:  # of many kinds, among them that itself
        ray.shutdown()
        raise StoppedError(f"Ray did not start on this machine ({str(error).splitlines()[0]})") from error


@contextmanager
def _nothing_unused() -> Iterator[None]:
    """Ray has no option for it."""
    own = {name: getattr(RayNode, name) for name in _UNUSED if hasattr(RayNode, name)}
    for name in own:
        setattr(RayNode, name, lambda *given, **named: None)
    try:
        yield
    finally:
        for name, method in own.items():
            setattr(RayNode, name, method)


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


def reachable_nodes() -> Nodes:
    """What each node has, and as one more what an autoscaler could bring."""
    there = nodes_now()
    reachable = reachable_resources()
    more = Need(
        reachable.get("CPU", 0) - sum(node.cpu for node in there.values()),
        reachable.get("GPU", 0) - sum(node.gpu for node in there.values()),
    )
    return {**there} | ({ELSEWHERE: more} if more.cpu > 0 or more.gpu > 0 else {})


def possible_nodes() -> list[Need]:
    """What each node has, and each that an autoscaler can bring."""
    config = ray._private.state.state.get_cluster_config()
    now, more = list(nodes_now().values()), list[Need]()
    for kind in config.node_group_configs if config else []:
        node = Need(kind.resources.get("CPU", 0), kind.resources.get("GPU", 0))
        most = kind.max_count if kind.max_count >= 0 else UNLIMITED
        more += [node] * max(0, most - now.count(node))
    return [*now, *more]


def nodes_now() -> Nodes:
    """What each node has that is there."""
    return {
        node["NodeID"]: Need(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    }


def run_stages(searcher: PathSearcher) -> None:
    """Runs until the search's budget is spent and every stage has ended, or the searcher's `stop` is requested.

    Then stages in training write a checkpoint, and those that take longer than STOP_SECONDS are cut off.
    """
    scratch = FilePath(tempfile.mkdtemp(prefix="takd-tune-"))
    try:
        tune.Tuner(
            StageTrainable,
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=False),
            run_config=tune.RunConfig(
                name="study",
                storage_path=str(scratch),
                stop=_Reports(searcher),
                callbacks=[_Failures(searcher)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # the next run does it
            searcher.shared_root.close()
