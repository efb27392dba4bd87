"""A study whose teacher exists: from a file to students, on after the file has gone, and what is said of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_bad_input, run, tiny_space
from rich.console import Console

from takd.search_spaces import InputError, Space
from takd.study.checks import check_space, with_weights
from takd.study.folder import StudyFolder, study_folder
from takd.study.plan import print_plan
from takd.trainables.datasets.dataset import load
from takd.trainables.models.families import build

SMALL: dict[str, Any] = {"assistants": [], "arms": ["labels", "kd"], "student__temperature": 4, "trials": 2}
SMALL |= {"coverage": 1, "seeds": 1, "confirm": {"seeds": 1}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(build("mlp-64", (1, 28, 28), 10).state_dict(), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def space_of(file: Path, **changes: Any) -> Space:
    own = {"model": "mlp-64", "checkpoint": str(file), "normalize": "dataset"}
    return tiny_space(**{"teacher": own} | SMALL | changes)


def table(folder: StudyFolder) -> pd.DataFrame:
    return pd.read_parquet(folder.trials)


def test_a_study_with_a_given_teacher_trains_students_alone_and_goes_on_without_the_file(ray_slots, file, tmp_path):
    folder, space = study_folder(str(tmp_path / "runs"), "mine"), space_of(file)
    study = run(folder, space, wandb="offline")
    assert study.result.finished
    rows = table(folder)
    assert set(rows["status"]) == {"done"}
    assert study.result.trained == rows[rows["role"] == "student"]["stage_key"].nunique() == 4
    [teacher] = rows[rows["role"] == "teacher"].drop_duplicates("stage_key").to_dict("records")
    assert 0 < teacher["val_accuracy"] < 1
    assert (teacher["train_seconds"], teacher["whole_epochs"], teacher["epochs"], teacher["examples"]) == (0, 0, 0, 0)
    confirmed = rows[(rows["phase"] == "confirm") & (rows["arm"] == "kd") & (rows["role"] == "student")]
    assert confirmed["test_agreement"].notna().all()
    assert len(list((tmp_path / "runs" / "derived").iterdir())) == 1
    file.unlink()
    more = run(folder, space.model_copy(update={"trials": 4, "weights": {}}))
    assert more.result.finished
    assert set(table(folder).query("role == 'teacher'")["stage_key"]) == {teacher["stage_key"]}
    torch.save(build("mlp-64", (1, 28, 28), 10).state_dict(), file)
    with pytest.raises(InputError, match=r"another space: weights.teacher.mlp-64 was \"\w{64}\", is \"\w{64}\""):
        run(folder, space)


def test_of_logits_that_say_nothing_of_validation_and_test_nothing_is_said(ray_slots, tmp_path):
    mnist, folder = load("mnist"), study_folder(str(tmp_path / "runs"), "mine")
    logits = np.zeros((60_000, 10), np.float32)
    logits[mnist.examples("train").rows, mnist.train.labels.numpy()] = 5.0
    np.savez(tmp_path / "teacher.npz", logits=logits)
    space = tiny_space(teacher={"logits": str(tmp_path / "teacher.npz")}, **SMALL)
    assert run(folder, space).result.finished
    rows = table(folder)
    assert set(rows["status"]) == {"done"}
    [teacher] = rows[rows["role"] == "teacher"].drop_duplicates("stage_key").to_dict("records")
    assert teacher["model"] == "logits"
    assert teacher["val_accuracy"] == pytest.approx(np.mean(mnist.validation.labels.numpy() == 0))  # zeros: the first
    assert np.isnan(teacher["parameters"])
    assert rows["test_agreement"].isna().all()
    assert rows.query("role == 'student' and phase == 'confirm'")["test_accuracy"].notna().all()


def test_a_plan_says_what_is_given_and_that_it_costs_nothing(file, tmp_path):
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    print_plan(space_of(file), "space mine", study_folder(str(tmp_path / "runs"), "mine"), console)
    [line] = [each.split() for each in console.export_text().splitlines() if each.startswith("teacher")]
    assert line == ["teacher", "mlp-64", "1", "given", "0", "1"]
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_is_checked_before_anything_is_written(file, tmp_path, takd):
    torch.save(build("mlp-64", (1, 28, 28), 1000).state_dict(), file)
    teacher = f"{{model: mlp-64, checkpoint: {file}, normalize: dataset}}"
    (tmp_path / "mine.yaml").write_text(f"{{dataset: mnist, teacher: {teacher}, student: mlp-4, trials: 2}}")
    called = takd("run", "mine.yaml", "--root", tmp_path / "runs")
    assert_bad_input(called, "space mine.yaml: teacher: checkpoint", "teacher.pth: is of 1,000 classes", "mnist has 10")
    assert not (tmp_path / "runs").exists()


def test_a_given_assistant_is_checked_and_kept_as_a_given_teacher_is(file, tmp_path):
    torch.save(build("mlp-16", (1, 28, 28), 10).state_dict(), tmp_path / "ta.pth")
    own = [{"model": "mlp-16", "checkpoint": str(tmp_path / "ta.pth"), "normalize": "dataset"}]
    space = space_of(file, assistants=own, arms=["takd:mlp-16"], trials=1)
    data, _ = check_space(space, "space mine")
    found = with_weights(space, data, "space mine", study_folder(str(tmp_path / "runs"), "mine"))
    assert {role: [*own] for role, own in found.weights.items()} == {"teacher": ["mlp-64"], "assistant": ["mlp-16"]}
    missing = space_of(tmp_path / "none.pth")
    with pytest.raises(
        InputError, match=r"^space mine: teacher: checkpoint .*none\.pth: no such file; expected a path"
    ):
        with_weights(missing, data, "space mine", study_folder(str(tmp_path / "runs"), "mine"))


def test_a_study_with_a_view_for_each_epoch_derives_each_views_soft_targets_once_for_all_its_students(
    ray_slots, tmp_path
):
    """Of a teacher with fewer epochs of its own, and of mixed images of the students' transfer set; one who stops early
    costs the epochs that it had."""
    views = {"augment": "crop-flip+mixup", "views": "per-epoch"}
    early = {"select": "best", "patience": 1, "learning_rate": 1e-9, "schedule": "constant"}
    space = tiny_space(
        **SMALL | {"confirm": None, "seeds": 2},
        teacher__recipe=views | {"epochs": 2},
        student__recipe=views | early | {"epochs": 10, "examples": 100},
    )
    study = run(study_folder(str(tmp_path / "runs"), "mine"), space)
    assert study.result.finished
    rows = table(study.folder)
    assert set(rows["status"]) == {"done"}
    assert len(list((tmp_path / "runs" / "derived").iterdir())) == 10  # in two parts, of eight and of two views
    students = rows[rows["role"] == "student"]
    assert students["stage_key"].nunique() == 4
    assert set(students["epochs"]) == set(students["whole_epochs"]) == {2}
