"""What an export says of itself: as JSON for programs, and the same as Markdown for people."""

import html
import json
import platform
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import numpy as np
import torch
from pandas import Series, isna
from torch import Tensor

from takd.analysis.arms import accuracy_interval
from takd.analysis.evidence.chosen import unit_of
from takd.analysis.evidence.statistics import (
    Estimate,
    Interval,
    bounded_interval,
    fraction_interval,
    mean_interval,
    spread_of_paths,
)
from takd.search_spaces import Stage, some
from takd.search_spaces.methods import reuses_head
from takd.search_spaces.metrics import ACCURACY, Metric
from takd.search_spaces.stage import BINS
from takd.study.export.candidates import Candidate, Student
from takd.study.export.exported import CARD, CHECKSUMS, FORMAT, INT8, ONNX, PT2, SOURCE, WEIGHTS
from takd.study.export.onnx_file import INPUT, LATENCY_THREADS, LOGITS, PROBABILITIES
from takd.trainables.binary import binary_metrics
from takd.trainables.datasets.built_in import BUILT_IN, UNKNOWN_LICENCE
from takd.trainables.measuring import measure_logits, positive_scores
from takd.trainables.models.stage_models import size_of_stage

WIDTH = 110  # of Markdown
SHOWN = 20  # names of classes
VERSIONS = ("takd", "torch", "onnx", "onnxruntime")


