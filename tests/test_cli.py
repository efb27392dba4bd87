"""The command line as a person or a script sees it: what it prints, where, and how it exits."""

import gzip
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import TINY, assert_bad_input
from image_folders import write_images

from takd.analysis.evidence.chosen import best_configurations
from takd.analysis.tables import students
from takd.search_spaces import InputError
from takd.study.cli import main

TAKD = Path(sys.executable).with_name("takd")

IMAGES_OPTIONS = ["--size", "--fit", "--color", "--split", "--table", "--skip-broken"]
SPACE_OPTIONS = ["SPACE", "--name", "--root", "--storage", "--trials", "--set", "--debug"]
STUDY_OPTIONS = ["NAME", "--root", "--storage", "--debug"]
EXPORT_SWITCHES = ["--int8", "--max-drop", "--with-preprocessing", "--force"]
OPTIONS = {
    "run": [*SPACE_OPTIONS, "--wandb", "--slots", "--address", "--tensorboard"],
    "plan": SPACE_OPTIONS,
    "status": [*STUDY_OPTIONS, "--follow", "--json"],
    "list": ["--root", "--storage", "--json", "--debug"],
    "remove": [*STUDY_OPTIONS, "--yes"],
    "gc": ["--root", "--storage", "--yes", "--older", "--debug"],
    "dashboard": [*STUDY_OPTIONS, "--port"],
    "sync": [*STUDY_OPTIONS, "--report"],
    "watch": STUDY_OPTIONS,
    "results": [*STUDY_OPTIONS, "--json"],
    "report": STUDY_OPTIONS,
    "compare": STUDY_OPTIONS,
    "export": [
        *STUDY_OPTIONS,
        "--out",
        "--arm",
        "--metric",
        "--max-params",
        "--max-latency",
        "--top",
        *EXPORT_SWITCHES,
    ],
    "verify": ["DIR", "--debug"],
    "predict": ["DIR", "IMAGE", "--json", "--debug"],
    "data": ["DATASET", "--from", "--name", "--validation", *IMAGES_OPTIONS, "--download", "--debug"],
}


@pytest.fixture
def space_file(tmp_path: Path) -> Callable[..., Path]:
    return lambda **changes: write_space(tmp_path / "tiny.yaml", **changes)


