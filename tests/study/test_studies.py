"""Whole studies on a real Ray: what runs, when, and what is left."""

import json
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import SLOTS, Study, Watcher, artifacts, run, run_watched, run_without_test_split, tiny_space

from takd.search_spaces import InputError, key_of
from takd.study.folder import StudyFolder, study_folder
from takd.study.results import TEST, build_results, standing_results, write_results
from takd.study.search.graph import Node
from takd.study.search.optimization import open_search
from takd.study.stopping import Stop
from takd.trainables.store.artifacts import WEIGHTS

pytestmark = pytest.mark.usefixtures("ray_slots")


@pytest.fixture(scope="module")
def finished(ray_slots, cache, tmp_path_factory) -> Study:
    """That of the other tests, but trained by workers."""
    return run_without_test_split(tmp_path_factory.mktemp("runs"), workers=True)


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    return study_folder(str(tmp_path), "tiny")


def table(study: Study) -> pd.DataFrame:
    return pd.read_parquet(study.folder.trials)


def test_a_study_trains_every_stage_its_paths_need(finished):
    rows = table(finished)
    assert set(rows["status"]) == {"done"}
    assert finished.result.finished
    assert Counter(rows.drop_duplicates("stage_key")["role"]) == {"teacher": 1, "assistant": 1, "student": 12}


def test_a_stage_is_trained_once_however_many_paths_share_it(finished):
    rows = table(finished)
    teacher = rows[rows["role"] == "teacher"]
    assert len(teacher) == 8  # kd and takd, two trials of two seeds each
    assert Counter(teacher["cached"]) == {True: 7, False: 1}
    assert finished.result.trained == 14 == (~rows["cached"]).sum()


def test_the_search_reads_no_test_split(finished):
    """Its file was taken away before the study ran."""
    assert table(finished)["test_accuracy"].isna().all()


def test_a_second_study_reuses_the_firsts_teacher_and_assistant(finished):
    second = run(study_folder(finished.folder.root, "second"), tiny_space(student__lambda=0.3, trials=3, coverage=1))
    upstream = table(second).query("role != 'student'")
    assert upstream["cached"].all()
    assert second.result.trained == len(table(second).query("role == 'student' and arm != 'labels'"))


def test_a_finished_study_runs_nothing_and_says_so_in_seconds(finished):
    started = time.monotonic()
    again = run(finished.folder, finished.space)
    assert (again.result.finished, again.result.trained) == (True, 0)
    assert time.monotonic() - started < 10


def test_the_tables_of_a_finished_study_stand_until_something_has_changed(finished, tmp_path):
    shutil.copytree(finished.folder.root, tmp_path / "copy")
    folder = study_folder(str(tmp_path / "copy"), finished.folder.name)
    [figure] = (tmp_path / "copy").glob("*/report/*.png")
    search, before = open_search(folder), figure.stat().st_mtime_ns
    standing = standing_results(folder, search)
    assert standing == build_results(folder, search) == run(folder, finished.space).result.tables
    assert figure.stat().st_mtime_ns == before  # it is not drawn again
    trials, content = Path(folder.trials), Path(folder.trials).read_bytes()
    trials.write_bytes(content[:-1])
    assert standing_results(folder, search) is None
    assert run(folder, finished.space).result.tables == standing
    assert trials.read_bytes() == content
    search.study.set_user_attr("largest_class", 1)
    assert standing_results(folder, search) is None
    folder.write(TEST, b"{}")
    write_results(folder, search)
    folder.write(TEST, b"{ }")
    assert standing_results(folder, search) is None


def test_no_stage_starts_before_what_it_learns_from_exists(folder):
    def upstream_exists(node: Node) -> None:
        for stage in node.stage.upstream:
            description = folder.artifacts.check(stage.key)
            assert description is not None
            assert folder.artifacts.lacking(stage, description, [None]) == []

    watcher = Watcher(started=upstream_exists)
    run_watched(folder, tiny_space(), watcher)
    assert watcher.errors == []
    assert len({stage.key for stage in watcher.starts}) == 14  # lanes given back start twice


def test_more_cpus_than_there_are_is_all_there_are(folder):
    space = tiny_space(arms=["kd"], trials=2, resources={"teacher": {"cpu": 64}})
    study = run(folder, space)
    assert study.result.finished
    assert f"warning: resources.teacher.cpu is 64; no node has more than {SLOTS}, which it gets" in study.output


def test_a_failing_stage_fails_its_paths_with_the_reason_and_the_others_go_on(folder):
    study = run(folder, tiny_space(assistants__recipe={"learning_rate": 1e30}))
    rows = table(study).set_index("arm")
    assert set(rows.loc[["labels", "kd"], "status"]) == {"done"}
    failed = rows.loc["takd:mlp-16"].drop_duplicates("stage_key").set_index("role")
    assert failed.loc["teacher", "status"] == "done"
    assert failed.loc["assistant", "error"].startswith("the training loss became ")
    assert set(failed.loc[["student"], "status"]) == {"failed"}
    assert failed.loc[["student"], "error"].str.startswith("assistant mlp-16 failed: the training loss became ").all()
    assert study.result.finished


