"""Run again = resume: whatever died, the same command goes on, and finished work is never repeated.

Drivers that are killed run in processes of their own here, as `takd run` does, and are really killed.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import psutil
import pytest
import yaml
from conftest import TINY, Watcher, artifacts, run, run_watched, tiny_space
from in_process import train_here
from test_tracking import Run, read_run

from takd.study.folder import StudyFolder, study_folder
from takd.study.results import write_results
from takd.study.search.graph import Node
from takd.study.search.scheduling import STOP_SECONDS
from takd.study.tracking.events import EVENTS
from takd.trainables.store.artifacts import CHECKPOINTS

# Some seconds each, so that there is time to be killed.
SLOW: dict[str, Any] = {"teacher__recipe": {"epochs": 100, "examples": 4000}, "student__recipe": {"epochs": 60}}
EVERY_EPOCH = {
    **TINY,
    "teacher": {"model": "mlp-64", "recipe": SLOW["teacher__recipe"]},
    "student": {**TINY["student"], "recipe": TINY["student"]["recipe"] | SLOW["student__recipe"]},
    "checkpoint_every": {"epochs": 1},
}
LATEST = {**EVERY_EPOCH, "checkpoint_every": {"seconds": 1000}}  # only a stop writes one

COLUMNS = ["trial", "path_seed", "role", "stage_key", "arm", "temperature", "status", "val_accuracy", "epochs"]


def line_of(process: psutil.Process) -> list[str]:
    """Its command line; empty when it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Driver:
    """`takd run` of a space in a process of its own."""

    def __init__(self, tmp_path: Path, space: dict[str, Any]) -> None:
        self.file, self.root = tmp_path / "tiny.yaml", tmp_path / "runs"
        self.file.write_text(yaml.safe_dump(space))
        self.folder = StudyFolder(str(self.root), "tiny")
        self.options = ["run", str(self.file), "--root", str(self.root), "--wandb", "offline", "--slots", "1"]

    def start(self) -> "Driver":
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "takd"), *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def until(self, happened: Callable[[], bool], seconds: float = 240) -> None:
        until = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until, "it never happened"
            time.sleep(0.02)

    def end(self, seconds: float = 240) -> tuple[int, str, str]:
        """Its exit code, output and errors, once it and all its workers are gone."""
        output, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, output, errors

    def children(self) -> list[psutil.Process]:
        """Its raylet, its GCS and what trains; Ray's agents take up to a minute to see that they are alone."""
        found = [(child, line_of(child)) for child in psutil.Process(self.process.pid).children(recursive=True)]
        return [
            child
            for child, line in found
            if line and (line[0].startswith(("ray::StageTrainable", "ray::IDLE")) or "/ray/core/src/ray/" in line[0])
        ]

    def has_begun(self) -> bool:
        events = self.folder.local / EVENTS
        return events.exists() and '"running"' in events.read_text()

    def stages(self) -> list[Path]:
        return list(artifacts(self.folder).glob("[0-9a-f]*/stage.json"))

    def checkpoints(self) -> list[Path]:
        return list((self.root / CHECKPOINTS).glob("[0-9a-f]*"))


def epochs_in(checkpoint: Path) -> list[dict[str, Any]]:
    return json.loads(checkpoint.read_bytes()[64:].partition(b"\n")[0])["epochs"]


@pytest.fixture(scope="module")
def undisturbed(ray_slots, tmp_path_factory) -> pd.DataFrame:
    study = run(study_folder(str(tmp_path_factory.mktemp("undisturbed")), "tiny"), tiny_space(**SLOW))
    return pd.read_parquet(study.folder.trials)[COLUMNS]


