"""Exports: the student that ships, files that need no takd, and proof that they compute what was measured."""

import base64
import hashlib
import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import Study, assert_bad_input, run, tiny_space
from markdown_it import MarkdownIt
from PIL import Image
from torch import Tensor, nn

from takd.analysis.arms import arms_table
from takd.analysis.metrics import COLUMNS
from takd.analysis.tables import confirmed as confirmed_rows
from takd.analysis.tables import students
from takd.search_spaces import InputError, key_of
from takd.study.export.candidates import Candidate, find_candidates
from takd.study.export.export import Wanted, check_same, export_best
from takd.study.export.exported import checksums, given
from takd.study.export.model_card import (
    _interval_over,
    _learned,
    _on_test,
    _students,
    _trained_on,
    _uses_labels,
    as_text,
    card_text,
)
from takd.study.export.onnx_file import LOGITS, OnnxModel, onnx_file, quantized
from takd.study.export.torch_files import load_file, pt2_file, pt2_model, traced, weights_file
from takd.study.folder import study_folder
from takd.study.study import open_study
from takd.study.tracking.wandb_log import read_records
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.dataset import load
from takd.trainables.measuring import measure_on_validation
from takd.trainables.models.families import FAMILIES, build, family_of
from takd.trainables.models.pretrained import restore, start_from, without_head
from takd.trainables.models.weights_files import Pretrained
from takd.trainables.store.artifacts import WEIGHTS

MNIST, RGB = (1, 28, 28), (3, 32, 32)
FILES = {
    "student.safetensors", "load.py", "student.onnx", "student.pt2", "model_card.json", "MODEL_CARD.md",
    "checksums.txt",
}  # fmt: skip

# What each model family of the project, and what it may borrow, is exported from. A new family needs a row.
SPECS = {
    "mlp-8": MNIST, "cnn": MNIST, "plain-4": RGB, "resnet-8": RGB, "torchvision/resnet18": MNIST,
    "timm/resnet10t": RGB, "wrn-10-1": RGB, "vgg-8": RGB, "shufflenet-v1": RGB,
}  # fmt: skip
SLOW = {"timm/resnet10t", "wrn-10-1", "vgg-8", "shufflenet-v1"}


class WithConstants(nn.Module):
    """Weights that are used twice, a constant that is in no state dict, and one that is made on the way."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.arange(12.0), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean(dim=(2, 3)).repeat(1, 4) * self.mask
        return self.second(self.first(features).relu()) + torch.tensor([1.0, 2.0] * 6)


def pretrained() -> nn.Module:
    """A model that started from weights which expect other pixels than the dataset's."""
    module = build("plain-2", RGB, 10)
    start_from(Pretrained(without_head(module), Normalization((0.5,) * 3, (0.1,) * 3)), module, NORMALIZATION)
    return restore(build("plain-2", RGB, 10), module.state_dict())


NORMALIZATION = Normalization((0.2,) * 3, (0.3,) * 3)
MODULES: dict[str, Callable[[], nn.Module]] = {"constants": WithConstants, "pretrained": pretrained}


