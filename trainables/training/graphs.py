"""Steps on a GPU as CUDA graphs: what launches hundreds of small kernels a step is captured once, then replayed.

A small model's step takes a GPU far less time than a CPU needs to launch its kernels one by one. A graph launches them
all at once, from the same places in memory: what changes from step to step is copied to a place of its own, and where
anything else that a step reads is another tensor than it was, the step is captured anew. A graph is trusted once it
has done two steps as the plain way does them; where it does not, or a step can't be captured, all go the plain way.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from takd.trainables.datasets.dataset import Dataset
from takd.trainables.training.devices import let_go

WARM_UP = 3  # steps before a capture: libraries choose their ways, optimizers make their states
KEPT = 4  # graphs of one training: two sizes of batches, with and without a view
LARGE = 512e6  # bytes of weights and what belongs to them, above which kernels are long and a graph gains little
WORTH = 20  # uses below which a capture, and what shows that it is right, take longer than they save
# Of what two steps change of the weights: sums in another order differ by less (and weights whose gradients are such
# differences alone, as biases before a batch normalisation, are few), a step that is another one by more.
AGREES = 0.1

log = logging.getLogger("takd")
_said: set[str] = set()
_OF_ALL_MODULES = set(vars(nn.Module()))


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None: ...


class Steps(Protocol):
    """A training, as graphs see it."""

    def step(self, batch: Tensor, factor: float | Tensor, number: int | Tensor) -> Tensor: ...

    def reads(self) -> "Places":
        """What a step finds by its place in memory; it is asked for again after each step that may change that."""

    def looks_again(self) -> None:
        """What is read may lie elsewhere now."""

    def learns(self) -> list[Tensor]:
        """Weights."""

    def changes(self) -> list[Tensor]:
        """What else a step leaves changed."""

    def draws(self) -> list[torch.Generator]:
        """What a step draws from."""


class Places:
    """Tensors and where they lie, and what else decides of which kernels a step is: what there is, and plain numbers.

    All that things have, however deep, each once; not in what belongs to the kinds in `skip`, nor in data sets.
    """

    def __init__(self, *things: object, skip: tuple[type, ...] = ()) -> None:
        self.tensors = list[Tensor]()
        self.marks = list[str]()
        seen, left = set[int](), list(things)
        while left:
            thing = left.pop()
            if id(thing) in seen or isinstance(thing, skip):
                continue
            seen.add(id(thing))
            if isinstance(thing, Tensor):
                self.tensors.append(thing)
            elif isinstance(thing, Mapping):
                left += [*thing.keys(), *thing.values()]
            elif isinstance(thing, list | tuple | set):
                left += thing
            else:
                left += self._parts(thing)
        self.places = [each.data_ptr() for each in self.tensors]

    def _parts(self, thing: object) -> list[object]:
        known = type | ModuleType | FunctionType | BaseModel | Dataset
        if isinstance(thing, known) or not hasattr(thing, "__dict__"):
            return []
        if isinstance(thing, nn.Module):
            own = [each for name, each in vars(thing).items() if name not in _OF_ALL_MODULES]
            return [thing._parameters, thing._buffers, thing._modules, *own]
        # In an optimizer's groups is the rate, which is no memory of its: each step computes its own.
        parts = {name: each for name, each in vars(thing).items() if name != "param_groups"}
        self.marks += [
            f"{name} {each if isinstance(each, float) else type(each).__name__}" for name, each in parts.items()
        ]
        return list(parts.values())

    def same(self, other: "Places") -> bool:
        if self is other:
            return True
        if (self.places, self.marks) != (other.places, other.marks):
            return False
        return all(one is two for one, two in zip(self.tensors, other.tensors, strict=True))


def in_place(before: Any, now: Any) -> Any:
    """The new content where the old one is, if it fits there: a tensor, or an object or a mapping of some.

    Where a step finds it stays the same then, so that no graph is captured anew. On a CPU the new one as it is.
    """
    was, is_ = tensors_of(before), tensors_of(now)
    fits = type(before) is type(now) and [each.shape for each in was] == [each.shape for each in is_]
    if not was or not fits or any(each.device.type != "cuda" for each in is_):
        return now
    for there, new in zip(was, is_, strict=True):
        there.copy_(new)
    return before


def tensors_of(thing: Any) -> list[Tensor]:
    """In the order of its fields."""
    if thing is None or isinstance(thing, Tensor):
        return [] if thing is None else [thing]
    parts = thing.values() if isinstance(thing, Mapping) else vars(thing).values() if hasattr(thing, "__dict__") else ()
    return [each for part in parts for each in tensors_of(part)]


@dataclass
class Captured:
    """A step for batches of one size: `losses` is where it leaves them, `reads` what it was captured with."""

    graph: Graph
    batch: Tensor
    losses: Tensor
    reads: Places

    def __call__(self, batch: Tensor) -> Tensor:
        self.batch.copy_(batch)
        self.graph.replay()
        return self.losses


Capture = Callable[[Callable[[], Tensor], Sequence[torch.Generator]], tuple[Graph, Tensor]]


class Graphs:
    """The steps of one training, plain or replayed: `Graphs(...)(training, batch, factor, number, uses)` does one.

    `factor` and `number` are where each step finds its own, so that plain steps and replayed ones compute the same.
    """

    def __init__(self, device: torch.device, name: str, capture: Capture | None = None) -> None:
        self.device, self.name = device, name
        self.factor = torch.zeros((), device=device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)
        self.capture = capture or CudaCapture()
        self.known: list[Captured] = []
        self.plain = self.captures = self.replays = 0
        self.refused = self.large = False

    def __call__(self, training: Steps, batch: Tensor, factor: float, number: int, uses: int) -> Tensor:
        """The losses `[lanes]`, which the next step overwrites. `uses` is how many more steps like it may come."""
        self.factor.fill_(factor)
        self.number.fill_(number)
        if not self.refused and not self.large:
            if self.plain < WARM_UP:
                self.plain += 1
                training.looks_again()  # an optimizer makes its states
                with _beside(self.device):
                    return training.step(batch, self.factor, self.number)
            if (captured := self._known(batch, training.reads())) is None and uses >= WORTH:
                captured = self._captured(training, batch, factor, number)
            if captured is not None:
                self.replays += 1
                return captured(batch)
        return training.step(batch, self.factor, self.number)

    def _known(self, batch: Tensor, reads: Places) -> Captured | None:
        for each in self.known:
            if each.batch.shape == batch.shape and each.reads.same(reads):
                each.reads = reads  # of equal ones the newest, which the next step compares at a glance
                return each
        return None

    def drop(self) -> None:
        """Gives back the memory of what was captured."""
        self.known.clear()

    def _captured(self, training: Steps, batch: Tensor, factor: float, number: int) -> Captured | None:
        """None, now and from then on, where there is no graph that does what the plain way does."""
        self.large = sum(each.nbytes for each in training.learns() + training.changes()) > LARGE
        if self.large:
            return None
        self.captures += 1
        del self.known[: -(KEPT - 1)]
        reason = None
        if self.captures > KEPT + self.replays / WORTH:
            reason = "what a step reads changes too often"
        elif any(each.device.type != self.device.type for each in training.changes()):
            reason = "what it changes is in part on the host"
        else:
            try:
                captured = self._capture(training, batch)
                if not captured.reads.same(_again(training)):
                    reason = "a step leaves what it reads elsewhere"
                elif not self._agrees(training, captured, batch, factor, number):
                    reason = "replayed it is another step"
            except (RuntimeError, AttributeError) as error:
                reason = str(error).splitlines()[0]
        if reason is not None:
            self._refuse(reason)
            return None
        self.known.append(captured)
        return captured

    def _capture(self, training: Steps, batch: Tensor) -> Captured:
        held, reads = batch.clone(), _again(training)
        graph, losses = self.capture(lambda: training.step(held, self.factor, self.number), training.draws())
        return Captured(graph, held, losses, reads)

    def _refuse(self, reason: str) -> None:
        self.refused = True
        self.known.clear()
        let_go(self.device)
        if (
            line := f"{self.name}: its steps are no CUDA graph ({reason}); they take longer, and are the same"
        ) not in _said:
            _said.add(line)
            log.warning("%s", line)

    @torch.no_grad()
    def _agrees(self, training: Steps, captured: Captured, batch: Tensor, factor: float, number: int) -> bool:
        """Whether two steps that differ in all that a step may differ in change the same, plain and replayed."""
        other = batch.flip(0)[: len(batch)]
        other = torch.where(other > 0, other - 1, other)
        tries = [(batch, factor, number), (other, factor / 2, max(0, number - 1))]
        before = _State(training)
        try:
            plain = [self._at(*each, lambda given: training.step(given, self.factor, self.number)) for each in tries]
            wanted = _State(training)
            before.put_back(training)
            replayed = [self._at(*each, captured) for each in tries]
            found = _State(training)
        finally:
            before.put_back(training)
            self.factor.fill_(factor)
            self.number.fill_(number)
        close = torch.allclose(torch.stack(plain), torch.stack(replayed), rtol=1e-3, atol=1e-5)
        return close and wanted.distance(found) <= AGREES * wanted.distance(before)

    def _at(self, batch: Tensor, factor: float, number: int, act: Callable[[Tensor], Tensor]) -> Tensor:
        self.factor.fill_(factor)
        self.number.fill_(number)
        with torch.enable_grad():
            return act(batch).clone()


def _again(training: Steps) -> Places:
    training.looks_again()
    return training.reads()


class _State:
    """Copies of all that steps change, and of what they draw from."""

    def __init__(self, training: Steps) -> None:
        self.weights = [each.detach().clone() for each in training.learns()]
        self.others = [each.detach().clone() for each in training.changes()]
        self.generators = [each.get_state() for each in training.draws()]

    def put_back(self, training: Steps) -> None:
        for tensor, was in zip(training.learns() + training.changes(), self.weights + self.others, strict=True):
            tensor.detach().copy_(was)
        for generator, state in zip(training.draws(), self.generators, strict=True):
            generator.set_state(state)

    def distance(self, other: "_State") -> float:
        apart = [(one - two).square().sum() for one, two in zip(self.weights, other.weights, strict=True)]
        return float(torch.stack(apart).sum().sqrt())


class CudaCapture:
    """Captures into one pool of memory, which all graphs of a training share: only one of them runs at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, act: Callable[[], Tensor], generators: Sequence[torch.Generator]) -> tuple[Graph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        with torch.cuda.stream(_side(torch.cuda.current_device())):
            graph.capture_begin(pool=self.pool)  # torch's own context would empty the cache, which all then fill again
            try:
                losses = act()
            finally:
                graph.capture_end()
        return graph, losses


@lru_cache
def _side(device: int) -> torch.cuda.Stream:
    """One of a process: cuBLAS keeps memory of its own for every stream that it was used on."""
    return torch.cuda.Stream(device)


class _Beside:
    """On the stream of captures: what autograd remembers of the main one would be in the graph."""

    def __init__(self) -> None:
        self.main, self.side = torch.cuda.current_stream(), _side(torch.cuda.current_device())
        self.context = torch.cuda.stream(self.side)

    def __enter__(self) -> None:
        self.side.wait_stream(self.main)
        self.context.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.context.__exit__(*raised)
        self.main.wait_stream(self.side)


def _beside(device: torch.device) -> AbstractContextManager[None]:
    return _Beside() if device.type == "cuda" else nullcontext()
