"""W&B runs that are sent: to a real HTTP server on loopback that takes them, is slow, broken, or not there."""

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Study, make_stage, run, tiny_space
from test_tracking import ARMS, LABELS, TEACHER, local, read_run, warnings_of
from wandb_server import KEY, WandbServer

from takd.search_spaces.metrics import METRICS
from takd.study.cli import main
from takd.study.folder import StudyFolder, study_folder
from takd.study.search.graph import Node
from takd.study.tracking.uploading import Upload, batches, unsynced, uploads
from takd.study.tracking.wandb_log import Run, write_run, written_runs
from takd.study.tracking.wandb_report import build_report
from takd.study.tracking.wandb_runs import RunWriter, WandbTracker, run_id


@pytest.fixture
def server(monkeypatch) -> Iterator[WandbServer]:
    server = WandbServer()
    point_at(server.url, monkeypatch)
    yield server
    server.close()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def copy_of(study: Study, tmp_path: Path) -> StudyFolder:
    return study_folder(str(shutil.copytree(study.folder.root, tmp_path / "runs")), "tiny")


@pytest.fixture
def synced(finished: Study, tmp_path: Path) -> StudyFolder:
    """A copy of the finished study, whose runs nobody has sent."""
    return copy_of(finished, tmp_path)


@pytest.fixture(scope="module")
def two_students(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run(study_folder(str(tmp_path_factory.mktemp("two")), "tiny"), tiny_space(**LABELS), wandb="offline")


@pytest.fixture
def small(two_students: Study, tmp_path: Path) -> StudyFolder:
    """Likewise of a study of three runs: two students, and its own."""
    return copy_of(two_students, tmp_path)


def sync(folder: StudyFolder, *options: str) -> int:
    return main(["sync", "tiny", "--root", folder.root, *options])


def test_sync_sends_every_run_with_its_history_and_lineage_and_nothing_twice(synced, server, capsys):
    assert sync(synced) == 0
    trials = pd.read_parquet(synced.trials).drop_duplicates("stage_key")
    ids = {run_id("tiny", key): row for key, row in trials.set_index("stage_key").iterrows()}
    assert set(server.runs) == {*ids, run_id("tiny", "study")}
    for id, row in ids.items():
        assert (server.runs[id]["groupName"], server.runs[id]["jobType"]) == ("tiny", row["role"])
        assert [each["epoch"] for each in server.history[id]] == list(range(1, row["epochs"] + 1))
        assert server.exits[id] == 0
    used = {run: {name for user, name in server.uses if user == run} for run, _ in server.uses}
    teacher = next(name for name in server.artifacts if name.startswith("teacher-"))
    for id, row in ids.items():
        if row["arm"] == "kd" and row["role"] == "student":
            assert used[id] == {teacher}
    assert server.artifacts[teacher]["runName"] in ids  # the teacher's run left it, whoever used it

    requests, rows = server.requests, {id: len(rows) for id, rows in server.history.items()}
    assert sync(synced) == 0
    assert "W&B has all runs" in capsys.readouterr().out
    assert server.requests == requests
    assert {id: len(rows) for id, rows in server.history.items()} == rows


def test_sync_goes_on_where_it_was(small, server, monkeypatch, capsys):
    monkeypatch.setattr("takd.study.tracking.uploading.BATCH", 1)
    whole = Upload.wait
    waits = []

    def fails_second(self: Upload) -> str | None:
        waits.append(self)
        return whole(self) if len(waits) == 1 else "the network is gone"

    monkeypatch.setattr(Upload, "wait", fails_second)
    assert sync(small) == 1
    assert "the network is gone" in capsys.readouterr().err
    sent = len(unsynced(local(small)))
    assert 1 <= sent <= 2
    monkeypatch.setattr(Upload, "wait", whole)
    assert sync(small) == 0
    assert f"{sent} of {sent} runs sent" in capsys.readouterr().out.splitlines()[-1]
    assert len(server.runs) == 3


def test_sync_writes_the_runs_that_are_missing(small, server):
    shutil.rmtree(local(small) / "wandb")
    assert sync(small) == 0
    assert len(server.runs) == 3


def test_no_run_is_sent_beside_one_it_learned_from(tmp_path):
    """A dense path: the student learns from the assistant and the teacher, the assistant from the teacher."""
    assistant = make_stage("mlp-16", role="assistant", upstream=(TEACHER,))
    student = make_stage(upstream=(TEACHER, assistant))
    folder = study_folder(str(tmp_path), "tiny")
    now = time.time()
    write_run(folder.local, Run("e", "takd", "tiny", "export", "export student", {}, started=now, ended=now))
    for stage in (student, assistant, TEACHER):
        RunWriter(folder, ARMS).write(Node(stage, "0.0", "done"), {}, epochs(1, 2))
    sent = [[file.stem.removeprefix("run-") for file in batch] for batch in batches(unsynced(folder.local))]
    assert sent == [*([run_id("tiny", stage.key)] for stage in (TEACHER, assistant, student)), ["e"]]


@pytest.mark.parametrize("key", [None, "short"], ids=["none", "short"])
def test_sync_without_a_key_is_bad_input(small, monkeypatch, tmp_path, capsys, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert sync(small) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err


def test_a_report_shows_sizes_temperatures_and_cost(small, server, monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_ENTITY", "someone")
    assert sync(small, "--report") == 0
    [view] = server.views
    for title in ("accuracy by TA size", "T x lambda", "hyperparameters", "cost"):
        assert title in view["spec"]
    assert "/someone/takd/reports/" in capsys.readouterr().out


def test_a_report_shows_what_the_study_goes_by(small, server):
    pytest.importorskip("wandb_workspaces")
    build_report(small, "someone", METRICS["f1"]).save()
    spec = server.views[0]["spec"]
    assert "F1 by TA size" in spec
    assert "val_f1" in spec
    assert "accuracy" not in spec


# While a study runs


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return study_folder(str(tmp_path / "online"), "tiny")


def test_online_runs_arrive_while_the_study_runs(ray_slots, folder, server, monkeypatch, caplog):
    monkeypatch.setattr("takd.study.tracking.uploading.SYNC_SECONDS", 0.5)
    assert run(folder, tiny_space(**LABELS), wandb="online").result.finished
    assert warnings_of(caplog) == []
    assert len(server.runs) == 3
    assert unsynced(local(folder)) == []


def accuracies(folder: StudyFolder) -> list[Any]:
    return sorted(zip(*pd.read_parquet(folder.trials)[["stage_key", "val_accuracy"]].to_numpy().T, strict=True))


@pytest.fixture(params=["errors", "wrong key", "slow", "silent", "closed"])
def broken(request, monkeypatch) -> Iterator[str]:
    """A server that can't take runs."""
    monkeypatch.setattr("takd.study.tracking.uploading.SYNC_SECONDS", 0.5)
    monkeypatch.setattr("takd.study.tracking.uploading.PATIENCE", 3.0)
    if request.param == "closed":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            point_at(f"http://127.0.0.1:{probe.getsockname()[1]}", monkeypatch)
        yield request.param
        return
    status = {"errors": 500, "wrong key": 401}.get(request.param, 200)
    server = WandbServer(status, {"slow": 5.0, "silent": 3600.0}.get(request.param, 0.0))
    point_at(server.url, monkeypatch)
    yield request.param
    server.close()


def test_a_broken_server_costs_one_warning_and_no_result(two_students, folder, broken, caplog):
    """The silent one would take an hour to answer."""
    assert run(folder, tiny_space(**LABELS), wandb="online").result.finished
    [warning] = warnings_of(caplog)
    assert warning.startswith("W&B: ")
    assert warning.endswith("the runs are kept, `takd sync` sends them")
    assert accuracies(folder) == accuracies(two_students.folder)  # of whom nobody sent anything
    assert len(unsynced(local(folder))) == 3


# A run goes on


def epochs(first: int, last: int) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "val_accuracy": epoch / 10, "seconds": 1.0} for epoch in range(first, last + 1)]


def test_a_long_stage_shows_its_epochs_while_it_trains(tmp_path, server, monkeypatch):
    monkeypatch.setattr("takd.study.tracking.wandb_runs.LIVE_SECONDS", 0.0)
    monkeypatch.setattr("takd.study.tracking.uploading.SYNC_SECONDS", 0.2)
    folder = study_folder(str(tmp_path), "tiny")
    id = run_id("tiny", TEACHER.key)
    with uploads(folder.local):
        tracker, node = WandbTracker(folder, ARMS, "online"), Node(TEACHER, "0.0", "running")
        tracker.stage_started(node)
        tracker.stage_reported(node, epochs(1, 3))
        until = time.monotonic() + 30
        while len(server.history[id]) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        assert [row["epoch"] for row in server.history[id]] == [1, 2, 3]
        assert id not in server.exits
        tracker.stage_reported(node, epochs(4, 5))
        node.state = "done"
        tracker.stage_ended(node)
        tracker.close()
    assert [row["epoch"] for row in server.history[id]] == [1, 2, 3, 4, 5]
    assert server.exits[id] == 0


def test_a_resumed_stage_goes_on_in_its_run_without_duplicate_steps(tmp_path):
    """The first driver was killed after epoch 3; the worker goes on from the checkpoint of epoch 2."""
    folder, stage = study_folder(str(tmp_path), "tiny"), make_stage()
    node = Node(stage, "0.0", "running")
    RunWriter(folder, ARMS).write(node, {}, epochs(1, 3), open=True)
    node.state = "done"
    RunWriter(folder, ARMS).write(node, {}, epochs(3, 5))
    RunWriter(folder, ARMS).write(node, {}, epochs(1, 5))  # a third finds it ended
    first, second = sorted(tmp_path.rglob("*.wandb"))
    assert [row["epoch"] for row in read_run(first).history] == [1, 2, 3]
    assert [row["epoch"] for row in read_run(second).history] == [4, 5]
    assert read_run(first).record.run_id == read_run(second).record.run_id == run_id("tiny", stage.key)
    assert written_runs(folder.local)[run_id("tiny", stage.key)].last_step == 5
