"""Methods that teach beside the labels and soft targets, each a term of the lanes' loss; what trains beside a student.

A method is a function of one student and one upstream. Here it gets lanes by `torch.func.vmap`: several upstreams are a
mean, and lanes that learn from the same ones share these tensors. What it needs of an upstream stage comes as it is
derived, by view.
"""

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from takd.search_spaces import NamedView, Term, What
from takd.search_spaces.registry import Method
from takd.trainables.models.stage_models import reused_head
from takd.trainables.training.features import (
    Embedding,
    Frozen,
    by_lane,
    embedding_in,
    entering,
    halved,
    leaving,
    maps_in,
)
from takd.trainables.training.graphs import in_place
from takd.trainables.training.inputs import Inputs
from takd.trainables.training.lanes import LaneModel, LaneOptimizer, Lanes
from takd.trainables.training.methods import table
from takd.trainables.training.teaching import ByView, Lessons, Teaching, rise

METHODS: Mapping[str, Method] = table.METHODS


class Beside(LaneModel):
    """Modules of one kind that train beside lanes, one a lane: their tensors are stacked, lanes first."""

    stacked = True

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        self._template = (copy.deepcopy(modules[0]),)  # no part of this: its own tensors are never used
        self.layers = copy.deepcopy(modules[0])
        for name, weight in dict(self.layers.named_parameters()).items():
            stacked = torch.stack([each.get_parameter(name).detach() for each in modules])
            _put(self.layers, name, nn.Parameter(stacked, requires_grad=weight.requires_grad))
        for name, _ in dict(self.layers.named_buffers()).items():
            _put(self.layers, name, torch.stack([each.get_buffer(name) for each in modules]))

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers of all lanes."""
        return {**dict(self.layers.named_parameters()), **dict(self.layers.named_buffers())}

    def call(self, tensors: Mapping[str, Tensor], *given: Any) -> Any:
        """What the module of a lane gives that has these weights and buffers, which it may change."""
        return torch.func.functional_call(self._template[0], dict(tensors), given)

    def part(self, tensor: Tensor, lane: int) -> Tensor:
        return tensor[lane]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts))


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor


class Guide:
    """What the lanes learn of one kind from the upstream stages in one place: one tensor for all that share a stage.

    It is what was derived, by view; or what models say in the loop, of the images of the batch at hand.
    """

    def __init__(self, by_lane: Sequence[ByView | Frozen], layer: str | None = None, in_half: bool = False) -> None:
        """`in_half`: whether the numbers are those of float16, whoever says them."""
        self.in_half = in_half
        self.sources = list({id(each): each for each in by_lane}.values())
        places = {id(each): place for place, each in enumerate(self.sources)}
        self.of_lane, self.layer = [places[id(each)] for each in by_lane], layer
        self.tensors: list[Tensor] = []  # by stage, `[examples, ...]` of the transfer set, in the view that is shown

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        source = self.sources[0]
        return source.shape_of(self.layer) if isinstance(source, Frozen) else tuple(source[0].shape[1:])

    def show(self, view: int, inputs: Inputs) -> None:
        name = inputs.recipe.view_names[view]
        rows = slice(None) if name and NamedView.parse(name).examples is not None else inputs.transfer_set
        derived = [each for each in self.sources if not isinstance(each, Frozen)]
        found = [_on_device(each[view], rows, inputs.device) for each in derived]
        before: Sequence[Tensor | None] = self.tensors or [None] * len(found)
        self.tensors = [in_place(*pair) for pair in zip(before, found, strict=True)]

    def of(self, batch: Tensor, said: Mapping[int, Mapping[str | None, Tensor]]) -> tuple[Tensor, int | None]:
        """Of a batch, `[lanes, images, ...]` and 0, or what all lanes share, `[images, ...]` and None.

        `said` has what models say in the loop of these images, by their identity.
        """
        each = [tensor.index_select(0, batch).float() for tensor in self.tensors]
        in_loop = [said[id(source)][self.layer] for source in self.sources if isinstance(source, Frozen)]
        each += [halved(tensor).float() for tensor in in_loop] if self.in_half else in_loop
        if len(each) == 1:
            return each[0], None
        return torch.stack([each[place] for place in self.of_lane]), 0

    def keep(self, numbers: Sequence[int]) -> None:
        left = [self.of_lane[number] for number in numbers]
        used = sorted(set(left))
        self.sources = [self.sources[place] for place in used]
        self.tensors = [self.tensors[place] for place in used] if self.tensors else []
        self.of_lane = [used.index(place) for place in left]


def _on_device(values: np.ndarray[Any, Any], rows: Any, device: torch.device) -> Tensor:
    """All rows stay in the file that they are mapped from, on a CPU: no worker has a copy of its own."""
    if not isinstance(rows, slice):
        return torch.from_numpy(np.array(values[rows])).to(device)
    with warnings.catch_warnings():  # they can't be written to, which nobody does
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values).to(device)


Shapes = tuple[tuple[int, ...], ...]  # of what the layers leave of one image


def made_by(
    kind: Method, student: Any, teacher: Any, classes: int, labels: Tensor, params: Mapping[str, Any]
) -> nn.Module:
    """The module of a method, for what it gets of student and teacher, with the labels of a transfer set."""
    shapes = [
        tuple(tuple(each.shape[1:]) for each in (given if isinstance(given, tuple) else (given,)))
        for given in (student, teacher)
    ]
    return _make(kind, (shapes[0], shapes[1]), classes, labels, len(labels), params)


def _make(
    kind: Method,
    shapes: tuple[Shapes, Shapes],
    classes: int,
    labels: Tensor | None,
    examples: int,
    params: Mapping[str, Any],
) -> nn.Module:
    assert kind.modules
    takes = inspect.signature(kind.modules).parameters
    every = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    own = {name: value for name, value in params.items() if name in takes or every}
    own |= {"labels": labels} if "labels" in takes else {}
    module: nn.Module = kind.modules(*shapes, classes, examples, **own)
    return module


_WHAT: Mapping[str, What] = {"logits": "soft_targets", "embedding": "embedding", "maps": "map"}


class _Taught:
    """One method with what it needs."""

    def __init__(self, term: Term, taught: Lanes, inputs: Inputs, lessons: Sequence[Sequence[Lessons]]) -> None:
        self.term, self.kind, self.inputs = term, METHODS[term.method], inputs
        whole = term.needed == "logits" and all(len(each) > 1 for each in lessons)
        self.mean_of_logits = whole and {stage.role for stage in taught.all[0].stage.upstream} == {"teacher"}
        layers = (term.teacher_layers or ()) if term.needed == "maps" else (None,)
        self.layers = term.student_layers or ()
        what: What = _WHAT[term.needed]
        in_half = term.needed != "logits" and taught.all[0].stage.features == "float16"
        # By upstream, then by layer.
        self.guides = [
            [Guide([each[place][what, layer] for each in lessons], layer, in_half) for layer in layers]
            for place in range(len(lessons[0]))
        ]
        self.params: dict[str, Any] = {
            name: int(value) if param.whole else value
            for name, param in self.kind.params.items()
            for value in [(term.params or {}).get(name, param.default)]
        }
        temperature = term.temperature if term.temperature is not None else self.kind.temperature
        self.temperature = () if temperature is None else (temperature,)
        self.rise: Tensor | None = None

    def begin_epoch(self, epoch: int) -> None:
        self.rise = in_place(self.rise, rise(self.term.warmup, epoch, self.inputs))

    def modules(self, taught: Lanes, student_shapes: Shapes) -> list[Beside]:
        """What trains beside the lanes, by upstream."""
        if not self.kind.modules:
            return []
        return [self._module(taught, student_shapes, tuple(each.shape for each in guides)) for guides in self.guides]

    def _module(self, taught: Lanes, student_shapes: Shapes, teacher_shapes: Shapes) -> Beside:
        shapes = student_shapes, teacher_shapes
        classes, examples = len(self.inputs.dataset.classes), len(self.inputs.labels)
        labels = self.inputs.labels.cpu() if self.inputs.labelled else None
        made = []
        for lane in taught.running:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(lane.stage.seed)
                made.append(_make(self.kind, shapes, classes, labels, examples, self.params))
        return Beside(made).to(self.inputs.device)

    def value(
        self,
        student: Tensor | Sequence[Tensor],
        labels: Tensor,
        batch: Tensor,
        beside: Sequence[Beside],
        said: Mapping[int, Mapping[str | None, Tensor]],
    ) -> Tensor:
        """What the method says of each lane, `[lanes]`: a mean over upstreams and images."""
        given = [[guide.of(batch, said) for guide in guides] for guides in self.guides]
        if self.term.needed == "maps":
            assert not isinstance(student, Tensor)  # of one lane
            found = [
                self._of_one(
                    tuple(student), tuple(tensor for tensor, _ in each), labels, batch, beside[place : place + 1]
                )
                for place, each in enumerate(given)
            ]
            return torch.stack(found).mean(dim=0, keepdim=True)
        assert isinstance(student, Tensor)
        pairs = [each[0] for each in given]
        if self.mean_of_logits:
            shared = all(dim is None for _, dim in pairs)
            logits = [each if shared or dim == 0 else each.expand(len(student), -1, -1) for each, dim in pairs]
            mean = torch.stack([each.softmax(dim=-1) for each in logits]).mean(dim=0).log()
            return self._of_lanes(student, (mean, None if shared else 0), labels, batch, ())
        each_of = [
            self._of_lanes(student, pair, labels, batch, beside[place : place + 1]) for place, pair in enumerate(pairs)
        ]
        return torch.stack(each_of).mean(dim=0)

    def _of_one(
        self,
        student: Any,
        teacher: Any,
        labels: Tensor,
        batch: Tensor,
        beside: Sequence[Beside],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Of one lane and upstream; `tensors` are the lane's of what trains beside it, None: those of the first."""
        own = {name: value for name, value in self.params.items() if name in self.kind.takes}
        own |= {"indices": batch} if "indices" in self.kind.takes else {}
        for each in beside:
            held = {name: tensor[0] for name, tensor in each.tensors().items()} if tensors is None else tensors
            own["modules"] = lambda *given, each=each, held=held: each.call(held, *given)
        said: Tensor = self.kind.function(student, teacher, labels, *self.temperature, **own)
        return said.mean()

    def _of_lanes(
        self,
        student: Tensor,
        teacher: tuple[Tensor, int | None],
        labels: Tensor,
        batch: Tensor,
        beside: Sequence[Beside],
    ) -> Tensor:
        values, dim = teacher
        held = {name: tensor for each in beside for name, tensor in each.tensors().items()}
        if len(student) > 1 and not self.kind.by_lane:
            found: Tensor = torch.func.vmap(
                lambda one, other, tensors: self._of_one(one, other, labels, batch, beside, tensors),
                in_dims=(0, dim, 0 if held else None),
                randomness="different",
            )(student, values, held)
            return found
        said = []
        for lane, one in enumerate(student):
            own = {name: tensor[lane] for name, tensor in held.items()}
            said.append(self._of_one(one, values if dim is None else values[lane], labels, batch, beside, own))
        return torch.stack(said)

    def keep(self, numbers: Sequence[int]) -> None:
        for guide in (guide for guides in self.guides for guide in guides):
            guide.keep(numbers)