@pytest.fixture(scope="module")
def confirmed(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Study:
    space = tiny_space(confirm={"seeds": 2}, student__recipe={"epochs": 40})
    return run(study_folder(str(tmp_path_factory.mktemp("runs")), "tiny"), space, wandb="offline")


@pytest.fixture(scope="module")
def out(confirmed: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with all files; not to be changed."""
    folder = tmp_path_factory.mktemp("exports") / "best"
    export_best(open_study("tiny", confirmed.folder.root), folder, Wanted(int8=True))
    return folder


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "copy"))


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "model_card.json").read_text())
    return card


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the card, and the checksums with it."""
    card = card_of(folder)
    change(card)
    (folder / "model_card.json").write_text(json.dumps(card))
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "checksums.txt"}
    (folder / "checksums.txt").write_text(checksums(files))


def measured(study: Study, card: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Probabilities of the student on the test images, by its own module from the artifact."""
    mnist = load("mnist")
    model = build(card["model"], mnist.image_shape, 10).eval()
    model.load_state_dict(safetensors.torch.load(study.folder.artifacts.read(card["stage_key"], WEIGHTS)))
    with torch.no_grad():
        images = (mnist.test().images.float() / 255 - card["input"]["mean"][0]) / card["input"]["std"][0]
        return np.asarray(model(images).softmax(dim=1).numpy())


# What is in the folder


def test_an_export_has_its_files_and_each_ones_digest(out):
    assert {file.name for file in out.iterdir()} == FILES | {"student.int8.onnx"}
    card = card_of(out)
    for name, about in card["files"].items():
        content = (out / name).read_bytes()
        assert (about["sha256"], about["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    check = subprocess.run(["sha256sum", "-c", "checksums.txt"], cwd=out, capture_output=True, text=True)
    assert check.returncode == 0
    assert len(check.stdout.splitlines()) == len(FILES)


@pytest.mark.parametrize("file", ["student.onnx", "student.pt2"])
def test_a_file_computes_what_was_measured_on_every_test_image(confirmed, out, file):
    card, mnist = card_of(out), load("mnist")
    images = (mnist.test().images.float() / 255 - card["input"]["mean"][0]) / card["input"]["std"][0]
    if file == "student.onnx":
        session = onnxruntime.InferenceSession(out / file, providers=["CPUExecutionProvider"])
        [logits] = session.run(None, {"images": images.numpy()})
    else:
        logits = torch.export.load(out / file).module()(images).detach().numpy()
    found, expected = torch.from_numpy(logits).softmax(dim=1).numpy(), measured(confirmed, card)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.abs(found - expected).max() < 1e-4
    assert card["files"][file]["same_class"] == 10_000
    assert card["files"][file]["test_accuracy"] == card["metrics"]["test"]["accuracy"]["value"]
    correct = (found.argmax(axis=1) == mnist.test().labels.numpy()).sum()
    assert card["files"][file]["test_correct"] == correct


def test_the_accuracy_of_the_int8_file_is_its_own(out):
    card, mnist = card_of(out), load("mnist")
    model = OnnxModel((out / "student.int8.onnx").read_bytes())
    logits = model(given(mnist.test().images, mnist.normalization))
    assert card["files"]["student.int8.onnx"]["test_correct"] == (logits.argmax(1) == mnist.test().labels.numpy()).sum()
    kinds = {tensor.data_type for tensor in onnx.load(out / "student.int8.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert card["files"]["student.int8.onnx"]["test_accuracy"] > card["metrics"]["test"]["accuracy"]["value"] - 0.05


def test_a_file_that_computes_something_else_is_refused():
    fine = {"same_class": 100, "largest_difference": 1e-6}
    check_same("student.onnx", fine, 100)
    for wrong in ({"same_class": 99}, {"largest_difference": 2e-4}):
        with pytest.raises(InputError, match=r"student\.onnx does not compute what was measured"):
            check_same("student.onnx", fine | wrong, 100)


CLEAN = """
import importlib.util, sys
from pathlib import Path

sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in getattr(each, "__module__", "")]
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in str(each)]
sys.path[:] = [each for each in sys.path if not (Path(each) / "trainables").is_dir()]
for name in ("trainables", "study", "search_spaces", "analysis"):
    assert importlib.util.find_spec(name) is None, name

