"""One stage trained by several processes: the student that one process trains, whoever of them is killed."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
import torch
from conftest import Study, make_stage, run, tiny_space
from torch import nn
from two_ranks import second_rank, trained, weights

from takd.search_spaces import InputError, Stage
from takd.study.folder import study_folder
from takd.study.search import scheduling
from takd.study.search.workers import Need, Workers
from takd.trainables import team
from takd.trainables.datasets.dataset import load
from takd.trainables.models.dropout import Dropout, PartOfBatch
from takd.trainables.models.synchronised import Synchronised
from takd.trainables.stage_trainable import StageTrainable
from takd.trainables.training.loop import StageTraining

MNIST = load("mnist")
PLAIN = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.02}


def stage(model: str, **given: Any) -> Stage:
    """Of 7 batches: six of 33 examples, and a last one of a single one, which no two ranks can share."""
    return make_stage(model, dataset=MNIST.fingerprint, **({"epochs": 3, "batch_size": 33, "examples": 199} | given))


TEACHER = stage("mlp-8", role="teacher")
# The recipe's parts that look at a whole batch, each in one of the stages.
STAGES = {
    "fully connected": stage("mlp-64", role="teacher", dropout=0.5, class_weights="balanced", accumulate=3),
    "soft targets": stage("mlp-64", upstream=(TEACHER,), ema=0.9, select="best"),
    "convolutions": stage("cnn", role="teacher", clip_norm=0.5, epochs=2, examples=133, **PLAIN),
    # Few steps at a small rate: torch's own sums over a batch's pixels are by threads, and one process with two threads
    # is as far from one with a single thread as two ranks are: by 5e-5 after the first step at a rate of 0.01.
    "batch normalisation": stage("plain-2", role="teacher", epochs=2, examples=66, **PLAIN | {"learning_rate": 1e-3}),
    "mixed images": stage("mlp-64", role="teacher", augment="mixup", views=3, select="best", patience=1, **PLAIN),
}


@pytest.fixture(scope="module")
def by_two(cache: Any) -> dict[str, StageTraining]:
    """What two processes with a thread each leave of every stage."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with second_rank(list(STAGES.values())) as ranks:
        found = {name: trained(each, ranks) for name, each in STAGES.items()}
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", STAGES)
def test_two_ranks_leave_what_one_process_leaves(by_two, name, one_thread):
    alone, together = trained(STAGES[name], None), by_two[name]
    [own], [theirs] = alone.lanes, together.lanes
    assert len(own.epochs) == len(theirs.epochs) >= 2
    for one, other in zip(own.epochs, theirs.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, abs=5e-5)
        assert other.val_loss == pytest.approx(one.val_loss, abs=1e-4)
        assert other.val_accuracy == pytest.approx(one.val_accuracy, abs=6e-3)  # one image of 201
    expected = weights(alone)
    for layer, found in weights(together).items():
        torch.testing.assert_close(
            found, expected[layer], atol=1e-4, rtol=0, msg=lambda text, at=layer: f"{at}: {text}"
        )


