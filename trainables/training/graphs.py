"""Steps on a GPU as CUDA graphs: what launches hundreds of small kernels a step is captured once, then replayed.

A small model's step takes a GPU far less time than a CPU needs to launch its kernels one by one. A graph launches them
all at once, from the same places in memory: what changes from step to step is copied to a place of its own, and where
anything else that a step reads is another tensor than it was, the step is captured anew. A graph is trusted once it
has done two steps as the plain way does them; where it does not, or a step can't be captured, all go the plain way.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from takd.trainables.training.devices import let_go

WARM_UP = 3  # steps before a capture: libraries choose their ways, optimizers make their states
WORTH = 20  # uses below which a capture, and what shows that it is right, take longer than they save
# Of what two steps change of the weights: sums in another order differ by less (and weights whose gradients are such
# differences alone, as biases before a batch normalisation, are few), a step that is another one by more.
AGREES = 0.1

log = logging.getLogger("takd")
_said: set[str] = set()


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None: ...


class Steps(Protocol):
    """A training, as graphs see it."""

    def step(self, batch: Tensor, factor: float | Tensor, number: int | Tensor) -> Tensor: ...

    def reads(self) -> list[object]:
        """What a step finds by its place in memory; what decides of which kernels it is."""

    def learns(self) -> list[Tensor]:
        """Weights."""

    def changes(self) -> list[Tensor]:
        """What else a step leaves changed."""

    def draws(self) -> list[torch.Generator]:
        """What a step draws from."""


@dataclass(frozen=True)
class Captured:
    """A step for batches of one size: `losses` is where it leaves them, `reads` what it was captured with."""

    graph: Graph
    batch: Tensor
    losses: Tensor
    reads: list[object]

    def fits(self, reads: Sequence[object]) -> bool:
        return len(reads) == len(self.reads) and all(map(lambda one, other: one is other, reads, self.reads))

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
        self.known: dict[object, Captured] = {}  # by size of the batch, and what else there are few of
        self.plain = self.captures = self.replays = 0
        self.refused = False

    def __call__(
        self, training: Steps, batch: Tensor, factor: float, number: int, uses: int, kind: object = None
    ) -> Tensor:
        """The losses `[lanes]`, which the next step overwrites. `uses` is how many more steps like it may come."""
        self.factor.fill_(factor)
        self.number.fill_(number)
        if not self.refused:
            if self.plain < WARM_UP:
                self.plain += 1
                with _beside(self.device):
                    return training.step(batch, self.factor, self.number)
            key, reads = (len(batch), kind), training.reads()
            captured = self.known.get(key)
            if captured and captured.fits(reads):
                self.replays += 1
                return captured(batch)
            if uses >= WORTH and (made := self._captured(training, key, batch, factor, number)):
                self.replays += 1
                return made(batch)
        return training.step(batch, self.factor, self.number)

    def drop(self) -> None:
        """Gives back the memory of what was captured."""
        self.known.clear()

    def _captured(self, training: Steps, key: object, batch: Tensor, factor: float, number: int) -> Captured | None:
        """None, now and from then on, where there is no graph that does what the plain way does."""
        self.known.pop(key, None)
        self.captures += 1
        if self.captures > 4 + self.replays / WORTH:
            self._refuse("what a step reads changes too often")
            return None
        held, generators = batch.clone(), training.draws()
        try:
            graph, losses = self.capture(lambda: training.step(held, self.factor, self.number), generators)
            captured = Captured(graph, held, losses, training.reads())
            right = self._agrees(training, captured, batch, factor, number)
        except (RuntimeError, AttributeError) as error:
            let_go(self.device)
            self._refuse(str(error).splitlines()[0])
            return None
        if not right:
            self._refuse("replayed it is another step")
            return None
        self.known[key] = captured
        return captured

    def _refuse(self, reason: str) -> None:
        self.refused = True
        self.known.clear()
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
        with torch.cuda.graph(graph, pool=self.pool):
            losses = act()
        return graph, losses


class _Beside:
    """On a stream of its own, as a capture is: what autograd remembers of the main one would be in the graph."""

    def __init__(self) -> None:
        self.main, self.side = torch.cuda.current_stream(), torch.cuda.Stream()
        self.context = torch.cuda.stream(self.side)

    def __enter__(self) -> None:
        self.side.wait_stream(self.main)
        self.context.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.context.__exit__(*raised)
        self.main.wait_stream(self.side)


def _beside(device: torch.device) -> AbstractContextManager[None]:
    return _Beside() if device.type == "cuda" else nullcontext()
