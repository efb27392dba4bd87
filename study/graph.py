"""The study graph: which stages the proposed paths need, each once, and which may train now. No Ray, no Optuna."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from search_spaces import ROLES, Path, Stage

State = Literal["waiting", "ready", "running", "done", "failed", "pruned"]
STATES: tuple[State, ...] = ("waiting", "ready", "running", "done", "failed", "pruned")
ENDED: tuple[State, ...] = ("done", "failed", "pruned")

Description = Mapping[str, Any]  # an artifact's stage.json


@dataclass(frozen=True)
class Proposal:
    """One configuration that the sampler asks about: a path a seed."""

    number: int  # of the Optuna trial
    configuration: str  # its arm and hyperparameters; several proposals may repeat one, with other seeds
    paths: tuple[Path, ...]

    @property
    def arm(self) -> str:
        return self.paths[0].arm


@dataclass
class Node:
    """A stage that some path needs."""

    stage: Stage
    first_use: str  # "trial.seed" of the path that needed it first
    state: State = "waiting"
    cached: bool = False  # its artifact was there before this run of the study needed it
    epoch: int = 0  # the last that was reported
    reason: str | None = None
    description: Description | None = None
    uses: set[int] = field(default_factory=set)  # proposals

    @property
    def val_accuracy(self) -> float | None:
        return self.description["outcome"]["metrics"]["validation"]["accuracy"] if self.description else None


class StageGraph:
    """Paths go in, stages come out when all they learn from exists; what is done twice is done once.

    `find` looks up a finished stage's description in the artifact store. `counts` has stages by role and state, those
    found done as `cached`.
    """

    def __init__(self, find: Callable[[Stage], Description | None]) -> None:
        self.find = find
        self.counts: dict[str, dict[str, int]] = {role: dict.fromkeys((*STATES, "cached"), 0) for role in ROLES}
        self._ready: dict[str, deque[Node]] = {role: deque() for role in ROLES}
        self.nodes: dict[str, Node] = {}
        self.open: dict[int, Proposal] = {}
        self._accuracies: dict[tuple[str, str], list[float]] = {}  # by arm and configuration
        self._downstream: dict[str, list[str]] = {}

    def add(self, proposal: Proposal) -> None:
        self.open[proposal.number] = proposal
        for path in proposal.paths:
            for stage in path.stages:
                node = self.nodes.get(stage.key) or self._new_node(stage, f"{proposal.number}.{path.student.seed}")
                node.uses.add(proposal.number)

    def _new_node(self, stage: Stage, first_use: str) -> Node:
        description = self.find(stage)
        node = self.nodes[stage.key] = Node(stage, first_use, description=description, cached=description is not None)
        self.counts[stage.role]["waiting"] += 1
        for upstream in stage.upstream:
            self._downstream.setdefault(upstream.key, []).append(stage.key)
        if node.cached:
            self._set_state(node, "done")
        else:
            self._look_upstream(node)
        return node

    def _look_upstream(self, node: Node) -> None:
        """A waiting stage becomes ready when its upstream is done, and fails when it failed."""
        upstream = [self.nodes[stage.key] for stage in node.stage.upstream]
        failed = next((each for each in upstream if each.state == "failed"), None)
        if failed:
            self._fail(node, f"{failed.stage.role} {failed.stage.model} failed: {failed.reason}")
        elif all(each.state == "done" for each in upstream):
            self._set_state(node, "ready")

    def take_ready(self) -> Node | None:
        """The ready stage that should train next, given once: what others learn from first, then in order."""
        queue = next((queue for queue in self._ready.values() if queue), None)
        return queue.popleft() if queue else None

    def start(self, key: str) -> None:
        """The stage has its device and trains."""
        self._set_state(self.nodes[key], "running")

    def _set_state(self, node: Node, state: State) -> None:
        counts = self.counts[node.stage.role]
        counts[node.state] -= 1
        counts["cached" if node.cached else state] += 1
        node.state = state
        if state == "ready":
            self._ready[node.stage.role].append(node)

    def finish(self, key: str) -> None:
        """The stage's artifact is published; stages that waited for it may become ready."""
        node = self.nodes[key]
        node.description = self.find(node.stage)
        if node.description is None:
            self.fail(key, "its artifact is not in the store")
            return
        self._set_state(node, "done")
        self._tell_downstream(key)

    def give_back(self, key: str) -> None:
        """The stage could not train now, though nothing is wrong with it."""
        self._set_state(self.nodes[key], "ready")

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
