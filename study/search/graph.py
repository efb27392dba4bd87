"""The study graph: which stages the proposed paths need, each once, and which may train now. No Ray, no Optuna."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, NamedTuple

from takd.search_spaces import ROLES, Path, Role, Stage
from takd.search_spaces.stage import Phase

State = Literal["waiting", "ready", "running", "done", "failed", "pruned"]
STATES: tuple[State, ...] = ("waiting", "ready", "running", "done", "failed", "pruned")
ENDED: tuple[State, ...] = ("done", "failed", "pruned")

Description = Mapping[str, Any]  # an artifact's stage.json


@dataclass(frozen=True)
class Proposal:
    """One configuration to train, a path a seed: asked about by the sampler, or to be confirmed."""

    number: int  # of the Optuna trial; below 0 for what is confirmed
    configuration: str  # its arm and hyperparameters; several proposals may repeat one, with other seeds
    paths: tuple[Path, ...]
    phase: Phase = "search"

    @property
    def arm(self) -> str:
        return self.paths[0].arm

    @property
    def trial(self) -> int:
        """Of Optuna: the one that it is, or the first of the configuration that it confirms."""
        return self.number if self.phase == "search" else -1 - self.number

    def use(self, path: Path) -> str:
        """Names one of its paths among all of the study: `trial.seed`."""
        return f"{self.number}.{path.student.seed}"


@dataclass
class Node:
    """A stage that some path needs."""

    stage: Stage
    first_use: str  # "trial.seed" of the path that needed it first
    state: State = "waiting"
    cached: bool = False  # its artifact was there before this run of the study needed it
    epoch: int = 0  # the last that was reported
    failures: int = 0  # workers that died while they trained it alone
    promoted: bool = False  # from student, while a worker trained it as one
    most_lanes: int | None = None  # that it may train with: fewer each time a worker died
    reason: str | None = None
    description: Description | None = None
    uses: set[int] = field(default_factory=set)  # proposals
    arms: set[str] = field(default_factory=set)  # whose student it is; nearly always one

    def forget_epochs(self) -> None:
        """Its metrics by epoch have been told to whom they concern: of ten thousand stages they would fill memory."""
        if self.description:
            outcome = {name: each for name, each in self.description["outcome"].items() if name != "epochs"}
            self.description = {**self.description, "outcome": outcome}

    @property
    def val_accuracy(self) -> float | None:
        return self.description["outcome"]["metrics"]["validation"]["accuracy"] if self.description else None


class Group(NamedTuple):
    """Ready stages that may train together."""

    role: Role
    phase: Phase  # of the search alone are weak students ended early
    shape: str
    most_lanes: int | None


class StageGraph:
    """Paths go in, stages come out when all they learn from exists; what is done twice is done once.

    `find` looks up a finished stage's description in the artifact store. `counts` has stages by role and state, those
    found done as `cached`.
    """

    def __init__(self, find: Callable[[Stage], Description | None]) -> None:
        self.find = find
        self.counts: dict[str, dict[str, int]] = {role: dict.fromkeys((*STATES, "cached"), 0) for role in ROLES}
        self._ready: dict[str, dict[Group, deque[Node]]] = {role: {} for role in ROLES}
        self.nodes: dict[str, Node] = {}
        self.open: dict[int, Proposal] = {}
        self._accuracies: dict[tuple[str, str], list[float]] = {}  # by arm and configuration
        self._downstream: dict[str, list[str]] = {}

    def add(self, proposal: Proposal) -> None:
        self.open[proposal.number] = proposal
        for path in proposal.paths:
            for stage in path.stages:
                node = self.nodes.get(stage.key) or self._new_node(stage, proposal.use(path))
                if node.stage.role == "student" and stage.role != "student":
                    self._promote(node, stage.role)
                node.uses.add(proposal.number)
            self.nodes[path.student.key].arms.add(path.arm)

    def _new_node(self, stage: Stage, first_use: str) -> Node:
        # The stages it learns from are those of other nodes: one object each, however many learn from them.
        shared = tuple(self.nodes[each.key].stage for each in stage.upstream)
        stage = stage.model_copy(update={"upstream": shared})
        description = self.find(stage)
        node = self.nodes[stage.key] = Node(stage, first_use, description=description, cached=description is not None)
        node.forget_epochs()
        self.counts[stage.role]["waiting"] += 1
        for upstream in stage.upstream:
            self._downstream.setdefault(upstream.key, []).append(stage.key)
        if node.cached:
            self._set_state(node, "done")
        else:
            self._look_upstream(node)
        return node

    def _promote(self, node: Node, role: Role) -> None:
        """Others are to learn from what was a student alone: where it left no soft targets, it trains again."""
        self.counts[node.stage.role]["cached" if node.cached else node.state] -= 1
        group = self._group(node)
        queue = self._ready["student"].get(group, deque())
        queued = node.state == "ready" and node in queue
        if queued:
            queue.remove(node)
            if not queue:
                del self._ready["student"][group]
        node.promoted = node.state == "running" or (node.state == "ready" and not queued)
        node.stage = node.stage.model_copy(update={"role": role})
        if node.state == "done":
            node.description = self.find(node.stage)
        again = queued or node.state == "pruned" or (node.state == "done" and node.description is None)
        if again:
            node.state, node.cached = "waiting", False
        self.counts[role]["cached" if node.cached else node.state] += 1
        if again:
            self._look_upstream(node)

    def _look_upstream(self, node: Node) -> None:
        """A waiting stage becomes ready when its upstream is done, and fails when it failed."""
        upstream = [self.nodes[stage.key] for stage in node.stage.upstream]
        failed = next((each for each in upstream if each.state == "failed"), None)
        if failed:
            self._fail(node, f"{failed.stage.role} {failed.stage.model} failed: {failed.reason}")
        elif all(each.state == "done" for each in upstream):
            self._set_state(node, "ready")

    def next_group(self) -> "Group | None":
        """Whose stages should train next: what others learn from first, then what was ready first."""
        return next((group for groups in self._ready.values() for group in groups), None)

    def ready(self, group: "Group") -> int:
        """How many stages of a group could train now."""
        return len(self._ready[group.role].get(group, ()))

    @property
    def has_waiting(self) -> bool:
        """Whether stages wait for others."""
        return any(counts["waiting"] for counts in self.counts.values())

    def take(self, group: "Group", most: int) -> list[Node]:
        """Ready stages of a group, in order, each given once."""
        queue = self._ready[group.role][group]
        taken = [queue.popleft() for _ in range(min(most, group.most_lanes or most, len(queue)))]
        if not queue:
            del self._ready[group.role][group]
        return taken

    def _group(self, node: Node) -> "Group":
        return Group(node.stage.role, node.stage.phase, node.stage.shape, node.most_lanes)

    def start(self, key: str) -> None:
        """The stage has its device and trains."""
        self._set_state(self.nodes[key], "running")

    def _set_state(self, node: Node, state: State) -> None:
        counts = self.counts[node.stage.role]
        counts[node.state] -= 1
        counts["cached" if node.cached else state] += 1
        node.state = state
        if state == "ready":
            group = self._group(node)
            self._ready[group.role].setdefault(group, deque()).append(node)

    def finish(self, key: str) -> None:
        """The stage's artifact is published; stages that waited for it may become ready."""
        node = self.nodes[key]
        node.description = self.find(node.stage)
        if node.description is None and node.promoted:
            node.promoted = False
            self.give_back(key)
            return
        if node.description is None:
            self.fail(key, "its artifact is not in the store")
            return
        self._set_state(node, "done")
        self._tell_downstream(key)

    def give_back(self, key: str) -> None:
        """The stage could not train now, though nothing is wrong with it."""
        self._set_state(self.nodes[key], "ready")

    def retry(self, keys: Sequence[str], reason: str, max_failures: int) -> None:
        """The worker that trained these stages died: they train again, a quarter as many together.

        So the one that kills its workers is soon alone. Alone it may fail `max_failures` times, then it has failed.
        """
        for node in [self.nodes[key] for key in keys]:
            node.failures += len(keys) == 1
            if node.failures > max_failures:
                self._fail(node, reason)
            else:
                node.most_lanes = max(1, len(keys) // 4)
                self._set_state(node, "ready")

    def fail(self, key: str, reason: str) -> None:
        self._fail(self.nodes[key], reason)

    def _fail(self, node: Node, reason: str) -> None:
        self._set_state(node, "failed")
        node.reason = reason
        self._tell_downstream(node.stage.key)

    def _tell_downstream(self, key: str) -> None:
        for name in self._downstream.get(key, []):
            if self.nodes[name].state == "waiting":
                self._look_upstream(self.nodes[name])

    def prune(self, key: str) -> None:
        """A scheduler ended the stage early: it leaves no result, and nothing is wrong with it."""
        self._set_state(self.nodes[key], "pruned")

    def close_finished(self) -> list[Proposal]:
        """Takes out the proposals all of whose students have ended."""
        finished = [each for each in self.open.values() if all(node.state in ENDED for node in self.students(each))]
        for proposal in finished:
            del self.open[proposal.number]
            if proposal.phase == "search":
                found = [node.val_accuracy for node in self.students(proposal) if node.val_accuracy is not None]
                self.note(proposal.arm, proposal.configuration, found)
        return finished

    def note(self, arm: str, configuration: str, accuracies: Sequence[float]) -> None:
        """What students of a configuration reached, in this run or an earlier one."""
        self._accuracies.setdefault((arm, configuration), []).extend(accuracies)

    @property
    def best_by_arm(self) -> dict[str, float]:
        """Mean validation accuracy over all seeds of each arm's best configuration."""
        best: dict[str, float] = {}
        for (arm, _), accuracies in self._accuracies.items():
            if accuracies:
                best[arm] = max(best.get(arm, 0.0), fmean(accuracies))
        return best

    def students(self, proposal: Proposal) -> list[Node]:
        return [self.nodes[path.student.key] for path in proposal.paths]
