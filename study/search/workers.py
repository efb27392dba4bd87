"""The workers of a run: which there are, what each does, where another has room, and how busy they were. No Ray."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from takd.search_spaces import ROLES, Role, Space, Stage
from takd.study.search.graph import Group, Part

# A worker that has nothing to train is kept for as long as a new one takes to start, then it goes.
KEPT_SECONDS = 5.0
ELSEWHERE = "a node that an autoscaler can bring"


class Need(NamedTuple):
    """What a worker holds while it lives: that much for each of its ranks, which may be on several nodes."""

    cpu: float
    gpu: float
    ranks: int = 1

    def among(self, nodes: Iterable["Need"]) -> int:
        """How many times it fits into what is free on nodes."""
        return sum(map(self.fits, nodes)) // self.ranks

    def fits(self, free: "Need") -> int:
        """How many ranks of it fit into what is free."""
        by_cpu = int(free.cpu / self.cpu + 1e-9)
        return max(0, min(by_cpu, int(free.gpu / self.gpu + 1e-9)) if self.gpu else by_cpu)

    def minus(self, other: "Need") -> "Need":
        """Without one of its ranks."""
        return Need(self.cpu - other.cpu, self.gpu - other.gpu)


Nodes = Mapping[str, Need]  # what each node of the cluster has, by its id


class Fitted(NamedTuple):
    """What a worker of each role gets."""

    needs: dict[Role, Need]
    warnings: list[str]  # where that is less than the space says
    lacking: str | None  # what a worker would wait for, because no node has any of it


def fitted(space: Space, nodes: Collection[Need]) -> Fitted:
    """What the space asks for, and no more than one node has of those that there are, or that an autoscaler can bring.

    A rank is on one node, a worker of several ranks on as many as it takes.
    Where the space says nothing of GPUs and there are any, others' models get a whole one and four students share one.
    """
    hosts = [node for node in nodes if node.cpu >= 1]
    most = max((node.gpu for node in hosts), default=0.0)
    needs: dict[Role, Need] = {}
    warnings: list[str] = []
    lacking = None
    for role in ROLES:
        used = role != "assistant" or space.assistants.names
        wanted, place = space.resources_of(role), f"resources.{role}"
        ranks = wanted.together
        if wanted.gpu is None:
            gpu = 0.0 if ranks > 1 else min(most, 0.25 if role == "student" else 1.0)
        else:
            gpu = min(1.0, wanted.gpu)
        if gpu > most and used:
            lacking = lacking or f"{place}.gpu is {wanted.gpu:g}; Ray has 0 GPUs"
        cpus = int(max((node.cpu for node in hosts if node.gpu >= gpu), default=wanted.cpu))
        if wanted.cpu > cpus and used:
            which = f"no node with {gpu:g} GPU" if gpu else "no node"
            warnings.append(f"{place}.cpu is {wanted.cpu}; {which} has more than {cpus}, which it gets")
        needs[role] = Need(min(wanted.cpu, cpus), gpu, ranks)
        room = sum(map(needs[role].fits, hosts))
        if ranks > room > 0 and used:
            what = f"gpu is {ranks}; GPUs" if gpu else f"ranks is {ranks}; CPUs"
            warnings.append(f"{place}.{what} for {room} are there, which it gets")
        needs[role] = needs[role]._replace(ranks=max(1, min(ranks, room)))
    if not hosts:
        lacking = lacking or "Ray has no node with a CPU"
    return Fitted(needs, warnings, lacking)


@dataclass
class Batch:
    """The stages that a worker trains side by side, or what else it does."""

    group: Group
    keys: set[str]  # of its stages that have not ended
    began: float
    parts: Mapping[str, Part] = field(default_factory=dict)  # by key, the views of a stage that are derived
    measured: Sequence[Stage] = ()  # finished ones, on the test split
    untold: str = ""  # what no observer hears of, in the profile's words

    @property
    def trained(self) -> int:
        """How many of its stages have not ended; to derive something of one trains nothing."""
        return len(self.keys) if self.group.work == "train" else 0


@dataclass
class Worker:
    """A process that trains one batch after another. It has no node until it has started."""

    need: Need
    node: str | None = None
    others: Sequence[str] = ()  # the nodes of its other ranks
    actor: Any = None  # Ray's handle of it
    batch: Batch | None = None
    began: float = 0.0  # when it had started
    idle_since: float = 0.0
    stages: int = 0  # that it trained to an end
    busy_seconds: float = 0.0
    lived_seconds: float = 0.0  # until it last ended something, from its start

    @property
    def started(self) -> bool:
        return self.node is not None

    def introduce(self, node: str, actor: Any, now: float, others: Sequence[str] = ()) -> None:
        """It has started, with its other ranks on these nodes."""
        self.node, self.actor, self.began, self.idle_since = node, actor, now, now
        self.others = others

    @property
    def nodes(self) -> set[str]:
        """That it holds something of."""
        return {self.node, *self.others} if self.node else set()

    @property
    def free(self) -> bool:
        """Whether it can take a batch, now or when it has started."""
        return self.batch is None

    def begin(self, batch: Batch) -> None:
        self.batch = batch
        self.stages += batch.trained

    def end(self, now: float) -> None:
        if self.batch:
            self.stages -= self.batch.trained  # that did not come to an end
            self.busy_seconds += now - self.batch.began
            self.lived_seconds = now - self.began
        self.batch, self.idle_since = None, now


@dataclass
class Workers:
    """All workers of a run by the name of their trial of Tune."""

    nodes: Nodes
    living: dict[str, Worker] = field(default_factory=dict)
    gone: list[Worker] = field(default_factory=list)  # those that trained something
    untold: dict[str, float] = field(default_factory=dict)  # seconds of CPU slots, by what no observer heard of
    first: float | None = None  # when one of them began something, and
    last: float | None = None  # when one had ended something

    def begin(self, worker: Worker, batch: Batch) -> None:
        self.first = batch.began if self.first is None else self.first
        worker.begin(batch)

    def end(self, worker: Worker, now: float) -> None:
        if batch := worker.batch:
            self.last = now
            if batch.untold:
                spent = (now - batch.began) * worker.need.cpu * worker.need.ranks
                self.untold[batch.untold] = self.untold.get(batch.untold, 0.0) + spent
        worker.end(now)

    def start(self, name: str, need: Need) -> None:
        self.living[name] = Worker(need)

    def go(self, name: str, now: float) -> None:
        """The worker ends, or has died."""
        worker = self.living.pop(name)
        self.end(worker, now)
        if worker.stages:
            self.gone.append(worker)

    def _free(self) -> dict[str, Need]:
        """What of each node no worker holds. Those that are about to start are taken to start where there is room."""
        free = dict(self.nodes)
        for worker in self.living.values():
            for node in (worker.node, *worker.others):
                if node in free:
                    free[node] = free[node].minus(worker.need)
        for worker in self.living.values():
            for _ in range(0 if worker.started else worker.need.ranks):
                node = next((name for name, there in free.items() if worker.need.fits(there)), None)
                if node is not None:
                    free[node] = free[node].minus(worker.need)
        return free

    def room(self, need: Need, besides: Collection[str] = ()) -> int:
        """How many more such workers could start, on any nodes but those that are kept for another kind."""
        return need.among(there for node, there in self._free().items() if node not in besides)

    def most(self, need: Need) -> int:
        """How many such workers the whole cluster has room for; at least 1."""
        return need.among(self.nodes.values()) or 1

    def waiting(self, need: Need) -> int:
        """Workers of a kind that have nothing to train, those that are about to start among them."""
        return sum(worker.free for worker in self.living.values() if worker.need == need)

    def idle(self, need: Need) -> int:
        """Workers of a kind that have nothing to train and could begin at once."""
        return sum(worker.free and worker.started for worker in self.living.values() if worker.need == need)

    def kept_for(self, need: Need) -> frozenset[str]:
        """The node whose workers go, one after the other, until one of another kind has room: the one nearest to it.

        Of one with several ranks as many nodes as it takes.
        """
        free = self._free()
        hosts = [node for node, whole in self.nodes.items() if need.fits(whole) and node != ELSEWHERE]
        hosts.sort(key=lambda node: (free[node].gpu if need.gpu else 0.0, free[node].cpu), reverse=True)
        kept, room = set[str](), 0
        for node in hosts:
            if room < need.ranks:
                kept.add(node)
                room += need.fits(self.nodes[node])
        return frozenset(kept if room >= need.ranks else ())

    @property
    def busy_part(self) -> float:
        """Which part of the cluster trains now: each worker counts as one of those that there is room for."""
        here = Workers({name: there for name, there in self.nodes.items() if name != ELSEWHERE})
        return min(1.0, sum(1 / here.most(each.need) for each in self.living.values() if each.batch))

    @property
    def trained(self) -> list[Worker]:
        """All that trained something, those with most stages first."""
        living = [each for each in self.living.values() if each.stages]
        return sorted([*self.gone, *living], key=lambda each: -each.stages)


@dataclass
class Use:
    """How much of the cluster trained, from the first stage on, in seconds of the whole cluster."""

    seconds: float = 0.0
    busy: float = 0.0
    unused: float = 0.0  # while stages were ready
    _last: float | None = None
    _part: float = 0.0
    _ready: bool = False

    def note(self, now: float, part: float, ready: bool) -> None:
        """From now on this part of the cluster trains, and stages are ready or not."""
        if self._last is not None:
            passed = now - self._last
            self.seconds += passed
            self.busy += self._part * passed
            self.unused += (1 - self._part) * passed * self._ready
        if self._last is not None or part:
            self._last = now
        self._part, self._ready = part, ready