def interrupt_soon(driver: "Driver") -> None:
    """Ctrl-C for this process, once the study that runs in it trains."""
    until = time.monotonic() + 240
    while not driver.has_begun() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(1.5)  # an epoch ends
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_whatever_ends_a_run_the_same_command_goes_on(undisturbed, takd, tmp_path):
    """One study, which is asked to stop while its teacher trains, goes on with that, refuses a second process, is asked
    to stop twice while students train, which is at once, and goes on to its end; `benchmarks/faults.py` kills some."""
    asked = Driver(tmp_path, LATEST)
    threading.Thread(target=interrupt_soon, args=[asked]).start()
    stopped = takd(*asked.options)
    assert stopped.code == 130
    [stopping, how_to_go_on] = stopped.err.strip().splitlines()
    assert stopping.startswith("takd: stopping: ")
    assert re.fullmatch(
        r"takd: stopped: SIGINT received; go on with: takd run \S+tiny.yaml --root \S+ .*", how_to_go_on
    )
    [teacher] = asked.checkpoints()
    seen = epochs_in(teacher)
    assert seen

    twice = Driver(tmp_path, EVERY_EPOCH).start()
    twice.until(lambda: len(epochs_in(teacher)) > len(seen))
    twice.process.send_signal(signal.SIGSTOP)  # its teacher does not come to its end meanwhile
    refused = takd(*asked.options)
    assert (refused.code, refused.out) == (2, "")
    assert re.fullmatch(rf"takd: study tiny: process {twice.process.pid} on \S+ runs it; .*\n", refused.err)
    seen = {teacher.name: epochs_in(teacher)}
    twice.process.send_signal(signal.SIGCONT)
    twice.until(lambda: len(twice.checkpoints()) >= 4)  # of students that train side by side
    children = twice.children()
    twice.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    time.sleep(0.2)
    twice.process.send_signal(signal.SIGINT)
    code, _, errors = twice.end()
    assert (code, "takd: stopping: " in errors) == (130, True)
    assert time.monotonic() - started < STOP_SECONDS
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == [], "workers outlive their driver"
    finished = {file: file.stat().st_mtime_ns for file in twice.stages()}
    seen |= {file.name: epochs_in(file) for file in twice.checkpoints()}
    assert 2 <= len(finished) < 14

    with patch("takd.study.search.scheduling.run_stages", train_here):
        last = takd(*asked.options)
    assert (last.code, last.err) == (0, "")
    assert f"{14 - len(finished)} stages trained in this run" in last.out
    assert {file: file.stat().st_mtime_ns for file in finished} == finished  # nothing finished was trained again
    for key, epochs in seen.items():
        outcome = json.loads((artifacts(twice.folder) / key / "stage.json").read_text())["outcome"]
        assert outcome["epochs"][: len(epochs)] == epochs  # to the microsecond: these were not trained again
    assert twice.checkpoints() == []
    rows = pd.read_parquet(twice.folder.trials)[COLUMNS]
    pd.testing.assert_frame_equal(rows, undisturbed, rtol=0, atol=1e-3)  # other students trained side by side
    assert_every_epoch_is_in_wandb_once(twice.folder)


def assert_every_epoch_is_in_wandb_once(folder: StudyFolder) -> None:
    runs: dict[str, list[Run]] = {}
    for file in sorted(folder.local.rglob("*.wandb")):
        read = read_run(file)
        runs.setdefault(read.record.run_id, []).append(read)
    trials = pd.read_parquet(folder.trials).drop_duplicates("stage_key").set_index("stage_key")
    of_stages = {parts[0].config["stage_key"]: parts for parts in runs.values() if "stage_key" in parts[0].config}
    assert set(of_stages) == set(trials.index)
    for key, parts in of_stages.items():
        steps = [row["_step"] for part in parts for row in part.history]
        assert steps == list(range(1, trials.loc[key, "epochs"] + 1))
        assert [part.exit_code for part in parts] == [0]