def write_space(file: Path, **changes: Any) -> Path:
    file.write_text(yaml.safe_dump(TINY | changes))
    return file


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below, with a digest of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def trials_of(root: Path) -> pd.DataFrame:
    return pd.read_parquet(root / "tiny" / "results" / "trials.parquet")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["frobnicate"], ["frobnicate"]),
        ([], ["COMMAND", "--help"]),
        (["run"], ["SPACE"]),
        (["run", "mnist-gap", "--frob"], ["--frob"]),
        (["run", "mnist-gap", "--trial", "3"], ["--trial"]),  # no abbreviations
        (["run", "no-such-preset"], ["space no-such-preset", "mnist-gap, mnist-methods, mnist-temperature"]),
        (["plan", "no/such/file.yaml"], ["space no/such/file.yaml", "no such file"]),
        (["run", "mnist-gap", "--trials", "0"], ["--trials", "'0'", "at least 1"]),
        (["run", "mnist-gap", "--trials", "many"], ["--trials", "'many'"]),
        (["run", "mnist-gap", "--set", "sampler=tpe", "--trials", "2"], ["trials is 2", "takes 9"]),
        (["run", "mnist-gap", "--slots", "0"], ["--slots", "'0'"]),
        (["run", "mnist-gap", "--wandb", "sometimes"], ["--wandb", "online", "offline", "disabled"]),
        (["run", "mnist-gap", "--name", "../elsewhere"], ["--name ../elsewhere"]),
        (["run", "mnist-gap", "--name", "artifacts"], ["--name artifacts"]),
        (["run", "mnist-gap", "--set", "nonsense"], ["--set nonsense", "KEY=VALUE"]),
        (["run", "mnist-gap", "--set", "student.temperatur=4"], ["temperatur", "did you mean 'temperature'?"]),
        (["run", "mnist-gap", "--set", "student.temperature=-1"], ["student", "temperature is -1", "> 0"]),
        (["run", "mnist-gap", "--set", "student.temperature=[1"], ["--set student.temperature", "not YAML"]),
        (["run", "mnist-gap", "--set", "seeds.first=1"], ["--set seeds.first=1"]),
        (["run", "mnist-gap", "--set", "dataset=cifar"], ["dataset 'cifar' does not exist", "mnist"]),
        (["run", "mnist-gap", "--set", "teacher.model=mlp-0"], ["model 'mlp-0' does not exist", "mlp-H"]),
        (["run", "mnist-gap", "--set", "student.recipe.examples=60000"], ["student.recipe.examples is 60000; 1 to "]),
        (["status", "nothing"], ["study nothing: none in", "takd run"]),
        (["results", "nothing"], ["study nothing: none in"]),
        (["export", "nothing", "--out", "out"], ["study nothing: none in"]),
        (["export", "nothing"], ["--out"]),
        (["export", "tiny", "--out", "out", "--max-latency", "0"], ["--max-latency", "'0'", "milliseconds"]),
        (["verify", "nothing"], ["nothing/model_card.json", "takd export"]),
        (["predict", "nothing", "a.png"], ["nothing/model_card.json", "takd export"]),
        (["dashboard", "nothing"], ["study nothing: none in"]),
        (["sync", "nothing"], ["study nothing: none in"]),
        (["watch", "nothing"], ["study nothing: no W&B runs in", "takd run"]),
        (["data", "cifar", "--from", "."], ["cifar", "mnist"]),
        (["data", "mnist"], ["--from"]),
        (["data", "mhist", "--from", "missing"], ["--from missing: expected MHIST's annotations.csv"]),
        (["data", "cifar10", "--from", "missing"], ["--from missing: no such folder", "--download"]),
        (["data", "images", "--from", "missing"], ["--from missing: there is no such file or folder"]),
        (["data", "images", "--from", ".", "--size", "0"], ["--size", "'0'", "224x160"]),
        (["data", "images", "--from", ".", "--split", "70/20"], ["--split", "'70/20'", "70/15/15"]),
        (["data", "images", "--from", ".", "--fit", "pad"], ["--fit pad: is for images that --size brings"]),
        (["data", "mhist", "--from", ".", "--size", "32"], ["--size 32x32: is for images only"]),
        (["data", "images", "--from", ".", "--name", "mnist"], ["--name mnist: is built in"]),
        (["data", "images", "--from", ".", "--validation", "0"], ["--validation", "'0'", "at least 1"]),
        (["data", "mnist", "--from", ".", "--name", "digits"], ["--name digits: is for images only"]),
        (["data", "mhist", "--from", ".", "--validation", "5"], ["--validation 5: is for images only"]),
        (["data", "mhist", "--from", ".", "--download"], ["--download: mhist can't be fetched", "cifar10, cifar100"]),
        (["data", "--from", "."], ["DATASET is missing", "mnist, cifar10"]),
        (
            ["plan", "mnist-gap", "--set", "dataset=mhist"],
            ["dataset mhist: not converted", "takd data mhist --from DIR"],
        ),
        (["data", "mnist", "--from", "missing"], ["--from missing: no such folder", "train-images-idx3-ubyte"]),
        (["plan", "mnist-gap", "--set", "student.recipe.examples=48000"], ["student.recipe.examples is 48000"]),
        (["status", "two\nlines"], ["study two lines: expected letters"]),
        (["run", "two words"], ["space two words: no such file"]),
        (["data", "mnist", "--from", "."], ["--from .: none of MNIST's files", "train-images-idx3-ubyte"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_nothing_is_written(takd, tmp_path, arguments, expected):
    assert_bad_input(takd(*arguments), *expected)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (yaml.safe_dump(TINY | {"trails": 6}), ["unknown key 'trails'", "did you mean 'trials'?"]),
        (yaml.safe_dump(TINY | {"seeds": 0}), ["seeds is 0"]),
        (yaml.safe_dump({name: TINY[name] for name in TINY if name != "student"}), ["student is missing"]),
        ("teacher: [mlp-64", ["line 1", "not YAML"]),
        ("seeds: 2\ntrials: 3\nseeds: 4", ["line 3", "seeds is there twice; first in line 1"]),
        ("student: {{model}}", ["line 1", "not YAML", "unhashable"]),
        ("- a\n- list\n", ["a space is a mapping"]),
        ("", ["a space is a mapping"]),
        (b"\xff\xfe\x00", ["mnist-gap, mnist-methods, mnist-temperature"]),
        ("teacher: \x00", ["not YAML"]),
    ],
    ids=[
        "unknown-key",
        "value",
        "missing",
        "yaml",
        "key-twice",
        "template",
        "list",
        "empty",
        "bytes",
        "control-character",
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_space_that_is_wrong_is_named_with_the_field(takd, tmp_path, command, content, expected):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_bad_input(takd(command, "mine.yaml"), "space mine.yaml", *expected)
    assert list(tree(tmp_path)) == ["mine.yaml"]


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_root_that_cannot_be_written_is_one_line(takd, tmp_path, space_file, below):
    (tmp_path / "file").write_text("in its place")
    space = space_file()
    assert_bad_input(takd("run", space, "--root", f"file{below}"), str(tmp_path / "file"), "can't be written")
    assert set(tree(tmp_path)) == {"file", "tiny.yaml"}


ANOTHER_LAMBDA = {"student": TINY["student"] | {"lambda": 0.5}}


def test_a_study_that_exists_with_another_space_is_refused_with_the_difference(takd, root, space_file):
    called = takd("run", space_file(**ANOTHER_LAMBDA), "--root", root)
    assert_bad_input(called, "study tiny exists with another space", "student.lambda was 0.7, is 0.5", "--name")


def test_a_study_that_exists_with_another_space_is_left_as_it_was(takd, root, space_file):
    before = tree(root)
    takd("run", space_file(**ANOTHER_LAMBDA), "--root", root)
    assert tree(root) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-images-idx3-ubyte", b"\x00\x00\x08\x03" + b"\x00" * 1000),
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", b"\x00" * 47_040_016),
        ("train-images-idx3-ubyte.gz", gzip.compress(os.urandom(1000))[:-20]),
        ("train-images-idx3-ubyte.gz", b"not gzip"),
        ("t10k-labels-idx1-ubyte", b"alone"),
    ],
    ids=["truncated", "empty", "another-digest", "truncated-gzip", "no-gzip", "others-missing"],
)
def test_mnist_that_is_not_whole_is_named_by_its_file(takd, tmp_path, cache, name, content):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / name).write_bytes(content)
    before = set(tree(cache))
    expected = name if name.startswith("train") else "train-images-idx3-ubyte: missing"
    assert_bad_input(takd("data", "mnist", "--from", tmp_path), f"{tmp_path}/raw/{expected}")
    assert set(tree(cache)) == before


