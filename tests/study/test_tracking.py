"""W&B runs as a real study wrote them offline, read back from their files; and observers that fail."""

import base64
import dataclasses
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from conftest import Study, make_stage, run, run_watched, tiny_space
from pydantic import ValidationError
from wandb.proto.wandb_internal_pb2 import Record

from takd.analysis.arms import arms_table
from takd.analysis.files import without_secret
from takd.analysis.teachers import teacher_warnings
from takd.search_spaces import InputError, key_of
from takd.search_spaces.arms import parse_arm
from takd.study.folder import StudyFolder, study_folder
from takd.study.search.graph import Node, StageGraph
from takd.study.tracking.wandb_log import Run as Sent
from takd.study.tracking.wandb_log import write_run
from takd.study.tracking.wandb_names import check_variables
from takd.study.tracking.wandb_runs import RunWriter, WandbTracker, stage_artifact, wandb_mode

BLOCK, HEADER = 32768, 7  # bytes: of LevelDB's log format, in which W&B writes
TEACHER = make_stage("mlp-64", role="teacher")
LABELS: dict[str, Any] = {"arms": ["labels"], "trials": 1, "coverage": 1}  # two students, no one to learn from


@dataclass
class Run:
    """What one `*.wandb` file holds."""

    record: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)  # with what each is drawn against
    exit_code: int | None = None


def records(file: Path) -> Iterator[Record]:
    content, at, whole = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_run(file: Path) -> Run:
    run = Run()
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.record, run.config = record.run, values(record.run.config.update)
        elif kind == "history":
            run.history.append(values(record.history.item))
        elif kind == "summary":
            run.summary |= values(record.summary.update)
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def read_runs(folder: Path) -> dict[str, Run]:
    """Those of stages, by stage key."""
    runs = [read_run(file) for file in folder.rglob("*.wandb")]
    return {run.config["stage_key"]: run for run in runs if run.record.job_type != "study"}


def study_run(folder: Path) -> Run:
    [run] = [run for file in folder.rglob("*.wandb") if (run := read_run(file)).record.job_type == "study"]
    return run


def local(folder: StudyFolder) -> Path:
    return Path(folder.root) / folder.name


def own(row: dict[str, Any]) -> dict[str, Any]:
    """Without what W&B adds."""
    return {name: value for name, value in row.items() if not name.startswith("_")}


@pytest.fixture(scope="module")
def runs(finished: Study) -> dict[str, Run]:
    return read_runs(local(finished.folder))


def description(study: Study, key: str) -> dict[str, Any]:
    return json.loads((Path(study.folder.root) / "artifacts" / key / "stage.json").read_text())


def test_a_stage_is_one_run(finished, runs):
    files = list(local(finished.folder).rglob("*.wandb"))
    assert len(files) == 15  # and the study's
    assert set(runs) == set(pd.read_parquet(finished.folder.trials)["stage_key"])


def test_ids_are_unique_and_follow_from_the_study_and_the_stage(runs, finished, tmp_path):
    assert len({each.record.run_id for each in runs.values()}) == 14
    again = tracked(tmp_path / "again", "tiny", TEACHER)
    assert tracked(tmp_path / "same", "tiny", TEACHER).record.run_id == again.record.run_id
    assert tracked(tmp_path / "other", "other", TEACHER).record.run_id != again.record.run_id


def test_runs_are_grouped_by_study_and_typed_by_role(finished, runs):
    assert {each.record.run_group for each in runs.values()} == {"tiny"}
    assert Counter(each.record.job_type for each in runs.values()) == {"teacher": 1, "assistant": 1, "student": 12}
    for key, each in runs.items():
        outcome = description(finished, key)["outcome"]
        assert (each.record.job_type, each.record.display_name) == (outcome["role"], outcome["name"])


def test_the_config_is_the_keys_input_and_what_a_run_belongs_to(finished, runs):
    about = {"stage_key", "arms", "phase", "path", "upstream_models", "upstream_runs", "upstream_parameters"}
    for key, each in runs.items():
        config = {name: value for name, value in each.config.items() if name not in about}
        assert key_of(config) == key == each.config["stage_key"]
        assert config == description(finished, key)["input"]


def test_a_run_names_the_runs_it_learned_from(runs):
    ids = {key: each.record.run_id for key, each in runs.items()}
    for each in runs.values():
        assert each.config["upstream_runs"] == [ids[key] for key in each.config.get("upstream", [])]
    assert any(each.config["upstream_runs"] for each in runs.values())


