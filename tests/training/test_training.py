"""The training loop, without Ray: what it promises about seeds, soft targets and failures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_stage
from torch import Tensor

from takd.search_spaces import Loss, Stage
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.datasets.splits import Split
from takd.trainables.models.families import build
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.inputs import Pixels
from takd.trainables.training.lanes import OPTIMIZERS
from takd.trainables.training.loop import StageTraining, TrainingError, train
from takd.trainables.training.losses import soften
from takd.trainables.training.schedules import SCHEDULES
from takd.trainables.training.teaching import SoftTeaching

MNIST = load("mnist")
# With a tenth of its images to validate on: of convolutions that would take longer than to train.
FEW = replace(MNIST)
FEW.__dict__["validation"] = Split(MNIST.validation.images[:1000], MNIST.validation.labels[:1000])


def stage(model: str = "mlp-8", **given: Any) -> Stage:
    return make_stage(model, dataset=MNIST.fingerprint, **({"batch_size": 64} | given))


def weights_of(stage: Stage, upstream: Any = (), data: Dataset = MNIST) -> dict[str, Tensor]:
    [trained] = train([stage], data, [upstream])
    return trained.weights


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


@torch.no_grad()
def logits_of(model: str, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """From the model as it is, one lane of nothing: `[n, classes]`."""
    module = build(model, MNIST.image_shape, 10).eval()
    module.load_state_dict(weights)
    pixels = Pixels(images, MNIST, torch.device("cpu"), torch.contiguous_format)
    return module(pixels[slice(None)])


TEACHER = stage("mlp-32", role="teacher", epochs=3, examples=1000)


@pytest.fixture(scope="module")
def teacher():
    [trained] = train([TEACHER], MNIST, [[]])
    return trained


def test_cached_soft_targets_give_the_student_that_the_teacher_in_the_loop_gives(teacher, monkeypatch):
    module = build("mlp-32", MNIST.image_shape, 10).eval()
    module.load_state_dict(teacher.weights)

    class TeacherInTheLoop(SoftTeaching):
        """Computes the soft targets of every batch from the teacher itself, as a plain loop does."""

        def losses(self, logits: Tensor, labels: Tensor, batch: Tensor, number: int) -> Tensor:
            with torch.no_grad():
                targets = soften(module(self.inputs.images[batch])[None], float(self.temperature), Loss())
            self.probabilities[batch, 0] = targets.probabilities
            self.negative_entropy[batch, 0] = targets.negative_entropy
            return super().losses(logits, labels, batch, number)

    student = stage(upstream=(TEACHER,), epochs=10, examples=1000, learning_rate=0.01)
    cached = weights_of(student, [teacher.soft_targets.numpy()])
    monkeypatch.setattr("takd.trainables.training.loop.teaching_of", lambda stage: TeacherInTheLoop)
    nothing = np.full((len(MNIST.train.labels), 10), np.nan, np.float32)
    loop = StageTraining([student], MNIST, [[[nothing]]])
    monkeypatch.undo()
    while not loop.done:
        loop.run_epoch()
    assert same(cached, loop.finish()[0][1].weights, tolerance=1e-4)
    assert not same(cached, weights_of(stage(epochs=10, examples=1000, learning_rate=0.01)), tolerance=1e-2)


def test_soft_targets_are_the_logits_of_the_selected_weights(teacher):
    logits = logits_of("mlp-32", teacher.weights, MNIST.train.images[:100])
    torch.testing.assert_close(logits, teacher.soft_targets[0, :100], rtol=1e-4, atol=1e-4)
    assert teacher.soft_targets.shape == (1, 50_000, 10)


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


@pytest.fixture
def one_thread():
    """Sums are in one order, whoever else had this process before: RMSprop makes much of their last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.01, 0.003)])
def test_every_optimizer_steps_each_lane_as_alone(optimizer, rates, one_thread):
    recipe = {"optimizer": optimizer, "weight_decay": 0.01, "dropout": 0.2, "select": "best", "epochs": 4}
    lanes = [stage(seed=s, learning_rate=r, **recipe) for s, r in enumerate(rates)]
    for lane, trained in zip(lanes, train(lanes, MNIST, [[], []]), strict=True):
        [alone] = train([lane], MNIST, [[]])
        assert same(trained.weights, alone.weights, tolerance=1e-5)
        assert trained.selected.epoch == alone.selected.epoch


def test_a_lane_that_ends_early_leaves_the_others_as_they_are_alone(teacher):
    logits = [teacher.soft_targets.numpy()]
    lanes = [stage(upstream=(TEACHER,), temperature=t, seed=s, epochs=4) for t, s in ((1.0, 0), (2.0, 1), (8.0, 2))]
    training = StageTraining(lanes, MNIST, [logits] * 3)
    training.run_epoch()
    training.end([training.lanes[1]])
    while not training.done:
        training.run_epoch()
    finished = training.finish()
    assert [lane.stage for lane, _ in finished] == [lanes[0], lanes[2]]
    for lane, trained in finished:
        assert same(trained.weights, weights_of(lane.stage, logits), tolerance=1e-5)
    assert len(training.lanes[1].epochs) == 1


def test_a_checkpoint_of_a_lane_goes_on_alone_and_in_other_company():
    lanes = [stage(seed=s, epochs=4, dropout=0.2, learning_rate=0.01 * (1 + s)) for s in range(3)]
    first = StageTraining(lanes, MNIST, [[]] * 3)
    first.run_epoch()
    parts = [Checkpoint.parse(first.checkpoint(lane)) for lane in first.lanes]
    for company in ([0], [2, 1]):
        second = StageTraining([lanes[number] for number in company], MNIST, [[]] * len(company))
        second.restore([parts[number] for number in company])
        while not second.done:
            second.run_epoch()
        for lane, trained in second.finish():
            assert same(trained.weights, weights_of(lane.stage), tolerance=1e-5)