def test_images_are_converted_shown_listed_and_planned_with(takd, tmp_path, own_cache, space_file):
    folder = write_images(tmp_path / "trees")
    called = takd("data", "images", "--from", folder, "--validation", 10)
    assert called.code == 0, called.err
    rows = [line.split() for line in called.out.splitlines()]
    assert rows[:5] == [
        ["class", "train", "validation", "test"],
        ["ash", "16", "4", "4"],
        ["birch", "16", "4", "3"],
        ["cedar", "8", "2", "2"],
        ["all", "40", "10", "9"],
    ]
    assert called.out.splitlines()[5].startswith("trees: images 3x6x8, digest ")
    assert str(own_cache) in called.out.splitlines()[6]
    listed = [line.split() for line in takd("data").out.splitlines()]
    assert [row[:6] for row in listed[1:]] == [
        ["mnist", "50,000", "10,000", "10,000", "10", "1x28x28"],
        ["trees", "40", "10", "9", "3", "3x6x8"],
    ]
    recipe = {"recipe": {"epochs": 1}}
    space = space_file(
        dataset="trees",
        teacher={"model": "mlp-64", **recipe},
        assistants={"models": ["mlp-16"], **recipe},
        student={"model": "mlp-4", **recipe},
    )
    called = takd("plan", space)
    assert (called.code, called.err) == (0, "")
    assert "arms: labels, kd, takd:mlp-16" in called.out


def test_debug_shows_where_bad_input_was_found(takd):
    with pytest.raises(InputError, match="no-such-preset"):  # which Python prints
        takd("plan", "no-such-preset", "--debug")


# Help


@pytest.mark.parametrize(
    "command",
    OPTIONS,
)
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    assert set(OPTIONS[command]) <= words


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert set(OPTIONS) <= set(capsys.readouterr().out.split())


