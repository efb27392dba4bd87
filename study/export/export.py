"""Export: the best student as a folder that can be deployed, with the proof that it computes what was measured."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.export import ExportedProgram

from takd.analysis.metrics import COLUMNS, shown
from takd.analysis.tables import metric_of
from takd.search_spaces import InputError, Stage
from takd.search_spaces.metrics import Metric
from takd.search_spaces.registry import blamed, nearest
from takd.study.export.candidates import Candidate, Student, find_candidates, student_of
from takd.study.export.exported import (
    BYTECODE,
    CARD,
    CARD_TEXT,
    CHECKSUMS,
    INT8,
    ONNX,
    PT2,
    RUNS,
    SOURCE,
    WEIGHTS,
    checksums,
    given,
    probabilities,
)
from takd.study.export.model_card import card_file, card_text, model_card
from takd.study.export.onnx_file import LOGITS, PROBABILITIES, Array, latency, needs_onnx, onnx_file, quantized
from takd.study.export.pareto import TABLE, TABLE_TEXT, front_of, tables
from takd.study.export.torch_files import WithPreprocessing, load_file, pt2_file, traced, weights_file
from takd.study.folder import StudyFolder
from takd.study.study import Study
from takd.study.tracking.wandb_export import write_export_run
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.dataset import transfer_set
from takd.trainables.datasets.splits import Split
from takd.trainables.measuring import measure_on_validation, predict_stages
from takd.trainables.store.storage import sha256

TOLERANCE = 1e-4  # of probabilities, between an exported file and the student that was measured
EXACT = (ONNX, PT2)  # what must compute the same
DROPS = ("validation_drop", "test_drop")  # percentage points that the int8 file loses against float32
CALIBRATION = 1000  # training images
MAX_DROP = 1.0  # percentage points of validation accuracy that the int8 file may lose


@dataclass(frozen=True)
class Wanted:
    """What is asked of an export."""

    arm: str | None = None
    metric: str | None = None  # None: what the study's search went by
    max_params: int | None = None
    max_latency: float | None = None  # milliseconds of one image
    top: int = 1
    pareto: bool = False
    int8: bool = False
    max_drop: float = MAX_DROP
    with_preprocessing: bool = False
    force: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written. The card's `refused` has what an int8 file lost that was not."""

    folder: Path
    candidate: Candidate
    card: Mapping[str, Any]


