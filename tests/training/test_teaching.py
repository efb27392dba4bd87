"""Another kind of teaching needs no change of the loop: one is made up here, with weights and memory of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_stage
from torch import Tensor

from takd.search_spaces import Stage
from takd.trainables.datasets.dataset import load
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.teaching import SoftTeaching, Teaching, teaching_of

MNIST = load("mnist")
TEACHER = make_stage("mlp-16", role="teacher", dataset=MNIST.fingerprint)
LOGITS = [[np.random.default_rng(0).normal(size=(50_000, 10)).astype(np.float32)]]
HIDDEN = 8


class Hints(Teaching):
    """A regressor, trained beside the student, from its hidden layer to the upstream's logits (FitNets in small).

    Each lane's hidden features are also drawn to their mean of earlier batches, a memory.
    """

    def __init__(self, taught: Any, inputs: Any, upstream: Any) -> None:
        super().__init__(taught, inputs, upstream)
        self.targets = torch.from_numpy(upstream[0][0][0][inputs.transfer_set])
        lanes = len(taught.running)
        self.regressor = torch.full((lanes, 10, HIDDEN), 0.01, requires_grad=True)
        self.mean = torch.zeros(lanes, HIDDEN, 1)
        self.seen: list[tuple[int, int]] = []
        taught.model.layers[-1].register_forward_pre_hook(self._keep_features)

    def _keep_features(self, layer: Any, given: tuple[Tensor]) -> None:
        self.features = given[0]  # [lanes, features, batch]

    def begin_epoch(self, epoch: int, view: int) -> None:
        self.seen.append((epoch, view))

    def losses(self, logits: Tensor, labels: Tensor, batch: Tensor, number: int) -> Tensor:
        hint = (self.regressor @ self.features - self.targets[batch].t()).square().mean(dim=(1, 2))
        drawn = (self.features - self.mean).square().mean(dim=(1, 2))
        self.mean = 0.9 * self.mean + 0.1 * self.features.detach().mean(dim=2, keepdim=True)
        return super().losses(logits, labels, batch, number) + hint + 0.1 * drawn

    def step(self, factor: float) -> None:
        assert self.regressor.grad is not None
        with torch.no_grad():
            self.regressor -= 0.05 * factor * self.regressor.grad
        self.regressor.grad = None

    def keep(self, numbers: Sequence[int]) -> None:
        kept = list(numbers)
        self.regressor = self.regressor.detach()[kept].requires_grad_()
        self.mean = self.mean[kept]

    def state(self, number: int) -> dict[str, Tensor]:
        return {"regressor": self.regressor[number], "mean": self.mean[number]}

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        self.regressor = torch.stack([each["regressor"] for each in states]).requires_grad_()
        self.mean = torch.stack([each["mean"] for each in states])


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("takd.trainables.training.loop.teaching_of", lambda stage: Hints)


def student(**given: Any) -> Stage:
    recipe = {"batch_size": 64, "epochs": 4, "learning_rate": 0.01} | given
    return make_stage(f"mlp-{HIDDEN}", upstream=(TEACHER,), dataset=MNIST.fingerprint, **recipe)


def start(*stages: Stage) -> StageTraining:
    return StageTraining(stages, MNIST, [LOGITS] * len(stages))


def weights_of(training: StageTraining) -> list[dict[str, Tensor]]:
    """Of its lanes at their end."""
    while not training.done:
        training.run_epoch()
    return [trained.weights for _, trained in training.finish()]


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


def test_a_stage_says_by_what_it_is_taught():
    assert teaching_of(TEACHER) is Teaching
    assert teaching_of(student()) is SoftTeaching


@pytest.mark.usefixtures("hints")
def test_another_kind_of_teaching_trains_the_student_and_weights_of_its_own(monkeypatch):
    training = start(student())
    teaching = training.teaching
    assert isinstance(teaching, Hints)
    before = teaching.regressor.detach().clone()
    [weights] = weights_of(training)
    assert not torch.equal(teaching.regressor, before)
    assert teaching.seen == [(0, 0), (0, 0), (1, 0), (2, 0), (3, 0)]  # ready for a step once it is made
    monkeypatch.undo()
    assert not same(weights, weights_of(start(student()))[0], tolerance=1e-2)


@pytest.mark.usefixtures("hints")
def test_another_kind_of_teaching_goes_on_from_a_checkpoint_as_if_never_stopped():
    first, second = start(student(), student(seed=1)), start(student(), student(seed=1))
    for _ in range(2):
        first.run_epoch()
    second.restore([Checkpoint.parse(first.checkpoint(lane)) for lane in first.lanes])
    for one, other in zip(weights_of(first), weights_of(second), strict=True):
        assert same(one, other)


@pytest.mark.usefixtures("hints")
def test_another_kind_of_teaching_teaches_each_lane_as_alone_whoever_ends():
    stages = [student(seed=seed, learning_rate=rate) for seed, rate in ((0, 0.01), (1, 0.002), (2, 0.01))]
    together = start(*stages)
    together.run_epoch()
    together.end([together.lanes[1]])
    for stage, weights in zip((stages[0], stages[2]), weights_of(together), strict=True):
        assert same(weights, weights_of(start(stage))[0], tolerance=1e-5)


def test_a_checkpoint_of_another_kind_of_teaching_is_refused(monkeypatch):
    plain = start(student())
    plain.run_epoch()
    checkpoint = Checkpoint.parse(plain.checkpoint(plain.lanes[0]))
    assert {name.partition(".")[0] for name in checkpoint.tensors} == {"model", "optimizer"}  # nothing of soft targets
    monkeypatch.setattr("takd.trainables.training.loop.teaching_of", lambda stage: Hints)
    with pytest.raises(ValueError, match="a checkpoint of another model"):
        start(student()).restore([checkpoint])