import numpy as np
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
import load
import torch
images = torch.from_numpy(np.load(sys.argv[2]))
student = load.load()
probabilities = load.predict(student, images)
exported = torch.export.load(folder / "student.pt2").module()(load.preprocess(images)).softmax(1)
assert torch.allclose(probabilities, exported, atol=1e-6)
assert not {"trainables", "study", "onnx"} & set(sys.modules)
np.save(sys.argv[3], probabilities.numpy())
print(",".join(load.CLASSES), sum(each.numel() for each in student.parameters()))
"""


def test_load_py_and_pt2_work_where_there_is_no_takd(confirmed, out, tmp_path):
    np.save(tmp_path / "images.npy", load("mnist").test().images.numpy())
    command = [sys.executable, "-I", "-B", "-c", CLEAN, out, tmp_path / "images.npy", tmp_path / "found.npy"]
    clean = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert clean.returncode == 0, clean.stderr
    card = card_of(out)
    assert clean.stdout.split() == [",".join(card["classes"]), str(card["parameters"])]
    found, expected = np.load(tmp_path / "found.npy"), measured(confirmed, card)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.abs(found - expected).max() < 1e-4


def test_files_with_preprocessing_take_bytes_and_give_probabilities(confirmed, tmp_path, takd):
    export_best(open_study("tiny", confirmed.folder.root), tmp_path / "raw", Wanted(with_preprocessing=True, int8=True))
    card, images = card_of(tmp_path / "raw"), load("mnist").test().images
    assert (card["input"]["dtype"], card["output"]["name"]) == ("uint8", "probabilities")
    expected = measured(confirmed, card)
    session = onnxruntime.InferenceSession(tmp_path / "raw" / "student.onnx", providers=["CPUExecutionProvider"])
    for found in (
        session.run(["probabilities"], {"images": images.numpy()})[0],
        torch.export.load(tmp_path / "raw" / "student.pt2").module()(images).detach().numpy(),
    ):
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
        assert np.abs(found - expected).max() < 1e-4
    assert takd("verify", tmp_path / "raw").code == 0


def test_no_file_says_where_it_was_made(confirmed, out):
    key = card_of(out)["stage_key"]
    assert (out / "student.safetensors").read_bytes() == confirmed.folder.artifacts.read(key, WEIGHTS)
    for file in out.iterdir():
        for place in (str(Path(__file__).parents[2]), "site-packages", confirmed.folder.root):
            assert place.encode() not in file.read_bytes(), file


def test_the_card_says_how_it_learned_how_good_it_is_and_how_fast(confirmed, out):
    card, row = card_of(out), chosen_row(confirmed, card_of(out))
    stages = confirmed.folder.artifacts
    for stage in card["path"]:
        assert key_of(stage["key_input"]) == stage["key"]
        assert (
            stage["validation_accuracy"]
            == stages.describe(stage["key"])["outcome"]["metrics"]["validation"]["accuracy"]
        )
    tested = pd.read_parquet(confirmed.folder.trials).dropna(subset="test_accuracy").set_index("stage_key")
    for stage in card["path"]:
        assert {stage["test_accuracy"]} == set(tested.loc[[stage["key"]], "test_accuracy"])
    for name in ("temperature", "lambda", "seed"):
        assert card["path"][-1][name] == row[name] or pd.isna(row[name])
    test = card["metrics"]["test"]
    assert test["accuracy"]["value"] == row["test_accuracy"]
    assert test["accuracy"]["low"] < row["test_accuracy"] < test["accuracy"]["high"]
    assert test["loss"]["value"] == pytest.approx(row["test_loss"], abs=1e-6)
    assert test["calibration_error"] == pytest.approx(row["test_ece"], abs=1e-6)
    assert [each["batch"] for each in card["files"]["student.onnx"]["latency"]] == [1, 32]
    text = (out / "MODEL_CARD.md").read_text()
    for words in (
        f"{100 * row['test_accuracy']:.2f} %", "CC BY-SA 3.0", *(stage["key"][:12] for stage in card["path"]),
        card["machine"]["processor"], *card["warnings"], "1 thread", "takd verify", *card["files"],
    ):  # fmt: skip
        assert words in text


def chosen_row(study: Study, card: dict[str, Any]) -> "pd.Series[Any]":
    rows = pd.read_parquet(study.folder.trials).query("phase == 'confirm' and role == 'student'")
    return rows[rows["stage_key"] == card["stage_key"]].iloc[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card.pop("files"), "files is missing"),
        (lambda card: card["input"].update(std=[0.0]), "input.std.0 is 0.0"),
        (lambda card: card["input"].update(shape=["batch", 1, 28]), "input.shape.3 is missing"),
        (lambda card: card.update(classes=5), "classes is 5"),
        (lambda card: card.update(format=True), "format is not 1"),
    ],
)
def test_a_card_that_is_none_is_one_line(takd, copy, change, words):
    card = card_of(copy)
    change(card)
    (copy / "model_card.json").write_text(json.dumps(card))
    for command in (["verify", copy], ["predict", copy, copy / "student.onnx"]):
        assert_bad_input(takd(*command), "model_card.json", words)


@pytest.mark.parametrize("own", ["load.py", "__pycache__/thesis.txt", "2024/10/load.py"])
def test_force_replaces_no_folder_that_only_looks_like_an_export(takd, root, tmp_path, own):
    mine = tmp_path / "mine" / own
    mine.parent.mkdir(parents=True)
    mine.write_text("my work")
    assert_bad_input(takd("export", "tiny", "--root", root, "--out", tmp_path / "mine", "--force"), "is no export")
    assert mine.read_text() == "my work"


# Any module


def test_every_model_family_is_exported_here():
    tried = [family_of(spec)[0] for spec in SPECS]
    assert [name for name, family in FAMILIES.items() if family not in tried] == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in (*SPECS, *MODULES)]
)
def test_any_module_exports_and_all_files_agree(name, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = (build(name, SPECS[name], 10) if name in SPECS else MODULES[name]()).eval()
    shape = SPECS.get(name, RGB)
    normalization = Normalization((0.2,) * shape[0], (0.3,) * shape[0])
    images = torch.randint(256, (7, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(torch.from_numpy(given(images, normalization)))
    tied = {key: value.clone() for key, value in module.state_dict().items()}
    program = traced(module, shape)
    (tmp_path / "student.safetensors").write_bytes(weights_file(program, tied))
    (tmp_path / "load.py").write_text(load_file(program, name, shape, ("a",), normalization))
    content, model = pt2_file(program), onnx_file(program, LOGITS)
    spec = importlib.util.spec_from_file_location("student_source", tmp_path / "load.py")
    assert spec
    assert spec.loader
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        torch.testing.assert_close(source.load()(source.preprocess(images)), expected, **tolerance)
    torch.testing.assert_close(
        pt2_model(content)(torch.from_numpy(given(images, normalization))), expected, **tolerance
    )
    for batch in (images, images[:1]):  # any batch size
        found = OnnxModel(model)(given(batch, normalization))
        torch.testing.assert_close(torch.from_numpy(found), expected[: len(batch)], **tolerance)
    if name in SLOW or name == "torchvision/resnet18":
        return  # the others have the same kinds of layers, and int8 costs as much as all else
    int8 = OnnxModel(quantized(model, given(images, normalization)))(given(images, normalization))
    assert int8.shape == expected.shape


# Which student


def test_validation_of_fresh_students_chooses_and_test_reports(confirmed, out):
    rows = confirmed_rows(pd.read_parquet(confirmed.folder.trials))
    best = rows.groupby("configuration")["val_accuracy"].mean().idxmax()
    group = rows[rows["configuration"] == best]
    card, text = card_of(out), (out / "MODEL_CARD.md").read_text().replace("\n", " ")
    chosen = card["chosen_by"]
    assert (card["configuration"], chosen["split"], chosen["phase"]) == (best, "validation", "confirm")
    assert chosen["mean"] == pytest.approx(group["val_accuracy"].mean())
    assert chosen["on_test"]["mean"] == pytest.approx(group["test_accuracy"].mean())
    assert card["stage_key"] == group.sort_values("val_accuracy").iloc[-1]["stage_key"]
    assert "No test image chose anything." in text
    assert f"of the same students is {100 * chosen['on_test']['mean']:.2f} %" in text


def test_students_of_one_path_count_once_in_the_intervals_of_the_card(confirmed):
    """As in the table of arms: five paths of three students are five numbers, not fifteen."""
    trials = open_study("tiny", confirmed.folder.root).trials
    fresh = trials["phase"] == "confirm"
    path = (trials["path_seed"] % 2).where(fresh)
    trials = trials.assign(replicate=path, redrawn=np.where(fresh, "teacher", None))
    table = arms_table(trials).set_index("arm")
    for candidate in candidates(confirmed, trials):
        row, tested = table.loc[candidate.row["arm"]], _on_test(candidate)
        assert [100 * tested[end] for end in ("low", "high")] == pytest.approx([row["low"], row["high"]])
        chosen = {"students": 3, "paths": candidate.reached.units, "fraction": True, "metric": "accuracy"}
        assert _students(chosen) == "3 seeds on 2 paths"
        assert "interval over paths" in _interval_over(tested, chosen)


def test_no_test_number_changes_who_is_chosen(confirmed):
    trials = open_study("tiny", confirmed.folder.root).trials
    for metric in ("accuracy", "loss"):
        before = order(confirmed, metric=metric)
        worst = trials.assign(test_accuracy=1 - trials["test_accuracy"], test_loss=-trials["test_loss"])
        assert order(confirmed, worst, metric=metric) == before


def candidates(
    study: Study, trials: pd.DataFrame | None = None, metric: str = "accuracy", arm: str | None = None
) -> list[Candidate]:
    """The configurations with the student of each, best first."""
    opened = open_study("tiny", study.folder.root)
    stages = opened.stages

    def measure(keys: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        return measure_on_validation(study.folder.artifacts, [stages[key] for key in keys])

    by = COLUMNS[metric].metric
    return find_candidates(opened.trials if trials is None else trials, "tiny", by, arm, measure)


def order(*given: Any, **named: Any) -> list[str]:
    return [str(each) for each in candidates(*given, **named)]


def test_a_metric_that_the_tables_have_of_test_alone_is_measured_on_validation(confirmed):
    """Agreement with the teacher, computed here from both models."""
    opened = open_study("tiny", confirmed.folder.root)
    rows = confirmed_rows(opened.trials)
    keys = rows.loc[rows["arm"] == "kd", "stage_key"].tolist()
    stages = [opened.stages[key] for key in keys]
    found = measure_on_validation(confirmed.folder.artifacts, stages)
    split, normalization = opened.dataset.validation, opened.dataset.normalization
    images = torch.from_numpy(given(split.images, normalization))
    for stage in stages:
        with torch.no_grad():
            own, teacher = (opened.model(each.key)(images).argmax(1) for each in (stage, stage.upstream[0]))
        assert found[stage.key]["agreement"] == pytest.approx(float((own == teacher).float().mean()), abs=1e-3)
    [kd] = candidates(confirmed, metric="agreement", arm="kd")
    assert sorted(kd.by_seed) == sorted(found[key]["agreement"] for key in keys)
    assert sorted(kd.on_test) == sorted(rows.loc[rows["arm"] == "kd", "test_agreement"])


def test_without_a_confirm_phase_the_search_chooses_and_the_export_says_so(takd, root, tmp_path):
    called = takd("export", "tiny", "--root", root, "--out", tmp_path / "out" / "best")
    assert (called.code, called.err) == (0, "")
    assert "chosen on validation, by the mean accuracy of the search (none is confirmed): " in called.out
    assert "on test the mean" not in called.out
    rows = students(pd.read_parquet(root / "tiny" / "results" / "trials.parquet"))
    means = rows.groupby("configuration")["accuracy"].mean()
    best = rows[rows["configuration"] == means.idxmax()]["val_accuracy"].max()
    card = card_of(tmp_path / "out" / "best")
    assert card["metrics"]["validation"]["accuracy"] == best
    assert "no student of the study is confirmed" in (tmp_path / "out" / "best" / "MODEL_CARD.md").read_text().replace(
        "\n  ", " "
    )
    called = takd("export", "tiny", "--root", root, "--out", "other", "--metric", "ece")
    assert_bad_input(called, "--metric ece", "none is confirmed", "valid: accuracy, loss")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--metric", "auc"],
            "--metric auc: no confirmed student of study tiny has it; valid: accuracy, loss, ece, agr",
        ),
        (
            ["--metric", "acuracy"],
            "--metric acuracy: there is none; did you mean 'accuracy'? valid: accuracy, loss, ece",
        ),
        (["--metric", "auc", "--arm", "none"], "--arm none: no finished student; arms with one: "),
        (
            ["--metric", "agreement", "--arm", "labels"],
            "--metric agreement: no confirmed student of arm labels of study tiny has it; valid: accuracy, loss, ece",
        ),
    ],
)
def test_a_metric_that_the_study_has_not_is_told_from_an_arm_that_it_has_not(takd, confirmed, options, line):
    assert_bad_input(takd("export", "tiny", "--root", confirmed.folder.root, "--out", "out", *options), line)


@pytest.mark.parametrize("arm", ["labels", "kd", "takd:mlp-16"])
def test_of_an_arm_alone_only_its_students_are_chosen_among(confirmed, arm):
    found = order(confirmed, arm=arm)
    assert found == [each for each in order(confirmed) if f", {arm}" in each]
    assert len(found) == 1


def test_the_lowest_loss_is_the_best(confirmed):
    rows = confirmed_rows(pd.read_parquet(confirmed.folder.trials))
    best = rows.groupby("configuration")["val_loss"].mean().idxmin()
    assert order(confirmed, metric="loss")[0].endswith(f", {best})")


def test_an_int8_file_that_loses_too_much_is_left_out_and_all_else_is_written(takd, confirmed, tmp_path, monkeypatch):
    """Calibrated on grey images alone it is a real int8 file, and a bad one."""
    bad = "takd.study.export.export.quantized"
    monkeypatch.setattr(bad, lambda model, images: quantized(model, np.zeros_like(images)))
    study = ("export", "tiny", "--root", confirmed.folder.root, "--out", "out", "--arm", "kd", "--metric", "loss")
    called = takd(*study, "--int8", "--max-drop", 2, "--max-params", 3210, "--max-latency", 1000)
    assert called.code == 1
    assert "by the mean loss of fresh students of the confirm phase: " in called.out
    assert "on test the mean loss of the same students is " in called.out
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    card = card_of(tmp_path / "out")
    assert (card["arm"], chosen_row(confirmed, card)["arm"], card["chosen_by"]["metric"]) == ("kd", "kd", "loss")
    lost = card["refused"]["student.int8.onnx"]
    assert lost["validation_drop"] > 2
    assert called.err == (
        f"takd: out/student.int8.onnx: not written, as it loses {lost['validation_drop']:.2f} points on validation and "
        f"{lost['test_drop']:.2f} points on test, against float32, and --max-drop is 2; all other files are there\n"
    )
    assert "There is no `student.int8.onnx`" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert_bad_input(takd(*study, "--max-drop", 2), "--max-drop is only for --int8")
    assert_bad_input(takd(*study, "--int8", "--max-drop", 101), "--max-drop", "expected percentage points, 0 to 100")


def test_the_top_ones_are_each_a_folder_best_first(takd, confirmed, tmp_path):
    called = takd("export", "tiny", "--root", confirmed.folder.root, "--out", "out", "--top", "2")
    assert called.code == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"1", "2"}
    first, second = (card_of(tmp_path / "out" / number) for number in "12")
    assert first["configuration"] != second["configuration"]
    assert first["chosen_by"]["mean"] >= second["chosen_by"]["mean"]
    assert takd("verify", "out/2").code == 0


def test_constraints_that_nobody_meets_name_the_nearest(takd, confirmed, tmp_path):
    study = ("export", "tiny", "--root", confirmed.folder.root, "--out", "out")
    assert_bad_input(takd(*study, "--max-params", 3209), "--max-params 3209", "the nearest is", "3,210 parameters")
    assert_bad_input(takd(*study, "--max-latency", 1e-4), "--max-latency 0.0001", "the nearest is", "ms for one image")
    assert not (tmp_path / "out").exists()


def test_export_of_an_arm_without_a_student_names_those_with_one(takd, root, tmp_path):
    called = takd("export", "tiny", "--root", root, "--out", "out", "--arm", "takd:mlp-99")
    assert_bad_input(called, "--arm takd:mlp-99", "labels", "kd", "takd:mlp-16")
    assert not (tmp_path / "out").exists()


def test_export_of_a_student_whose_artifact_is_gone_says_so(takd, root, tmp_path):
    for artifact in (root / "artifacts").glob("[0-9a-f]*/model.safetensors"):
        artifact.unlink()
    assert_bad_input(takd("export", "tiny", "--root", root, "--out", "out"), "missing or damaged", "takd run")
    assert not (tmp_path / "out").exists()


def test_without_the_extra_one_line_says_what_to_install(takd, root, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for command in (("export", "tiny", "--root", root, "--out", "out"), ("verify", out), ("predict", out, "a.png")):
        assert_bad_input(takd(*command), "onnxruntime", "pip install 'takd[export]'")


# Where it goes


def test_a_folder_that_exists_is_refused_and_only_an_export_is_replaced(takd, confirmed, out, tmp_path):
    """By the same files: of one student they are the same, whenever they are made."""
    command = ("export", "tiny", "--root", confirmed.folder.root, "--out", "out", "--int8")
    (tmp_path / "out").mkdir()
    assert_bad_input(takd(*command), "--out out", "exists", "--force")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "letter.txt").write_text("mine")
    assert_bad_input(takd(*command, "--force"), "--out out", "no export")
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "load.py").write_text("# of another export")
    before = set(tmp_path.iterdir())
    called = takd(*command, "--force")
    assert called.code == 0
    about = card_of(tmp_path / "out")["files"]["student.int8.onnx"]
    said = f"{about['validation_drop']:.2f} points on validation and {about['test_drop']:.2f} points on test"
    assert f"student.int8.onnx loses {said}, against float32" in called.out
    assert set(tmp_path.iterdir()) == before  # nothing is left beside it
    for name in ("student.safetensors", "student.onnx", "student.pt2", "load.py", "student.int8.onnx"):
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes(), name


def test_export_below_a_file_is_refused(takd, root, tmp_path):
    (tmp_path / "file").write_text("in its place")
    assert_bad_input(takd("export", "tiny", "--root", root, "--out", "file/out"), "--out file/out", "can't be written")


# takd verify


def test_verify_measures_again_what_the_card_says_without_the_study(takd, copy):
    (copy / "__pycache__").mkdir()  # someone imported load.py
    called = takd("verify", copy)
    assert (called.code, called.err) == (0, "")
    said = f"{100 * card_of(copy)['metrics']['test']['accuracy']['value']:.2f} % on test, as the card says"
    assert [line for line in called.out.splitlines() if "student.onnx" in line] == [f"student.onnx: {said}"]
    assert f"student.pt2: {said}" in called.out
    assert "student.int8.onnx: " in called.out


@pytest.mark.parametrize("file", [*sorted(FILES), "student.int8.onnx"])
@pytest.mark.parametrize("change", ["a byte", "one more", "gone"])
def test_tampering_with_any_file_is_found_and_the_file_named(takd, copy, file, change):
    place = copy / file
    content = bytearray(place.read_bytes())
    if change == "gone":
        place.unlink()
    else:
        content[len(content) // 2] ^= 1 if change == "a byte" else 0
        place.write_bytes(bytes(content) + (b"\n" if change == "one more" else b""))
    called = takd("verify", copy)
    assert called.code in (1, 2)
    assert called.out == ""
    assert file in called.err


def test_a_file_that_was_added_is_found(takd, copy):
    (copy / "more.py").write_text("")
    called = takd("verify", copy)
    assert (called.code, called.out) == (1, "")
    assert "more.py: not in checksums.txt" in called.err


def test_a_card_that_was_changed_with_its_checksums_is_found(takd, copy):
    rewrite(copy, lambda card: card["files"]["student.onnx"].update(test_correct=9999))
    called = takd("verify", copy)
    assert called.code == 1
    assert re.search(r"student\.onnx: \d+ of 10000 test images right; the card says 9999", called.err)
    rewrite(copy, lambda card: card["path"][-1]["key_input"].update(seed=5))
    assert "the key of the student mlp-4 is not that of its input" in takd("verify", copy).err


def test_weights_that_were_changed_with_their_checksums_are_found(takd, copy):
    model = onnx.load(copy / "student.onnx")
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(model, copy / "student.onnx")
    content = (copy / "student.onnx").read_bytes()
    rewrite(copy, lambda card: card["files"]["student.onnx"].update(sha256=hashlib.sha256(content).hexdigest()))
    assert "student.onnx: " in takd("verify", copy).err


@pytest.mark.parametrize("name", ["<b>", "a|b", "in_situ", "_x_", "*a*", "[x](http://y)", "`c`", "5 & 6", "a\\*b"])
def test_a_name_of_a_users_stands_in_the_card_as_it_is(name):
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(f"| {as_text(name)} | b |\n|---|---|\n")
    assert re.findall(r"<th>(.*?)</th>", shown) == [html.escape(name), "b"]


@pytest.mark.parametrize(
    ("given", "learned", "trained"),
    [
        ({}, "It learned from labels and from `mlp-64`, by rkd.", "50 of 100 training images"),
        (
            {"transfer": {"name": "other"}},
            "It learned from `mlp-64`, by rkd. It saw the images of `other`, without labels.",
            "50 images of `other`",
        ),
        (
            {"transfer": {"name": "other"}, "with_own": True, "dataset": {"name": "own"}},
            "It learned from `mlp-64`, by rkd. It saw the images of `other` and of `own`, without labels.",
            "50 images of `other` and of `own`",
        ),
    ],
)
def test_the_card_of_a_student_that_saw_other_images_says_which_and_that_no_label_was_used(given, learned, trained):
    student = {"key_input": {"terms": [{"method": "rkd"}]} | given, "learned_from": ["mlp-64"], "examples": 50}
    assert _learned(student) == learned
    assert _trained_on(student, own=100) == trained
    assert _uses_labels(student) == (not given)


def test_class_names_are_no_html_in_the_card(out):
    card = card_of(out)
    names = [f"<b>{name}</b>" for name in card["classes"]]
    by_class = dict(zip(names, card["metrics"]["test"]["accuracy_by_class"].values(), strict=False))
    metrics = card["metrics"] | {"test": card["metrics"]["test"] | {"accuracy_by_class": by_class}}
    text = card_text(card | {"classes": names, "metrics": metrics})
    assert "<b>" not in text
    assert text.count("&lt;b&gt;") == 10 + 3


# takd predict


def test_predict_names_the_classes_of_image_files(takd, out, tmp_path, confirmed):
    test, card = load("mnist").test(), card_of(out)
    for number in range(2):
        Image.fromarray(test.images[number, 0].numpy()).save(tmp_path / f"{number}.png")
    Image.fromarray(test.images[0, 0].numpy()).convert("RGB").resize((56, 56)).save(tmp_path / "large.png")
    called = takd("predict", out, "0.png", "1.png", "large.png")
    assert (called.code, called.err) == (0, "")
    expected = measured(confirmed, card)
    lines = [line.split() for line in called.out.splitlines()]
    for number in range(2):
        likely = expected[number].argmax()
        assert lines[number][:3] == [f"{number}.png", str(likely), f"{100 * expected[number, likely]:.2f}"]
    assert lines[2][0] == "large.png"
    told = json.loads(takd("predict", out, "0.png", "--json").out)
    assert [each["image"] for each in told] == ["0.png"]
    assert told[0]["classes"][0]["class"] == lines[0][1]
    assert sum(each["probability"] for each in told[0]["classes"]) == pytest.approx(1, abs=1e-5)


def test_predict_refuses_what_is_no_image(takd, out, tmp_path):
    (tmp_path / "a.txt").write_text("no image")
    assert_bad_input(takd("predict", out, "a.txt"), "a.txt: is no PNG, JPEG, WebP, BMP, TIFF or GIF image")
    both = takd("predict", out, "missing.png", "a.txt")
    assert_bad_input(both, "missing.png: No such file or directory; a.txt: is no PNG")


def test_the_card_says_how_an_image_is_read_and_predict_reads_it_so(out, copy, takd, tmp_path):
    """A drawing on a wide transparent sheet, turned: black on white to the student, who knows white on black."""
    assert card_of(out)["input"]["reading"] == {"width": 28, "height": 28, "fit": "crop", "color": "grey"}
    assert "its shorter side is brought to 28 x 28 and the centre is cut out" in (
        out / "MODEL_CARD.md"
    ).read_text().replace("\n", " ")
    digit = load("mnist").test().images[0, 0].numpy()
    sheet = np.zeros((28, 60, 4), np.uint8)
    sheet[:, 16:44, :3] = digit[..., None]
    sheet[:, 16:44, 3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(sheet).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "sheet.png", exif=exif)
    Image.fromarray(digit).save(tmp_path / "digit.png")
    said = takd("predict", out, "sheet.png", "digit.png").out.splitlines()
    assert said[0].split()[1:] == said[1].split()[1:]
    rewrite(copy, lambda card: card["input"]["reading"].update(fit="shrink"))
    assert_bad_input(takd("predict", copy, "digit.png"), "input.reading.fit", "crop")


# W&B


def test_the_export_is_an_artifact_that_leads_to_its_path(confirmed, out):
    folder, key = confirmed.folder, card_of(out)["stage_key"]
    logs = [list(read_records(file)) for file in folder.local.rglob("*.wandb")]
    exports = [log for log in logs if any(each.run.job_type == "export" for each in log)]
    artifacts = [[each.artifact for each in log if each.HasField("artifact")] for log in exports]
    md5 = base64.b64encode(hashlib.md5((out / "student.onnx").read_bytes()).digest()).decode()
    [(*used, best)] = [
        found
        for found in artifacts
        if any(each.local_path == str(out / "student.onnx") for each in found[-1].manifest.contents)
    ]
    assert (best.name, list(best.aliases), best.use_after_commit) == ("student", ["latest", "best"], False)
    assert md5 in [each.digest for each in best.manifest.contents]
    assert all(each.use_after_commit for each in used)
    assert len(used) == len(card_of(out)["path"])
    assert f"artifacts/{key}/" in used[-1].manifest.contents[0].ref
    left = {each.artifact.digest for log in logs for each in log if each.HasField("artifact")}
    assert {each.digest for each in used} <= left


# Speed
