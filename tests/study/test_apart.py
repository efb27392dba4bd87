"""A study's own process does without torch: what needs it is done in another."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import yaml
from conftest import TINY

from takd.trainables.models.families import build

WITHOUT_TORCH = "import sys\nfrom takd.study.apart import apart\n{}\nassert 'torch' not in sys.modules\n"


def python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH.format(code), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def children(parent: psutil.Process, ready: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Those of a process, once there are any and they are ready."""
    until = time.monotonic() + 30
    while not (found := parent.children()) or not all(map(ready, found)):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def test_a_study_runs_to_its_test_numbers_without_torch_in_its_own_process(tmp_path, cache):
    torch.save(build("plain-2", (1, 28, 28), 10).state_dict(), tmp_path / "start.pth")
    teacher = {"model": "plain-2", "pretrained": str(tmp_path / "start.pth"), "recipe": {"epochs": 1, "examples": 200}}
    space = TINY | {
        "teacher": teacher,
        "assistants": [],
        "trials": 2,
        "coverage": 1,
        "seeds": 1,
        "confirm": {"seeds": 2},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(space))
    code = """import os
from takd.study.cli import main
assert main([*sys.argv[1:], "--set", "teacher.model=cnn"]) == 2
assert not os.path.exists("runs/weights")
assert main(sys.argv[1:]) == 0
"""
    ran = python(code, tmp_path, "run", "tiny.yaml", "--slots", "1", "--wandb", "offline")
    assert ran.returncode == 0, ran.stderr
    assert "takd: space tiny.yaml: pretrained" in ran.stderr
    assert "these are not the weights of cnn" in ran.stderr
    assert "These are test numbers of the confirm phase" in ran.stdout
    [kept] = (tmp_path / "runs" / "weights").iterdir()
    assert kept.suffix == ".safetensors"


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


def test_a_check_that_is_killed_is_one_line(tmp_path, cache):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    takd = Path(sys.executable).with_name("takd")
    job = subprocess.Popen([takd, "run", "tiny.yaml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
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