@pytest.fixture
def two_cpus(ray_slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node has another CPU beside that of the tests' own process, which is rank 0."""
    nodes = scheduling.nodes_now
    monkeypatch.setattr(scheduling, "nodes_now", lambda: dict.fromkeys(nodes(), Need(2, 0)))


def table(study: Study) -> pd.DataFrame:
    return pd.read_parquet(study.folder.trials).set_index(["role", "seed"]).sort_index()


def test_a_rank_that_is_killed_costs_a_retry_and_nothing_else(two_cpus, tmp_path, monkeypatch):
    given: dict[str, Any] = {"arms": ["kd"], "trials": 1, "coverage": 1, "checkpoint_every": {"epochs": 1}}
    given |= {"sampler": "random", "teacher__recipe": {"epochs": 4}}
    killed: list[int] = []
    step, processes = StageTraining.train_step, list[int]()

    def stepping(training: StageTraining, batch: Any, factor: float, number: int = 0) -> Any:
        """The other rank is killed in the middle of the third epoch."""
        if training.ranks is not None and (training.epoch, number) == (2, 1) and not killed:
            os.kill(processes[0], signal.SIGKILL)
            killed.append(time.monotonic())
        return step(training, batch, factor, number)

    def beginning(self: team.Team, training: StageTraining, metric: str) -> None:
        begin(self, training, metric)
        processes.extend(ray.get([each.__ray_call__.remote(lambda rank: os.getpid()) for each in self.others]))
        began.append((training.epoch, time.monotonic()))

    begin, began = team.Team.begin, list[tuple[int, float]]()
    monkeypatch.setattr(StageTraining, "train_step", stepping)
    monkeypatch.setattr(team.Team, "begin", beginning)
    divided = run(study_folder(str(tmp_path / "a"), "tiny"), tiny_space(**given, resources={"teacher": {"ranks": 2}}))
    alone = run(study_folder(str(tmp_path / "b"), "tiny"), tiny_space(**given))
    assert [epoch for epoch, _ in began] == [0, 2]  # from the checkpoint
    assert began[1][1] - killed[0] < 60
    found, expected = table(divided), table(alone)
    assert list(found.index) == list(expected.index)
    assert set(found["status"]) == {"done"}
    assert list(found["stage_key"]) == list(expected["stage_key"])
    assert np.allclose(found["val_accuracy"], expected["val_accuracy"], atol=2e-3)
    teacher = found.loc["teacher"].iloc[0]["stage_key"]
    assert divided.folder.artifacts.describe(teacher)["outcome"]["ranks"] == 2
    gone = [psutil.Process(each) for each in processes if psutil.pid_exists(each)]
    assert psutil.wait_procs(gone, timeout=20)[1] == []  # no rank outlives its worker


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"teacher": {"gpu": 2, "ranks": 2}},
            "ranks is 2 and gpu 2; say one of the two: gpu: 2 for a rank on each of 2",
        ),
        ({"teacher": {"gpu": 0.5, "ranks": 2}}, "ranks is 2 and gpu 0.5; say one of the two"),
        ({"teacher": {"gpu": 1.5}}, "gpu is 1.5; expected a whole number of GPUs, or a part of one"),
        ({"teacher": {"ranks": 0}}, "teacher.ranks"),
    ],
)
def test_ranks_are_asked_for_in_one_way(given, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        tiny_space(resources=given)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"resources": {"student": {"gpu": 4}}, "arms": ["kd", "dist+kd"]},
            "resources.student.gpu is 4, each with its",
        ),
        (
            {"resources": {"student": {"ranks": 2}}, "arms": ["rkd+kd"]},
            "; rkd compares the examples of a batch, or what",
        ),
        ({"resources": {"assistant": {"ranks": 2}}, "assistants__method": "dist"}, "resources.assistant.ranks is 2"),
        ({"resources": {"student": {"ranks": 2}}, "lanes": 16}, "lanes is 16, and resources.student.ranks is 2; over"),
        (
            {"resources": {"teacher": {"ranks": 2}}, "deterministic": True, "sampler": "grid", "trials": None},
            "deterministic is true, which is for one process a stage, and resources.teacher.ranks is 2",
        ),
    ],
)
def test_what_ranks_cannot_train_is_refused(changes, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        tiny_space(**changes)


def test_methods_for_others_are_no_matter_where_teachers_alone_have_ranks():
    space = tiny_space(resources={"teacher": {"gpu": 4}}, arms=["labels", "rkd+kd", "dkd"], lanes=16)
    assert [space.resources_of(role).together for role in ("teacher", "student")] == [4, 1]
    space = tiny_space(resources={"student": {"ranks": 2}}, arms=["labels", "kd", "dkd", "takd:mlp-16"], trials=8)
    assert space.resources_of("student").together == 2


TWO = Need(1, 0, 2)


def test_a_worker_of_two_ranks_starts_where_nodes_have_room_for_both():
    assert Workers({"a": Need(1, 0), "b": Need(1, 0)}).room(TWO) == 1
    assert Workers({"a": Need(3, 0), "b": Need(1, 0)}).most(TWO) == 2
    assert Workers({"a": Need(1, 0)}).room(TWO) == 0
    made = Workers({"a": Need(2, 0), "b": Need(2, 0)})
    made.start("1", TWO)  # it is about to start
    assert made.room(TWO) == 1
    made.living["1"].introduce("a", None, 0.0, ["b"])
    assert (made.room(TWO), made.room(Need(2, 0)), made.room(Need(1, 0))) == (1, 0, 2)
    assert made.living["1"].nodes == {"a", "b"}


def test_as_many_nodes_are_kept_as_a_worker_of_ranks_takes():
    made = Workers({"a": Need(1, 0), "b": Need(1, 0), "c": Need(1, 0)})
    made.start("1", Need(1, 0))
    made.living["1"].introduce("a", None, 0.0)
    assert made.kept_for(TWO) == {"b", "c"}
    assert made.kept_for(Need(1, 0, 3)) == {"a", "b", "c"}
    assert made.kept_for(Need(1, 0, 4)) == set()


def test_tune_is_asked_for_a_bundle_for_each_rank():
    asked = StageTrainable.default_resource_request({"cpu": 2, "gpu": 1, "ranks": 3})
    assert asked.bundles == [{"CPU": 2, "GPU": 1}] * 3


def test_the_masks_of_parts_of_a_batch_are_those_of_the_batch():
    """Whatever the layout: features with the batch first or last, channels last, or several rows an image."""
    for shape, stacked in (((7, 5), False), ((1, 5, 7), True), ((7, 3, 4, 4), False), ((14, 3), False)):
        features = torch.ones(shape)
        if len(shape) == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        dim = 2 if stacked else 0
        layer = Dropout(0.5)
        layer.seed([(1, 0)])
        whole = layer(features)
        each = shape[dim] // 7
        for start, examples in ((0, 3), (3, 4)):
            layer.seed([(1, 0)])
            layer.part = PartOfBatch(start, examples, 7, stacked)
            part = features.narrow(dim, each * start, each * examples)
            assert torch.equal(layer(part), whole.narrow(dim, each * start, each * examples)), shape
        layer.part = None


def test_without_another_process_synchronised_normalisation_is_torchs_own(tmp_path):
    """Means, running ones, and gradients, with all that a layer may leave out; also of a batch of a single image."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for images, given in ((4, {}), (1, {}), (4, {"affine": False}), (4, {"track_running_stats": False})):
            layers = [nn.BatchNorm2d(3, momentum=0.3, **given).double() for _ in range(2)]
            features = [torch.arange(images * 3 * 4.0).double().sin().view(images, 3, 2, 2) for _ in range(2)]
            found = []
            for layer, taken, context in zip(layers, features, (nullcontext(), Synchronised(1.0)), strict=True):
                taken.requires_grad_()
                with context:
                    layer(taken).pow(3).sum().backward()
                grads = [each.grad for each in (taken, *layer.parameters())]
                found.append([*grads, *layer.state_dict().values()])
            for own, other in zip(*found, strict=True):
                torch.testing.assert_close(other, own)
    finally:
        torch.distributed.destroy_process_group()
