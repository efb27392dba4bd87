"""Studies that exist: gone on with by their names, planned, listed, compared, removed, and what they left collected."""

from pathlib import Path

import yaml
from conftest import TINY, assert_bad_input, run, tiny_space

from takd.study.folder import study_folder


def test_a_study_goes_on_from_its_own_space_by_its_name(takd, root):
    called = takd("plan", "tiny", "--trials", 8, "--root", root)
    assert (called.code, called.err) == (0, "")
    assert "8 trials x 2 seeds" in called.out
    assert "6 already started" in called.out


def test_a_name_that_is_a_file_too_is_that(takd, root, tmp_path):
    (tmp_path / "tiny").write_text(yaml.safe_dump(TINY | {"trials": "many"}))
    assert_bad_input(takd("plan", "tiny", "--root", root), "space tiny: trials is 'many'")


def test_a_space_that_names_code_is_not_read_from_a_root(takd, root):
    space = root / "tiny" / "space.yaml"
    space.write_text(space.read_text() + "code: nets.py\n")
    assert_bad_input(takd("run", "tiny", "--root", root), str(space), "names code", "--name tiny")


def test_a_file_whose_name_is_no_studys_asks_for_one(takd, tmp_path):
    (tmp_path / "my space.yaml").write_text(yaml.safe_dump(TINY))
    assert_bad_input(takd("run", "my space.yaml"), "space my space.yaml: 'my space' can't be a", "with --name")
    assert sorted(path.name for path in Path().iterdir()) == ["my space.yaml"]


def test_fewer_trials_than_there_are_are_said_to_be_there_and_nothing_is_done(takd, tmp_path):
    folder = study_folder(str(tmp_path / "runs"), "tiny")
    run(folder, tiny_space(arms=["labels"], coverage=1, trials=2))
    before = artifact_files(tmp_path / "runs")
    called = takd("run", "tiny", "--trials", 1, "--wandb", "disabled")
    assert (called.code, called.err) == (0, "")
    assert "2 trials are there already and 1 are asked for" in called.out
    assert artifact_files(tmp_path / "runs") == before
    assert "2 of 2 trials started (2 complete)" in takd("status", "tiny").out


def artifact_files(root: Path) -> list[str]:
    return sorted(str(path) for path in (root / "artifacts").rglob("*"))
