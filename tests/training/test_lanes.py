"""Several stages in one Tune trial: each ends, fails, is pruned, checkpointed and published as if it were alone."""

import errno
import json
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import artifacts, make_stage, run, tiny_space

from takd.search_spaces import WIDEST, Stage
from takd.search_spaces.metrics import ACCURACY
from takd.study.folder import StudyFolder, study_folder
from takd.trainables.datasets.dataset import load
from takd.trainables.halving import Halving
from takd.trainables.stage_trainable import StageTrainable
from takd.trainables.store.artifacts import WEIGHTS, ArtifactStore
from takd.trainables.training.loop import StageTraining
from takd.trainables.width import best_width, widest

MNIST = load("mnist")


def stages(number: int, model: str = "mlp-8", **given: Any) -> list[Stage]:
    dataset = MNIST.fingerprint
    return [make_stage(model, dataset=dataset, seed=seed, **({"epochs": 3} | given)) for seed in range(number)]


def worker(root: Path, of: list[Stage], cpu: int = 1) -> StageTrainable:
    """A worker that was given these stages, without Tune around it."""
    ArtifactStore(str(root)).prepare()
    trainable = StageTrainable({"root": str(root), "sign": "", "cpu": cpu, "gpu": 0, "ranks": 1})
    trainable.introduced = True  # which only Ray can do
    given = {
        "stages": [stage.model_dump(mode="json") for stage in of],
        "origin": {stage.key: {"study": "none", "use": "0.0"} for stage in of},
        "work": "train",
        "views": {},
        "measure_width": False,
        "threads": None,
        "whole": False,
        "metric": ACCURACY,
        "halving": None,
        "halving_epochs": None,
        "checkpoint_every": {"epochs": 1},
    }
    trainable.assign(given)
    return trainable


def reports(trainable: StageTrainable) -> list[dict[str, Any]]:
    """What it says until it has nothing left to train."""
    found = [trainable.step()]
    while not found[-1]["idle"]:
        found.append(trainable.step())
    return found


def trained(root: Path, of: list[Stage]) -> list[dict[str, Any]]:
    """How each of these stages ended in one worker, in the order in which that was told."""
    told = [state for report in reports(worker(root, of)) for state in report["stages"]]
    return [state for state in told if state["state"] != "running"]


def states(told: list[dict[str, Any]]) -> dict[str, str]:
    return {each["key"]: each["state"] for each in told}


def test_a_disk_that_is_full_at_a_checkpoint_ends_all_lanes_for_now(tmp_path, monkeypatch, caplog):
    def full(store: ArtifactStore, key: str, content: bytes, place: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ArtifactStore, "save_checkpoint", full)
    of = stages(2)
    [report] = reports(worker(tmp_path, of))
    assert states(report["stages"]) == {stage.key: "no room" for stage in of}


def test_a_worker_that_ends_where_the_disk_is_full_says_what_is_lost(tmp_path, monkeypatch, caplog):
    def full(store: ArtifactStore, key: str, content: bytes, place: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    of = stages(2, epochs=10_000)
    trainable = worker(tmp_path, of)
    trainable.given["checkpoint_every"] = {"seconds": 1000}
    assert not trainable.step()["idle"]
    monkeypatch.setattr(ArtifactStore, "save_checkpoint", full)
    trainable.cleanup()
    assert f"{of[0].name}: no checkpoint of its last epochs: " in caplog.text


def test_every_lane_leaves_an_artifact_and_no_checkpoint(tmp_path):
    of = stages(3)
    told = trained(tmp_path, of)
    assert states(told) == {stage.key: "done" for stage in of}
    assert [[each["epoch"] for each in state["epochs"]] for state in told] == [[1, 2, 3]] * 3
    store = ArtifactStore(str(tmp_path))
    for stage in of:
        description = store.check(stage.key, {WEIGHTS})
        assert description is not None
        assert description["input"] == stage.key_input()
        assert description["outcome"]["lanes"] == 3
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_stages_train_with_as_many_threads_as_their_worker_has_cpus(tmp_path):
    threads, [stage] = torch.get_num_threads(), stages(1)
    try:
        for cpu in (1, 2):
            reports(worker(tmp_path / str(cpu), [stage], cpu))
            description = ArtifactStore(str(tmp_path / str(cpu))).describe(stage.key)
            assert description is not None
            assert description["outcome"]["threads"] == cpu
    finally:
        torch.set_num_threads(threads)


def test_lanes_that_were_done_when_their_batch_was_killed_are_left_alone(tmp_path):
    of = stages(3)
    trained(tmp_path, of[:1])
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("artifacts/*/*")}
    told = trained(tmp_path, of)
    assert states(told) == {stage.key: "done" for stage in of}
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (told[0]["key"], told[0]["epochs"]) == (of[0].key, [])


def test_a_batch_all_of_which_was_done_says_so(tmp_path):
    of = stages(2)
    trained(tmp_path, of)
    [report] = reports(worker(tmp_path, of))
    assert states(report["stages"]) == {stage.key: "done" for stage in of}


def test_a_worker_trains_one_list_after_another_and_waits_between(tmp_path):
    first, second = stages(2), stages(1, "mlp-4")
    trainable = worker(tmp_path, first)
    assert states(reports(trainable)[-1]["stages"]) == {stage.key: "done" for stage in first}
    assert trainable.batch is None  # no second model beside the next
    started = time.monotonic()
    waits = [trainable.step() for _ in range(5)]
    assert waits == [{"stages": [], "width": None, "idle": True}] * 5
    assert 0.05 < time.monotonic() - started < 5  # it asks ever more seldom
    trainable.assign(worker(tmp_path, second).given)
    assert states(reports(trainable)[-1]["stages"]) == {stage.key: "done" for stage in second}


