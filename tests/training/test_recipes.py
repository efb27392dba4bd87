"""Today's recipes train as a bare loop of torch's own parts does, in lanes and alone."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_stage, tiny_space
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from takd.search_spaces import InputError, Stage
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import load
from takd.trainables.models.families import build
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.training.loop import StageTraining, train
from takd.trainables.training.schedules import rate_factor

MNIST = load("mnist")
CLASSES = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}


def stage(model: str = "mlp-8", **given: Any) -> Stage:
    return make_stage(model, dataset=MNIST.fingerprint, **({"batch_size": 64} | given))


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


def a_bare_loop(of: Stage) -> dict[str, Tensor]:
    """The averaged weights and buffers after the stage's recipe, as one writes it by hand."""
    recipe = of.recipe
    torch.manual_seed(of.seed)
    model = build(of.model, MNIST.image_shape, 10)
    flat = [each for each in model.parameters() if each.dim() == 1]
    others = [each for each in model.parameters() if each.dim() > 1]
    groups: list[dict[str, Any]] = [{"params": flat, "weight_decay": 0.0}, {"params": others}]
    own: dict[str, Any] = {"momentum": recipe.momentum, "nesterov": True} if recipe.optimizer == "sgd" else {}
    optimizer = CLASSES[recipe.optimizer](groups, recipe.learning_rate, weight_decay=recipe.weight_decay, **own)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema or 0), use_buffers=True)
    inputs = StageTraining([of], MNIST, [[]]).inputs
    steps = len(inputs.batches(0, 1))
    warmup = int((recipe.warmup_epochs or 0) * steps)
    rest = CosineAnnealingLR(optimizer, recipe.epochs * steps - warmup)
    schedule = SequentialLR(optimizer, [LinearLR(optimizer, 0.01, total_iters=warmup), rest], [warmup])
    for epoch in range(recipe.epochs):
        for batch in inputs.batches(epoch, 1):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.images[batch]), inputs.labels[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm or 0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
    return average.module.state_dict()


MODERN = {"warmup_epochs": 1.5, "clip_norm": 0.8, "ema": 0.95, "decay_norm_and_bias": False, "weight_decay": 0.05}


@pytest.mark.filterwarnings("ignore:The epoch parameter in")
@pytest.mark.parametrize("optimizer", CLASSES)
@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.02, 0.005)])
def test_a_modern_recipe_trains_each_lane_as_torchs_own_parts_do(optimizer, rates):
    recipe = MODERN | {"optimizer": optimizer, "epochs": 3} | ({"nesterov": True} if optimizer == "sgd" else {})
    lanes = [stage(learning_rate=rate, seed=seed, **recipe) for seed, rate in enumerate(rates)]
    for lane, trained in zip(lanes, train(lanes, MNIST, [[], []]), strict=True):
        assert same(a_bare_loop(lane), trained.weights, tolerance=2e-5)


@pytest.mark.filterwarnings("ignore:The epoch parameter in")
def test_what_batch_normalisation_counts_is_averaged_with_the_weights():
    own = stage("plain-2", examples=100, batch_size=25, optimizer="sgd", nesterov=True, evaluate_every=2, **MODERN)
    [trained] = train([own], MNIST, [[]])
    expected = a_bare_loop(own)
    floating = {name: each for name, each in expected.items() if each.is_floating_point()}
    assert any("running_var" in name for name in floating)
    for name, each in floating.items():
        torch.testing.assert_close(trained.weights[name], each, rtol=1e-3, atol=1e-4)


def test_the_average_is_what_is_looked_at_and_the_weights_train_on():
    training = StageTraining([stage(ema=0.9, select="best")], MNIST, [[]])
    training.train_step(torch.arange(10), 1.0)
    assert training.taught.average
    assert same(training.taught.average.averaged, training.taught.weights(0), tolerance=0)  # it begins with these
    training.run_epoch()
    [lane], raw = training.lanes, training.taught.weights(0)
    assert lane.best_weights
    assert training.taught.average
    assert same(lane.best_weights, training.taught.average.averaged, tolerance=0)
    assert not same(lane.best_weights, raw, tolerance=1e-4)


def test_a_warm_up_rises_step_by_step_and_the_schedule_runs_over_the_rest():
    recipe = stage(epochs=10, warmup_epochs=2.5).recipe
    factors = [rate_factor(recipe, at) for at in (0, 1.25, 2.5, 6.25, 10 - 1e-9)]
    assert factors == pytest.approx([0.01, 0.505, 1, 0.5, 0], abs=1e-6)
    parts = stage(epochs=10, warmup_epochs=1, head_epochs=4, finetune_factor=0.5).recipe
    assert [rate_factor(parts, at) for at in (0, 1, 4, 5)] == pytest.approx([0.01, 1, 0.005, 0.5])


@pytest.mark.parametrize("own", [{}, {"class_weights": "balanced", "batch_size": 50}])
def test_a_batch_in_parts_makes_the_step_of_the_whole_batch(own):
    """In lanes, with soft targets; the last batch has 8 examples, and 3 parts don't divide any evenly."""
    teacher = stage("mlp-16", role="teacher")
    logits = [[[np.random.default_rng(0).normal(size=(50_000, 10)).astype(np.float32)]]] * 2
    recipe = {"upstream": (teacher,), "examples": 208, "select": "best", "learning_rate": 0.01} | own
    whole, parts = (
        train([stage(seed=seed, accumulate=each, **recipe) for seed in (0, 1)], MNIST, logits) for each in (None, 3)
    )
    for one, other in zip(whole, parts, strict=True):
        assert same(one.weights, other.weights, tolerance=1e-5)
        assert one.selected.train_loss == pytest.approx(other.selected.train_loss, rel=1e-5)