def test_convolutions_train_one_lane_at_a_time():
    with pytest.raises(ValueError, match="one at a time"):
        StageTraining([stage("cnn"), stage("cnn", seed=1)], MNIST, [[], []])


def test_stages_of_different_shapes_do_not_train_together():
    with pytest.raises(ValueError, match="share dataset, model, recipe"):
        StageTraining([stage("mlp-8"), stage("mlp-9")], MNIST, [[], []])


def test_a_loss_that_is_no_number_ends_its_lane_alone_with_the_reason():
    training = StageTraining([stage(learning_rate=1e30), stage(learning_rate=1e-3)], MNIST, [[], []])
    while not training.done:
        training.run_epoch()
    broken, fine = training.lanes
    assert broken.failure is not None
    assert broken.failure.startswith("the training loss became ")
    assert fine.failure is None
    assert same(training.finish()[0][1].weights, weights_of(stage(learning_rate=1e-3)), tolerance=1e-6)


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
    assert training.finish()[0][1].selected.epoch == 8
    logits = logits_of("mlp-8", best.weights, MNIST.validation.images)
    assert (logits.argmax(dim=1) == MNIST.validation.labels).float().mean() == pytest.approx(best.selected.val_accuracy)


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
    recipe = {"epochs": 4, "examples": 1000, "learning_rate": 0.01, "evaluate_every": 4}
    [trained] = train([stage("plain-2", precision=precision, **recipe)], FEW, [[]])
    assert trained.selected.val_accuracy > 0.5
    numbers = [weight for weight in trained.weights.values() if weight.is_floating_point()]  # no counters
    assert all(weight.dtype == torch.float32 for weight in numbers)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns(optimizer):
    rate = {"sgd": 0.1, "radam": 0.03, "adadelta": 1.0}.get(optimizer, 0.01)
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


def interrupted(stages: list[Stage], upstream: Any, after: int, data: Dataset = MNIST) -> list[dict[str, Tensor]]:
    """Trained for some epochs, then by another object from the checkpoints, as bytes."""
    first = StageTraining(stages, data, upstream)
    for _ in range(after):
        first.run_epoch()
    checkpoints = [first.checkpoint(lane) for lane in first.lanes]
    second = StageTraining(stages, data, upstream)
    second.restore([Checkpoint.parse(each) for each in checkpoints])
    assert second.epoch == after
    while not second.done:
        second.run_epoch()
    assert [each.epoch for each in second.lanes[0].epochs] == list(range(1, second.recipe.epochs + 1))
    return [trained.weights for _, trained in second.finish()]


@pytest.mark.parametrize(
    "recipe",
    [
        {"dropout": 0.3},
        {"model": "plain-2", "epochs": 3, "evaluate_every": 3},
        {"model": "plain-2", "epochs": 3, "evaluate_every": 3, "optimizer": "sgd", "precision": "bfloat16"},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0},
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "one-cycle"},
        {"select": "best", "learning_rate": 0.1, "schedule": "constant"},
        {"schedule": "step"},
        {"optimizer": "nadam", "ema": 0.9, "clip_norm": 0.5, "warmup_epochs": 1.5, "accumulate": 3},
        {"model": "plain-2", "epochs": 3, "evaluate_every": 3, "ema": 0.9, "select": "best"},
        {"optimizer": "sgd", "learning_rate": 0.1, "nesterov": True, "select": "best", "patience": 6},
        {"augment": "random-resized-crop+color-jitter+mixup", "views": "per-epoch", "examples": 100},
    ],
)
def test_a_stage_that_goes_on_from_a_checkpoint_is_the_stage_that_was_never_stopped(recipe):
    whole = stage(**({"epochs": 6} | recipe))
    [weights] = interrupted([whole], [[]], after=whole.recipe.epochs - 2, data=FEW)
    assert same(weights, weights_of(whole, data=FEW))


def test_lanes_go_on_from_their_checkpoints_together(teacher):
    logits = [teacher.soft_targets.numpy()]
    lanes = [stage(upstream=(TEACHER,), temperature=t, seed=s, epochs=4) for t, s in ((1.0, 0), (8.0, 1))]
    whole = train(lanes, MNIST, [logits] * 2)
    for trained, weights in zip(whole, interrupted(lanes, [logits] * 2, after=2), strict=True):
        assert same(trained.weights, weights)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b'{"format": 1}\n', b'{"format": 99, "epochs": []}\n', b'{"format": 1, "epochs": []}\nx'],
)
def test_what_is_no_checkpoint_is_refused(content):
    with pytest.raises(ValueError, match="no checkpoint"):
        Checkpoint.parse(content)


def test_a_checkpoint_of_another_model_is_refused():
    training = StageTraining([stage("mlp-9")], MNIST, [[]])
    training.run_epoch()
    with pytest.raises(ValueError, match="a checkpoint of another model"):
        StageTraining([stage("mlp-8")], MNIST, [[]]).restore([Checkpoint.parse(training.checkpoint(training.lanes[0]))])


def test_a_loss_that_is_no_number_after_the_last_step_ends_the_lane_too():
    """One step a run: the training loss is that of the first weights, the validation loss is not."""
    training = StageTraining([stage(epochs=1, batch_size=256, examples=200, learning_rate=1e38)], MNIST, [[]])
    training.run_epoch()
    assert training.lanes[0].failure in {f"the validation loss became {x} in epoch 1 of 1" for x in ("nan", "inf")}