def workers() -> Iterator[psutil.Process]:
    """Processes of this test session's Ray that train."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "StageTrainable" in " ".join(process.cmdline()):
                yield process
        except psutil.NoSuchProcess:
            continue


@pytest.fixture
def folder(ray_slots, tmp_path) -> StudyFolder:
    return study_folder(str(tmp_path), "tiny")


@pytest.mark.slow
def test_a_batch_whose_worker_dies_goes_on_and_one_whose_workers_always_die_fails_with_its_reason(folder):
    """Of students once; of the teacher whenever it tells an epoch, which fails its paths and no others."""
    killed: list[int] = []
    told: dict[str, list[int]] = defaultdict(list)

    def kill(node: Node) -> None:
        for worker in workers():
            killed.append(worker.pid)
            worker.kill()

    class Killing(Watcher):
        students = 0

        def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
            if node.stage.role == "teacher":
                kill(node)
                return
            told[node.stage.key] += [each["epoch"] for each in epochs]
            if not self.students and list(artifacts(folder).parent.glob("checkpoints/*")):
                self.students += 1
                kill(node)

    space = tiny_space(
        arms=["labels", "kd"],
        trials=2,
        coverage=1,
        teacher__recipe={"epochs": 4000},
        student__recipe={"epochs": 100},
        checkpoint_every={"epochs": 1},
        max_failures=0,  # of the teacher, which trains alone; the students are two
    )
    search, _ = run_watched(folder, space, killing := Killing(), workers=True)
    write_results(folder, search)
    rows = pd.read_parquet(folder.trials).set_index(["arm", "role"]).sort_index()
    assert set(rows.loc[("labels", "student"), "status"]) == {"done"}
    assert set(rows.loc[("kd", "teacher"), "status"]) == {"failed"}
    assert rows.loc[("kd", "teacher"), "error"].str.contains("died").all()
    assert rows.loc[("kd", "student"), "error"].str.startswith("teacher mlp-64 failed: ").all()

    # No epoch is told twice. One that the killed worker trained, and did not come to tell, is in its checkpoint alone.
    assert killing.students == 1
    assert len(told) == 2
    assert all(epochs == sorted(set(epochs)) for epochs in told.values())
    for file in artifacts(folder).glob("[0-9a-f]*/stage.json"):
        outcome = json.loads(file.read_text())["outcome"]
        assert outcome["process"] not in killed
        assert [each["epoch"] for each in outcome["epochs"]] == list(range(1, 101))


@pytest.mark.slow
def test_a_model_that_does_not_fit_in_memory_does_not_end_the_study(folder):
    space = tiny_space(
        arms=["labels", "kd"], trials=2, coverage=1, seeds=1, teacher__model="mlp-900000", max_failures=0
    )
    # Else Linux would give it memory page by page, until something dies.
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**31, limits[1]))
    try:
        study = run(folder, space)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    rows = pd.read_parquet(study.folder.trials).set_index(["arm", "role"]).sort_index()
    assert rows.loc[("labels", "student"), "status"] == "done"
    assert "memory" in rows.loc[("kd", "teacher"), "error"]
    assert study.result.finished


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which takes root")
def test_a_full_disk_stops_the_study_with_one_line_and_it_goes_on_when_there_is_room(ray_slots, takd, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    disk = tmp_path / "runs"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        with patch("takd.study.search.scheduling.run_stages", train_here):
            first = takd("run", file, "--root", disk, "--wandb", "disabled")  # soft targets take 2 MB a stage
            assert first.code == 1
            assert re.fullmatch(
                r"takd: stopped: \S+: No space left on device; go on with: takd run \S+ .*\n", first.err
            )
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            second = takd("run", file, "--root", disk, "--wandb", "disabled")
        assert (second.code, second.err) == (0, "")
        folder = study_folder(str(disk), "tiny")
        assert set(pd.read_parquet(folder.trials)["status"]) == {"done"}
        assert len(list(artifacts(folder).glob("[0-9a-f]*/stage.json"))) == 14
    finally:
        subprocess.run(["umount", "-l", str(disk)])