def model_card(
    student: Student,
    logits: Tensor,
    labels: Tensor,
    files: Mapping[str, Mapping[str, Any]],
    refused: Mapping[str, Mapping[str, float]],
    raw: bool,
) -> dict[str, Any]:
    """Everything an export says. `logits` `[classes, n]` are the measured student's on the test split.

    `files` has by name size, digest, accuracy and latency; `refused` what files lost that were not written; `raw`: the
    files take images as they are.
    """
    stage, dataset, candidate = student.stage, student.dataset, student.candidate
    size = size_of_stage(stage, dataset)
    return {
        "format": FORMAT,
        "name": f"{stage.model} student for {dataset.name}",
        "study": student.folder.name,
        "arm": student.path.arm,
        "configuration": candidate.row["configuration"],
        "stage_key": stage.key,
        "seed": stage.seed,
        "model": stage.model,
        "parameters": size.parameters,
        "flops_per_image": size.flops,
        "classes": list(dataset.classes),
        "input": {
            "name": INPUT,
            "dtype": "uint8" if raw else "float32",
            "shape": ["batch", *dataset.image_shape],
            "preprocessing": "included" if raw else "pixels / 255, minus mean, divided by std, by channel",
            "reading": dataset.reading.values(),
            "mean": list(student.normalization.mean),
            "std": list(student.normalization.std),
        },
        "output": {"name": PROBABILITIES if raw else LOGITS, "shape": ["batch", len(dataset.classes)]},
        "chosen_by": {
            "metric": candidate.metric.name,
            "title": candidate.metric.title,
            "fraction": candidate.metric.fraction,
            "split": "validation",
            "phase": candidate.phase,
            "mean": candidate.mean,
            **_interval(_estimate(candidate.reached.by_unit("chosen_by"), candidate.metric)),
            "students": len(candidate.by_seed),
            "paths": candidate.reached.units if unit_of(candidate.trials) == "path" else None,
            "on_test": _on_test(candidate),
        },
        "path": _stages(student, logits, labels),
        "warnings": list(candidate.warnings),
        "data": {
            "name": dataset.name,
            "digest": dataset.digest,
            "split_seed": dataset.split_seed,
            "sizes": dataset.sizes,
            "license": BUILT_IN[dataset.name].licence if dataset.name in BUILT_IN else UNKNOWN_LICENCE,
        },
        "metrics": {"validation": _validation(student), "test": _test(student, logits, labels)},
        "files": {name: dict(about) for name, about in files.items()},
        "refused": {name: dict(about) for name, about in refused.items()},
        "machine": {
            "processor": _processor(),
            "system": platform.system(),
            "threads": LATENCY_THREADS,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        },
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _interval(estimate: Any) -> dict[str, float | None]:
    """Of 95 %; null where one value alone has none."""
    found = {"low": float(estimate.low), "high": float(estimate.high)}
    return {name: None if np.isnan(value) else value for name, value in found.items()}


def _on_test(candidate: Candidate) -> dict[str, float | None] | None:
    """As the table of arms has it."""
    if not candidate.tested_as:
        return None
    reached, metric = candidate.reached, candidate.metric
    by_unit = reached.by_unit(candidate.tested_as)
    estimate = accuracy_interval(reached) if metric == ACCURACY else _estimate(by_unit, metric)
    return {"mean": fmean(candidate.on_test), **_interval(estimate)}


def _estimate(by_unit: "Series[float]", metric: Metric) -> Estimate | Interval:
    """From the mean of each unit, a path or a student. Fractions lie in [0, 1]."""
    values = by_unit.to_numpy()
    return mean_interval(values) if not metric.fraction else bounded_interval(spread_of_paths(values))


def _stages(student: Student, logits: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The path. Those who taught have a test accuracy where the confirm phase measured it: nothing is chosen by it."""
    own = {student.stage.key: measure_logits(logits, labels)["test_accuracy"]}
    measured = student.candidate.tested | own
    return [_stage(student, each) | {"test_accuracy": measured.get(each.key)} for each in student.path.stages]


def _stage(student: Student, stage: Stage) -> dict[str, Any]:
    outcome = _outcome(student, stage)
    validation = outcome.get("metrics", {}).get("validation") or {}
    return {
        "role": stage.role,
        "model": stage.model,
        "key": stage.key,
        "key_input": stage.key_input(),
        "parameters": _parameters(student, stage),
        "given": {"file": stage.given.file, "sha256": stage.given.digest} if stage.given else None,
        "learned_from": [each.model for each in stage.upstream],
        "temperature": stage.temperature,
        "lambda": stage.lambda_,
        "loss": stage.loss_name,
        "seed": None if stage.given else stage.seed,
        "epochs": None if stage.given else stage.recipe.epochs,
        "examples": None if stage.given else stage.images,
        "validation_accuracy": validation.get("accuracy"),
        "train_seconds": outcome.get("train_seconds"),
    }


def _outcome(student: Student, stage: Stage) -> Mapping[str, Any]:
    found: Mapping[str, Any] = student.descriptions.get(stage.key, {}).get("outcome", {})
    return found


def _parameters(student: Student, stage: Stage) -> int | None:
    """Of a stage's model; not known where its logits are all that is."""
    if not stage.has_weights:
        return None
    return size_of_stage(stage, student.dataset).parameters


def _validation(student: Student) -> dict[str, Any]:
    found: dict[str, Any] = student.descriptions[student.stage.key]["outcome"]["metrics"]["validation"]
    return found


def _test(student: Student, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Fractions with Wilson's interval over images; the loss with Student's t."""
    measured, images = measure_logits(logits, labels), len(labels)
    right = logits.max(dim=0).indices == labels
    losses = torch.nn.functional.cross_entropy(logits.t(), labels, reduction="none")
    by_class = {  # a class that no test image is of has none
        student.dataset.classes[each]: _fraction(int(right[labels == each].sum()), int((labels == each).sum()))
        for each in labels.unique()
    }
    agreement = student.candidate.row["test_agreement"]  # NaN of a student without teacher, null of the search's
    return {
        "images": images,
        "accuracy": _fraction(int(right.sum()), images),
        "loss": {"value": measured["test_loss"], **_interval(mean_interval(losses.double().numpy()))},
        "agreement_with_teacher": None if isna(agreement) else _fraction(round(agreement * images), images),
        "calibration_error": measured["test_ece"],
        "mean_confidence": float(logits.softmax(dim=0).max(dim=0).values.mean()),
        "reliability": measured["test_reliability"],
        "accuracy_by_class": by_class,
        "two_classes": _two_classes(student, logits, labels),
    }


def _two_classes(student: Student, logits: Tensor, labels: Tensor) -> dict[str, Any] | None:
    """See `takd.trainables.binary`; at the threshold that the confirm phase chose on validation."""
    threshold = student.candidate.row.get("test_threshold")
    if threshold is None or isna(threshold):
        return None
    found = binary_metrics(positive_scores(logits), labels.numpy() == 1, float(threshold))
    return {"positive": student.dataset.classes[1]} | {name.removeprefix("test_"): each for name, each in found.items()}


def _fraction(count: int, of: int) -> dict[str, Any]:
    low, high = fraction_interval(count, of)
    return {"value": count / of, "low": low, "high": high, "count": count, "of": of}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def card_file(card: Mapping[str, Any]) -> bytes:
    return json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False).encode()


# For people


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    parts = (_head, _use, _files, _quality, _path, _data, _speed, _limits, _check)
    return "\n\n".join("\n".join(part(card)) for part in parts) + "\n"


def _head(card: Mapping[str, Any]) -> Iterator[str]:
    test = card["metrics"]["test"]["accuracy"]
    yield f"# {card['name']}\n"
    yield _paragraph(
        f"An image classifier with {card['parameters']:,} parameters. It sorts images of {_image(card)} into",
        f"{len(card['classes'])} classes ({some(map(as_text, card['classes']), SHOWN)}), and is right on",
        f"**{_percent(test)}** of",
        f"{test['of']:,} test images (95 % interval {_percents(test)}).",
        _learned(card["path"][-1]),
        f"takd made it, in the study `{card['study']}`, arm `{card['arm']}`.",
    )


def _learned(student: Mapping[str, Any]) -> str:
    """From what, by its key and the models that taught it."""
    given, taught = student["key_input"], " and ".join(student["learned_from"])
    if not taught:
        return "It learned from labels alone."
    terms = [each["method"] for each in given.get("terms", ())]
    where = f" It saw the images of {_seen(given)}, without labels." if "transfer" in given else ""
    if any(map(reuses_head, terms)):
        head = "and ends in the head of that, which was not trained."
        return f"It learned from `{taught}` alone, by {terms[0]}, {head}{where}"
    labels = "labels and from " if _uses_labels(student) else ""
    soft = "the soft targets of " if "loss" in given else ""
    by = f", by {' and '.join(terms)}" if terms else ""
    return f"It learned from {labels}{soft}`{taught}`{by}.{where}"


def _trained_on(student: Mapping[str, Any], own: int) -> str:
    given = student["key_input"]
    if "transfer" in given:
        return f"{student['examples']:,} images of {_seen(given)}"
    return f"{student['examples']:,} of {own:,} training images"


def _uses_labels(stage: Mapping[str, Any]) -> bool:
    """Not where SimKD taught it, nor on the images of another data set."""
    given = stage["key_input"]
    return "transfer" not in given and not any(reuses_head(each["method"]) for each in given.get("terms", ()))


def _seen(given: Mapping[str, Any]) -> str:
    """The data sets whose images a student saw, where that is not its own alone."""
    own = f" and of `{given['dataset']['name']}`" if given.get("with_own") else ""
    return f"`{given['transfer']['name']}`{own}"


def _use(card: Mapping[str, Any]) -> Iterator[str]:
    name, output = card["input"]["name"], card["output"]["name"]
    yield "## Use it\n"
    yield "With takd, on image files of any size and mode:\n"
    yield "```\ntakd predict . picture.png\n```\n"
    yield _reading(card) + "\n"
    yield f"In Python with torch and safetensors alone; `images` are uint8 `{_shape(card['input'])}`, 0 to 255:\n"
    yield "```python\nfrom load import CLASSES, load, predict\n\nprobabilities = predict(load(), images)\n```\n"
    yield "With onnxruntime, on a phone, a server or in a browser; `images` are the same, in NumPy:\n"
    yield "```python\nimport numpy as np\nimport onnxruntime\n"
    yield f'session = onnxruntime.InferenceSession("{ONNX}")'
    given = "images"
    if output == LOGITS:
        for each in ("mean", "std"):
            yield f"{each} = np.float32({card['input'][each]}).reshape(-1, 1, 1)"
        given = "(np.float32(images) / 255 - mean) / std"
    yield f'{output} = session.run(["{output}"], {{"{name}": {given}}})[0]'
    yield "```"


_WHAT = {
    WEIGHTS: "the weights",
    SOURCE: "the network for the weights, as Python source",
    ONNX: "ONNX",
    PT2: "torch.export",
    INT8: "ONNX in int8",
}


def _files(card: Mapping[str, Any]) -> Iterator[str]:
    images, given = card["metrics"]["test"]["images"], card["input"]
    yield "## Files\n"
    yield "| file | what | bytes | test accuracy | same class as measured | probabilities within |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, about in card["files"].items():
        measured = ["-"] * 3
        if "same_class" in about:
            same = f"{about['same_class']:,} of {images:,}"
            measured = [f"{100 * about['test_accuracy']:.2f} %", same, f"{about['largest_difference']:.1e}"]
        yield f"| `{name}` | {_WHAT[name]} | {about['bytes']:,} | {' | '.join(measured)} |"
    yield ""
    takes = "pixels as they are, 0 to 255, to probabilities"
    if card["output"]["name"] == LOGITS:
        mean, std = (", ".join(f"{value:.4f}" for value in given[each]) for each in ("mean", "std"))
        takes = f"pixels / 255, minus the mean ({mean}), divided by the standard deviation ({std}), to logits"
    yield _paragraph(
        f"ONNX and torch.export map `{given['name']}`, {given['dtype']} `{_shape(given)}`, {takes}.",
        "A batch has any size.",
        "Each file was run on all test images and compared with the student that the study measured.",
    )


def _reading(card: Mapping[str, Any]) -> str:
    """How an image file must be read, also by others."""
    reading = card["input"]["reading"]
    size = f"{reading['width']} x {reading['height']}"
    fit = {
        "crop": f"its shorter side is brought to {size} and the centre is cut out",
        "pad": f"its longer side is brought to {size} and the rest is black",
        "stretch": f"it is stretched to {size}",
    }[reading["fit"]]
    return _paragraph(
        "It reads an image as those of the test split were read: it is turned as its EXIF orientation says, laid",
        f"over white, made {'RGB' if reading['color'] == 'rgb' else 'grey'} of 8 bits, and {fit} (width x height,",
        "bilinear, antialiased). Whoever reads images otherwise gets other answers.",
    )


def _quality(card: Mapping[str, Any]) -> Iterator[str]:
    test, chosen = card["metrics"]["test"], card["chosen_by"]
    yield "## How good it is\n"
    yield f"On the test split, {test['images']:,} images that nothing was trained on. 95 % intervals are over images.\n"
    yield "| metric | value | interval |"
    yield "|---|---:|---:|"
    yield f"| accuracy | {_percent(test['accuracy'])} | {_percents(test['accuracy'])} |"
    yield f"| cross-entropy | {test['loss']['value']:.4f} | {test['loss']['low']:.4f} to {test['loss']['high']:.4f} |"
    if agreement := test["agreement_with_teacher"]:
        yield f"| same class as its teacher | {_percent(agreement)} | {_percents(agreement)} |"
    if two := test["two_classes"]:
        yield f"| area under the ROC curve | {two['auc']:.4f} | {two['auc_low']:.4f} to {two['auc_high']:.4f} |"
        positive = as_text(two["positive"])
        at = f"where a probability of {positive} of {two['threshold']:.3f} or more counts as it"
        yield f"| F1 of {positive}, {at} | {two['f1']:.4f} | |"
        yield f"| accuracy there | {100 * two['accuracy_at_threshold']:.2f} % | |"
    yield f"| calibration error, {BINS} bins | {100 * test['calibration_error']:.2f} % | |"
    yield f"| mean confidence | {100 * test['mean_confidence']:.2f} % | |"
    yield ""
    whose = "fresh students of the confirm phase" if chosen["phase"] == "confirm" else "students of the search"
    by = chosen.get("title", chosen["metric"])  # an older card has a name alone
    yield _paragraph(
        f"It was chosen on validation images: by each configuration's mean {by} there, over its {whose}.",
        f"That of `{card['configuration']}` is {_read(chosen['mean'], chosen)}",
        f"over {_students(chosen)}",
        f"{_interval_over(chosen, chosen)}. Of these students it is the best on validation,",
        f"{100 * card['metrics']['validation']['accuracy']:.2f} %. No test image chose anything.",
    )
    if tested := chosen["on_test"]:
        yield ""
        yield _paragraph(
            f"On the test split the mean {by} of the same students is {_read(tested['mean'], chosen)}",
            f"{_interval_over(tested, chosen)}.",
        )


def _students(chosen: Mapping[str, Any]) -> str:
    """An older card says nothing of paths."""
    paths = chosen.get("paths")
    return _count(chosen["students"], "seed") + (f" on {_count(paths, 'path')}" if paths else "")


def _interval_over(about: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    if about["low"] is None:
        return ""
    low, high = (_read(about[end], chosen) for end in ("low", "high"))
    units = "paths" if chosen.get("paths") else "seeds"
    return f"(95 % interval over {units} {low.removesuffix(' %')} to {high})"


def _read(value: float, chosen: Mapping[str, Any]) -> str:
    """As people read what chose the student; an older card doesn't say whether it is a fraction."""
    return f"{100 * value:.2f} %" if chosen.get("fraction") else f"{value:.4f}"


def _path(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## How it learned\n"
    columns = ("stage", "model", "parameters", "learned from", "T", "lambda", "loss", "seed", "epochs", "images")
    yield f"| {' | '.join((*columns, 'validation', 'test', 'key'))} |"
    yield "|---|---|---:|---|---:|---:|---|---:|---:|---:|---:|---:|---|"
    for stage in card["path"]:
        numbers = ["-" if stage[name] is None else f"{stage[name]:g}" for name in ("temperature", "lambda")]
        accuracies, given = [stage[f"{split}_accuracy"] for split in ("validation", "test")], stage["given"]
        trained = [stage["loss"], str(stage["seed"]), str(stage["epochs"])]
        cells = (
            stage["role"],
            f"`{stage['model']}`",
            "not known" if stage["parameters"] is None else f"{stage['parameters']:,}",
            "given" if given else " + ".join([*["labels"] * _uses_labels(stage), *stage["learned_from"]]),
            *numbers,
            *(["-"] * 3 if given else trained),
            "-" if given else f"{stage['examples']:,}",
            *("not known" if accuracy is None else f"{100 * accuracy:.2f} %" for accuracy in accuracies),
            f"`{stage['key'][:12]}`",
        )
        yield f"| {' | '.join(cells)} |"
    for stage in card["path"]:
        if given := stage["given"]:
            yield ""
            yield _paragraph(
                f"The {stage['role']} `{stage['model']}` existed before, as {as_text(given['file'])}: the study keeps",
                f"what it uses of that under the SHA-256 `{given['sha256']}`.",
            )
    yield f"\nEverything that determined a stage is in `{CARD}`; its key is the SHA-256 of that."


def _data(card: Mapping[str, Any]) -> Iterator[str]:
    data = card["data"]
    sizes = ", ".join(f"{size:,} {split}" for split, size in data["sizes"].items())
    yield "## Data\n"
    yield f"`{data['name']}`: {sizes} images; SHA-256 of their content `{data['digest'][:16]}...`.\n"
    yield f"Licence of the data: {data['license']}"


def _speed(card: Mapping[str, Any]) -> Iterator[str]:
    machine = card["machine"]
    yield "## Speed\n"
    yield _paragraph(
        f"{card['flops_per_image']:,} FLOPs an image (a multiply-add is two). Measured in onnxruntime",
        f"{machine['versions']['onnxruntime']} on {machine['processor']}, {machine['system']},",
        f"{_count(machine['threads'], 'thread')}, while the machine may have had other work:",
    )
    yield "\n| file | batch | median | 95th percentile | images a second |"
    yield "|---|---:|---:|---:|---:|"
    for name, about in card["files"].items():
        for each in about.get("latency", ()):
            rate = 1000 * each["batch"] / each["median_ms"]
            cells = (
                f"`{name}`",
                each["batch"],
                f"{each['median_ms']:.3g} ms",
                f"{each['p95_ms']:.3g} ms",
                f"{rate:,.0f}",
            )
            yield f"| {' | '.join(map(str, cells))} |"


def _limits(card: Mapping[str, Any]) -> Iterator[str]:
    test, data = card["metrics"]["test"], card["data"]
    bright = " and ".join(f"{100 * mean:.0f} %" for mean in card["input"]["mean"])
    weakest = sorted(test["accuracy_by_class"].items(), key=lambda each: each[1]["value"])[:3]
    off = 100 * (test["mean_confidence"] - test["accuracy"]["value"])
    yield "## Limits\n"
    yield _item(
        f"It was measured on images of `{data['name']}` and on no others. It names one of its classes for every image,",
        "also for one that shows none of them.",
    )
    yield _item(
        f"Images must be framed as those of `{data['name']}` are. Training pixels have a",
        f"mean brightness of {bright}; the same drawing with dark and light swapped is another image to it.",
    )
    yield _item(
        f"It was trained on {_trained_on(card['path'][-1], data['sizes']['train'])}.",
        "Its weakest classes: "
        + ", ".join(f"{as_text(name)} ({_percent(each)} right)" for name, each in weakest)
        + ".",
    )
    for warning in card["warnings"]:
        yield _item(warning)
    yield _item(f"On average it is {abs(off):.1f} points too {'sure' if off > 0 else 'unsure'} of what it says.")
    if card["chosen_by"]["phase"] == "search":
        yield _item(
            "Its configuration was chosen by the search's validation results, which flatter what they choose: no",
            "student of the study is confirmed.",
        )
    if INT8 in card["files"]:
        about = card["files"][INT8]
        yield _item(
            f"`{INT8}` is not the same model: its accuracy is {_change(about['validation_drop'])} on validation and",
            f"{_change(about['test_drop'])} on test.",
        )
    for name, about in card["refused"].items():
        yield _item(
            f"There is no `{name}`: its accuracy would be {_change(about['validation_drop'])} on validation and",
            f"{_change(about['test_drop'])} on test, and {about['max_drop']:g} was allowed.",
        )
    yield _item(f"`{SOURCE}` and `{PT2}` are programs: run those of people you trust. The other files are data.")


def _check(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## Check it\n"
    yield _paragraph(
        "`takd verify .` checks every digest and key, runs the files on the test split again and compares.",
        f"`sha256sum -c {CHECKSUMS}` checks the digests alone.",
        f"Made on {card['made_at'][:10]} by takd {card['machine']['versions']['takd']}.",
    )


def _change(drop: float) -> str:
    """Of float32's accuracy, in points."""
    return f"{abs(drop):.2f} points {'below' if drop >= 0 else 'above'} that of float32"


def as_text(name: str) -> str:
    """A name that a user gave, so that Markdown shows it as it is: no HTML, no link, no cell of its own."""
    marked = re.sub(r"[\\`*\[\]|~#]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"\\{found[0]}", " ".join(name.split()))
    return html.escape(marked, quote=False)


def _paragraph(*parts: str) -> str:
    return fill(" ".join(parts), WIDTH, break_long_words=False, break_on_hyphens=False)


def _item(*parts: str) -> str:
    return fill(" ".join(("-", *parts)), WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _image(card: Mapping[str, Any]) -> str:
    _, channels, height, width = card["input"]["shape"]
    return f"{height} x {width} pixels and {_count(channels, 'channel')}"


def _shape(about: Mapping[str, Any]) -> str:
    return f"[{', '.join(map(str, about['shape']))}]"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _percent(fraction: Mapping[str, Any]) -> str:
    return f"{100 * fraction['value']:.2f} %"


def _percents(fraction: Mapping[str, Any]) -> str:
    return f"{100 * fraction['low']:.2f} to {100 * fraction['high']:.2f} %"
