"""The training loop, without Ray: what it promises about seeds, soft targets and failures."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_stage
from torch import Tensor

from search_spaces import Stage
from study.plan import fingerprint
from trainables.datasets import load
from trainables.losses import soften
from trainables.models import build
from trainables.training import (
    SCHEDULES,
    Lane,
    Pixels,
    StageTraining,
    TrainingError,
    measure,
    predict,
    train,
)

MNIST = load("mnist")


def stage(model: str = "mlp-8", **given: Any) -> Stage:
    return make_stage(model, dataset=fingerprint(MNIST), **({"batch_size": 64} | given))


def weights_of(stage: Stage, upstream: Any = ()) -> dict[str, Tensor]:
    [trained] = train([stage], MNIST, [upstream])
    return trained.weights


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


TEACHER = stage("mlp-32", role="teacher", epochs=3, examples=1000)


@pytest.fixture(scope="module")
def teacher():
    [trained] = train([TEACHER], MNIST, [[]])
    return trained


class TeacherInTheLoop(StageTraining):
    """Computes the soft targets of every batch from the teacher itself, as a plain loop does."""

    def __init__(self, stage: Stage, teacher_weights: dict[str, Tensor]) -> None:
        nothing = np.full((len(MNIST.train.labels), 10), np.nan, np.float32)
        super().__init__([stage], MNIST, [[nothing]])
        self.teacher = build("mlp-32", MNIST.image_shape, 10).eval()
        self.teacher.load_state_dict(teacher_weights)

    def _step(self, lanes: list[Lane], batch: Tensor) -> Tensor:
        with torch.no_grad():
            targets = soften(self.teacher(self.images[batch])[None], lanes[0].stage.temperature or 0, "separate")
        self.probabilities[0, batch], self.negative_entropy[0, batch] = targets.probabilities, targets.negative_entropy
        return super()._step(lanes, batch)


def test_cached_soft_targets_give_the_student_that_the_teacher_in_the_loop_gives(teacher):
    student = stage(upstream=(TEACHER,), epochs=10, examples=1000, learning_rate=0.01)
    cached = weights_of(student, [teacher.soft_targets.numpy()])
    loop = TeacherInTheLoop(student, teacher.weights)
    while not loop.done:
        loop.run_epoch()
    assert same(cached, loop.finish(loop.lanes[0]).weights, tolerance=1e-4)
    assert not same(cached, weights_of(stage(epochs=10, examples=1000, learning_rate=0.01)), tolerance=1e-2)


def test_soft_targets_are_the_logits_of_the_selected_weights(teacher):
    model = build("mlp-32", MNIST.image_shape, 10)
    model.load_state_dict(teacher.weights)
    pixels = Pixels(MNIST.train.images[:100], MNIST, torch.device("cpu"), torch.contiguous_format)
    torch.testing.assert_close(predict(model, pixels), teacher.soft_targets[:100], rtol=1e-4, atol=1e-4)
    assert teacher.soft_targets.shape == (50_000, 10)


def test_only_what_something_learns_from_leaves_soft_targets():
    assert train([stage()], MNIST, [[]])[0].soft_targets is None


def test_the_same_stage_gives_the_same_weights():
    assert same(weights_of(stage(dropout=0.3)), weights_of(stage(dropout=0.3)))


@pytest.mark.parametrize("change", [{"seed": 1}, {"order_seed": 1}, {"examples_seed": 1}])
def test_every_seed_counts(change):
    assert not same(weights_of(stage()), weights_of(stage(**change)), tolerance=1e-4)


def test_a_stage_is_trained_the_same_whatever_was_drawn_before():
    before = weights_of(stage(dropout=0.3))
    torch.manual_seed(123)
    torch.rand(7)
    assert same(before, weights_of(stage(dropout=0.3)))


def test_stages_trained_together_are_the_students_they_are_alone(teacher):
    logits = [teacher.soft_targets.numpy()]
    lanes = [
        stage(upstream=(TEACHER,), temperature=t, lambda_=0.5, seed=s, learning_rate=r)
        for t, s, r in ((1.0, 0, 1e-3), (8.0, 1, 1e-2))
    ]
    together = train(lanes, MNIST, [logits] * 2)
    for lane, trained in zip(lanes, together, strict=True):
        assert same(trained.weights, weights_of(lane, logits), tolerance=1e-5)


def test_stages_of_different_shapes_do_not_train_together():
    with pytest.raises(ValueError, match="share model, recipe"):
        StageTraining([stage("mlp-8"), stage("mlp-9")], MNIST, [[], []])


def test_a_loss_that_is_no_number_ends_its_lane_alone_with_the_reason():
    training = StageTraining([stage(learning_rate=1e30), stage(learning_rate=1e-3)], MNIST, [[], []])
    while not training.done:
        training.run_epoch()
    broken, fine = training.lanes
    assert broken.failure is not None
    assert broken.failure.startswith("the training loss became ")
    assert fine.failure is None
    assert same(training.finish(fine).weights, weights_of(stage(learning_rate=1e-3)), tolerance=1e-6)


def test_a_failed_stage_is_an_error_that_names_it():
    with pytest.raises(TrainingError, match=r"student mlp-8 s0: the training loss became (nan|inf) in epoch \d of 2"):
        train([stage(learning_rate=1e30)], MNIST, [[]])


def test_best_keeps_the_first_best_epoch_and_last_the_last():
    [best] = train([stage(select="best", epochs=8, learning_rate=0.05)], MNIST, [[]])
    training = StageTraining([stage(epochs=8, learning_rate=0.05)], MNIST, [[]])
    accuracies: list[float] = []
    while not training.done:
        training.run_epoch()
        accuracies.append(training.lanes[0].epochs[-1].val_accuracy or 0)
    assert best.selected.val_accuracy == max(accuracies)
    assert best.selected.epoch == 1 + accuracies.index(max(accuracies))
    assert training.finish(training.lanes[0]).selected.epoch == 8
    model = build("mlp-8", MNIST.image_shape, 10)
    model.load_state_dict(best.weights)
    pixels = Pixels(MNIST.validation.images, MNIST, torch.device("cpu"), torch.contiguous_format)
    assert measure(predict(model, pixels), MNIST.validation.labels)[1] == best.selected.val_accuracy


def test_validation_is_looked_at_as_often_as_the_recipe_says():
    training = StageTraining([stage(epochs=5, evaluate_every=2)], MNIST, [[]])
    while not training.done:
        training.run_epoch()
    assert [each.epoch for each in training.lanes[0].epochs if each.val_accuracy is not None] == [2, 4, 5]


def test_training_learns():
    [trained] = train([stage("mlp-64", epochs=5, examples=5000)], MNIST, [[]])
    assert trained.selected.val_accuracy > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_train_in_either_precision(precision):
    [trained] = train([stage("cnn", epochs=1, examples=500, precision=precision)], MNIST, [[]])
    assert trained.selected.val_accuracy > 0.5
    assert all(weight.dtype == torch.float32 for weight in trained.weights.values())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_learns(optimizer):
    rate = 0.1 if optimizer == "sgd" else 0.01
    [trained] = train([stage("mlp-32", epochs=4, examples=1000, optimizer=optimizer, learning_rate=rate)], MNIST, [[]])
    assert trained.selected.val_accuracy > 0.7


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [("constant", 1, 1, 1), ("cosine", 1, 0.5, 0), ("one-cycle", 0.04, 0.811745, 0), ("step", 1, 0.1, 0.01)],
)
def test_schedules_go_where_they_should(schedule, start, middle, end):
    recipe = stage(schedule=schedule).recipe
    factors = [SCHEDULES[schedule](done, recipe) for done in (0, 0.5, 1)]
    assert factors == pytest.approx([start, middle, end], abs=1e-6)


def test_one_cycle_is_torchs():
    recipe, steps = stage(schedule="one-cycle").recipe, 2001
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, final_div_factor=1e12)
    for step in range(steps - 1):
        ours = SCHEDULES["one-cycle"](step / (steps - 1), recipe)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.02)
        optimizer.step()
        theirs.step()
