"""`takd dashboard` in a real browser, beside a study that runs; `takd status --follow` likewise."""

import json
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import pytest
from conftest import Study, Watcher, make_stage, run_watched, tiny_space
from optuna.trial import TrialState
from test_cli import TAKD

from takd.search_spaces import Path as ModelPath
from takd.study.folder import StudyFolder, study_folder
from takd.study.search.attributes import outcome_attributes, proposal_attributes
from takd.study.search.graph import Node
from takd.study.search.lease import acquire_lease
from takd.study.search.optimization import find_search
from takd.study.search.storages import open_optuna

pytest.importorskip("optuna_dashboard")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


TRIALS = 9  # of which some are left when each arm has one that is complete


@dataclass(frozen=True)
class Served:
    """A dashboard, in a process of its own, of a study that trains in this one and is held while something is open."""

    page: str
    root: Path
    study: threading.Thread
    go_on: threading.Event

    @property
    def server(self) -> str:
        return self.page.partition("/dashboard")[0]


@pytest.fixture(scope="module")
def served(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root, held, go_on = tmp_path_factory.mktemp("served"), threading.Event(), threading.Event()
    folder = study_folder(str(root), "tiny")

    def hold(node: Node) -> None:
        if len(complete_arms(folder)) == 3:
            held.set()
            go_on.wait()

    def study() -> None:
        folder.prepare()
        lease = acquire_lease(open_optuna(folder), "tiny", on_lost=print, on_wait=print)
        run_watched(folder, tiny_space(trials=TRIALS, lanes=1), Watcher(started=hold))
        lease.release()

    thread = threading.Thread(target=study)
    thread.start()
    assert held.wait(240)
    command = [TAKD, "dashboard", "tiny", "--root", str(root), "--port", "0"]
    dashboard = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert dashboard.stdout
    yield Served(dashboard.stdout.readline().split()[0], root, thread, go_on)
    go_on.set()
    thread.join()
    dashboard.terminate()
    dashboard.communicate(timeout=60)


def complete_arms(folder: StudyFolder) -> set[str]:
    """Those that have a trial which is complete."""
    search = find_search(folder)
    trials = search.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]) if search else []
    return {trial.params["arm"] for trial in trials}


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
    assert served.study.is_alive(), "the study ended too early to show anything"
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


def test_follow_shows_a_study_of_another_process_until_it_ends(served):
    """The last test: it lets the study go on."""
    command = [TAKD, "status", "tiny", "--root", str(served.root), "--follow"]
    follow = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follow.stdout
    first = follow.stdout.readline()
    served.go_on.set()
    others, errors = follow.communicate(timeout=240)
    assert (follow.returncode, errors) == (0, "")
    blocks = re.findall(rf"study tiny: (\d+) of {TRIALS} trials started", first + others)
    assert len(blocks) > 1
    assert blocks[-1] == str(TRIALS)
    assert blocks == sorted(blocks, key=int)
    assert "\x1b" not in first + others