# plan


def row(out: str, *cells: str) -> list[str]:
    """The cells of the table's row that begins with these."""
    [found] = [line.split() for line in out.splitlines() if line.split()[: len(cells)] == list(cells)]
    return found


def test_plan_says_what_would_run_and_writes_nothing(takd, tmp_path, space_file):
    called = takd("plan", space_file())
    assert (called.code, called.err) == (0, "")
    assert "arms: labels, kd, takd:mlp-16\n" in called.out
    assert "6 trials x 2 seeds" in called.out
    assert row(called.out, "teacher", "mlp-64")[2:4] == ["1", "0"]
    assert row(called.out, "student", "mlp-4")[2:4] == ["12", "0"]
    assert re.search(r"about [0-9.]+ min", called.out)
    assert list(tree(tmp_path)) == ["tiny.yaml"]


def test_plan_counts_the_paths_that_are_trained_again_to_confirm(takd, space_file):
    called = takd("plan", space_file(confirm={"seeds": 3, "reseed_path": True}))
    assert row(called.out, "teacher", "mlp-64")[2:4] == ["4", "0"]
    assert row(called.out, "assistant", "mlp-16")[2:4] == ["4", "0"]
    assert row(called.out, "student", "mlp-4")[2:4] == ["21", "0"]


def test_plan_says_what_is_cached_and_leaves_the_study_as_it_was(takd, root, space_file):
    before = tree(root)
    called = takd("plan", space_file(trials=8), "--root", root)
    assert row(called.out, "teacher", "mlp-64")[2:4] == ["1", "1"]
    assert row(called.out, "assistant", "mlp-16")[2:4] == ["1", "1"]
    assert row(called.out, "student", "mlp-4")[2:4] == ["16", "12"]
    assert "6 already started" in called.out
    assert tree(root) == before


def test_plan_of_a_finished_study_says_that_nothing_is_left(takd, root, space_file):
    for weights in (root / "artifacts").glob("[0-9a-f]*/model.safetensors"):
        weights.unlink()  # a search that is over is not trained again
    called = takd("plan", space_file(), "--root", root)
    found = [row(called.out, *each)[2:5] for each in (("teacher", "mlp-64"), ("student", "mlp-4"))]
    assert found == [["1", "1", "-"], ["12", "12", "-"]]
    assert "nothing is left to train" in called.out


def test_plan_of_a_finished_search_has_what_would_confirm_it(takd, root, space_file):
    called = takd("plan", space_file(confirm={"seeds": 3}), "--root", root)
    assert row(called.out, "student", "mlp-4")[2:4] == ["21", "12"]
    assert row(called.out, "teacher", "mlp-64")[2:5] == ["1", "1", "-"]


def test_plan_refuses_the_space_that_run_would_refuse(takd, root, space_file):
    called = takd("plan", space_file(**ANOTHER_LAMBDA), "--root", root)
    assert_bad_input(called, "study tiny exists with another space", "student.lambda was 0.7, is 0.5")


def test_plan_leaves_a_damaged_artifact_to_the_run(takd, root, space_file):
    for weights in (root / "artifacts").glob("[0-9a-f]*/model.safetensors"):
        weights.write_bytes(b"damaged")
    before = tree(root)
    assert row(takd("plan", space_file(trials=8), "--root", root).out, "teacher", "mlp-64")[2:4] == ["1", "0"]
    assert tree(root) == before


def odd_sizes(**changes: Any) -> dict[str, Any]:
    return {"assistants": {"models": ["mlp-64", "mlp-32", "mlp-4"]}, "coverage": 1, **changes}


def test_assistants_of_an_odd_size_are_warned_about(takd, space_file):
    warnings = [line for line in takd("plan", space_file(**odd_sizes())).out.splitlines() if "warning" in line]
    assert len(warnings) == 2
    assert "mlp-64 is no smaller than the teacher mlp-64" in warnings[0]
    assert "mlp-4 is no larger than the student mlp-4" in warnings[1]
    assert all("allow_any_size: true" in line for line in warnings)


SIZES = {"family": "mlp", "size": {"low": 8, "high": 48, "step": 8}}


