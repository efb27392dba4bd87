"""Who is taught: stages that train together as lanes of one model, with its optimizer, each as if it were alone."""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from takd.search_spaces import Recipe, Stage
from takd.search_spaces.registry import TABLES, OptimizerKind, check_digests, optimizer
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.models.dropout import Dropout
from takd.trainables.models.families import build, convolutional, normalises_batches, stacks
from takd.trainables.models.frozen import Cut, above, cut_in, head_in, trains_heads
from takd.trainables.models.layers import ELEMENTWISE
from takd.trainables.models.pretrained import draw_head, start_from
from takd.trainables.models.stage_models import put_head, with_head
from takd.trainables.models.transfer import Head, find_head, freeze_norm, train_from, train_head
from takd.trainables.models.weights_files import Pretrained, put_into
from takd.trainables.training.averaging import Average
from takd.trainables.training.optimizers import RULES, ByRule, FusedAdam, FusedSGD, Optimizer, Rule


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one stage. Accuracy is a fraction; losses are means over examples."""

    epoch: int  # from 1
    learning_rate: float  # at its last step
    train_loss: float
    val_loss: float | None  # cross-entropy; None where the recipe does not look
    val_accuracy: float | None
    seconds: float  # a lane's share of the epoch's
    val_seconds: float  # of these, for the look at the validation split
    scores: Mapping[str, float] = field(default_factory=dict)  # of the other metrics that somebody goes by

    def value(self, metric: str | None) -> float | None:
        """Of a metric on the validation split; None is the accuracy."""
        measured = {"accuracy": self.val_accuracy, "loss": self.val_loss}
        return {**self.scores, **measured}.get(metric or "accuracy")

    def row(self) -> dict[str, Any]:
        """As it is told and kept: what was measured beside accuracy and loss is `val_METRIC`."""
        own = asdict(self)
        return own | {f"val_{name}": value for name, value in own.pop("scores").items()}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "EpochMetrics":
        """What `row` gave."""
        own = {each.name for each in fields(cls)}
        scores = {name.removeprefix("val_"): value for name, value in row.items() if name not in own}
        return cls(**{name: row[name] for name in own & set(row)}, scores=scores)

    def is_better(self, other: "EpochMetrics | None", metric: str | None) -> bool:
        own, others = self.value(metric), other.value(metric) if other else None
        if own is None or others is None:
            return own is not None
        return own > others if TABLES["metric"][metric or "accuracy"].higher else own < others


@dataclass(eq=False)
class Lane:
    """One stage among those that train together."""

    stage: Stage
    epochs: list[EpochMetrics] = field(default_factory=list)
    failure: str | None = None
    best_weights: dict[str, Tensor] | None = None

    def value(self, metric: str) -> float | None:
        """At the last look at the validation split."""
        return next((each.value(metric) for each in reversed(self.epochs) if each.val_accuracy is not None), None)

    @property
    def best(self) -> EpochMetrics | None:
        """The first epoch that is best on the validation split; None before the first look."""
        found: EpochMetrics | None = None
        for each in self.epochs:
            if each.val_accuracy is not None and each.is_better(found, self.stage.recipe.select_by):
                found = each
        return found

    @property
    def selected(self) -> EpochMetrics:
        """The epoch whose weights are kept: the first best one, or the last."""
        looks = [each for each in self.epochs if each.val_accuracy is not None]
        return looks[-1] if self.best_weights is None else self.best or looks[-1]

    @property
    def looks_since_best(self) -> int:
        """At the validation split, since the one whose weights are kept."""
        best = self.best.epoch if self.best else 0
        return sum(each.val_accuracy is not None and each.epoch > best for each in self.epochs)


class LaneModel(nn.Module):
    """Maps images `[batch, channels, height, width]` to float32 logits `[lanes, classes, batch]`.

    Weights and buffers have the names they have in a lane's own model; `part` and `join` say how lanes lie in them.
    """

    lanes: int
    layers: nn.Module
    stacked = False  # whether features between layers have the lanes first and the batch last

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.lanes = len(models)

    def part(self, tensor: Tensor, lane: int) -> Tensor:
        raise NotImplementedError

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def seed_dropout(self, seeds: Sequence[int]) -> None:
        """What each lane drops from here on follows from its seed."""
        for number, layer in enumerate(self.dropouts):
            layer.seed([(seed, number) for seed in seeds])

    @property
    def generators(self) -> list[torch.Generator]:
        """What dropout draws from on a GPU; none before the first step."""
        return [each for layer in self.dropouts for each in layer.generators]

    @cached_property
    def dropouts(self) -> list[Dropout]:
        return [each for each in self.modules() if isinstance(each, Dropout)]

    def weights(self, lane: int) -> dict[str, Tensor]:
        """Views of a lane's weights and buffers."""
        return {name: self.part(tensor, lane) for name, tensor in self.layers.state_dict().items()}

    def whole(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A lane's weights and buffers, with those that all lanes share."""
        return weights

    def load(self, weights: Sequence[dict[str, Tensor]]) -> None:
        """Replaces all lanes' weights and buffers; raises RuntimeError where they are another model's."""
        for lane, given in enumerate(weights):
            expected = {name: tensor.shape for name, tensor in self.weights(lane).items()}
            if {name: tensor.shape for name, tensor in given.items()} != expected:
                raise RuntimeError(f"expected {', '.join(expected)} of the shapes that the model has")
        put_into(self.layers, {name: self.join([given[name] for given in weights]) for name in weights[0]})

    def keep(self, lanes: Sequence[int]) -> None:
        """Goes on with some of the lanes."""
        for tensor in (*self.layers.parameters(), *self.layers.buffers()):
            tensor.data = self.join([self.part(tensor.data, lane) for lane in lanes])
        self.lanes = len(lanes)


class Alone(LaneModel):
    """One model as it is: the form of families that don't stack, which has one lane.

    For convolutions, grouped ones were measured, one a layer for all lanes: on a CPU 4 lanes of `cnn` took 1.6 times
    as long as one after the other. `torch.func` takes 2.5 to 7 times as long (`benchmarks/convolutions.py`).
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__(models)
        if len(models) != 1:
            raise ValueError(f"{len(models)} models of a family that does not stack; they train one at a time")
        self.layers = models[0]

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).float().t().unsqueeze(0)

    def part(self, tensor: Tensor, lane: int) -> Tensor:
        return tensor

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0]


class Stacked(LaneModel):
    """Fully connected models side by side: tensors have lanes first.

    Between layers are features `[lanes, features, batch]`; with the batch last no product needs a copy.
    """

    stacked = True

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__(models)
        self.layers = _stacked(models)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).float()

    def part(self, tensor: Tensor, lane: int) -> Tensor:
        return tensor[lane]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts))


class Tail(nn.Module):
    """A model of one lane above a cut: from what enters it, `[batch, ...]`, to logits `[1, classes, batch]`."""

    def __init__(self, model: Alone, cut: Cut) -> None:
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, rows: Tensor) -> Tensor:
        return above(self.model.layers, self.cut, rows).float().t().unsqueeze(0)


class Heads(Stacked):
    """Fully connected heads side by side, from what enters them, `[batch, features]`, which they share.

    `layers` has the names that they have in the whole network, and dropout the numbers. `below` is all else of that,
    which is every lane's.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], heads: Sequence[nn.Linear]) -> None:
        LaneModel.__init__(self, heads)
        self.names = list(names)
        dropouts = [each for each in module.modules() if isinstance(each, Dropout)]
        own = [module.get_submodule(name) for name in names[:-1]]
        self.numbers = [dropouts.index(each) for each in own if isinstance(each, Dropout)]
        self.layers = _by_name(dict(zip(names, [*own, Linears(heads)], strict=True)))
        whole, trained = module.state_dict(), self.layers.state_dict()
        self.normalises = normalises_batches(module)  # below the heads, and so decides what a batch is
        self.below = {
            name: each.detach().clone(memory_format=torch.contiguous_format)
            for name, each in whole.items()
            if name not in trained
        }

    def forward(self, features: Tensor) -> Tensor:
        *dropouts, linears = (self.layers.get_submodule(name) for name in self.names)
        if dropouts and self.layers.get_submodule(self.names[0]).training:
            features = features.expand(self.lanes, *features.shape)
            for each in dropouts:  # [lanes, batch, features]: in memory a lane lies as it does alone
                features = each(features)
            features = features.transpose(1, 2)
        found: Tensor = linears(features)
        return found.float()

    def seed_dropout(self, seeds: Sequence[int]) -> None:
        for number, layer in zip(self.numbers, self.dropouts, strict=True):
            layer.seed([(seed, number) for seed in seeds])

    def whole(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.below | weights

    def load(self, weights: Sequence[dict[str, Tensor]]) -> None:
        """Also those of whole networks, such as in checkpoints that were made without lanes."""
        own = self.layers.state_dict().keys()
        super().load([{name: each for name, each in given.items() if name in own} for given in weights])


def _by_name(layers: Mapping[str, nn.Module]) -> nn.Module:
    """Sequences within one another, so that each layer is found by its name, such as `head.fc`."""
    inner: dict[str, Any] = {}
    for name, layer in layers.items():
        first, _, rest = name.partition(".")
        inner.setdefault(first, {})[rest] = layer
    parts = {name: own[""] if "" in own else _by_name(own) for name, own in inner.items()}
    return nn.Sequential(OrderedDict(parts))


class Linears(nn.Module):
    """One matrix product over inputs `[batch, in]` that the lanes share, or a batched one: `[lanes, out, batch]`."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        learns = layers[0].weight.requires_grad
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]), learns)
        has_bias = layers[0].bias is not None
        biases = torch.stack([layer.bias.detach() for layer in layers]) if has_bias else None
        self.bias = None if biases is None else nn.Parameter(biases, learns)

    def forward(self, features: Tensor) -> Tensor:
        if self.bias is None:
            return torch.matmul(self.weight, features if features.dim() == 3 else features.t())
        if features.dim() == 3:
            return torch.baddbmm(self.bias.unsqueeze(2), self.weight, features)
        product = torch.addmm(self.bias.view(-1, 1), self.weight.flatten(0, 1), features.t())
        return product.unflatten(0, self.weight.shape[:2])


def _stacked(layers: Sequence[nn.Module]) -> nn.Module:
    """One layer for all lanes, under the names that a lane's own model has."""
    match layers[0]:
        case nn.Sequential():
            parts = zip(*(each._modules.items() for each in layers), strict=True)
            return nn.Sequential(OrderedDict((part[0][0], _stacked([each for _, each in part])) for part in parts))
        case nn.Linear():
            return Linears(layers)  # type: ignore[arg-type]
        case nn.Flatten() | Dropout():
            return layers[0]
    if isinstance(layers[0], ELEMENTWISE):
        return layers[0]
    raise TypeError(f"{type(layers[0]).__name__} has no form for lanes")


# The first three fused: one kernel a step over all parameters, on CPU and CUDA.
OPTIMIZERS: Mapping[str, OptimizerKind] = TABLES["optimizer"]


@optimizer("adam", by_element=True)
def _adam(weights: list[nn.Parameter], learning_rate: float, recipe: Recipe) -> Optimizer:
    return FusedAdam(weights, learning_rate, recipe.weight_decay, decoupled=False)


@optimizer("adamw", by_element=True)
def _adamw(weights: list[nn.Parameter], learning_rate: float, recipe: Recipe) -> Optimizer:
    return FusedAdam(weights, learning_rate, recipe.weight_decay, decoupled=True)


@optimizer("sgd", by_element=True)
def _sgd(weights: list[nn.Parameter], learning_rate: float, recipe: Recipe) -> Optimizer:
    return FusedSGD(weights, learning_rate, recipe.weight_decay, recipe.momentum or 0.0, bool(recipe.nesterov))


def _by_rule(weights: list[nn.Parameter], learning_rate: float, recipe: Recipe, *, rule: Rule) -> Optimizer:
    return ByRule(weights, learning_rate, recipe.weight_decay, rule)


for _name, _rule in RULES.items():
    optimizer(_name, by_element=True)(partial(_by_rule, rule=_rule))


class LaneOptimizer:
    """torch's optimizer of a recipe over the weights of all lanes, each at its own learning rate.

    Where rates differ, the optimizer runs at rate 1 on zeros in the weights' place: what it writes there is each lane's
    step, which is then scaled. Weights decay beside it there, and where only some of them do.
    """

    def __init__(self, model: LaneModel, recipe: Recipe, rates: Sequence[float]) -> None:
        self.model, self.recipe = model, recipe
        self.weights = dict(model.layers.named_parameters())
        self.rates, rate = list(rates), rates[0]
        self.by_lane = torch.tensor(self.rates, device=next(iter(self.weights.values())).device)
        self.stepped = self.weights
        if len(set(rates)) > 1:
            self.stepped = {name: nn.Parameter(torch.zeros_like(weight)) for name, weight in self.weights.items()}
            rate = 1.0
        self.decaying: dict[str, nn.Parameter] = {}  # those that decay beside the optimizer
        if self.stepped is not self.weights or recipe.decay_norm_and_bias is False:
            self.decaying = self._decaying() if recipe.weight_decay else {}
            recipe = recipe.model_copy(update={"weight_decay": 0.0})
        self.optimizer = OPTIMIZERS[recipe.optimizer](list(self.stepped.values()), rate, recipe)

    def _decaying(self) -> dict[str, nn.Parameter]:
        """All weights, or those that are neither a bias nor a scale or shift, which have one dimension."""
        if self.recipe.decay_norm_and_bias is None:
            return self.weights
        return {name: weight for name, weight in self.weights.items() if self.model.part(weight, 0).dim() > 1}

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    @torch.no_grad()
    def step(self, factor: float | Tensor) -> None:
        """One step at `factor` times each lane's learning rate; a tensor `[]` on the GPU of the weights."""
        if self.recipe.clip_norm is not None:
            self._clip(self.recipe.clip_norm)
        decoupled = self.recipe.optimizer == "adamw"
        for weight in () if decoupled else self.decaying.values():
            if weight.grad is not None:
                weight.grad.add_(weight, alpha=self.recipe.weight_decay)
        if self.stepped is not self.weights:
            self._step_by_lane(factor, decoupled)
            return
        for weight in self.decaying.values() if decoupled else ():
            if weight.grad is not None:
                weight.mul_(1 - self.rates[0] * factor * self.recipe.weight_decay)
        self.optimizer.param_groups[0]["lr"] = self.rates[0] * factor
        self.optimizer.step()

    def _clip(self, most: float) -> None:
        """As `torch.nn.utils.clip_grad_norm_` does it to each lane by itself, over all its weights together."""
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        lanes = self.model.lanes
        norms = torch.stack([torch.linalg.vector_norm(each.reshape(lanes, -1), dim=1) for each in gradients])
        factors = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp_(max=1.0)  # [lanes]
        for each in gradients:
            each.mul_(factors if lanes == 1 else factors.view(-1, *[1] * (each.dim() - 1)))

    def _step_by_lane(self, factor: float | Tensor, decoupled: bool) -> None:
        for name, weight in self.weights.items():
            self.stepped[name].grad = weight.grad
        self.optimizer.step()
        by_lane = self.by_lane * factor
        for name, weight in self.weights.items():
            rates = by_lane.view(-1, *[1] * (weight.dim() - 1))
            if decoupled and name in self.decaying and weight.grad is not None:
                weight.mul_(1 - rates * self.recipe.weight_decay)
            weight.addcmul_(self.stepped[name], rates)
            self.stepped[name].zero_()

    def state(self, lane: int) -> dict[str, dict[str, Tensor]]:
        """By weight, what the optimizer remembers of a lane."""
        return {
            name: {what: self._part(each, lane) for what, each in self.optimizer.state[weight].items()}
            for name, weight in self.stepped.items()
        }

    def load(self, states: Sequence[dict[str, dict[str, Tensor]]]) -> None:
        """All lanes' states, all after the same number of steps."""
        for name, weight in self.stepped.items():
            self.optimizer.state[weight] = {
                what: self._join(weight, [state[name][what] for state in states]) for what in states[0][name]
            }

    def _part(self, tensor: Tensor, lane: int) -> Tensor:
        return self.model.part(tensor, lane) if tensor.dim() else tensor

    def _join(self, weight: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """On the weight's device and laid out as it is: fused optimizers pair the two by their place in memory."""
        if not parts[0].dim():
            return parts[0].to(getattr(self.optimizer, "scalars_on", weight.device))
        return torch.empty_like(weight, requires_grad=False).copy_(self.model.join(parts))


def form_of(model: str, dataset: Dataset) -> tuple[type[LaneModel], torch.memory_format]:
    """In which form a model spec's lanes are computed, and how their weights and images lie in memory."""
    given = model, dataset.image_shape, len(dataset.classes)
    layout = torch.channels_last if convolutional(*given) else torch.contiguous_format
    return Stacked if stacks(*given) else Alone, layout


class Lanes:
    """Stages of one shape on their way through the epochs of their recipe.

    `images [few, channels, height, width]`, as the model takes them, show which layers are its head. `heads` has by
    stage the head of its teacher, where it ends in that. Raises ValueError on stages that can't train together.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        dataset: Dataset,
        images: Tensor,
        pretrained: Pretrained | None = None,
        heads: "Sequence[Mapping[str, Tensor]] | None" = None,
    ) -> None:
        self.recipe, self.device = stages[0].recipe, images.device
        self.all = [Lane(stage) for stage in stages]
        self.running = list(self.all)  # those that are in the model, in its order
        first, shape = stages[0], (dataset.image_shape, len(dataset.classes))
        about = first.model, *shape, first.recipe.dropout
        form, layout = form_of(first.model, dataset)
        self.frozen = first.frozen
        if trains_heads(first, *shape):
            model: LaneModel = _new_heads(stages, dataset, pretrained)
        else:
            own: Sequence[Mapping[str, Tensor] | None] = heads or [None] * len(stages)
            model = form([new_model(stage, dataset, pretrained, head) for stage, head in zip(stages, own, strict=True)])
        self.model: LaneModel = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        normalises = self.model.normalises if isinstance(self.model, Heads) else normalises_batches(self.model)
        self.smallest_batch = 2 if normalises and not self.recipe.freeze_norm else 1
        self.head: Head | None = None
        if self.frozen is not None:
            self.head = head_in(*about)[0]
        elif self.recipe.head_epochs:
            self.head = find_head(self.model.layers, images)
        rest = self.frozen.rest if self.frozen is not None else None
        self.cut = cut_in(*about, first=rest) if rest is not None else None
        self.optimizer = self._new_optimizer()
        self.average = Average(self.model, self.recipe.ema) if self.recipe.ema is not None else None

    def _new_optimizer(self) -> LaneOptimizer:
        return LaneOptimizer(self.model, self.recipe, [lane.stage.recipe.learning_rate for lane in self.running])

    def seed_dropout(self, epoch: int) -> None:
        self.model.seed_dropout([_mix(lane.stage.seed, epoch) for lane in self.running])

    def head_alone(self, epoch: int) -> Head | None:
        """What trains while all else stands still; None where more than the head does."""
        return self.head if epoch < (self.recipe.head_epochs or 0) else None

    def kept_below(self, head: Head | None) -> str | None:
        """The layer before which what the layers below give is kept, while that head trains alone, or more does."""
        if self.frozen is None:
            return None
        return self.frozen.rest if head is None else self.frozen.head

    def train(self, epoch: int) -> None:
        """Training mode: of all layers, or in a recipe of two parts of the head alone, then from `finetune_from` on."""
        if head := self.head_alone(epoch):
            train_head(self.model.layers, head)
            return
        if self.head is None:
            self.model.train()
        else:
            if epoch == self.recipe.head_epochs:
                self.optimizer = self._new_optimizer()  # the second part remembers nothing of the first
            train_from(self.model.layers, self.recipe.finetune_from)
        if self.recipe.freeze_norm:
            freeze_norm(self.model)

    def step(self, factor: float | Tensor) -> None:
        """One step of the optimizer, at `factor` times each lane's rate; the average follows it."""
        self.optimizer.step(factor)
        if self.average is not None:
            self.average.update()

    def evaluated(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that are looked at and kept: where the recipe has `ema`, their
        average."""
        return self.average.in_place() if self.average is not None else nullcontext()

    def note(self, number: int, metrics: EpochMetrics) -> None:
        """One more epoch of a lane, with its weights where they are the best so far and the recipe wants these."""
        lane, looked = self.running[number], metrics.val_accuracy is not None
        if self.recipe.select == "best" and looked and metrics.is_better(lane.best, self.recipe.select_by):
            with self.evaluated():
                lane.best_weights = self.weights(number)
        lane.epochs.append(metrics)

    def weights(self, number: int) -> dict[str, Tensor]:
        """A copy of a lane's weights and buffers, on the CPU."""
        return {
            name: each.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, each in self.model.weights(number).items()
        }

    def whole(self, number: int) -> dict[str, Tensor]:
        """As `weights`, with those that all lanes share."""
        return self.model.whole(self.weights(number))

    def selected(self, number: int) -> dict[str, Tensor]:
        """A copy of the weights that the recipe selects of a lane, so far."""
        with self.evaluated():
            return self.running[number].best_weights or self.weights(number)

    def keep(self, numbers: Sequence[int]) -> None:
        """Goes on with some of the running lanes; they are not touched."""
        states = [self.optimizer.state(number) for number in numbers]
        self.running = [self.running[number] for number in numbers]
        if numbers:
            if self.average is not None:
                self.average.keep(numbers)
            self.model.keep(numbers)
            self.optimizer = self._new_optimizer()
            self.optimizer.load(states)

    def load_selected(self) -> None:
        """Every lane has the weights that the recipe selects."""
        self.model.load([self.selected(number) for number in range(len(self.running))])


def new_model(
    stage: Stage, dataset: Dataset, pretrained: Pretrained | None, head: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """As it is before its first step."""
    check_digests(stage.code)
    about = dataset.image_shape, len(dataset.classes)
    # The seed alone decides the first weights, whatever device they go to.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        module = build(stage.model, *about, stage.recipe.dropout)
        if pretrained is not None:
            start_from(pretrained, module, dataset.normalization)
            draw_head(module, stage.seed)
        module = with_head(module, stage, *about)
    if head is not None:
        put_head(module, head)
    return module


def _new_heads(stages: Sequence[Stage], dataset: Dataset, pretrained: Pretrained | None) -> Heads:
    """As they are in new models, of which one is made: all but their heads is the same."""
    module = new_model(stages[0], dataset, pretrained)
    about = stages[0].model, dataset.image_shape, len(dataset.classes), stages[0].recipe.dropout
    names = head_in(*about)[0].layers
    heads = []
    for stage in stages:
        draw_head(module, stage.seed)
        heads.append(copy.deepcopy(module.get_submodule(names[-1])))
    return Heads(module, names, heads)  # type: ignore[arg-type]


def _mix(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
