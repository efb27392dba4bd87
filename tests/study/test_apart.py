"""A study in a process of its own, which does without torch: what needs it is done in another."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from conftest import TINY, assert_bad_input, new_bucket, new_database
from pyarrow import fs
from test_cli import row

from takd.study.cli import main
from takd.trainables.models.families import build

WITHOUT_TORCH = "import sys\nfrom takd.study.apart import apart\n{}\nassert 'torch' not in sys.modules\n"


def python(code: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With its streams piped, without a terminal's variables."""
    command = [sys.executable, "-c", WITHOUT_TORCH.format(code), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "FORCE_COLOR"}} | environment
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def children(parent: psutil.Process, ready: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Those of a process, once there are any and they are ready."""
    until = time.monotonic() + 30
    while not (found := parent.children()) or not all(map(ready, found)):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


# One study in a process of its own: with a bucket, a database with a password, a W&B key, weights that its teacher
# starts from, an assistant that can't be trained, and a confirm phase.

KEY, PASSWORD, TOKEN = "d15ea5e" * 5 + "d15ea", "plantedpassword", "plantedtoken"
RUN = """
from takd.study.cli import main
assert main(sys.argv[1:]) == 1
"""


@dataclass(frozen=True)
class Alone:
    """A study that ran in a process of its own."""

    ran: subprocess.CompletedProcess[str]
    folder: Path  # that it ran in
    root: str
    environment: dict[str, str]  # what it had beside that of the tests


@pytest.fixture(scope="module")
def alone(s3_server: str, postgres: str, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder, root = tmp_path_factory.mktemp("alone"), new_bucket(s3_server)
    torch.save(build("plain-2", (3, 6, 8), 3).state_dict(), folder / "start.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAKD_CACHE", str(folder / "cache"))
        assert main(["data", "images", "--from", str(made)]) == 0
    recipe = {"epochs": 2, "batch_size": 16}
    space = TINY | {
        "dataset": "trees",
        "teacher": {"model": "plain-2", "pretrained": str(folder / "start.pth"), "recipe": recipe},
        "assistants": TINY["assistants"] | {"recipe": recipe | {"learning_rate": 1e30}},
        "student": TINY["student"] | {"recipe": recipe},
        "trials": 3,
        "coverage": 1,
        "confirm": {"seeds": 2},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(space))
    planted = {
        "TAKD_STORAGE": new_database(postgres).replace("postgres:@", f"postgres:{PASSWORD}@"),
        "WANDB_API_KEY": KEY,
        "AWS_SESSION_TOKEN": TOKEN,
        "TAKD_CACHE": str(folder / "cache"),
    }
    options = ("run", "tiny.yaml", "--root", root, "--slots", "1", "--wandb", "offline")
    return Alone(python(RUN, folder, *options, **planted), folder, root, planted)


def contents(root: str) -> dict[str, bytes]:
    files, path = fs.FileSystem.from_uri(root)
    entries = files.get_file_info(fs.FileSelector(path, recursive=True))
    return {entry.path: files.open_input_file(entry.path).read() for entry in entries if entry.is_file}


@pytest.mark.slow
def test_a_study_runs_to_its_test_numbers_without_torch_in_its_own_process(alone):
    assert alone.ran.returncode == 0, alone.ran.stderr  # torch was not loaded, see WITHOUT_TORCH
    assert "These are test numbers of the confirm phase" in alone.ran.stdout
    [kept] = [name for name in contents(alone.root) if "/weights/" in name]
    assert kept.endswith(".safetensors")


def test_a_study_that_is_refused_leaves_nothing_in_its_bucket(takd, bucket, database, tmp_path):
    torch.save(build("plain-2", (1, 28, 28), 10).state_dict(), tmp_path / "start.pth")
    teacher = {"model": "cnn", "pretrained": str(tmp_path / "start.pth")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"teacher": teacher}))
    refused = takd("run", tmp_path / "tiny.yaml", "--root", bucket, "--storage", database)
    assert_bad_input(refused, f"space {tmp_path}/tiny.yaml: pretrained", "these are not the weights of cnn")
    files, place = fs.FileSystem.from_uri(bucket)
    assert files.get_file_info(place).type == fs.FileType.NotFound


@pytest.mark.slow
def test_a_study_with_failed_stages_exits_1_and_lists_them(alone):
    failed = [line for line in alone.ran.stdout.splitlines() if line.startswith("failed ")]
    assert [line.split()[1] for line in failed] == ["assistant", "student", "student"]
    assert all("the training loss became" in line for line in failed)


@pytest.mark.slow
def test_piped_output_is_plain_lines_and_the_table(alone):
    assert "\x1b" not in alone.ran.stdout + alone.ran.stderr
    assert "\r" not in alone.ran.stdout
    [progress] = [line for line in alone.ran.stdout.splitlines() if line.startswith("[")][-1:]
    assert "teacher 1 done" in progress
    assert "assistant 1 failed" in progress
    assert row(alone.ran.stdout, "kd")[1] == "BLKD"
    assert "Traceback" not in alone.ran.stdout + alone.ran.stderr


@pytest.mark.slow
def test_what_failed_is_in_status_too(alone, takd, monkeypatch):
    for name, value in alone.environment.items():
        monkeypatch.setenv(name, value)
    out = takd("status", "tiny", "--root", alone.root).out
    assert dict(zip(row(out, "role")[1:], row(out, "assistant")[1:], strict=True))["failed"] == "1"
    assert sum(line.startswith("failed ") for line in out.splitlines()) == 3


@pytest.mark.slow
def test_planted_secrets_are_nowhere_in_what_a_study_leaves(alone, takd, monkeypatch):
    """They come from the environment and go nowhere else. What is read back runs no code: see test_artifacts.py."""
    for name, value in alone.environment.items():
        monkeypatch.setenv(name, value)
    said = {"output": alone.ran.stdout, "errors": alone.ran.stderr}
    for command in ("status", "results"):
        again = takd(command, "tiny", "--root", alone.root)
        assert again.code == 0, again.err
        said[command] = again.out + again.err
    left = {str(file): file.read_bytes() for file in alone.folder.rglob("*") if file.is_file()}
    left |= {name: text.encode() for name, text in said.items()} | contents(alone.root)
    assert len(left) > 15
    assert any(name.endswith(".wandb") for name in left)
    assert any(name.endswith("stage.json") for name in left)
    for secret in (KEY, PASSWORD, TOKEN):
        assert [name for name, content in left.items() if secret.encode() in content] == []


def test_a_job_that_is_told_to_end_while_its_space_is_checked_ends_as_at_any_time(tmp_path, cache):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    takd = Path(sys.executable).with_name("takd")
    command = [takd, "run", "tiny.yaml", "--slots", "1", "--wandb", "disabled"]
    job = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    [child] = children(psutil.Process(job.pid), lambda each: each.num_threads() > 1)
    for process in (child, psutil.Process(job.pid)):  # as a batch system does, or systemd
        process.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 130, errors
    assert "takd: stopped: SIGTERM received; go on with: takd run tiny.yaml" in errors
    assert "Traceback" not in errors


def test_a_call_returns_and_raises_as_one_here(tmp_path):
    # The folder it is called from must not matter, nor what is printed meanwhile.
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "__init__.py").write_text("raise SystemExit('somebody else')")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "script.py").write_text(
        WITHOUT_TORCH.format(
            """
import os
from takd.search_spaces import InputError
assert apart("os:getpid") != os.getpid()
assert apart("builtins:print", "so far") is None
assert apart("operator:add", b"0" * 10**6, b"1") == b"0" * 10**6 + b"1"
try:
    apart("takd.study.folder:check_name", "a/b")
except InputError as error:
    assert str(error).startswith("study a/b"), error
    assert "in check_name" in error.__notes__[0]
else:
    raise AssertionError("no error")
"""
        )
    )
    command = [sys.executable, "elsewhere/script.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "so far\n")


def test_a_process_that_dies_or_answers_nonsense_is_said(tmp_path):
    code = """
for function, expected in (("os:abort", "exit code -6"), ("threading:Lock", "can't be passed on")):
    try:
        apart(function)
    except RuntimeError as error:
        assert expected in str(error), error
    else:
        raise AssertionError("no error")
"""
    ran = python(code, tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_a_check_that_is_killed_is_one_line(root, tmp_path):
    """Of a study that is finished: there no Ray is started meanwhile."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    takd = Path(sys.executable).with_name("takd")
    command = [takd, "run", "tiny.yaml", "--root", root]
    job = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    [child] = children(psutil.Process(job.pid), lambda each: each.num_threads() > 1)
    child.kill()
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert errors == (
        "takd: the process of takd.study.checks:check ended without an answer (SIGKILL; out of memory?); "
        "nothing is lost, run it again\n"
    )


def test_it_ends_with_the_process_that_asked(tmp_path):
    asking = subprocess.Popen([sys.executable, "-c", WITHOUT_TORCH.format('apart("time:sleep", 600)')])
    [child] = children(psutil.Process(asking.pid), lambda each: each.num_threads() > 1)  # then it watches for that
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    child.wait(timeout=30)


def test_where_ray_does_not_start_the_run_ends_in_one_line(tmp_path, cache):
    """Here its folder has so long a name that it can't have its sockets there."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [Path(sys.executable).with_name("takd"), "run", "tiny.yaml", "--slots", "1", "--wandb", "disabled"]
    too_long = os.environ | {"RAY_TMPDIR": str(tmp_path / ("x" * 100))}
    job = subprocess.run(command, cwd=tmp_path, env=too_long, capture_output=True, text=True, timeout=120)
    assert job.returncode == 1
    [said] = job.stderr.splitlines()
    assert said.startswith("takd: stopped: Ray did not start on this machine (")
    assert said.endswith("; go on with: takd run tiny.yaml --slots 1 --wandb disabled")
    assert not (tmp_path / "runs").exists()