def test_a_stage_that_raises_fails_with_what_it_raised(folder):
    def damage(node: Node) -> None:
        if node.stage.role == "student" and node.stage.upstream:
            shutil.rmtree(artifacts(folder) / node.stage.upstream[0].key, ignore_errors=True)

    search, _ = run_watched(folder, tiny_space(arms=["kd"], trials=1, coverage=0, seeds=1), Watcher(started=damage))
    write_results(folder, search)
    student = pd.read_parquet(folder.trials).query("role == 'student'").iloc[0]
    assert student["status"] == "failed"
    assert re.fullmatch(r"FileNotFoundError: stage .* is not in .*artifacts", student["error"])


def test_a_corrupt_artifact_is_set_aside_and_trained_again(finished, tmp_path, caplog):
    shutil.copytree(finished.folder.root, tmp_path / "copy")
    rows = table(finished)
    teacher = rows.query("role == 'teacher'")["stage_key"].iloc[0]
    weights = tmp_path / "copy" / "artifacts" / teacher / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-8] + b"\0" * 8)
    again = run(study_folder(str(tmp_path / "copy"), "after"), tiny_space())
    assert teacher[:12] in caplog.text
    assert again.result.trained == 1
    assert weights.read_bytes() == content  # the same training, the same weights
    assert list((tmp_path / "copy" / "artifacts").glob(f".set-aside-{teacher}-*"))


def test_a_study_that_is_stopped_goes_on_where_it_was(folder):
    space, stop = tiny_space(), Stop()

    class Stopping(Watcher):
        def stage_ended(self, node: Node) -> None:
            if node.stage.role == "student":
                stop.request("the test wants it")

    search, _ = run_watched(folder, space, Stopping(), stop=stop)
    before = set(artifacts(folder).glob("[0-9a-f]*/stage.json"))
    times = {file: file.stat().st_mtime_ns for file in before}
    assert search.is_open
    again = run(folder, space)
    assert before
    assert again.result.finished
    assert {file: file.stat().st_mtime_ns for file in before} == times  # nothing finished was trained again
    assert set(table(again)["status"]) == {"done"}
    assert again.result.trained == 14 - len(before)


def test_asha_ends_students_early_and_never_what_others_learn_from(folder):
    space = tiny_space(
        arms=["kd"],
        trials=8,
        confirm={"seeds": 6},
        asha={"grace_epochs": 1, "reduction_factor": 2},
        student__recipe={"epochs": 8, "learning_rate": {"choices": [1e-6, 1e-2]}},
        teacher__recipe={"epochs": 4},
    )
    study = run(folder, space)
    rows = table(study).drop_duplicates("stage_key")
    assert rows.query("phase == 'confirm' and role == 'student'")["status"].tolist() == ["done"] * 6
    rows = rows[rows["phase"] == "search"].set_index("role")
    assert rows.loc["teacher", "status"] == "done"
    states = Counter(rows.loc["student", "status"])
    assert states["pruned"] > 0
    assert states["done"] > 0
    assert study.result.finished


def test_the_description_of_an_artifact_lets_anyone_recompute_its_key(finished):
    for file in artifacts(finished.folder).glob("[0-9a-f]*/stage.json"):
        description = json.loads(file.read_text())
        assert key_of(description["input"]) == description["key"] == file.parent.name


def test_the_results_can_be_rebuilt_from_the_two_durable_places(finished, tmp_path):
    from takd.study.search.optimization import open_search

    before = table(finished)
    root = tmp_path / "elsewhere"
    (root / "tiny").mkdir(parents=True)
    shutil.copy(finished.folder.journal, root / "tiny")
    shutil.copytree(artifacts(finished.folder), root / "artifacts")
    rebuilt = study_folder(str(root), "tiny")
    rebuilt.prepare()
    write_results(rebuilt, open_search(rebuilt))
    pd.testing.assert_frame_equal(pd.read_parquet(rebuilt.trials), before)


def test_epochs_have_a_row_an_epoch_of_every_stage(finished):
    epochs = pd.read_parquet(finished.folder.epochs)
    counts = epochs.groupby("stage_key")["epoch"].agg(["count", "max"])
    assert (counts["count"] == counts["max"]).all()
    assert len(counts) == 14
    assert epochs["train_loss"].notna().all()


def test_workers_are_used_again_for_stages_of_the_same_resources(finished):
    outcomes = [
        json.loads(file.read_text())["outcome"] for file in artifacts(finished.folder).glob("[0-9a-f]*/stage.json")
    ]
    of_this = [each["process"] for each in outcomes if each["origin"]["study"] == "tiny"]
    assert len(of_this) == 14
    assert len(set(of_this)) <= 2 * SLOTS


def test_a_gpu_that_is_not_there_is_one_line_and_no_endless_wait(folder):
    with pytest.raises(InputError, match=r"resources.teacher.gpu is 0.5; Ray has 0 GPUs"):
        run(folder, tiny_space(resources={"teacher": {"gpu": 0.5}}))
    assert not folder.journal.exists()


def test_what_was_lost_after_all_trials_had_ended_is_trained_again(root, finished):
    """A teacher that was found damaged while its students trained, say, and whose study was stopped then."""
    folder = study_folder(str(root), "tiny")
    before = pd.read_parquet(folder.trials)
    [teacher] = before.query("role == 'teacher'")["stage_key"].unique()
    shutil.rmtree(artifacts(folder) / teacher)
    assert run(folder, finished.space).result.trained == 1
    columns = ["trial", "path_seed", "role", "stage_key", "status", "val_accuracy", "epochs"]
    pd.testing.assert_frame_equal(pd.read_parquet(folder.trials)[columns], before[columns])
    assert run(folder, finished.space).result.trained == 0