class MethodTeaching(Teaching):
    """What another kind of teaching says, and each method times its weight."""

    def __init__(self, base: Teaching, lessons: Sequence[Sequence[Lessons]]) -> None:
        super().__init__(base.taught, base.inputs, ())
        self.base, taught, inputs = base, base.taught, base.inputs
        stage = taught.running[0].stage
        self.terms = [_Taught(term, taught, inputs, lessons) for term in stage.terms or ()]
        self.weights = self._weights()
        self.view: int | None = None
        self.inside = None
        # A student whose head is its teacher's learns by that alone; what enters that head is what is compared.
        self.alone = stage.head_of is not None
        if any(each.term.needed == "embedding" for each in self.terms):
            about = stage.model, inputs.dataset.image_shape, len(inputs.dataset.classes)
            self.inside = embedding_in(*about)
            if self.alone:
                self.inside = Embedding(reused_head(*about), self.terms[0].guides[0][0].shape[0])
        self.layers = list(dict.fromkeys(layer for each in self.terms for layer in each.layers))
        self.entered: list[Tensor] = []
        self.maps: dict[str, Tensor] = {}
        self.frozen = self._frozen()
        self.beside = [each.modules(taught, self._shapes(each, stage.model)) for each in self.terms]
        self.optimizers = self._optimizers()

    def _shapes(self, term: _Taught, model: str) -> Shapes:
        """Of what a method compares of one image."""
        dataset = self.inputs.dataset
        if term.term.needed == "maps":
            maps = maps_in(model, dataset.image_shape, len(dataset.classes))
            return tuple(maps[layer] for layer in term.layers)
        return ((len(dataset.classes) if term.term.needed == "logits" or not self.inside else self.inside.features,),)

    def _frozen(self) -> list[Frozen]:
        guides = [guide for each in self.terms for guides in each.guides for guide in guides]
        found = [source for guide in guides for source in guide.sources if isinstance(source, Frozen)]
        return list({id(each): each for each in found}.values())

    def _said(self, batch: Tensor) -> dict[int, Mapping[str | None, Tensor]]:
        """What models say in the loop of a batch, by their identity: each runs once, whatever is asked of it."""
        if not self.frozen:
            return {}
        layers = list(dict.fromkeys(each for term in self.terms for each in term.term.teacher_layers or ()))
        return {id(each): each.of(self.inputs.images[batch], layers, self.inside is not None) for each in self.frozen}

    @property
    def watches(self) -> bool:
        return self.inside is not None or bool(self.layers)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.inside is not None:
                self.entered = stack.enter_context(entering(self.taught.model, self.inside.head))
            if self.layers:
                self.maps = stack.enter_context(leaving(self.taught.model, self.layers))
            yield

    def _weights(self) -> list[Tensor]:
        """By method, `[lanes]`."""
        stages = [lane.stage for lane in self.taught.running]
        return [
            torch.tensor([(stage.terms or ())[place].weight for stage in stages], device=self.inputs.device)
            for place in range(len(self.terms))
        ]

    def _optimizers(self) -> list[list[LaneOptimizer]]:
        rates = [lane.stage.recipe.learning_rate for lane in self.taught.running]
        return [
            [LaneOptimizer(each, self.recipe, rates) for each in beside if any(True for _ in each.parameters())]
            for beside in self.beside
        ]

    def begin_epoch(self, epoch: int, view: int) -> None:
        self.base.begin_epoch(epoch, view)
        for each in self.terms:
            each.begin_epoch(epoch)
        if view != self.view:
            self.view = view
            for guide in (guide for each in self.terms for guides in each.guides for guide in guides):
                guide.show(view, self.inputs)

    def losses(self, logits: Tensor, labels: Tensor, batch: Tensor, number: int | Tensor) -> Tensor:
        losses = logits.new_zeros(len(logits)) if self.alone else self.base.losses(logits, labels, batch, number)
        embedding = by_lane(self.entered.pop(), self.taught.model.stacked) if self.inside else None
        maps, said = {name: each.float() for name, each in self.maps.items()}, self._said(batch)
        self.maps.clear()
        for each, weight, beside in zip(self.terms, self.weights, self.beside, strict=True):
            student: Tensor | Sequence[Tensor] | None = logits.transpose(1, 2)
            if each.term.needed != "logits":
                student = embedding if each.term.needed == "embedding" else [maps[layer] for layer in each.layers]
            assert student is not None
            value = weight * each.value(student, labels, batch, beside, said)
            losses = losses + (value if each.rise is None else each.rise * value)
        return losses

    def step(self, factor: float | Tensor) -> None:
        self.base.step(factor)
        for optimizer in (each for optimizers in self.optimizers for each in optimizers):
            optimizer.step(factor)
            optimizer.zero_grad()

    def keep(self, numbers: Sequence[int]) -> None:
        states = [[[each.state(number) for number in numbers] for each in group] for group in self.optimizers]
        self.base.keep(numbers)
        for each in self.terms:
            each.keep(numbers)
        self.frozen = self._frozen()
        for beside in (each for group in self.beside for each in group):
            beside.keep(numbers)
        self.weights, self.optimizers = self._weights(), self._optimizers()
        for group, kept in zip(self.optimizers, states, strict=True):
            for optimizer, own in zip(group, kept, strict=True):
                optimizer.load(own)

    def state(self, number: int) -> dict[str, Tensor]:
        found = self.base.state(number)
        for term, beside, optimizers in zip(self.terms, self.beside, self.optimizers, strict=True):
            for place, each in enumerate(beside):
                start = f"{term.term.method}.{place}"
                found |= {f"{start}.module.{name}": tensor for name, tensor in each.weights(number).items()}
            for place, optimizer in enumerate(optimizers):
                found |= {
                    f"{term.term.method}.{place}.optimizer.{name}.{what}": tensor
                    for name, state in optimizer.state(number).items()
                    for what, tensor in state.items()
                }
        return found

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        self.base.load(states)
        for term, beside, optimizers in zip(self.terms, self.beside, self.optimizers, strict=True):
            for place, each in enumerate(beside):
                start = f"{term.term.method}.{place}.module."
                each.load([_below(start, state) for state in states])
            for place, optimizer in enumerate(optimizers):
                start = f"{term.term.method}.{place}.optimizer."
                optimizer.load(
                    [{name: _below(f"{name}.", _below(start, state)) for name in optimizer.weights} for state in states]
                )


def _below(start: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(start): each for name, each in state.items() if name.startswith(start)}
