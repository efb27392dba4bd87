"""The study graph: which stages the proposed paths need, each once, and which may train now. No Ray, no Optuna.

A stage that others learn from needs, beside its weights, its soft targets in their views. Where the weights exist and
these don't (a student that is needed as an assistant, a given teacher), it becomes ready once more, to be derived from.
"""

from bisect import insort
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, NamedTuple, Protocol

from takd.search_spaces import ROLES, LeftName, Path, Role, Stage, frozen_for, frozen_of, needed_by
from takd.search_spaces.augments import view_number
from takd.search_spaces.metrics import ACCURACY, Metric
from takd.search_spaces.stage import Phase
from takd.trainables.looks import Looks, looks

State = Literal["waiting", "ready", "running", "done", "failed", "pruned"]
STATES: tuple[State, ...] = ("waiting", "ready", "running", "done", "failed", "pruned")
ENDED: tuple[State, ...] = ("done", "failed", "pruned")

Work = Literal["train", "derive", "measure"]

Description = Mapping[str, Any]  # an artifact's stage.json
Part = frozenset[LeftName]  # of what a stage leaves in its views, that which one worker derives at a time

PART_OF_VIEWS = 8  # at most so many: where each epoch has a view of its own, workers derive them side by side


class Find(Protocol):
    """Looks into the artifact store: what a finished stage left, and the views that nobody can learn from it in yet."""

    def artifact(self, stage: Stage) -> Description | None: ...
    def lacking(self, stage: Stage, description: Description, views: Collection[LeftName]) -> Collection[LeftName]: ...
    def lacking_frozen(self, stage: Stage, names: Collection[LeftName]) -> Collection[LeftName]: ...


@dataclass(frozen=True)
class Proposal:
    """One configuration to train, a path a seed: asked about by the sampler, or to be confirmed."""

    number: int  # of the Optuna trial; below 0 for what is confirmed
    configuration: str  # its arm and hyperparameters; several proposals may repeat one, with other seeds
    paths: tuple[Path, ...]
    phase: Phase = "search"
    cell: str = ""  # the name of its cell, where the space has factors

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


