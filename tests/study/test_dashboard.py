"""`takd dashboard` in a real browser, beside a study that runs; `takd status --follow` likewise."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import pytest
from conftest import Study, make_stage
from test_cli import TAKD, write_space

from takd.search_spaces import Path as ModelPath
from takd.study.folder import study_folder
from takd.study.search.attributes import outcome_attributes, proposal_attributes
from takd.study.search.optimization import find_search

pytest.importorskip("optuna_dashboard")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


TRIALS = 60  # of a study that is not at its end while the first pages are looked at


@dataclass(frozen=True)
class Served:
    """A dashboard of a study that ran beside it."""

    page: str
    study: subprocess.Popen[str]

    @property
    def server(self) -> str:
        return self.page.partition("/dashboard")[0]


@pytest.fixture(scope="module")
def served(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    space = write_space(root / "tiny.yaml", trials=TRIALS)
    options = [str(space), "--root", str(root), "--wandb", "disabled", "--slots", "1"]
    study = subprocess.Popen([TAKD, "run", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: "COMPLETE" in states(root), 120)
    dashboard = subprocess.Popen(
        [TAKD, "dashboard", "tiny", "--root", str(root), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert dashboard.stdout
    yield Served(dashboard.stdout.readline().split()[0], study)
    for process in (dashboard, study):
        process.terminate()
        process.communicate(timeout=60)


def states(root: Path) -> str:
    """Of the trials, in words, as another process sees them; empty before there is a study."""
    search = find_search(study_folder(str(root), "tiny"))
    return " ".join(trial.state.name for trial in search.study.get_trials(deepcopy=False)) if search else ""


def wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.5)


def browse(page: str) -> tuple[str, list[str]]:
    """The page as Chromium shows it once it has loaded, and what its console says is wrong."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    shown = subprocess.run(
        [*command, "--virtual-time-budget=15000", "--dump-dom", page], capture_output=True, text=True, timeout=120
    )
    return shown.stdout, [line for line in shown.stderr.splitlines() if "CONSOLE" in line]


def test_the_dashboard_shows_the_arms_while_the_study_runs(served):
    html, errors = browse(f"{served.page}/analytics")
    assert served.study.poll() is None, "the study ended too early to show anything"
    for arm in ("labels", "kd", "takd:mlp-16"):
        assert arm in html
    assert errors == []


def test_the_dashboard_names_the_objective_and_explains_the_attributes(served):
    study = json.load(urllib.request.urlopen(f"{served.page.replace('/dashboard/', '/api/')}"))
    assert study["objective_names"] == ["mean validation accuracy"]
    assert "paths" in study["note"]["body"]


def test_the_lease_is_no_study_of_the_dashboard(served):
    studies = json.load(urllib.request.urlopen(f"{served.server}/api/studies"))["study_summaries"]
    assert [each["study_name"] for each in studies] == ["tiny"]


def test_the_dashboard_only_looks(served):
    request = urllib.request.Request(f"{served.page.replace('/dashboard/', '/api/')}", method="DELETE")
    with pytest.raises(HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_the_dashboard_is_on_loopback_alone(served):
    assert re.match(r"http://127\.0\.0\.1:\d+/", served.page)


@pytest.mark.parametrize("port", ["-1", "70000", "http"])
def test_a_port_that_is_none_is_bad_input(port, capsys):
    from takd.study.cli import main

    assert main(["dashboard", "tiny", f"--port={port}"]) == 2
    assert "--port" in capsys.readouterr().err


def test_attributes_say_what_a_trial_trained_and_reached(finished: Study):
    teacher = make_stage("mlp-64", role="teacher")
    path = ModelPath(arm="kd", student=make_stage(upstream=(teacher,), seed=3))
    assert proposal_attributes([path]) == {
        "stages": [f"teacher mlp-64 {teacher.key[:12]}", f"student mlp-4 {path.student.key[:12]}"]
    }
    outcome = {"metrics": {"validation": {"accuracy": 0.9376}}, "train_seconds": 1.5}
    found = {key: {"outcome": outcome} for key in (teacher.key, path.student.key)}
    assert outcome_attributes([path], found) == {"students": '{"3": 93.76}', "path_seconds": 3.0}


def test_follow_shows_a_study_of_another_process_until_it_ends(served, tmp_path):
    root = Path(served.study.args[3 + 1])
    follow = subprocess.run(
        [TAKD, "status", "tiny", "--root", str(root), "--follow"], capture_output=True, text=True, timeout=240
    )
    assert (follow.returncode, follow.stderr) == (0, "")
    blocks = re.findall(rf"study tiny: (\d+) of {TRIALS} trials started", follow.stdout)
    assert blocks[-1] == str(TRIALS)
    assert blocks == sorted(blocks, key=int)
    assert "\x1b" not in follow.stdout
    assert served.study.wait(60) == 0
