"""`takd` in notebooks and scripts: the page that describes it runs, and what is asked wrongly is one line."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SLOTS, TINY, Study, tiny_space
from in_process import train_here
from rich.console import Console

import takd
from takd.analysis.arms import format_arms
from takd.study import cli
from takd.study.folder import study_folder
from takd.study.results import EPOCHS, TRIALS
from takd.study.search.optimization import create_search
from takd.study.stopping import interrupt, stopped_by_signals
from takd.trainables.store.artifacts import WEIGHTS
from takd.trainables.store.derived import VALUES

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


@pytest.fixture
def study(finished: Study) -> takd.Study:
    return takd.open_study("tiny", finished.folder.root)


@pytest.fixture
def own(root: Path) -> takd.Study:
    """The same, to do with as a test likes."""
    return takd.open_study("tiny", root)


def keys(study: takd.Study, role: str) -> list[str]:
    return [key for key, stage in study.stages.items() if stage.role == role]


# The page


@pytest.fixture(scope="module")
def example(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the page's blocks leave, run one after the other in an empty folder."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("notebook"))
    names: dict[str, Any] = {}
    try:
        with patch("takd.study.search.scheduling.run_stages", train_here):
            for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
                exec(compile(block, "docs/api.md", "exec"), names)
        yield names
    finally:
        os.chdir(before)


def test_the_pages_study_is_run_extended_and_opened(example):
    study = example["study"]
    assert study.is_finished
    assert (study.trained, study.search.asked, study.space.budget) == (0, 5, 5)
    assert set(study.trials["status"]) == {"done"}
    assert {stage.role for stage in study.stages.values()} == {"teacher", "assistant", "student"}


def test_the_pages_model_has_the_accuracy_that_its_trial_says(example):
    assert example["accuracy"] == pytest.approx(example["best"]["val_accuracy"], abs=1e-6)


def test_the_pages_soft_targets_are_of_all_training_images(example):
    assert example["soft_targets"].shape == (1, 50000, 10)


def test_the_page_names_every_argument_and_every_column(finished, study):
    named = set(re.findall(r"`([\w ]+)`", PAGE))
    arguments = set(takd.run.__annotations__) - {"return"}
    assert arguments - named == set()
    assert {*TRIALS.names, *EPOCHS.names, *study.arms.columns} - named == set()


def test_the_page_names_what_a_study_has(study):
    named = set(re.findall(r"`(\w+)(?:\(\w*\))?`", PAGE))
    public = {name for name in dir(study) if not name.startswith("_")}
    assert public - named == {"folder"}


# The names


def test_every_name_is_there_and_no_other():
    assert all(getattr(takd, name) is not None for name in takd.__all__)
    assert dir(takd) == sorted(takd.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        takd.nonsense  # noqa: B018


def test_the_command_line_calls_the_same(monkeypatch, capsys, tmp_path):
    def called(*given: object, **named: object) -> None:
        raise takd.InputError("called")

    monkeypatch.setattr("takd.study.study.run", called)
    monkeypatch.setattr("takd.study.study.open_study", called)
    for command in (["run", "mnist-gap"], ["status", "any"], ["results", "any"], ["export", "any", "--out", "out"]):
        assert (cli.main([*command, "--root", str(tmp_path)]), capsys.readouterr().err) == (2, "takd: called\n")


# Spaces


def test_a_space_is_the_same_by_words_and_by_values():
    by_words = takd.load_space("mnist-gap", ["student.recipe.epochs=5", "student.temperature={choices: [1, 4]}"])
    by_values = takd.load_space("mnist-gap", {"student.recipe.epochs": 5, "student.temperature": {"choices": [1, 4]}})
    assert by_words == by_values != takd.load_space("mnist-gap")


def test_a_space_is_made_of_data_of_a_file_and_of_a_space(tmp_path):
    given = {**TINY, "student": dict(TINY["student"])}
    space = takd.load_space(given, {"student.lambda": 0.5, "trials": 8})
    assert (given["student"]["lambda"], space.student.lambda_, space.budget) == (0.7, 0.5, 8)
    assert takd.load_space(tiny_space(), {"student.lambda": 0.5, "trials": 8}) == space
    file = tmp_path / "mine.yaml"
    file.write_text("dataset: mnist\nteacher: mlp-64\nstudent: mlp-4\ntrials: 2\narms: [kd]")
    assert takd.load_space(file).student.model == "mlp-4"


@pytest.mark.parametrize(
    ("space", "overrides", "expected"),
    [
        ("no-such-preset", {}, "space no-such-preset: no such file; presets: .*mnist-gap"),
        (Path("no.yaml"), {}, "space no.yaml: no such file"),
        (TINY, {"student.temperatur": 4}, "space: student: unknown key 'temperatur'; did you mean 'temperature'"),
        (TINY, {"seeds.first": 1}, "override seeds.first: 1: seeds is a value, not a section"),
        (TINY, {"trials": 0}, "space: trials is 0"),
        (TINY, ["trials"], "expected KEY=VALUE"),
        ({}, {}, "is missing"),
    ],
)
def test_a_space_that_cannot_be_is_one_line(space, overrides, expected):
    with pytest.raises(takd.InputError, match=expected) as raised:
        takd.load_space(space, overrides)
    assert "\n" not in str(raised.value)


# Tables


def test_frames_are_those_of_the_parquet_files(study):
    pd.testing.assert_frame_equal(study.trials, pd.read_parquet(study.folder.trials))
    pd.testing.assert_frame_equal(study.epochs, pd.read_parquet(study.folder.epochs))


def test_a_frame_may_be_changed(study):
    study.trials.insert(0, "mine", 1)
    assert "mine" not in study.trials


def test_arms_are_what_results_prints(takd, study):
    printed = [line.split() for line in takd("results", "tiny", "--root", study.root).out.splitlines()]
    for arm, *cells in format_arms(study.arms)[1:]:
        assert [arm, *" ".join(cells).split()] in printed


def test_a_study_without_a_student_has_no_arms(own):
    folder = study_folder(own.root, "young")
    folder.prepare()
    create_search(folder, tiny_space(), own.search.dataset)
    young = takd.open_study("young", own.root)
    assert (len(young.trials), len(young.arms), len(young.stages), young.is_finished) == (0, 0, 0, False)
    with pytest.raises(takd.InputError, match="study young: has no stage abc, and no other yet"):
        young.model("abc")


def test_a_look_writes_nothing(own):
    before = {file: file.read_bytes() for file in Path(own.root).rglob("*") if file.is_file()}
    again = takd.open_study("tiny", own.root)
    _ = again.is_finished, again.trials, again.arms, again.model(keys(again, "student")[0])
    assert {file: file.read_bytes() for file in Path(own.root).rglob("*") if file.is_file()} == before


def test_a_study_with_more_to_try_or_to_confirm_is_not_finished(own):
    assert own.is_finished
    for changes in ({"trials": 8}, {"confirm": {"seeds": 1}}):
        search = create_search(own.folder, tiny_space(**changes), own.search.dataset)
        assert not takd.open_study("tiny", own.root).is_finished, changes
        assert "confirmed" not in search.study.user_attrs  # to look chooses nothing


# What stages left


@pytest.mark.parametrize("role", ["teacher", "assistant", "student"])
def test_a_model_has_its_stages_weights_and_computes_what_was_measured(study, role):
    key = keys(study, role)[0]
    random = torch.random.get_rng_state()
    model = study.model(key)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module.training for module in model.modules())
    scale, shift = study.dataset.normalization.of_bytes()
    split = study.dataset.validation
    with torch.no_grad():
        right = model(split.images * scale + shift).argmax(dim=1) == split.labels
    [measured] = study.trials.query("stage_key == @key")["val_accuracy"].unique()
    assert float(right.float().mean()) == pytest.approx(measured, abs=1e-4)


@pytest.mark.parametrize("role", ["teacher", "assistant"])
def test_soft_targets_are_the_models_logits_of_training_images(study, role):
    key = keys(study, role)[0]
    found = study.soft_targets(key)
    assert (found.shape, found.dtype) == ((1, 50000, 10), np.float32)
    scale, shift = study.dataset.normalization.of_bytes()
    with torch.no_grad():
        logits = study.model(key)(study.dataset.train.images[:500] * scale + shift)
    np.testing.assert_allclose(found[0, :500], logits.numpy(), atol=1e-4)


def test_a_key_may_be_shortened(study):
    key = keys(study, "teacher")[0]
    np.testing.assert_array_equal(study.soft_targets(key[:12]), study.soft_targets(key))


def test_a_key_that_several_stages_have_is_too_short(study):
    with pytest.raises(takd.InputError, match="study tiny: 14 stages have keys that begin with ''; give more of it"):
        study.model("")


@pytest.mark.parametrize("read", [takd.Study.model, takd.Study.soft_targets])
def test_an_unknown_key_is_answered_with_the_nearest(study, read):
    key = keys(study, "assistant")[0]
    wrong = key[:6] + "z" + key[7:12]
    with pytest.raises(takd.InputError) as raised:
        read(study, wrong)
    assert f"has no stage {wrong}; the nearest key begins with {key[:12]} (assistant mlp-16" in str(raised.value)


def test_a_student_has_no_soft_targets(study):
    with pytest.raises(takd.InputError, match=r"\(student mlp-4 .*has no soft targets: nothing learns from it"):
        study.soft_targets(keys(study, "student")[0])


def test_a_stage_that_left_nothing_says_what_became_of_it(own):
    key = keys(own, "student")[0]
    folder = Path(own.root) / "artifacts" / key
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(takd.InputError, match=rf"stage {key[:12]} \(student .*has left nothing: it is unfinished$"):
        takd.open_study("tiny", own.root).model(key)


def test_a_stage_that_failed_says_why(own, monkeypatch):
    key = keys(own, "assistant")[0]
    folder = Path(own.root) / "artifacts" / key
    folder.rename(folder.with_name("elsewhere"))
    for trial in own.search.proposed():
        monkeypatch.setitem(trial.user_attrs, "failures", {key: "its worker died"})
    with pytest.raises(takd.InputError, match=r"has left nothing: it is failed: its worker died$"):
        own.soft_targets(key)


@pytest.mark.parametrize(
    ("read", "file"), [(takd.Study.model, f"artifacts/*/{WEIGHTS}"), (takd.Study.soft_targets, f"derived/*/{VALUES}")]
)
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"damaged")], ids=["gone", "damaged"])
def test_what_is_not_whole_is_no_model(own, read, file, damage):
    key = keys(own, "teacher")[0]
    for each in Path(own.root).glob(file):
        damage(each)
    with pytest.raises(takd.InputError, match=rf"study tiny: stage {key[:12]} .*`takd run` makes it again"):
        read(own, key)


# Runs


def quiet() -> Console:
    return Console(record=True, file=open(os.devnull, "w"), width=200)


@dataclass(frozen=True)
class Resumed:
    """A study that was interrupted in the main thread, and went on in another with other slots, there with workers."""

    raised: BaseException
    handler_kept: bool
    stopped: takd.Study
    again: takd.Study
    printed: str


@pytest.fixture(scope="module")
def resumed(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    root, console = tmp_path_factory.mktemp("interrupted"), quiet()
    space = tiny_space(arms=["kd"], assistants__models=[], trials=8, student__recipe={"epochs": 30})
    own: dict[str, Any] = {"root": root, "wandb": "disabled", "console": console}

    def interrupt_when_something_is_done() -> None:
        until = time.monotonic() + 240
        while not list(root.glob("artifacts/[0-9a-f]*/stage.json")) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt_when_something_is_done).start()
    with (
        pytest.raises(KeyboardInterrupt) as raised,
        patch("takd.study.search.scheduling.run_stages", train_here),
    ):
        takd.run(space, "tiny", slots=SLOTS, **own)
    handler_kept, stopped = signal.getsignal(signal.SIGINT) is before, takd.open_study("tiny", root)
    _ = stopped.trials  # as they are now
    with ThreadPoolExecutor(1) as other:
        again = other.submit(takd.run, stopped.space, "tiny", slots=SLOTS + 1, trials=9, **own).result()
    return Resumed(raised.value, handler_kept, stopped, again, console.export_text())


def finished_stages(study: takd.Study) -> int:
    return study.trials.query("status == 'done'")["stage_key"].nunique()


def test_an_interrupted_run_stops_cleanly(resumed):
    assert (str(resumed.raised), resumed.handler_kept) == ("SIGINT received", True)
    assert 1 <= finished_stages(resumed.stopped) < 17


def test_the_next_run_goes_on_and_extends_the_study_in_another_thread(resumed):
    again = resumed.again
    assert (again.is_finished, again.search.asked, len(again.stages)) == (True, 9, 19)
    assert again.trained == 19 - finished_stages(resumed.stopped)
    pd.testing.assert_frame_equal(again.trials, pd.read_parquet(again.folder.trials))


def test_other_slots_than_those_of_the_ray_that_runs_are_a_warning(resumed):
    warnings = [line for line in resumed.printed.splitlines() if line.startswith("warning: Ray")]
    used = f"with {SLOTS} slots: they are used in place of {SLOTS + 1}; ray.shutdown() ends it"
    assert warnings == [f"warning: Ray runs in this process already, {used}"]


def test_the_second_interrupt_is_pythons_own():
    stop = takd.Stop()
    with stopped_by_signals(stop, again=interrupt):
        signal.raise_signal(signal.SIGINT)
        assert (stop.reason, stop.interrupted) == ("SIGINT received", True)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("interrupted", "raised"), [(True, KeyboardInterrupt), (False, takd.StoppedError)])
def test_a_stop_ends_a_run_with_its_reason(own, interrupted, raised):
    stop = takd.Stop()
    stop.request("enough", interrupted)
    with pytest.raises(raised, match="enough"):
        takd.run(own.space, "tiny", root=own.root, wandb="disabled", console=quiet(), stop=stop)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "../elsewhere"}, "study ../elsewhere"),
        ({"wandb": "sometimes"}, "wandb is 'sometimes'; expected online, offline, disabled, or None"),
        ({"slots": 0}, "slots is 0; expected a whole number of at least 1"),
        ({"slots": 2, "address": "auto"}, "slots is 2 and address auto; a running cluster has its own"),
        ({"trials": 0}, "trials is 0"),
        ({"root": "s3://takd/here"}, "a bucket can't hold Optuna's journal"),
        ({"storage": "nonsense"}, "--storage nonsense: can't be opened"),
        ({"space": tiny_space(teacher__model="mlp-0")}, "space mine: teacher: model 'mlp-0' does not exist"),
    ],
)
def test_a_run_that_cannot_be_is_one_line(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(takd.InputError, match=expected) as raised:
        takd.run(**{"space": tiny_space(), "name": "mine", "console": quiet()} | given)
    assert "\n" not in str(raised.value)


def test_a_cluster_is_not_taken_for_the_ray_that_runs(ray_slots, tmp_path):
    with pytest.raises(takd.InputError, match=r"address 127\.0\.0\.1:1: Ray runs in this process already, elsewhere"):
        takd.run(tiny_space(), "mine", root=tmp_path, address="127.0.0.1:1", wandb="disabled", console=quiet())


def test_a_study_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(takd.InputError, match="study nothing: none in"):
        takd.open_study("nothing", tmp_path)
    monkeypatch.setenv("TAKD_ROOT", str(tmp_path / "elsewhere"))
    with pytest.raises(takd.InputError, match=f"study nothing: none in {tmp_path}/elsewhere/nothing"):
        takd.open_study("nothing")


def test_a_study_in_a_bucket_is_run_and_opened(ray_slots, bucket, database):
    space = tiny_space(arms=["kd"], trials=1, seeds=1, coverage=1, assistants__models=[])
    with patch("takd.study.search.scheduling.run_stages", train_here):
        takd.run(space, "tiny", root=bucket, storage=database, slots=SLOTS, wandb="disabled", console=quiet())
    study = takd.open_study("tiny", bucket, database)
    [teacher], [student] = keys(study, "teacher"), keys(study, "student")
    assert study.is_finished
    assert study.soft_targets(teacher).shape == (1, 50000, 10)
    assert study.model(student)(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    pd.testing.assert_frame_equal(study.trials, takd.open_study("tiny", bucket, database).trials)