def test_students_are_tagged_with_arm_and_phase(finished, runs):
    trials = pd.read_parquet(finished.folder.trials).drop_duplicates("stage_key").set_index("stage_key")
    for key, each in runs.items():
        is_student = trials.loc[key, "role"] == "student"
        assert list(each.record.tags) == ["search", *([trials.loc[key, "arm"]] if is_student else [])]
    teacher = next(each for each in runs.values() if each.record.job_type == "teacher")
    assert teacher.config["arms"] == ["kd", "takd:mlp-16"]


def test_metrics_are_drawn_by_epoch(runs):
    for each in runs.values():
        assert each.metrics == {"epoch": "", "*": "epoch"}


def test_artifacts_lead_from_the_teacher_to_the_student(runs):
    """Of equal files W&B makes one version, which the run that learned from it uses."""
    left = {key: artifact for key, each in runs.items() for artifact in each.artifacts if not artifact.use_after_commit}
    assert set(left) == set(runs)
    for each in runs.values():
        used = [artifact.digest for artifact in each.artifacts if artifact.use_after_commit]
        assert used == [left[key].digest for key in each.config.get("upstream", [])]
    for key, artifact in left.items():
        weights = next(entry for entry in artifact.manifest.contents if entry.path == "model.safetensors")
        content = Path(weights.ref.removeprefix("file://")).read_bytes()
        assert f"artifacts/{key}/" in weights.ref
        assert weights.digest == base64.b64encode(hashlib.md5(content).digest()).decode()


def test_the_studys_run_has_the_table_the_figure_and_the_best_student(finished, runs):
    trials = pd.read_parquet(finished.folder.trials)
    run = study_run(local(finished.folder))
    [row] = run.history
    assert (row["students"], row["_step"]) == (12, 12)
    [folder] = [file.parent / "files" for file in local(finished.folder).rglob(f"*-{run.record.run_id}/*.wandb")]
    table = json.loads((folder / row["arms"]["path"]).read_text())
    assert [cells[table["columns"].index("arm")] for cells in table["data"]] == list(arms_table(trials)["arm"])
    assert (folder / row["accuracy_by_assistant"]["path"]).read_bytes().startswith(b"\x89PNG")
    [used, exported] = run.artifacts
    assert {entry.path for entry in exported.manifest.contents} == {"model.safetensors"}
    assert used.use_after_commit
    best = next(each for each in runs.values() if each.record.run_id == run.summary["best student"])
    assert used.digest in [artifact.digest for artifact in best.artifacts if not artifact.use_after_commit]
    assert run.summary["best arm"] in best.record.tags
    arms = arms_table(trials).set_index("arm")
    assert run.summary["teacher accuracy kd"] == arms.loc["kd", "teacher_val_accuracy"]
    assert run.summary["assistants accuracy takd:mlp-16"] == arms.loc["takd:mlp-16", "assistants_val_accuracy"]
    assert run.summary["warnings"] == teacher_warnings(trials)


def test_the_history_has_a_row_an_epoch(finished, runs):
    for key, each in runs.items():
        assert [row["epoch"] for row in each.history] == list(range(1, len(each.history) + 1))
        epochs = description(finished, key)["outcome"]["epochs"]
        assert [own(row) for row in each.history] == [
            {name: value for name, value in epoch.items() if value is not None} for epoch in epochs
        ]


def test_the_summary_says_how_the_stage_ended(finished, runs):
    for key, each in runs.items():
        outcome = description(finished, key)["outcome"]
        assert each.summary["status"] == "done"
        measured = outcome["metrics"]["validation"]
        assert {f"val_{name}": value for name, value in measured.items()}.items() <= each.summary.items()
        accuracies = [epoch["val_accuracy"] for epoch in outcome["epochs"] if epoch["val_accuracy"] is not None]
        assert each.summary["best_val_accuracy"] == max(accuracies)
        assert each.summary["last_val_accuracy"] == accuracies[-1]
        for name in ("train_seconds", "parameters", "selected_epoch"):
            assert each.summary[name] == outcome[name]
        assert each.exit_code == 0


ARMS = [parse_arm(name) for name in ("labels", "kd", "takd:mlp-16")]


def tracked(root: Path, study: str, stage: Any, reason: str | None = None) -> Run:
    """The run of a stage that a tracker was told of: one epoch, then done or failed."""
    folder = study_folder(str(root), study)
    tracker, node = WandbTracker(folder, ARMS, "offline"), Node(stage, "0.0", reason=reason)
    tracker.stage_started(node)
    tracker.stage_reported(node, [{"epoch": 1, "train_loss": 0.5, "val_loss": None}])
    node.state = "failed" if reason else "done"
    tracker.stage_ended(node)
    tracker.close()
    [file] = root.rglob("*.wandb")
    return read_run(file)


