"""Studies that exist: gone on with by their names, planned, listed, compared, removed, and what they left collected."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, assert_bad_input, run, tiny_space

from takd.study.cli import main
from takd.study.folder import study_folder
from takd.study.search.lease import acquire_lease
from takd.study.search.storages import open_optuna


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
    text = space.read_text()
    assert "code: []" in text
    space.write_text(text.replace("code: []", "code: [nets.py]"))
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


# list, remove, gc


def test_list_has_a_line_for_each_study_below_the_root(takd, root):
    (root / "damaged").mkdir()
    (root / "damaged" / "space.yaml").write_text("")
    called = takd("list", "--root", root)
    assert (called.code, called.err) == (0, "")
    [damaged, tiny] = [line.split() for line in called.out.splitlines()[1:3]]
    assert damaged[:2] == ["damaged", "unreadable"]
    assert tiny[:5] == ["tiny", "finished", "mnist", "mlp-4", "6/6"]
    assert "validation" in tiny
    assert "damaged: none in" in called.out
    assert "no study below" in takd("list", "--root", root / "empty").out


def test_remove_asks_and_takes_the_study_alone(takd, root, monkeypatch):
    before = artifact_files(root)
    assert_bad_input(takd("remove", "tiny", "--root", root), "nobody is here to be asked; --yes")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert (takd("remove", "tiny", "--root", root).code, (root / "tiny").exists()) == (1, True)
    monkeypatch.setattr("builtins.input", lambda _: "y")
    called = takd("remove", "tiny", "--root", root)
    assert (called.code, called.err) == (0, "")
    assert not (root / "tiny").exists()
    assert artifact_files(root) == before
    assert_bad_input(takd("remove", "tiny", "--yes", "--root", root), "study tiny: none in")


def held(root: Path, name: str = "tiny") -> Any:
    """The lease of a study, as the process that runs it holds it."""
    folder = study_folder(str(root), name)
    return acquire_lease(open_optuna(folder), name, on_lost=lambda _: None, on_wait=lambda _: None)


def test_a_study_that_runs_is_not_removed(takd, root):
    lease = held(root)
    try:
        assert_bad_input(takd("remove", "tiny", "--yes", "--root", root), "study tiny: process", "runs it")
        assert "running" in takd("list", "--root", root).out
    finally:
        lease.release()
    assert "finished" in takd("list", "--root", root).out


def age(root: Path, days: int = 2) -> None:
    for path in root.rglob("*"):
        os.utime(path, (then := time.time() - days * 86400, then), follow_symlinks=False)


def test_gc_finds_what_no_study_uses_and_deletes_it_when_told(takd, root):
    keys = sorted(path.name for path in (root / "artifacts").iterdir())
    stranger, young = "a" * 64, "b" * 64
    for key in (stranger, young):
        shutil.copytree(root / "artifacts" / keys[0], root / "artifacts" / key)
    (root / "checkpoints").mkdir(exist_ok=True)
    (root / "checkpoints" / stranger).write_bytes(b"of a stage that nobody has")
    age(root)
    os.utime(root / "artifacts" / young / "stage.json")
    dry = takd("gc", "--root", root)
    rows = {
        line.split()[0]: line.split()[-3] for line in dry.out.splitlines() if line.split()[-1:][0] in ("B", "kB", "MB")
    }
    assert (rows["artifacts"], rows["checkpoints"], rows["weights"], rows["derived"]) == ("1", "1", "0", "0")
    assert "--yes deletes it" in dry.out
    assert (root / "artifacts" / stranger).exists()
    assert takd("gc", "--yes", "--root", root).code == 0
    assert sorted(path.name for path in (root / "artifacts").iterdir()) == sorted([*keys, young])
    assert list((root / "checkpoints").iterdir()) == []
    assert takd("gc", "--yes", "--older", 0, "--root", root).code == 0
    assert not (root / "artifacts" / young).exists()


def test_gc_after_a_study_was_removed_leaves_nothing(takd, root):
    assert takd("remove", "tiny", "--yes", "--root", root).code == 0
    assert takd("gc", "--yes", "--older", 0, "--root", root).code == 0
    assert [path for kind in ("artifacts", "derived", "weights") for path in (root / kind).glob("*")] == []


def test_gc_keeps_what_a_study_that_runs_could_still_use(takd, root):
    """An artifact of no trial so far, of a model of its space: the next proposal may be it."""
    [some, *_] = sorted((root / "artifacts").iterdir())
    about = json.loads((some / "stage.json").read_text())
    shutil.copytree(some, root / "artifacts" / ("c" * 64))
    (root / "artifacts" / ("c" * 64) / "stage.json").write_text(json.dumps(about | {"key": "c" * 64}))
    lease = held(root)
    try:
        called = takd("gc", "--yes", "--older", 0, "--root", root)
    finally:
        lease.release()
    assert "tiny runs" in called.out
    assert (root / "artifacts" / ("c" * 64)).exists()


def test_gc_collects_nothing_where_a_study_cannot_be_read(takd, root):
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "space.yaml").write_text("")
    before = artifact_files(root)
    called = takd("gc", "--yes", "--older", 0, "--root", root)
    assert_bad_input(called, "gc: study elsewhere: none in", "nothing is collected", "takd remove elsewhere")
    assert artifact_files(root) == before


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert re.fullmatch(r"takd \d+\.\d+.*\n", capsys.readouterr().out)


# --json

PAGE = (Path(__file__).parents[1] / "docs" / "json.md").read_text()


def documented(command: str) -> set[str]:
    section = PAGE.split(f"## takd {command} ")[1].split("\n## ")[0]
    return {
        key
        for line in section.splitlines()
        if line.startswith("| `")
        for key in re.findall("`([^`]+)`", line.split("|")[1])
    }


def keys_of(value: Any, place: str = "") -> set[str]:
    if isinstance(value, dict):
        return {key for name, each in value.items() for key in keys_of(each, f"{place}.{name}".lstrip("."))}
    if isinstance(value, list):
        return {key for each in value for key in keys_of(each, f"{place}[]")}
    return {place}


def document(called: Any) -> Any:
    assert (called.code, called.err) == (0, "")
    return json.loads(called.out)


def test_json_of_status_results_and_list_has_the_keys_that_the_page_says(takd, root):
    status = document(takd("status", "tiny", "--json", "--root", root))
    assert keys_of(status) | {key for key in documented("status") if key.startswith("failures[]")} == documented(
        "status"
    )
    assert status["trials"]["complete"] == 6
    results = document(takd("results", "tiny", "--json", "--root", root))
    assert documented("results") <= keys_of(results)
    assert [row["arm"] for row in results["arms"]] == ["labels", "kd", "takd:mlp-16"]
    [study] = document(takd("list", "--json", "--root", root))
    assert {f"[].{key}" for key in study} == documented("list")
    assert (study["study"], study["state"], study["trials"]) == ("tiny", "finished", 6)


# compare


def test_compare_says_what_differs_and_holds_the_same_arm_against_itself(takd, root, tmp_path):
    other = Path(shutil.copytree(root, tmp_path / "other"))
    space = other / "tiny" / "space.yaml"
    space.write_text(space.read_text().replace("model: mlp-4", "model: mlp-5").replace("lambda: 0.7", "lambda: 0.6"))
    called = takd("compare", "tiny", other / "tiny", "--root", root)
    assert (called.code, called.err) == (0, "")
    assert "warning: another student" in called.out
    assert "another data set" not in called.out
    lines = [line.split() for line in called.out.splitlines()]
    assert ["student.model", "mlp-4", "mlp-5"] in lines
    [kd] = [line for line in lines if line[:2] == ["kd", "+0.00"] and "numbers" in line]
    assert kd[-3:] == ["the", "same", "students"]
    assert_bad_input(takd("compare", "tiny", "tiny", "--root", root), "each named once")
