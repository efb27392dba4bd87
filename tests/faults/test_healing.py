"""What failed heals when its cause is gone, and what is away for a while is waited for: by the same command, once more.

Stages train in the process of the tests; those of `test_unshared` have nodes of their own.
"""

import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import yaml
from conftest import SLOTS, TINY, Call, Watcher, tiny_space
from in_process import train_here
from optuna.trial import TrialState
from rich.console import Console

from takd.study.folder import StudyFolder, study_folder, without_password
from takd.study.options import RunOptions
from takd.study.run import run_study
from takd.study.search import database
from takd.study.search.graph import Node
from takd.study.search.optimization import open_search
from takd.study.search.scheduling import PathSearcher
from takd.study.tracking.wandb_log import read_records
from takd.trainables.datasets import dataset as datasets

Prepare = Callable[[PathSearcher], None]


def run_here(takd: Call, *arguments: Any, before: Prepare = lambda searcher: None) -> Any:
    """`takd run`, whose stages train in this process, after `before` was called."""

    def train(searcher: PathSearcher) -> None:
        before(searcher)
        train_here(searcher)

    with patch("takd.study.search.scheduling.run_stages", train):
        return takd("run", *arguments)


def forget(*folders: Path) -> None:
    """This node has no data set any more, and the root, where it is named, neither."""
    for folder in folders:
        shutil.rmtree(folder)
    datasets.load.cache_clear()
    datasets._found.clear()


def test_what_failed_is_tried_again_by_the_next_run_unless_its_key_says_that_it_fails(takd, trees, own_cache, tmp_path):
    """A node has the data set neither from its user nor from the root; assistants learn at a rate that has no end."""
    assert takd("data", "images", "--from", trees).code == 0
    recipe = {"epochs": 2, "batch_size": 16}
    space: dict[str, Any] = {
        **TINY,
        "dataset": "trees",
        "teacher": {"model": "mlp-16", "recipe": recipe},
        "assistants": {"models": ["mlp-8"], "recipe": {**recipe, "learning_rate": 1e30}},
        "student": {**TINY["student"], "recipe": recipe},
        "sampler": "grid",
        "seeds": 1,
        "trials": None,
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(space))
    folder = study_folder(str(tmp_path / "runs"), "tiny")
    command = (file, "--root", folder.root, "--wandb", "offline")
    kept = Path(folder.root) / "datasets"

    first = run_here(takd, *command, before=lambda searcher: forget(own_cache, kept))
    assert first.code == 1
    assert "failed   teacher mlp-16 seed 0 of " in first.out
    assert "dataset trees: not in the cache" in first.out
    assert {trial.state for trial in open_search(folder).proposed()} == {TrialState.FAIL}
    assert " stopped " in takd("list", "--root", folder.root).out  # the next run goes on

    assert takd("data", "images", "--from", trees).code == 0
    second = run_here(takd, *command)
    assert second.code == 1  # for the assistants' sake
    assert "5 trials that failed before: tried again" in second.out
    search = open_search(folder)
    assert search.remaining == 0
    assert " finished " in takd("list", "--root", folder.root).out  # what would fail again doesn't
    assert sorted(trial.state.name for trial in search.proposed()) == ["COMPLETE"] * 3 + ["FAIL"] * 2
    assert len(search.study.trials) == 10  # Optuna keeps the failed ones
    rows = pd.read_parquet(folder.trials)
    assert rows.groupby(["arm", "status"]).size().to_dict() == {
        ("kd", "done"): 4,
        ("labels", "done"): 1,
        ("takd:mlp-8", "done"): 2,
        ("takd:mlp-8", "failed"): 4,
    }
    assert rows[rows["status"] == "done"]["error"].isna().all()
    codes: dict[str, list[int]] = {}
    for log in sorted(folder.local.rglob("*.wandb")):
        records = list(read_records(log))
        [config] = [
            {each.key: each.value_json for each in record.run.config.update} for record in records if record.run.run_id
        ]
        [code] = [record.exit.exit_code for record in records if record.HasField("exit")]
        codes.setdefault(json.loads(config.get("stage_key", '"study"')), []).append(code)
    done = set(rows[rows["status"] == "done"]["stage_key"])
    assert {codes[key][-1] for key in done} == {0}  # the same run, once more

    # A third run has nothing to do, and says why; nor does one on a machine that lacks the data set: the root has it.
    forget(own_cache)
    third = run_here(takd, *command, before=lambda searcher: pytest.fail("it trains"))
    assert third.code == 1
    assert "that failed before by what the space says, and would again: not tried (" in third.out
    assert "the training loss became" in third.out
    forget(*own_cache.glob("datasets"))
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({**space, "arms": ["labels", "kd"]}))
    other = run_here(takd, more, "--name", "tiny2", *command[1:], before=lambda searcher: None)
    assert (other.code, "dataset 'trees' does not exist" in other.err) == (2, True)  # a new study's is of this machine