def read_by_wandb(file: Path) -> dict[str, Any]:
    """What W&B's own reader finds."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


def test_wandbs_own_reader_reads_a_run(finished, runs):
    [file, *_] = [
        file for file in local(finished.folder).rglob("*.wandb") if read_run(file).record.job_type == "teacher"
    ]
    found = read_by_wandb(file)
    mine = read_run(file)
    assert (found["run_id"], found["name"]) == (mine.record.run_id, mine.record.display_name)
    assert (found["state"], found["exit_code"], found["step"]) == ("finished", 0, len(mine.history))
    assert found["config"] == mine.config
    assert found["summary"] == mine.summary


@pytest.mark.parametrize("length", [1, 32_700, *range(32_740, 32_770), 100_000])
def test_a_record_of_any_length_is_read_again(tmp_path, length):
    """Records are cut where a block of the log ends."""
    about = Sent(id="r", project="p", group="g", job_type="student", name="n", config={"long": "x" * length})
    write_run(tmp_path, dataclasses.replace(about, rows=[(step, {"epoch": step}) for step in (1, 2)]))
    [file] = tmp_path.rglob("*.wandb")
    assert read_run(file).config["long"] == "x" * length
    assert [row["epoch"] for row in read_run(file).history] == [1, 2]
    if length in (32_757, 100_000):
        assert read_by_wandb(file)["config"]["long"] == "x" * length


def test_a_failed_stage_is_a_failed_run_with_the_reason(tmp_path):
    run = tracked(tmp_path, "tiny", TEACHER, reason="the training loss became nan")
    assert (run.summary["status"], run.summary["error"]) == ("failed", "the training loss became nan")
    assert run.exit_code == 1


def test_no_key_is_in_what_is_written(tmp_path, monkeypatch):
    secret = "5ec7e7" * 7
    monkeypatch.setenv("WANDB_API_KEY", secret)
    tracked(tmp_path, "tiny", TEACHER)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert [file for file in written if secret.encode() in file.read_bytes()] == []


@pytest.mark.parametrize("secret", ["key:secret@", ""])
def test_a_buckets_keys_are_not_in_what_an_artifact_refers_to(secret):
    uri = f"s3://{secret}bucket/runs/artifacts/ab/f.safetensors?endpoint_override=127.0.0.1:9000&secret_key=s"
    assert without_secret(uri) == "s3://bucket/runs/artifacts/ab/f.safetensors"


# Which mode


@pytest.mark.parametrize(
    ("of_environment", "mode"),
    [("offline", "offline"), ("dryrun", "offline"), ("online", "online"), ("disabled", "disabled")],
)
def test_the_mode_is_the_environments(of_environment, mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", of_environment)
    assert wandb_mode(None) == mode


@pytest.mark.parametrize("asked", ["online", "offline", "disabled"])
def test_what_is_asked_for_comes_before_the_environment(asked, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled" if asked != "disabled" else "online")
    assert wandb_mode(asked) == asked


def test_without_a_key_runs_are_kept_offline(tmp_path):
    """In a process of its own: W&B reads its environment once."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    script = "from takd.study.tracking.wandb_runs import wandb_mode; print(wandb_mode(None))"
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=clean | {"NETRC": str(tmp_path / "no-netrc"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (found.stdout, found.returncode) == ("offline\n", 0), found.stderr


# Observers that fail


class Observer:
    """Notes what it is told, and raises where a test wants it to."""

    def __init__(self, raises_at: str | None = None) -> None:
        self.raises_at, self.told = raises_at, Counter[str]()

    def _note(self, name: str) -> None:
        self.told[name] += 1
        if name == self.raises_at:
            raise RuntimeError("no network")

    def stage_started(self, node: Node) -> None:
        self._note("stage_started")

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        self._note("stage_reported")

    def stage_ended(self, node: Node) -> None:
        self._note("stage_ended")

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None:
        self._note("graph_changed")

    def close(self) -> None:
        self._note("close")


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    return study_folder(str(tmp_path / "runs"), "tiny")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "takd"]


def test_an_observer_that_raises_is_left_out_with_one_warning_and_the_study_goes_on(ray_slots, folder, caplog):
    moments = ["stage_started", "stage_reported", "stage_ended", "graph_changed"]
    broken, good = [Observer(raises_at=moment) for moment in moments], Observer()
    search, graph = run_watched(folder, tiny_space(**LABELS), *broken, good)
    assert warnings_of(caplog) == ["Observer stopped: no network; the study goes on without it"] * 4
    assert [each.told[moment] for each, moment in zip(broken, moments, strict=True)] == [1, 1, 1, 1]
    assert good.told["stage_ended"] == graph.counts["student"]["done"] == 2
    assert not search.is_open


def test_wandb_that_can_write_nothing_costs_one_warning(ray_slots, folder, caplog):
    local(folder).mkdir(parents=True)
    (local(folder) / "wandb").write_text("in its place")
    study = run(folder, tiny_space(**LABELS), wandb="offline")
    assert study.result.finished
    assert set(pd.read_parquet(folder.trials)["status"]) == {"done"}
    [warning] = warnings_of(caplog)
    assert warning.startswith("W&B stopped: ")
    assert warning.endswith("; the study goes on without it")


@pytest.fixture
def wandb_as_new() -> Iterator[None]:
    """W&B reads its environment once; before and after the test it has not yet."""
    wandb.teardown()
    yield
    wandb.teardown()


def test_a_malformed_key_does_not_end_a_study(ray_slots, folder, monkeypatch, wandb_as_new):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert run(folder, tiny_space(**LABELS), wandb=None).result.finished


def test_the_artifact_of_a_librarys_model_has_a_name_that_wandb_takes(tmp_path):
    stage = make_stage("torchvision/resnet18", role="teacher")
    description = {"files": {}, "outcome": {"metrics": {"validation": {"accuracy": 0.5}}}}
    artifact = stage_artifact(study_folder(str(tmp_path), "mine"), stage, description)
    assert artifact.name == f"teacher-torchvision-resnet18-{stage.key[:8]}"


# What W&B takes


LONG = [f"torchvision/shufflenet_v2_x{size}" for size in ("2_0", "1_5", "1_0")]


def test_tags_and_names_that_wandb_refuses_are_shortened_and_a_line_says_so_once(tmp_path, caplog):
    arm = f"takd:{'>'.join(LONG)}"
    chain: tuple[Any, ...] = (make_stage("torchvision/efficientnet_v2_l", role="teacher"),)
    for model in LONG:
        chain = (make_stage(model, role="assistant", upstream=chain),)
    folder = study_folder(str(tmp_path), "mine")
    writer = RunWriter(folder, [parse_arm(arm)])
    for seed in (0, 1):
        student = make_stage("torchvision/mobilenet_v3_small", upstream=chain, seed=seed)
        writer.write(Node(student, "0.0", arms={arm}, state="failed", reason="gone"), {})
    found = [read_run(file) for file in tmp_path.rglob("*.wandb")]
    names, tags = {run.record.display_name for run in found}, {tag for run in found for tag in run.record.tags}
    assert len(names) == 2
    assert max(map(len, names)) == 128
    assert len(tags) == 2
    wandb.Settings(run_tags=list(tags))  # raises on one that is too long
    assert found[0].config["arms"] == [arm]
    assert len([line for line in warnings_of(caplog) if "shortened" in line]) == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WANDB_MODE", "nonsense", "expected online, offline or disabled"),
        ("WANDB_PROJECT", "my/proj:a #1", r"at most 128 characters, none of / \\ # \? % :"),
        ("WANDB_PROJECT", "p" * 129, "at most 128 characters"),
        ("WANDB_ENTITY", "my team/x", "the name of a user or a team"),
        ("WANDB_BASE_URL", "api.wandb.ai", "the address of a server, such as https://"),
    ],
)
def test_a_variable_that_wandb_refuses_is_named_before_anything_is_written(name, value, expected, folder, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=rf"^{name} is .*; expected .*") as caught:
        run(folder, tiny_space(), wandb=None)
    assert re.search(expected, str(caught.value))
    assert not Path(folder.root).joinpath("tiny").exists()
    check_variables("disabled")
    if name != "WANDB_ENTITY":  # of which the server alone says something
        with pytest.raises((ValidationError, wandb.errors.UsageError)):
            wandb.Settings(**{name.removeprefix("WANDB_").lower(): value})


def test_no_variable_of_wandbs_is_refused_that_it_takes(monkeypatch):
    for name, value in (("MODE", "offline"), ("PROJECT", "a b-c.d"), ("ENTITY", "my-team"), ("BASE_URL", "http://h:1")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    check_variables(None)