@dataclass(eq=False)
class Node:
    """A stage that some path needs."""

    stage: Stage
    first_use: str  # "trial.seed" of the path that needed it first
    state: State = "waiting"
    cached: bool = False  # its artifact was there before this run of the study needed it
    epoch: int = 0  # the last that was reported
    failures: int = 0  # workers that died while they trained it alone
    trained: bool = False  # in this run of the study
    views: set[LeftName] = field(default_factory=set)  # what others are to learn from it: in so many views its logits,
    # or what is inside of its model
    there: set[LeftName] = field(default_factory=set)  # of that, what was found
    frozen: set[LeftName] = field(default_factory=set)  # of layers below it that stand still, what is derived first
    # for it and for all that start from the same weights
    below: frozenset[str] = frozenset()  # all of that which it needs, by the keys of what is derived
    parts: list[Part] = field(default_factory=list)  # of these, those that workers derive now
    most_lanes: int | None = None  # that it may train with: fewer each time a worker died
    reason: str | None = None
    lasting: bool = False  # it failed by what its key says, and would again
    description: Description | None = None
    chunk: "Chunk | None" = None  # with whom alone it trains, where that is fixed
    number: int = 0  # of the stages that were needed before it
    deaths: int = 0  # workers that died while they trained it, with others or alone
    looks: Looks = field(default_factory=dict)  # of students that may be ended early: what they had reached, by epoch
    uses: set[int] = field(default_factory=set)  # proposals
    arms: set[str] = field(default_factory=set)  # whose student it is; nearly always one

    @property
    def work(self) -> Work:
        """What a worker has to do for it."""
        return "derive" if self.frozen or self.description is not None or self.stage.given else "train"

    @property
    def lacking(self) -> list[LeftName]:
        """The views that nobody can learn in yet, and no worker derives, in their order."""
        left = (self.frozen or self.views - self.there) - frozenset().union(*self.parts)
        return sorted(left, key=view_number)

    @property
    def parts_left(self) -> int:
        """Into how many parts these are divided; of a given stage the first part makes the artifact."""
        in_parts = self.frozen or self.description is not None
        return max(1, -(-len(self.lacking) // PART_OF_VIEWS)) if in_parts else 1

    def can_teach(self, stage: Stage) -> bool:
        """Whether all is there that a stage learns from it: of its own views, whatever others are to be derived."""
        return self.state == "done" or (self.description is not None and self.there.issuperset(needed_by(stage)))

    @property
    def shown(self) -> str:
        """Its state among `counts`."""
        return "cached" if self.cached and self.state == "done" else self.state

    @property
    def order(self) -> tuple[bool, int, int, int]:
        """Of stages that are ready: those first that were asked for first, and last those whose workers died."""
        trial, _, seed = self.first_use.partition(".")
        return self.deaths > 0, abs(int(trial)), int(seed), self.number

    def forget_epochs(self) -> None:
        """Its metrics by epoch have been told to whom they concern: of ten thousand stages they would fill memory."""
        if self.description:
            outcome = {name: each for name, each in self.description["outcome"].items() if name != "epochs"}
            self.description = {**self.description, "outcome": outcome}

    @property
    def val_accuracy(self) -> float | None:
        return self.value(ACCURACY)

    def value(self, metric: Metric) -> float | None:
        """Of a metric on the validation split; None where nobody measured it."""
        if self.description is None:
            return None
        found: float | None = (self.description["outcome"]["metrics"]["validation"] or {}).get(metric.kept)
        return found


class Chunk(NamedTuple):
    """Stages that train together and with no others, whatever else is ready."""

    number: int
    role: Role  # in which they were first needed


class Group(NamedTuple):
    """Ready stages that may train together."""

    role: Role
    phase: Phase  # of the search alone are weak students ended early
    shape: str
    most_lanes: int | None
    work: Work = "train"
    chunk: int | None = None


class StageGraph:
    """Paths go in, stages come out when all they learn from exists; what is done twice is done once.

    `counts` has stages by role and state, those found done as `cached`. With `fixed_lanes` the stages of one proposal
    that are alike and learn from the same ones train together, so many at most, and with no others: the proposals and
    their order decide who trains with whom, and not what happens to be ready.
    """

    def __init__(
        self,
        find: Find,
        lasting: Mapping[str, str] | None = None,
        pruned: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        look_every: int | None = None,
        fixed_lanes: int | None = None,
        metric: Metric = ACCURACY,
    ) -> None:
        """`lasting` has the reasons of stages, by key, that fail whenever they are trained: they are not.

        `pruned` has the epochs of students that an earlier run ended early, by key: they stay so. `look_every` is how
        many epochs lie between two looks at a student's `metric`, by which the study goes.
        """
        self.find, self.lasting, self.pruned, self.look_every = find, lasting or {}, pruned or {}, look_every
        self.fixed_lanes, self.metric = fixed_lanes, metric
        self._chunks: dict[tuple[Any, ...], list[Chunk]] = {}  # the one of each stage so far, by what they share
        self.counts: dict[str, dict[str, int]] = {role: dict.fromkeys((*STATES, "cached"), 0) for role in ROLES}
        self._ready: dict[str, dict[Group, list[Node]]] = {role: {} for role in ROLES}  # by `Node.order`
        self.nodes: dict[str, Node] = {}
        self.open: dict[int, Proposal] = {}
        self._touched: set[int] = set()  # proposals that came, or a stage of which ended, since these were looked at
        self._values: dict[tuple[str, str], list[float]] = {}  # of the metric, by arm and configuration
        self._downstream: dict[str, list[str]] = {}
        self._below_there: set[str] = set()  # what layers that stand still give, by key
        self._below_by: dict[str, str] = {}  # by such a key, the stage for which it is derived now
        self._above: set[str] = set()  # stages that wait for some of it

    def add(self, proposal: Proposal) -> None:
        self.open[proposal.number] = proposal
        self._touched.add(proposal.number)
        for path in proposal.paths:
            for stage in path.stages:
                node = self.nodes.get(stage.key) or self._new_node(stage, proposal, path)
                if node.stage.role == "student" and stage.role != "student":
                    self._promote(node, stage.role)
                node.uses.add(proposal.number)
            self.nodes[path.student.key].arms.add(path.arm)

    def _new_node(self, stage: Stage, proposal: Proposal, path: Path) -> Node:
        # The stages it learns from are those of other nodes: one object each, however many learn from them.
        shared = tuple(self.nodes[each.key].stage for each in stage.upstream)
        stage = stage.model_copy(update={"upstream": shared})
        description = self.find.artifact(stage)
        node = self.nodes[stage.key] = Node(
            stage,
            proposal.use(path),
            number=len(self.nodes),
            description=description,
            cached=description is not None,
            chunk=self._chunk_of(stage, proposal),
        )
        if description:
            self.note_looks(node, description["outcome"].get("epochs", ()))
        node.forget_epochs()
        self.counts[stage.role]["waiting"] += 1
        for upstream in stage.upstream:
            self._downstream.setdefault(upstream.key, []).append(stage.key)
        if node.cached:
            self._set_state(node, "ready" if self._lacks_metric(node) else "done")
        else:
            self._open(node)
        return node

    def _chunk_of(self, stage: Stage, proposal: Proposal) -> Chunk | None:
        """Also of a stage that is there: who is left trains with the same ones in every run of the study."""
        if self.fixed_lanes is None:
            return None
        alike = (proposal.number, stage.role, stage.shape, *(each.key for each in stage.upstream))
        before = self._chunks.setdefault(alike, [])
        begins = len(before) % self.fixed_lanes == 0
        before.append(Chunk(len(self.nodes), stage.role) if begins else before[-1])
        return before[-1]

    def _promote(self, node: Node, role: Role) -> None:
        """Others are to learn from what was a student alone, which they do from its weights: it keeps these."""
        queued = self._unqueue(node)
        node.stage = node.stage.model_copy(update={"role": role})
        self.counts["student"][node.shown] -= 1
        self.counts[role][node.shown] += 1
        if node.state == "pruned":
            self._set_state(node, "waiting")
            self._open(node)
        elif queued:
            self._set_state(node, "ready")

    def _unqueue(self, node: Node) -> bool:
        """Whether it was ready, and not yet taken."""
        group = self._group(node)
        queue = self._ready[group.role].get(group, [])
        if node not in queue:
            return False
        queue.remove(node)
        if not queue:
            del self._ready[group.role][group]
        return True

    def _open(self, node: Node) -> None:
        """It is to be trained: from soft targets, in the views of its recipe, of the stages upstream."""
        if (reason := self.lasting.get(node.stage.key)) is not None:
            self._fail(node, reason, lasting=True)
            return
        if node.stage.role == "student" and (epochs := self.pruned.get(node.stage.key)) is not None:
            self.note_looks(node, epochs)
            self._set_state(node, "pruned")
            return
        for stage in node.stage.upstream:
            upstream = self.nodes[stage.key]
            upstream.views |= set(needed_by(node.stage))
            if upstream.state == "done" and self._lacks_soft_targets(upstream):
                self._set_state(upstream, "ready")
        self._look_below(node)

    def _look_below(self, node: Node) -> None:
        """What its layers give that stand still comes first, whether who teaches it is there or not.

        The first stage that needs it becomes ready to be derived from; others wait until that is done.
        """
        names = {frozen_of(node.stage, name).key: name for name in frozen_for(node.stage)}
        node.below = frozenset(names)
        unknown = {
            key: name for key, name in names.items() if key not in self._below_there and key not in self._below_by
        }
        node.frozen = set(self.find.lacking_frozen(node.stage, list(unknown.values()))) if unknown else set()
        for key, name in unknown.items():
            if name in node.frozen:
                self._below_by[key] = node.stage.key
            else:
                self._below_there.add(key)
        if node.frozen:
            self._set_state(node, "ready")
        else:
            self._look_upstream(node)

    def _finish_below(self, node: Node, part: Part | None) -> None:
        """A worker has derived a part of it, or all."""
        made = node.frozen if part is None else node.frozen & part
        found = made - set(self.find.lacking_frozen(node.stage, sorted(made, key=str)))
        keys = {frozen_of(node.stage, name).key for name in found}
        node.frozen -= found
        self._below_there |= keys
        for key in keys:
            self._below_by.pop(key, None)
        if node.frozen and node.parts:
            if node.lacking:
                self._enqueue(node)
        elif node.frozen:
            self._set_state(node, "ready")
        else:
            node.most_lanes = None  # that a worker died while it derived says nothing of how many train together
            self._set_state(node, "waiting")
            self._look_upstream(node)
        self._tell_above()

    def _tell_above(self) -> None:
        """More is there, or nobody derives any longer what was to be derived."""
        waiting, self._above = self._above, set()
        for node in sorted((self.nodes[key] for key in waiting), key=lambda each: each.order):
            if node.state == "waiting":
                self._look_below(node)

    def _lacks_metric(self, node: Node) -> bool:
        """Of a student whose artifact is there: another study trained it, which went by another metric."""
        return node.stage.role == "student" and node.value(self.metric) is None

    def _lacks_soft_targets(self, node: Node) -> bool:
        """Of a node whose artifact is there. What was found once is not looked at again: thousands learn from one."""
        assert node.description is not None
        if unknown := node.views - node.there:
            node.there |= unknown - set(self.find.lacking(node.stage, node.description, sorted(unknown, key=str)))
        return bool(node.views - node.there)

    def _look_upstream(self, node: Node) -> None:
        """A waiting stage becomes ready when its upstream is done, and fails when it failed."""
        upstream = [self.nodes[stage.key] for stage in node.stage.upstream]
        failed = next((each for each in upstream if each.state == "failed"), None)
        if failed:
            reason = f"{failed.stage.role} {failed.stage.model} failed: {failed.reason}"
            self._fail(node, reason, failed.lasting)
        elif not node.below <= self._below_there:
            self._above.add(node.stage.key)
        elif all(each.can_teach(node.stage) for each in upstream):
            self._set_state(node, "ready")

    def groups(self) -> "Iterator[Group]":
        """Whose stages could train, in order: what others learn from first, then what was asked for first.

        When they became ready says nothing: so a study that goes on trains in the order of one that nobody disturbed.
        """
        for groups in self._ready.values():
            yield from sorted(groups, key=lambda group: groups[group][0].order)

    def ready(self, group: "Group") -> int:
        """How many stages of a group could train now, or how many parts of their views be derived."""
        queue = self._ready[group.role].get(group, ())
        return len(queue) if group.work == "train" else sum(node.parts_left for node in queue)

    @property
    def has_waiting(self) -> bool:
        """Whether stages wait for others."""
        return any(counts["waiting"] for counts in self.counts.values())

    def take(self, group: "Group", most: int) -> list[Node]:
        """Ready stages of a group, in order, each given once."""
        queue = self._ready[group.role][group]
        number = min(most, group.most_lanes or most)
        taken = queue[:number]
        del queue[:number]
        for node in taken if group.work == "derive" else ():
            node.parts.append(frozenset(node.lacking[:PART_OF_VIEWS]))
            if node.lacking and (node.frozen or node.description is not None):
                insort(queue, node, key=lambda each: each.order)
        if not queue:
            del self._ready[group.role][group]
        if group.chunk is not None:  # the lane that a stage has is fixed too
            taken.sort(key=lambda node: node.number)
        return taken

    def _group(self, node: Node) -> "Group":
        stage, chunk = node.stage, node.chunk
        if chunk is None or node.work == "derive":
            lanes = node.most_lanes if node.work == "train" else None  # one group, however often a worker died
            return Group(stage.role, stage.phase, stage.shape, lanes, node.work)
        return Group(chunk.role, stage.phase, stage.shape, node.most_lanes, node.work, chunk.number)

    def start(self, key: str) -> None:
        """The stage has its device and trains."""
        self._set_state(self.nodes[key], "running")

    def _set_state(self, node: Node, state: State) -> None:
        counts = self.counts[node.stage.role]
        counts[node.shown] -= 1
        node.state = state
        counts[node.shown] += 1
        if state == "ready":
            self._enqueue(node)
        elif state in ENDED:
            self._touched |= node.uses

    def _enqueue(self, node: Node) -> None:
        group = self._group(node)
        queue = self._ready[group.role].setdefault(group, [])
        if node not in queue:  # where a part of its views is left it may be there
            insort(queue, node, key=lambda each: each.order)

    @staticmethod
    def _end_part(node: Node, part: Part | None) -> None:
        """A worker derives no longer; None: the one that does."""
        if part in node.parts:
            node.parts.remove(part)
        elif part is None:
            node.parts.clear()

    def finish(self, key: str, part: Part | None = None) -> None:
        """A worker is done with the stage, or a part of its views: where all is there that others need, they may become
        ready."""
        node = self.nodes[key]
        was = node.work
        self._end_part(node, part)
        if node.state == "failed":
            return  # while another worker derived a part of it
        if node.frozen:
            self._finish_below(node, part)
            return
        node.description = self.find.artifact(node.stage)
        node.trained |= was == "train" and node.description is not None
        if node.description:
            self.note_looks(node, node.description["outcome"].get("epochs", ()))
        if node.description is None and (was == "train" or node.stage.given):
            self.fail(key, "its artifact is not in the store")
        elif node.description is None:  # damaged since it was found: it must be trained again
            node.cached = node.trained = False
            node.there.clear()
            self._set_state(node, "waiting")
            self._open(node)
        elif self._lacks_soft_targets(node):
            if not node.parts:
                self._set_state(node, "ready")
            elif node.lacking:
                self._enqueue(node)
            self._tell_downstream(key)
        else:
            self._set_state(node, "done")
            self._tell_downstream(key)

    def give_back(self, key: str, part: Part | None = None) -> None:
        """The stage could not train now, though nothing is wrong with it."""
        self._end_part(self.nodes[key], part)
        self._set_state(self.nodes[key], "ready")

    def retry(
        self, keys: Sequence[str], reason: str, max_failures: int, parts: Mapping[str, Part] | None = None
    ) -> None:
        """The worker that trained these stages died: they train again, a quarter as many together.

        So the one that kills its workers is soon alone. Alone it may fail `max_failures` times, then it has failed.
        Where it is fixed who trains together, that holds as long: so many times all of them train again as they did.
        """
        nodes = [self.nodes[key] for key in keys]
        together = all(node.chunk and node.deaths < max_failures for node in nodes)
        for node in nodes:
            self._end_part(node, (parts or {}).get(node.stage.key))
            node.deaths += 1
            node.failures += len(keys) == 1
            if node.failures > max_failures:
                self._fail(node, reason)
            else:
                node.most_lanes = None if together else max(1, len(keys) // 4)
                self._set_state(node, "ready")

    def fail(self, key: str, reason: str, lasting: bool = False) -> None:
        """`lasting`: because of what its key says, so that it would fail again."""
        self._fail(self.nodes[key], reason, lasting)

    def _fail(self, node: Node, reason: str, lasting: bool = False) -> None:
        self._unqueue(node)  # parts of its views may wait there
        self._set_state(node, "failed")
        node.reason, node.lasting = reason, lasting
        self._tell_downstream(node.stage.key)
        if node.frozen:
            node.frozen = set()
            self._below_by = {key: by for key, by in self._below_by.items() if by != node.stage.key}
            self._tell_above()

    def _tell_downstream(self, key: str) -> None:
        for name in self._downstream.get(key, []):
            if self.nodes[name].state == "waiting":
                self._look_upstream(self.nodes[name])

    def prune(self, key: str, epochs: Sequence[Mapping[str, Any]] = ()) -> None:
        """A scheduler ended the stage early: it leaves no result, and nothing is wrong with it."""
        self.note_looks(self.nodes[key], epochs)
        self._set_state(self.nodes[key], "pruned")

    def note_looks(self, node: Node, epochs: Sequence[Mapping[str, Any]]) -> None:
        if self.look_every is not None and node.stage.role == "student":
            node.looks = looks(epochs, self.look_every, self.metric)

    def close_finished(self) -> list[Proposal]:
        """Takes out the proposals all of whose students have ended."""
        if not self._touched:
            return []
        touched = [each for number, each in self.open.items() if number in self._touched]
        self._touched.clear()
        finished = [each for each in touched if all(node.state in ENDED for node in self.students(each))]
        for proposal in finished:
            del self.open[proposal.number]
            if proposal.phase == "search":
                found = [value for node in self.students(proposal) if (value := node.value(self.metric)) is not None]
                self.note(proposal.arm, proposal.configuration, found)
        return finished

    def note(self, arm: str, configuration: str, values: Sequence[float]) -> None:
        """What students of a configuration reached, in this run or an earlier one."""
        self._values.setdefault((arm, configuration), []).extend(values)

    @property
    def best_by_arm(self) -> dict[str, float]:
        """The metric's mean on validation over all seeds of each arm's best configuration."""
        best: dict[str, float] = {}
        better = max if self.metric.higher else min
        for (arm, _), values in self._values.items():
            if values:
                best[arm] = better(best.get(arm, fmean(values)), fmean(values))
        return best

    def students(self, proposal: Proposal) -> list[Node]:
        return [self.nodes[path.student.key] for path in proposal.paths]