def test_lanes_with_checkpoints_of_another_epoch_are_given_back(tmp_path):
    of, store = stages(3), ArtifactStore(str(tmp_path))
    store.prepare()
    training = StageTraining(of, MNIST, [[]] * 3)
    training.run_epoch()
    store.save_checkpoint(of[0].key, training.checkpoint(training.lanes[0]))
    training.run_epoch()
    for lane in training.lanes[1:]:
        store.save_checkpoint(lane.stage.key, training.checkpoint(lane))
    first, *others = reports(worker(tmp_path, of))
    assert states(first["stages"]) == {of[0].key: "returned", of[1].key: "running", of[2].key: "running"}
    assert [state["epochs"] for state in first["stages"] if state["key"] == of[0].key] == [[]]
    assert states(others[-1]["stages"]) == {of[1].key: "done", of[2].key: "done"}


def test_a_lane_that_diverges_fails_alone(tmp_path):
    of = [*stages(2), *stages(1, learning_rate=1e30)]
    told = trained(tmp_path, of)
    assert Counter(states(told).values()) == {"done": 2, "failed": 1}
    [failed] = [state for state in told if state["state"] == "failed"]
    assert failed["key"] == of[2].key
    assert " loss became " in failed["reason"]


def test_convolutions_are_trained_one_by_one(tmp_path):
    of = stages(2, "cnn")
    assert states(worker(tmp_path, of).step()["stages"]) == {of[0].key: "running", of[1].key: "returned"}


class Simulated:
    """A training whose steps take as long as they are told."""

    def __init__(self, width: int, seconds: float) -> None:
        self.seconds, self.running = seconds, [None] * width
        self.recipe = SimpleNamespace(batch_size=4, epochs=10_000)
        self.inputs = SimpleNamespace(labels=torch.zeros(4), dataset=MNIST, device=torch.device("cpu"))
        self.taught = SimpleNamespace(model=torch.nn.Linear(1, 1))

    def train_step(self, batch: torch.Tensor, factor: float) -> None:
        time.sleep(self.seconds)


@pytest.mark.parametrize(
    ("seconds", "number", "expected"),
    [
        (lambda width: 0.004, 100, WIDEST),
        (lambda width: 0.004, 16, WIDEST),
        (lambda width: 0.004, 8, None),
        (lambda width: 0.004 * width, 100, 1),
        (lambda width: 0.004 * max(4, width), 100, 4),
    ],
    ids=["wider is faster", "and enough to tell", "too few to tell", "no gain at all", "no gain beyond 4"],
)
def test_the_width_is_the_one_that_trains_most_lanes_a_second(seconds, number, expected):
    of = stages(number)
    assert best_width(of, MNIST, lambda some: Simulated(len(some), seconds(len(some)))) == expected  # type: ignore[arg-type]


def test_stages_with_dropout_are_measured_too():
    assert best_width(stages(2, dropout=0.3), MNIST, lambda some: StageTraining(some, MNIST, [[]] * len(some))) in (
        1,
        None,
    )


def test_a_family_without_lanes_is_not_measured():
    assert widest(stages(1, "cnn")[0], MNIST) == 1
    assert best_width(stages(2, "cnn"), MNIST, lambda some: pytest.fail("measured")) == 1


def test_halving_ends_the_weak_and_says_it_again():
    halving = Halving(grace_epochs=1, reduction_factor=2)
    assert halving.stop(1, {"a": 0.9, "b": 0.8}) == ["b"]
    assert halving.stop(1, {"c": 0.95}) == []
    assert halving.stop(1, {"a": 0.9, "b": 0.8}) == ["b"]  # a worker that died asks again


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return study_folder(str(tmp_path), "tiny")


@pytest.mark.usefixtures("ray_slots")
def test_a_study_is_the_same_with_lanes_and_without(tmp_path):
    tables = {}
    for lanes in (1, 3, "auto"):
        study = run(study_folder(str(tmp_path / str(lanes)), "tiny"), tiny_space(lanes=lanes, sampler="random"))
        tables[lanes] = pd.read_parquet(study.folder.trials).set_index(["stage_key", "trial"])
        together = Counter(
            json.loads(file.read_text())["outcome"]["lanes"] for file in artifacts(study.folder).glob("*/stage.json")
        )
        assert max(together) <= (lanes if isinstance(lanes, int) else WIDEST)
        assert (max(together) > 1) == (lanes != 1)
    for lanes in (3, "auto"):
        assert list(tables[lanes].index) == list(tables[1].index)
        difference = (tables[lanes]["val_accuracy"] - tables[1]["val_accuracy"]).abs()
        assert difference.max() <= 1e-3


@pytest.mark.usefixtures("ray_slots")
def test_a_diverging_setting_fails_its_own_students(folder):
    space = tiny_space(
        arms=["labels"], trials=4, coverage=1, student__recipe={"learning_rate": {"choices": [1e30, 1e-3]}}
    )
    rows = pd.read_parquet(run(folder, space).folder.trials)
    assert "failed" in set(rows.loc[rows["learning_rate"] > 1, "status"])
    assert set(rows.loc[rows["learning_rate"] < 1, "status"]) == {"done"}