def test_a_node_takes_the_data_set_that_it_lacks_from_the_root(takd, trees, own_cache, tmp_path):
    assert takd("data", "images", "--from", trees).code == 0
    file = tmp_path / "tiny.yaml"
    space: dict[str, Any] = {
        "dataset": "trees",
        "arms": ["labels"],
        "coverage": 1,
        "trials": 1,
        "confirm": {"seeds": 1},
        "teacher": {"model": "mlp-16"},
        "student": {"model": "mlp-4", "recipe": {"epochs": 1}},
    }
    file.write_text(yaml.safe_dump(space))
    command = (file, "--root", tmp_path / "runs", "--wandb", "disabled")
    called = run_here(takd, *command, before=lambda searcher: forget(own_cache))
    assert (called.code, called.err) == (0, "")  # the test split was there too, for what is confirmed
    [kept] = (tmp_path / "runs" / "datasets").iterdir()
    [fetched] = (own_cache / "datasets").iterdir()
    assert sorted(each.name for each in kept.iterdir()) == sorted(each.name for each in fetched.iterdir())
    assert len({each.stat().st_ino for each in (kept / "train.arrow", fetched / "train.arrow")}) == 1  # and no room

    folder = study_folder(tmp_path / "runs", "tiny")
    # A damaged copy is named, and not used.
    content = (kept / "train.arrow").read_bytes()
    (kept / "train.arrow").unlink()
    (kept / "train.arrow").write_bytes(content[:-9] + b"123456789")
    forget(own_cache)
    with pytest.raises(datasets.InputError, match=r"what is kept in .*datasets/.* is damaged .*; delete that folder"):
        datasets.load_for(open_search(folder).dataset, folder.artifacts)


def test_a_node_takes_the_images_of_a_transfer_that_it_lacks_from_the_root_and_so_does_the_next_run(
    takd, trees, own_cache, tmp_path
):
    """The study's own data set is built in, so every node has that."""
    brought = ("--size", "28", "--fit", "stretch", "--color", "grey", "--name", "others")
    assert takd("data", "images", "--from", trees, *brought).code == 0
    space = {
        "dataset": "mnist",
        "arms": ["kd"],
        "transfer": {"dataset": "others"},
        "teacher": {"model": "mlp-16", "recipe": {"epochs": 1, "examples": 100}},
        "student": {"model": "mlp-4", "temperature": 4, "recipe": {"epochs": 1, "learning_rate": {"choices": [1, 2]}}},
        "coverage": 1,
        "trials": 1,
        "sampler": "grid",
        "seeds": 1,
        "confirm": None,
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(space))
    command = (file, "--root", tmp_path / "runs", "--wandb", "disabled")

    def lose_them(_: Any = None) -> None:
        forget(*(each for each in (own_cache / "datasets").glob("others*") if each.is_dir()))
        (own_cache / "datasets" / "others.v2.json").unlink()

    first = run_here(takd, *command, before=lose_them)
    assert (first.code, first.err) == (0, "")
    [kept] = (tmp_path / "runs" / "datasets").iterdir()
    assert takd("gc", "--root", tmp_path / "runs", "--older", 0, "--yes").code == 0  # they are in use
    forget(own_cache / "datasets" / kept.name)
    file.write_text(yaml.safe_dump({**space, "trials": 2}))
    assert takd("plan", *command[:3]).code == 0
    second = run_here(takd, *command)
    assert (second.code, second.err) == (0, "")
    found = pd.read_parquet(study_folder(tmp_path / "runs", "tiny").trials)["status"]
    assert (len(found), {*found}) == (4, {"done"})


@pytest.fixture
def server() -> Iterator[Any]:
    """A PostgreSQL of the test's own, to stop and start."""
    pgserver = pytest.importorskip("pgserver", reason="its wheels are for Python 3.12 and older")
    folder = tempfile.mkdtemp(prefix="takd-pg-")
    started = pgserver.get_server(folder, cleanup_mode="delete")
    yield started
    started.ensure_postgres_running()
    started.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def stop_server(server: Any) -> None:
    from pgserver._commands import pg_ctl

    pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=server.pgdata, user=server.system_user)