def test_no_part_that_is_normalised_is_one_example():
    own = stage("plain-2", examples=30, batch_size=27, accumulate=9, epochs=1)  # batches of 27 and 3
    [trained] = train([own], MNIST, [[]])
    assert all(torch.isfinite(each).all() for each in trained.weights.values())


LOW = {"select": "best", "patience": 2, "learning_rate": 1e-9, "schedule": "constant"}  # the first look stays the best


def test_a_lane_without_patience_leaves_its_batch_with_its_best_weights():
    fast = stage(epochs=6, seed=1, **(LOW | {"learning_rate": 0.003}))
    training = StageTraining([stage(epochs=6, **LOW), fast], MNIST, [[], []])
    while not training.done:
        training.run_epoch()
    (slow, kept), (other, whole) = training.finish()
    assert (len(slow.epochs), kept.selected.epoch, slow.failure) == (3, 1, None)
    [alone] = train(
        [fast.model_copy(update={"recipe": fast.recipe.model_copy(update={"patience": None})})], MNIST, [[]]
    )
    assert len(other.epochs) == 6
    assert same(alone.weights, whole.weights, tolerance=1e-5)


def test_patience_counts_looks_and_not_epochs():
    training = StageTraining([stage(epochs=20, evaluate_every=3, **LOW)], MNIST, [[]])
    while not training.done:
        training.run_epoch()
    assert len(training.lanes[0].epochs) == 9


def test_a_teacher_without_patience_leaves_soft_targets_of_its_best_weights():
    own = stage(role="teacher", epochs=9, **LOW)
    [early] = train([own], MNIST, [[]])
    recipe = own.recipe.model_copy(update={"epochs": 1, "patience": None})
    [first] = train([own.model_copy(update={"recipe": recipe})], MNIST, [[]])
    assert early.soft_targets is not None
    torch.testing.assert_close(early.soft_targets, first.soft_targets)


def test_who_stops_is_published_while_the_others_train_on(tmp_path):
    store = ArtifactStore(str(tmp_path))
    lanes = [stage(epochs=6, **LOW), stage(epochs=6, seed=1, **(LOW | {"learning_rate": 0.003}))]
    batch = StageBatch(lanes, store, 1, False, {each.key: {"study": "s", "use": "0.0"} for each in lanes})
    batch.run_epoch()
    batch.write_checkpoints()
    batch.run_epoch()
    batch.run_epoch()
    assert [store.describe(each.key) is not None for each in lanes] == [True, False]
    assert store.load_checkpoint(lanes[0].key) is None
    told = {each["key"]: each for each in batch.states()}
    assert [told[each.key]["state"] for each in lanes] == ["done", "running"]
    assert len(told[lanes[0].key]["epochs"]) == 3
    assert batch.epoch == 3
    assert not batch.done
    again = StageBatch(lanes, store, 1, False, {each.key: {"study": "s", "use": "0.0"} for each in lanes})
    assert [each.stage for each in again.lanes] == lanes[1:]  # it is done, and trains no more


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"clip_norm": 0}, r"student\.recipe: clip_norm is 0; expected greater than 0"),
        ({"clip_norm": -1}, "clip_norm is -1; expected greater than 0"),
        ({"ema": 1.0}, r"ema is 1\.0; expected less than 1"),
        ({"ema": 0}, "ema is 0; expected greater than 0"),
        ({"ema": {"choices": [0.9, 1.5]}}, r"ema\.choices\.1"),
        ({"warmup_epochs": 0}, "warmup_epochs is 0; expected greater than 0"),
        ({"warmup_epochs": 5, "epochs": 5}, "warmup_epochs is 5, and the run has 5; the schedule needs some: say less"),
        ({"warmup_epochs": 3, "epochs": {"low": 2, "high": 9}}, "warmup_epochs is 3, and the run has 2"),
        (
            {"warmup_epochs": 1, "schedule": "one-cycle"},
            "warmup_epochs is 1, but schedule: one-cycle warms up by itself",
        ),
        ({"nesterov": True}, "nesterov is only for optimizer: sgd"),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, "nesterov is true, but momentum is 0"),
        ({"nesterov": "yes", "optimizer": "sgd"}, "nesterov is 'yes'; expected true or false"),
        ({"patience": 3}, "patience is only for select: best"),
        ({"patience": 3, "select": "last"}, "patience is only for select: best"),
        ({"patience": 0, "select": "best"}, "patience is 0; expected greater than or equal to 1"),
        ({"accumulate": 1}, "accumulate is 1; expected greater than or equal to 2"),
        ({"accumulate": 8, "batch_size": 4}, "accumulate is 8 parts of a batch of 4"),
        ({"decay_norm_and_bias": 0}, "decay_norm_and_bias is 0; expected true or false"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; expected 'adam', 'adamw', 'sgd'"),
    ],
)
def test_what_no_recipe_can_be_is_refused_when_the_space_is_read(recipe, words):
    with pytest.raises(InputError, match=words):
        tiny_space(student__recipe=copy.deepcopy(recipe))
