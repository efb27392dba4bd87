"""Images that have no room on a device: they go there a batch at a time, and what is trained is the same."""

import gc
import weakref
from typing import Any

import pytest
import torch
from conftest import make_stage

from takd.search_spaces.metrics import ACCURACY
from takd.trainables import batch as batches
from takd.trainables import room
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import load
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.training import inputs
from takd.trainables.training.devices import images_stay
from takd.trainables.training.inputs import Pixels
from takd.trainables.training.loop import StageTraining, train
from takd.trainables.training.streaming import Stream

MNIST = load("mnist")


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The CPU in the place of a GPU: images that don't stay are streamed. The list has the room it has, in bytes."""
    budget = [10**9]
    monkeypatch.setattr(inputs, "can_stream", lambda device: True)
    monkeypatch.setattr(batches, "can_stream", lambda device: True)
    monkeypatch.setattr(inputs, "room_on", lambda device: budget[0])
    before = Pixels.__init__

    def made(self: Pixels, images: Any, dataset: Any, device: Any, layout: Any, resident: bool = True) -> None:
        before(self, images, dataset, device, layout, resident)
        self.stream = None if resident else Stream(images, device)

    monkeypatch.setattr(Pixels, "__init__", made)
    return budget


@pytest.mark.parametrize(("images", "room", "stay"), [(0, 0, True), (4e9, 8e9, True), (4.1e9, 8e9, False)])
def test_images_stay_on_a_device_where_they_take_no_more_than_half_of_its_room(images, room, stay):
    assert images_stay(images, room) == stay


def test_a_student_is_the_same_whether_its_images_stay_or_are_streamed(like_a_gpu, monkeypatch):
    """By what a worker's share has room for: the training images that it sees, and those of validation."""
    taken: list[Any] = []
    take = Stream.take
    monkeypatch.setattr(Stream, "take", lambda self, *given: (taken.append(given[0]), take(self, *given))[1])
    stage = make_stage(
        "mlp-8", role="teacher", dataset=MNIST.fingerprint, examples=300, augment="cutmix", views=2, batch_size=64
    )
    found, needed = [], 2 * (300 + 10_000) * 784
    for like_a_gpu[0] in (needed, needed - 2):
        training = StageTraining([stage], MNIST, [[]])
        taken.clear()
        training.run_epoch()
        training.run_epoch()
        steps = sum(isinstance(each, torch.Tensor) for each in taken)
        assert (training.inputs.streamed, steps) == ((False, 0) if not found else (True, 2 * 5))
        found.append(training.taught.whole(0))
    assert all(torch.equal(weights, found[1][name]) for name, weights in found[0].items())
    assert len(train([stage], MNIST, [[]])) == 1


class Tight(StageTraining):
    """Has no room for more than one lane, nor for one beside all images."""

    made: list[tuple[int, bool]]
    fits_streamed = True

    def __init__(self, stages: Any, *given: Any) -> None:
        super().__init__(stages, *given)
        self.made.append((len(stages), self.inputs.streamed))

    def run_epoch(self) -> None:
        if len(self.running) > 1 or not (self.inputs.streamed and self.fits_streamed):
            raise torch.OutOfMemoryError("made up")
        super().run_epoch()


@pytest.mark.parametrize("fits", [True, False])
def test_out_of_memory_halves_the_lanes_then_streams_then_says_what_would_fit(tmp_path, like_a_gpu, monkeypatch, fits):
    monkeypatch.setattr(Tight, "made", [], raising=False)
    monkeypatch.setattr(Tight, "fits_streamed", fits)
    monkeypatch.setattr(batches, "StageTraining", Tight)
    stages = [make_stage("mlp-4", dataset=MNIST.fingerprint, epochs=1, seed=seed, batch_size=64) for seed in range(4)]
    origin: dict[str, dict[str, str]] = {stage.key: {} for stage in stages}
    batch = StageBatch(stages, ArtifactStore(str(tmp_path)), 1, False, origin, metric=ACCURACY, gpus=0.25)
    for _ in range(4 if fits else 3):
        batch.run_epoch()
    assert Tight.made == [(4, False), (2, False), (1, False), (1, True)]
    if fits:
        assert batch.training is not None
        assert batch.training.epoch == 1
    states = {state["key"]: state for state in batch.states()}
    if not fits:
        batch.run_epoch()
        states |= {state["key"]: state for state in batch.states()}
    assert [states[stage.key]["state"] for stage in stages] == ["running" if fits else "no memory"] + ["returned"] * 3
    if not fits:
        assert states[stages[0].key]["reason"] == (
            "mlp-4 with batch_size 64 has no room in the memory that a worker with gpu 0.25 has; "
            "try resources.student.gpu: 0.5 or student.recipe.batch_size: 32"
        )


def test_what_is_streamed_holds_no_training_that_has_ended(like_a_gpu):
    """Without the collector of garbage: the device's memory is wanted at once."""
    gc.disable()
    like_a_gpu[0] = 0
    training = StageTraining([make_stage("mlp-4", dataset=MNIST.fingerprint, epochs=2)], MNIST, [[]])
    assert training.inputs.streamed
    training.inputs.images.expect(training.inputs.batches(0, 1))
    gone = weakref.ref(training.inputs.images)
    del training
    try:
        assert gone() is None
    finally:
        gc.enable()


def test_the_plan_says_what_a_part_of_a_gpu_has_room_for():
    stage = make_stage("mlp-784", role="teacher", dataset=MNIST.fingerprint, examples=None)
    assert room.on_gpu(stage, MNIST, 0.25, 8e9) == (
        "teacher mlp-784 with gpu 0.25, 1.8 GB of memory: 39.2 MB of training images stay there, each lane 29.7 MB for "
        "weights and optimizer and 4.4 MB for targets, beside what a step computes"
    )
    assert "39.2 MB of training images are mapped in the worker's process and go there a batch at a time" in (
        room.on_gpu(stage, MNIST, 0.25, 4e8)
    )
    assert room.on_gpu(stage, MNIST, 0.25, 1e8).endswith("that has no room; try resources.teacher.gpu: 0.5")
    assert room.on_gpu(stage, MNIST, 1.0, 1e7).endswith("that has no room; try a larger GPU")
    assert room.on_gpu(stage, MNIST, 1.0, None).endswith("there is no GPU here whose memory would say what fits")
    assert room.on_cpu(MNIST) is None