def export_best(study: Study, out: Path, wanted: Wanted) -> list[Exported]:
    """Writes the best student to `out`, or with `top` the best of several configurations to `out/1`, `out/2`, ...; with
    `pareto` each size of student on the front to a folder of its own, and a table beside them.

    All of it or nothing. Raises InputError where nobody meets the constraints or a file doesn't compute what was
    measured.
    """
    needs_onnx("takd export")
    _check_place(out, wanted.force)
    study.use_code()

    metric = _metric(study, wanted.metric)

    def measure(keys: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        return measure_on_validation(study.folder.artifacts, [study.stages[key] for key in keys], metric)

    candidates = find_candidates(study.trials, study.name, metric, wanted.arm, measure)
    if wanted.pareto:
        front = front_of(candidates, lambda each: _milliseconds(student_of(each, study.folder, study.stages)))
        chosen = [student_of(each.candidate, study.folder, study.stages) for each in front]
        names = [each.folder for each in front]
    else:
        chosen = _meeting(study.folder, study.stages, candidates, wanted)
        names = ["."] if wanted.top == 1 else [str(number + 1) for number in range(len(chosen))]
    made = [_make(student, wanted) for student in chosen]
    folders = {name: files for name, (_, files) in zip(names, made, strict=True)}
    if wanted.pareto:
        folders["."] = tables(front, [card for card, _ in made])
    _write_folder(out, folders)
    for name, student, (card, files) in zip(names, chosen, made, strict=True):
        write_export_run(student.folder, student.path, student.descriptions, out / name, files, card)
    return [
        Exported(out / name, student.candidate, card)
        for name, student, (card, _) in zip(names, chosen, made, strict=True)
    ]


def _metric(study: Study, asked: str | None) -> Metric:
    """What is asked for, else what the study went by; raises InputError on a name that nothing has."""
    own = metric_of(study.trials)
    if asked is None or asked == own.name:
        return own
    if asked not in COLUMNS:
        valid = dict.fromkeys([own.name, *COLUMNS])
        raise InputError(f"--metric {asked}: there is none; {nearest(asked, list(valid))}valid: {', '.join(valid)}")
    return COLUMNS[asked].metric


def print_export(exported: Exported, console: Console) -> None:
    """Who was exported, what chose it, and what the test split says of it."""
    candidate, card = exported.candidate, exported.card
    whose = "fresh students of the confirm phase" if candidate.phase == "confirm" else "the search (none is confirmed)"
    console.print(f"exported {candidate} to {exported.folder}")
    console.print(
        f"chosen on validation, by the mean {candidate.metric.title} of {whose}: "
        f"{shown(candidate.mean, candidate.metric)}; stage {card['stage_key']}"
    )
    if tested := card["chosen_by"]["on_test"]:
        console.print(
            f"on test the mean {candidate.metric.title} of the same students is "
            f"{shown(tested['mean'], candidate.metric)}"
        )
    accuracy = card["metrics"]["test"]["accuracy"]["value"]
    console.print(f"test accuracy {100 * accuracy:.2f} %; {exported.folder}/MODEL_CARD.md says more")
    if about := card["files"].get(INT8):
        console.print(f"{INT8} loses {_lost(about)}, against float32")


def refusals(exported: Exported) -> list[str]:
    """A line for each file that was asked for and not written."""
    return [
        f"{exported.folder}/{name}: not written, as it loses {_lost(about)}, against float32, and --max-drop is "
        f"{about['max_drop']:g}; all other files are there"
        for name, about in exported.card["refused"].items()
    ]


def _lost(about: Mapping[str, Any]) -> str:
    validation, test = (f"{about[name]:.2f} points on {name.removesuffix('_drop')}" for name in DROPS)
    return f"{validation} and {test}"


def _meeting(
    folder: StudyFolder, stages: Mapping[str, Stage], candidates: Sequence[Candidate], wanted: Wanted
) -> list[Student]:
    """The best that meet the constraints, `top` at most; raises InputError with the nearest where none does."""
    met: list[Student] = []
    missed: list[tuple[float, str]] = []  # by how many times, and the candidate with its number
    seconds: dict[tuple[str, int], float] = {}
    for candidate in candidates:
        if len(met) == wanted.top:
            break
        parameters, model = int(candidate.row["parameters"]), str(candidate.row["model"])
        if wanted.max_params is not None and parameters > wanted.max_params:
            missed.append((parameters / wanted.max_params, f"{candidate} with {parameters:,} parameters"))
            continue
        student = student_of(candidate, folder, stages)
        if wanted.max_latency is not None:
            network = model, parameters  # of a model that ends in its teacher's head there are several
            if network not in seconds:
                seconds[network] = _milliseconds(student)  # whatever the weights are
            if seconds[network] > wanted.max_latency:
                text = f"{candidate} with {seconds[network]:.3g} ms for one image"
                missed.append((seconds[network] / wanted.max_latency, text))
                continue
        met.append(student)
    if not met:
        limits = {"--max-params": wanted.max_params, "--max-latency": wanted.max_latency}
        asked = " ".join(f"{name} {value:g}" for name, value in limits.items() if value is not None)
        raise InputError(f"{asked}: no student meets it; the nearest is {min(missed)[1]}")
    return met


def _milliseconds(student: Student) -> float:
    model = onnx_file(_graph(student, student.module()), LOGITS)
    return latency(model, np.zeros(student.dataset.image_shape, np.float32))[0]["median_ms"]


def _make(student: Student, wanted: Wanted) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The card, and all files by name."""
    dataset, raw, module = student.dataset, wanted.with_preprocessing, student.module()
    normalization = None if raw else student.normalization
    plain = deployed = _graph(student, module)
    if raw:
        deployed = _graph(student, WithPreprocessing(module, student.normalization), torch.uint8)
    source = load_file(plain, student.stage.name, dataset.image_shape, dataset.classes, student.normalization)
    files = {
        WEIGHTS: weights_file(plain, student.weights()),
        SOURCE: source.encode(),
        ONNX: onnx_file(deployed, PROBABILITIES if raw else LOGITS),
        PT2: pt2_file(deployed),
    }
    if wanted.int8:
        train = dataset.train
        files[INT8] = quantized(files[ONNX], given(train.images[_calibration(train.labels)], normalization))
    validation, test = dataset.validation, dataset.test()
    logits = predict_stages(student.folder.artifacts, [student.stage], dataset, test.images)[student.stage.key]
    expected = logits.softmax(dim=0).t().numpy()
    about: dict[str, dict[str, Any]] = {}
    for name, content in files.items():
        about[name] = {"sha256": sha256(content), "bytes": len(content)}
        if name in RUNS:
            about[name] |= _compared(
                probabilities(name, content, test.images, normalization), expected, test.labels.numpy()
            )
        if name in EXACT:
            check_same(name, about[name], len(test.labels))
        if name in (ONNX, INT8):
            about[name]["latency"] = latency(content, given(test.images[:1], normalization)[0])
    refused: dict[str, Any] = {}
    if wanted.int8:
        right = {name: _accuracy(name, files[name], validation, normalization) for name in (ONNX, INT8)}
        about[INT8] |= {
            "validation_accuracy": right[INT8],
            "validation_drop": 100 * (right[ONNX] - right[INT8]),
            "test_drop": 100 * (about[ONNX]["test_accuracy"] - about[INT8]["test_accuracy"]),
        }
        if about[INT8]["validation_drop"] > wanted.max_drop + 1e-9:
            del files[INT8]
            lost = about.pop(INT8)
            refused[INT8] = {name: lost[name] for name in DROPS} | {"max_drop": wanted.max_drop}
    card = model_card(student, logits, test.labels, about, refused, raw)
    files |= {CARD: card_file(card), CARD_TEXT: card_text(card).encode()}
    return card, files | {CHECKSUMS: checksums(files).encode()}


def _graph(student: Student, module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """Of a student of any batch; raises InputError, where it can with the line of a user's code, if there is none."""
    try:
        return traced(module, student.dataset.image_shape, dtype)
    except Exception as error:  # of many kinds, which torch has for what it can't trace
        about = blamed(error, f"model {student.stage.model}")
        raise InputError(f"{about}; a model is exported as a graph, which this one can't be traced to") from None


def _calibration(labels: torch.Tensor) -> torch.Tensor:
    """Of the training images, as many of each class, the same ones every time."""
    least = int(labels.bincount().min()) * int(labels.max() + 1)
    return transfer_set(labels, min(CALIBRATION, least), seed=0)


def _accuracy(name: str, content: bytes, split: Split, normalization: Normalization | None) -> float:
    chosen = probabilities(name, content, split.images, normalization).argmax(axis=1)
    return float((chosen == split.labels.numpy()).mean())


def _compared(found: Array, expected: Array, labels: Array) -> dict[str, Any]:
    chosen = found.argmax(axis=1)
    return {
        "test_correct": int((chosen == labels).sum()),
        "test_accuracy": float((chosen == labels).mean()),
        "same_class": int((chosen == expected.argmax(axis=1)).sum()),
        "largest_difference": float(np.abs(found - expected).max()),
    }


def check_same(name: str, found: Mapping[str, Any], images: int) -> None:
    """Raises InputError where a file doesn't name the class of every test image that the measured student names."""
    if found["same_class"] < images or found["largest_difference"] > TOLERANCE:
        raise InputError(
            f"{name} does not compute what was measured: the same class on {found['same_class']} of {images} test "
            f"images, probabilities within {found['largest_difference']:.2g}; expected all, and {TOLERANCE}"
        )


def _check_place(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise InputError(f"--out {out}: exists; name a folder that doesn't, or give --force")
    if not _is_export(out):
        raise InputError(f"--out {out}: is no export, so --force does not replace it")


def _is_export(folder: Path) -> bool:
    """Whether nothing is in it but what an export makes, its checksums or those of the first of `--top` among it."""
    if not folder.is_dir() or folder.is_symlink() or not all(_is_made(each) for each in folder.iterdir()):
        return False
    return any((folder / name).is_file() for name in (CHECKSUMS, f"1/{CHECKSUMS}", TABLE))


def _is_made(place: Path) -> bool:
    """Whether an export has such a file, or with `--top` or `--pareto` such a folder."""
    if place.is_dir() and place.name != BYTECODE:
        return (place.name.isdigit() or (place.parent / TABLE).is_file()) and _is_export(place)
    return place.name in {TABLE, TABLE_TEXT, WEIGHTS, SOURCE, ONNX, PT2, INT8, CARD, CARD_TEXT, CHECKSUMS, BYTECODE}


def _write_folder(out: Path, folders: Mapping[str, Mapping[str, bytes]]) -> None:
    """Under a temporary name beside `out`, then renamed; what was there goes when the new is whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise InputError(f"--out {out}: can't be written ({error.strerror})") from None
    try:
        for name, files in folders.items():
            (temporary / name).mkdir(exist_ok=True)
            for file, content in files.items():
                (temporary / name / file).write_bytes(content)
        temporary.chmod(0o755)
        if out.exists():
            out.rename(old := temporary.with_name(f"{temporary.name}-old"))
            temporary.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(out)
    except OSError as error:
        raise InputError(f"--out {out}: can't be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