def test_a_database_that_is_away_is_waited_for_and_then_the_study_stops_in_one_line(
    takd, server, tmp_path, caplog, monkeypatch
):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**TINY, "trials": 4, "coverage": 1}))
    command = (file, "--root", tmp_path / "runs", "--wandb", "disabled", "--storage", server.get_uri())
    caplog.set_level(logging.WARNING, "takd")

    def away(searcher: PathSearcher, then: Callable[[], None]) -> None:
        tell = searcher.search.tell

        def tell_without_server(*given: Any) -> None:
            searcher.search.tell = tell
            stop_server(server)
            then()
            tell(*given)

        searcher.search.tell = tell_without_server

    monkeypatch.setattr(database, "AWAY_SECONDS", 1.0)
    first = run_here(takd, *command, before=lambda searcher: away(searcher, lambda: None))
    assert first.code == 1
    [line] = first.err.splitlines()
    assert line.startswith(f"takd: stopped: storage {without_password(server.get_uri())} doesn't answer for ")
    assert "; go on with: takd run " in line
    shown = takd("status", "tiny", "--root", tmp_path / "runs", "--storage", server.get_uri())
    assert (shown.code, len(shown.err.splitlines()), "can't be opened" in shown.err) == (2, 1, True)

    threading.Timer(1.0, server.ensure_postgres_running).start()  # it comes while the next run begins
    monkeypatch.setattr(database, "AWAY_SECONDS", 60.0)
    caplog.clear()
    back = threading.Timer(2.0, server.ensure_postgres_running)
    second = run_here(takd, *command, before=lambda searcher: away(searcher, back.start))
    assert (second.code, second.err) == (0, "")
    said = [record.getMessage() for record in caplog.records if "storage" in record.getMessage()]
    assert "can't be opened" in said[0]
    assert ["doesn't answer" in said[1], "answers again after" in said[-1]] == [True, True]
    rows = pd.read_parquet(tmp_path / "runs" / "tiny" / "results" / "trials.parquet")
    assert set(rows["status"]) == {"done"}
    assert rows["trial"].nunique() == 4


class Killed(BaseException):
    """Ends a run as kill -9 does: nobody writes a checkpoint, and nobody tells Optuna."""


ASHA: dict[str, Any] = {
    "arms": ["labels", "kd"],
    "trials": 6,
    "coverage": 1,
    "lanes": 1,
    "sampler": "random",
    "checkpoint_every": {"epochs": 1},
    "asha": {"grace_epochs": 1, "reduction_factor": 2},
    "student__recipe": {"epochs": 5, "learning_rate": {"choices": [1e-4, 1e-3, 1e-2]}},
}


def run_asha(folder: StudyFolder, kill_at: int | None = None) -> str:
    """What the run says; ended as the student of that number ends, if any."""
    ended = 0

    class Killing(Watcher):
        def stage_reported(self, node: Node, epochs: Any) -> None:
            nonlocal ended
            ended += node.stage.role == "student"
            if ended == kill_at:
                raise Killed

    def train(searcher: PathSearcher) -> None:
        searcher.observers._observers.append(Killing())
        train_here(searcher)

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with patch("takd.study.search.scheduling.run_stages", train):
        run_study(folder, tiny_space(**ASHA), "space tiny", RunOptions("disabled", SLOTS), console)
    return console.export_text()


def test_a_killed_study_goes_on_to_end_the_students_that_it_would_have_ended(takd, ray_slots, tmp_path):
    undisturbed = study_folder(str(tmp_path / "undisturbed"), "tiny")
    run_asha(undisturbed)
    disturbed = study_folder(str(tmp_path / "disturbed"), "tiny")
    for kill_at in (3, 5):
        with pytest.raises(Killed):
            run_asha(disturbed, kill_at)
    run_asha(disturbed)
    columns = ["trial", "path_seed", "role", "stage_key", "status", "epochs", "val_accuracy"]
    expected, rows = (pd.read_parquet(folder.trials)[columns] for folder in (undisturbed, disturbed))
    pd.testing.assert_frame_equal(rows, expected)
    assert set(rows["status"]) == {"done", "pruned"}

    pruned = rows[rows["status"] == "pruned"]
    assert pruned["epochs"].between(1, 4).all()
    assert pruned["val_accuracy"].between(0.05, 1).all()
    epochs = pd.read_parquet(disturbed.epochs).groupby("stage_key").size()
    assert epochs[pruned["stage_key"]].tolist() == pruned["epochs"].tolist()
    for trial in open_search(disturbed).proposed():
        students = rows[(rows["trial"] == trial.number) & (rows["role"] == "student")]
        assert sorted(trial.intermediate_values) == list(range(1, int(students["epochs"].max()) + 1))
        if (students["status"] == "pruned").all() and students["epochs"].nunique() == 1:
            assert trial.intermediate_values[students["epochs"].max()] == pytest.approx(students["val_accuracy"].mean())
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_space(**ASHA).model_dump(mode="json", by_alias=True, exclude={"weights"})))
    last = takd("run", file, "--root", disturbed.root, "--wandb", "disabled").out.splitlines()[-1]
    assert last.startswith(
        f"0 stages trained in this run, {len(pruned)} students of the study ended early after "
        f"{pruned['epochs'].sum():.0f} epochs in all, at "
    )
