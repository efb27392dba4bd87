"""Seeded views: the same copies for a teacher and for whoever learns from it, each with its soft targets."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_stage, tiny_space
from torch import Tensor

from takd.search_spaces import InputError, Loss, Stage
from takd.study.checks import _check_augmentation
from takd.trainables.datasets.dataset import load
from takd.trainables.models.families import build
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.inputs import Pixels
from takd.trainables.training.loop import StageTraining, train
from takd.trainables.training.teaching import SoftTeaching
from takd.trainables.training.views import AUGMENTATIONS, PADDING, View, view

MNIST = load("mnist")
IMAGES = torch.arange(2 * 3 * 6 * 6, dtype=torch.uint8).reshape(2, 3, 6, 6)


def drawn(augment: str, **given: list[int]) -> View:
    fields = {
        name: torch.tensor(given.get(name, [0, 0]), dtype=torch.uint8) for name in ("flip", "down", "right", "turns")
    }
    return View(augment, **fields)


def stage(model: str = "mlp-8", **given: Any) -> Stage:
    return make_stage(
        model, dataset=MNIST.fingerprint, **({"batch_size": 64, "augment": "crop-flip", "views": 3} | given)
    )


def test_a_crop_moves_and_mirrors_an_image_as_numpy_does():
    moved = drawn("crop-flip", flip=[0, 1], down=[0, 5], right=[PADDING, 7]).apply(IMAGES, slice(None))
    padded = np.pad(IMAGES.numpy(), ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    np.testing.assert_array_equal(moved[0], padded[0, :, 0:6, PADDING : PADDING + 6])
    np.testing.assert_array_equal(moved[1], padded[1, :, 5:11, 7:13][..., ::-1])


def test_a_turn_is_one_of_eight_ways_an_image_lies():
    turned = drawn("flip-rotate", flip=[0, 1], turns=[1, 2]).apply(IMAGES, slice(None))
    np.testing.assert_array_equal(turned[0], np.rot90(IMAGES[0].numpy(), 1, (1, 2)))
    np.testing.assert_array_equal(turned[1], np.rot90(IMAGES[1].numpy(), 2, (1, 2))[..., ::-1])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_view_is_the_same_whoever_asks_and_another_than_the_next(augment: str):
    images = MNIST.train.images[:300].expand(-1, 3, -1, -1)  # stains have colours
    first, again, second = (view(augment, number, 300) for number in (1, 1, 2))
    assert first
    assert again
    assert second
    whole = first.apply(images, slice(None))
    chosen = torch.tensor([7, 299, 3])
    torch.testing.assert_close(again.apply(images[chosen], chosen), whole[chosen], rtol=0, atol=0)
    differ = (whole != second.apply(images, slice(None))).flatten(1).any(dim=1)
    assert differ.float().mean() > 0.3  # a flip alone changes half of them
    assert view(augment, 0, 300) is None


def predicted(weights: dict[str, Tensor], model: str, number: int) -> Tensor:
    """Of a view of all training images, from the model as it is."""
    module = build(model, MNIST.image_shape, 10).eval()
    module.load_state_dict(weights)
    pixels = Pixels(MNIST.train.images, MNIST, torch.device("cpu"), torch.contiguous_format)
    pixels.view = view("crop-flip", number, 50_000)
    with torch.no_grad():
        return module(pixels[torch.arange(500)])


@pytest.fixture(scope="module")
def teacher() -> Any:
    [trained] = train([stage("mlp-16", role="teacher", epochs=3)], MNIST, [[]])
    return trained


def test_soft_targets_are_there_for_every_view(teacher):
    assert teacher.soft_targets.shape == (3, 50_000, 10)
    for number in range(3):
        expected = predicted(teacher.weights, "mlp-16", number)
        torch.testing.assert_close(teacher.soft_targets[number, :500], expected, rtol=1e-4, atol=1e-4)


def test_an_epoch_trains_on_its_view_of_the_transfer_set_with_that_views_soft_targets(teacher):
    student = stage(upstream=(stage("mlp-16", role="teacher", epochs=3),), epochs=4)
    logits = teacher.soft_targets.numpy()
    training = StageTraining([student], MNIST, [[logits]])
    inputs, teaching = training.inputs, training.teaching
    assert isinstance(teaching, SoftTeaching)
    rows = torch.arange(len(inputs.labels))
    for epoch in range(4):
        number = epoch % 3
        training._begin_epoch()
        seen = Pixels(MNIST.train.images, MNIST, torch.device("cpu"), torch.contiguous_format)
        seen.view = view("crop-flip", number, 50_000)
        torch.testing.assert_close(inputs.images[rows], seen[inputs.transfer_set])
        p = torch.from_numpy(logits[number][inputs.transfer_set] / 4.0).softmax(-1)
        torch.testing.assert_close(teaching.probabilities[:, 0, 0], p)
        training.run_epoch()


def test_a_stage_with_views_goes_on_from_a_checkpoint_as_if_never_stopped(teacher):
    upstream = [[teacher.soft_targets.numpy()]]
    student = stage(upstream=(stage("mlp-16", role="teacher", epochs=3),), epochs=5)
    [whole] = train([student], MNIST, upstream)
    first = StageTraining([student], MNIST, upstream)
    for _ in range(2):
        first.run_epoch()
    second = StageTraining([student], MNIST, upstream)
    second.restore([Checkpoint.parse(first.checkpoint(first.lanes[0]))])
    while not second.done:
        second.run_epoch()
    [(_, resumed)] = second.finish()
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_what_a_view_changes_the_student_learns():
    plain, augmented = (
        train([make_stage("mlp-8", dataset=MNIST.fingerprint, **recipe)], MNIST, [[]])[0].weights
        for recipe in ({}, {"augment": "crop-flip", "views": 2})
    )
    assert any(not torch.equal(plain[name], augmented[name]) for name in plain)


def test_a_guide_is_dropped_by_seed_and_never_are_all():
    upstream = tuple(make_stage("mlp-16", role="teacher", dataset=MNIST.fingerprint, seed=seed) for seed in range(3))
    given = {"dataset": MNIST.fingerprint, "batch_size": 4, "loss": Loss(drop_guides=0.6)}
    logits = [[np.random.default_rng(seed).normal(size=(50_000, 10)).astype(np.float32)] for seed in range(3)]
    lanes = [make_stage("mlp-8", upstream=upstream, seed=seed, **given) for seed in (0, 1, 0)]
    training = StageTraining(lanes, MNIST, [logits] * 3)
    teaching = training.teaching
    assert isinstance(teaching, SoftTeaching)
    guides = teaching.guides
    assert guides is not None
    assert guides.shape == (50, 3, 3)
    torch.testing.assert_close(guides.sum(dim=2), torch.ones(50, 3))
    assert 0.25 < (guides == 0).float().mean() < 0.7
    assert torch.equal(guides[:, 0], guides[:, 2])
    assert not torch.equal(guides[:, 0], guides[:, 1])
    training.run_epoch()
    training._begin_epoch()
    assert not torch.equal(teaching.guides, guides)


def test_balanced_class_weights_make_rare_classes_count_as_much():
    training = StageTraining(
        [make_stage(dataset=MNIST.fingerprint, class_weights="balanced", examples=None)], MNIST, [[]]
    )
    counts = MNIST.train.labels.bincount().float()
    weights = training.teaching.class_weights
    assert weights is not None
    torch.testing.assert_close(weights * counts, torch.full((10,), 5000.0))


def test_images_that_are_no_squares_are_not_turned():
    wide = replace(MNIST, image_shape=(1, 24, 32))
    space = tiny_space(arms=["labels"], student__recipe={"augment": {"choices": ["crop-flip", "flip-rotate"]}})
    with pytest.raises(
        InputError, match=r"student.recipe.augment.choices.1 is flip-rotate.*32 x 24; crop-flip takes any"
    ):
        _check_augmentation("student.", space.student, wide)
    _check_augmentation("student.", space.student, MNIST)
