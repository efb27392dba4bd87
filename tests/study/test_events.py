"""What other tools can tail or open: `events.jsonl` and TensorBoard's event files, of a real study."""

import itertools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Study, make_stage
from test_progress import Running, takd
from test_tracking import description

from takd.study.search.graph import Node
from takd.study.tracking.events import EventLog
from takd.study.tracking.observers import Observers
from takd.study.tracking.tensorboard import TensorBoardLog


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def states_by_stage(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for event in events(folder):
        found.setdefault(event["stage_key"], []).append(event["state"])
    return found


def test_every_stage_of_a_study_starts_and_ends_in_the_events(finished: Study):
    folder = Path(finished.folder.root) / finished.folder.name
    states = states_by_stage(folder)
    assert set(states) == set(pd.read_parquet(finished.folder.trials)["stage_key"])
    for changes in states.values():
        assert changes[-2:] == ["running", "done"]
        assert changes.count("done") == 1
        # A worker that measures that fewer lanes are faster gives stages back: they are ready, and run, once more.
        assert all(before != after for before, after in itertools.pairwise(changes))
    times = [datetime.fromisoformat(event["time"]) for event in events(folder)]
    assert times == sorted(times)
    assert times[0].tzinfo is not None


def test_an_event_says_what_the_stage_is_and_what_came_of_it(finished: Study):
    for event in events(Path(finished.folder.root) / finished.folder.name):
        outcome = description(finished, event["stage_key"])["outcome"]
        assert (event["role"], event["name"]) == (outcome["role"], outcome["name"])
        if event["state"] == "done":
            assert event["val_accuracy"] == outcome["metrics"]["validation"]["accuracy"]


def test_waiting_ready_and_the_reason_of_a_failure_are_events_too(tmp_path):
    log, running = EventLog(tmp_path), Running(takd())
    log.graph_changed(running.graph, 0)
    node = running.start()
    log.stage_started(node)
    running.graph.fail(node.stage.key, "the worker died")
    log.stage_ended(node)
    log.close()
    found = events(tmp_path)
    assert [event["state"] for event in found] == [
        "ready",
        "waiting",
        "waiting",
        "running",
        "failed",
        "failed",
        "failed",
    ]
    assert found[4]["reason"] == "the worker died"
    assert "the worker died" in found[-1]["reason"]  # of the student that waited


def test_the_events_of_a_resumed_study_go_on_below(tmp_path):
    for _ in range(2):
        log = EventLog(tmp_path)
        log.stage_started(Node(make_stage(), "0.0", "running"))
        log.close()
    file = tmp_path / "events.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # the driver was killed in the middle of a line
    EventLog(tmp_path).stage_started(Node(make_stage(), "0.0", "running"))
    lines = file.read_text().splitlines()
    assert len(lines) == 3
    assert [json.loads(line)["state"] for line in (lines[0], lines[2])] == ["running", "running"]


def test_events_that_can_not_be_written_do_not_keep_a_study_from_starting(tmp_path, caplog):
    (tmp_path / "events.jsonl").mkdir()
    observers = Observers([EventLog(tmp_path)])
    for _ in range(2):
        observers.stage_started(Node(make_stage(), "0.0", "running"))
    observers.close()
    [warning] = [record.getMessage() for record in caplog.records if record.name == "takd"]
    assert warning.startswith("EventLog stopped: ")


def test_tensorboard_reads_the_epochs_of_a_stage(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log, node = TensorBoardLog(tmp_path), Node(make_stage("mlp-8"), "0.0", "running")
    log.stage_started(node)
    log.stage_reported(node, [{"epoch": 1, "val_accuracy": 0.5, "val_loss": None}, {"epoch": 2, "val_accuracy": 0.75}])
    log.stage_ended(node)
    log.close()
    [folder] = (tmp_path / "tensorboard").iterdir()
    assert folder.name.startswith("student-mlp-8-")
    read = reading.EventAccumulator(str(folder))
    read.Reload()
    assert [(each.step, each.value) for each in read.Scalars("val_accuracy")] == [(1, 0.5), (2, 0.75)]
    assert read.Tags()["scalars"] == ["val_accuracy"]