def test_a_plan_counts_assistants_whose_size_is_searched_and_warns_of_chains_that_may_grow(takd, space_file):
    section = {"models": [SIZES, "mlp-16"], "recipe": {"epochs": 1, "examples": 500}}
    arms = ["kd", "takd:mlp-*", "takd:mlp-16>mlp-*", "takd:mlp-*>mlp-16"]
    out = takd("plan", space_file(assistants=section, arms=arms, trials=40)).out
    warnings = [line for line in out.splitlines() if "warning" in line]
    assert len(warnings) == 2
    assert (
        "arms: takd:mlp-16>mlp-* grows: mlp-* may be mlp-48, which is no smaller than mlp-16, which tea" in warnings[0]
    )
    assert (
        "arms: takd:mlp-*>mlp-16 grows: mlp-16 is no smaller than mlp-* where that is mlp-8, which tea" in warnings[1]
    )
    assert row(out, "assistant", "mlp-*")[2:4] == ["about", "12"]  # six sizes, from the teacher and from mlp-16
    assert row(out, "assistant", "mlp-16")[2:4] == ["about", "7"]  # from each size, and the one that comes first
    assert "mlp-*: one for each size that is chosen, with the time of mlp-24, in the middle" in out.replace("\n", " ")
    missing = section | {"models": {"family": "resnet", "size": {"low": 8, "high": 20}}}
    assert_bad_input(
        takd("plan", space_file(assistants=missing, arms=["kd", "takd:resnet-*"])),
        "assistants.models: resnet-*: size may be 9: ", "a step or choices leave sizes out",
    )  # fmt: skip


def test_allow_any_size_silences_the_warnings(takd, space_file):
    called = takd("plan", space_file(**odd_sizes(allow_any_size=True)))
    assert called.code == 0
    assert "warning" not in called.out + called.err


# status and results


def test_status_counts_stages_by_role_and_state(takd, root):
    called = takd("status", "tiny", "--root", root)
    assert (called.code, called.err) == (0, "")
    assert "6 of 6 trials started (6 complete)" in called.out
    assert row(called.out, "role")[1] == "done"
    assert [int(row(called.out, role)[1]) for role in ("teacher", "assistant", "student")] == [1, 1, 12]


def test_status_has_the_best_of_every_arm_from_the_best_down(takd, root):
    out = takd("status", "tiny", "--root", root).out
    rows = students(trials_of(root))
    best = rows.groupby(["arm", "configuration"])["accuracy"].mean().groupby("arm").max().sort_values(ascending=False)
    shown = [line.split()[1:3] for line in out.splitlines() if line.startswith("best ")]
    assert shown == [[arm, f"{accuracy:.2f}"] for arm, accuracy in best.items()]


def test_results_prints_the_table_of_arms_and_what_its_numbers_are(takd, root):
    called = takd("results", "tiny", "--root", root)
    assert (called.code, called.err) == (0, "")
    rows = students(trials_of(root))
    for arm, best in best_configurations(trials_of(root)).items():
        mean = rows[rows["configuration"] == best]["accuracy"].mean()
        assert f"{mean:.2f}" in row(called.out, arm)
    assert [row(called.out, arm)[1] for arm in ("labels", "kd", "takd:mlp-16")] == ["NOKD", "BLKD", "TAKD"]
    assert "These are validation numbers of the search" in called.out


@pytest.mark.parametrize("lost", [["results/trials.parquet"], ["results", "report"]], ids="+".join)
def test_results_rebuilds_what_was_deleted(takd, root, lost):
    before = trials_of(root)
    for path in (root / "tiny" / name for name in lost):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    assert takd("results", "tiny", "--root", root).code == 0
    pd.testing.assert_frame_equal(trials_of(root), before)
    assert all((root / "tiny" / name).exists() for name in lost)


def test_lines_for_programs_are_not_folded(takd, root):
    """No terminal and no COLUMNS: a note or a path of any length stays on its line."""
    out = takd("results", "tiny", "--root", root).out
    [note] = [line for line in out.splitlines() if line.startswith("These are validation numbers")]
    assert "they cannot prove that a difference is real." in note


def test_a_path_is_printed_as_it_is(takd, root):
    root = root.rename(root.with_name("[bold]runs [old]"))
    called = takd("results", "tiny", "--root", root)
    assert f"{root}/tiny/results" in called.out
