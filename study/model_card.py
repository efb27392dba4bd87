"""What an export says of itself: as JSON for programs, and the same as Markdown for people."""

import json
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.statistics import CONFIDENCE, fraction_interval, mean_interval
from search_spaces import Stage
from study.candidates import Student
from study.confirm import BINS, measure_logits
from study.exported import CARD, CHECKSUMS, FORMAT, INT8, ONNX, PT2, SOURCE, WEIGHTS
from study.onnx_file import INPUT, LATENCY_THREADS, LOGITS, PROBABILITIES
from trainables.datasets import DATASETS
from trainables.models import size_of

VERSIONS = ("takd", "torch", "onnx", "onnxruntime")


def model_card(
    student: Student, logits: Tensor, labels: Tensor, files: Mapping[str, Mapping[str, Any]], raw: bool
) -> dict[str, Any]:
    """Everything an export says. `logits` `[classes, n]` are the measured student's on the test split.

    `files` has by name size, digest, accuracy and latency; `raw`: the files take images as they are.
    """
    stage, dataset, candidate = student.stage, student.dataset, student.candidate
    size = size_of(stage.model, dataset.image_shape, len(dataset.classes))
    source = DATASETS[dataset.name]
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
            "mean": list(student.normalization.mean),
            "std": list(student.normalization.std),
        },
        "output": {"name": PROBABILITIES if raw else LOGITS, "shape": ["batch", len(dataset.classes)]},
        "chosen_by": {
            "metric": candidate.metric,
            "split": candidate.split,
            "mean": candidate.mean,
            **_interval(mean_interval(candidate.by_seed)),
            "students": len(candidate.by_seed),
        },
        "path": [_stage(student, each) for each in student.path.stages],
        "data": {
            "name": dataset.name,
            "digest": dataset.digest,
            "split_seed": dataset.split_seed,
            "sizes": dataset.sizes,
            "license": source.license,
        },
        "metrics": {"validation": _validation(student), "test": _test(student, logits, labels)},
        "files": {name: dict(about) for name, about in files.items()},
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


def _stage(student: Student, stage: Stage) -> dict[str, Any]:
    outcome = student.descriptions.get(stage.key, {}).get("outcome", {})
    return {
        "role": stage.role,
        "model": stage.model,
        "key": stage.key,
        "key_input": stage.key_input(),
        "parameters": size_of(stage.model, student.dataset.image_shape, len(student.dataset.classes)).parameters,
        "learned_from": [each.model for each in stage.upstream],
        "temperature": stage.temperature,
        "lambda": stage.lambda_,
        "loss": stage.loss.form if stage.loss else "cross-entropy",
        "seed": stage.seed,
        "epochs": stage.recipe.epochs,
        "examples": stage.recipe.examples or stage.dataset.sizes["train"],
        "validation_accuracy": outcome.get("metrics", {}).get("validation", {}).get("accuracy"),
        "train_seconds": outcome.get("train_seconds"),
    }


def _validation(student: Student) -> dict[str, Any]:
    found: dict[str, Any] = student.descriptions[student.stage.key]["outcome"]["metrics"]["validation"]
    return found


def _test(student: Student, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Fractions with Wilson's interval over images; the loss with Student's t."""
    measured, images = measure_logits(logits, labels), len(labels)
    right = logits.max(dim=0).indices == labels
    losses = torch.nn.functional.cross_entropy(logits.t(), labels, reduction="none")
    by_class = [_fraction(int(right[labels == each].sum()), int((labels == each).sum())) for each in labels.unique()]
    agreement = student.candidate.row.get("test_agreement")
    known = isinstance(agreement, float) and not np.isnan(agreement)
    return {
        "images": images,
        "accuracy": _fraction(int(right.sum()), images),
        "loss": {"value": measured["test_loss"], **_interval(mean_interval(losses.double().numpy()))},
        "agreement_with_teacher": _fraction(round(agreement * images), images) if known else None,
        "calibration_error": measured["test_ece"],
        "mean_confidence": float(logits.softmax(dim=0).max(dim=0).values.mean()),
        "reliability": measured["test_reliability"],
        "accuracy_by_class": dict(zip(student.dataset.classes, by_class, strict=True)),
    }


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
    parts = (_head, _use, _files, _metrics, _path, _data, _speed, _limits, _check)
    return "\n\n".join("\n".join(part(card)) for part in parts) + "\n"


def _head(card: Mapping[str, Any]) -> Iterator[str]:
    _, channels, height, width = card["input"]["shape"]
    test, student = card["metrics"]["test"]["accuracy"], card["path"][-1]
    taught = " and ".join(student["learned_from"])
    learned = (
        f"It learned from labels and the soft targets of `{taught}`." if taught else "It learned from labels alone."
    )
    yield f"# {card['name']}"
    yield ""
    yield (
        f"An image classifier with {card['parameters']:,} parameters: images of {height} x {width} pixels and "
        f"{_count(channels, 'channel')} to {len(card['classes'])} classes ({', '.join(card['classes'])}). {learned} "
        f"It is right on **{_percent(test)}** of {test['of']:,} test images. It was made by takd, study "
        f"`{card['study']}`, arm `{card['arm']}`."
    )


def _use(card: Mapping[str, Any]) -> Iterator[str]:
    shape = ", ".join(map(str, card["input"]["shape"]))
    yield "## Use it"
    yield ""
    yield "With takd, on images of any format and size:"
    yield ""
    yield "```\ntakd predict . picture.png\n```"
    yield ""
    yield f"In Python with torch and safetensors alone (`images`: uint8 `[{shape}]`, pixels from 0 to 255):"
    yield ""
    yield "```python\nfrom load import CLASSES, load, predict\n\nprobabilities = predict(load(), images)\n```"
    yield ""
    yield "With onnxruntime, in a phone app, a server or a browser:"
    yield ""
    yield "```python\nimport onnxruntime\n"
    name, output = card["input"]["name"], card["output"]["name"]
    yield f'session = onnxruntime.InferenceSession("{ONNX}")'
    if output == LOGITS:
        yield f"mean, std = (np.float32(each).reshape(-1, 1, 1) for each in ({card['input']['mean']}, {card['input']['std']}))"
        yield f'{output} = session.run(["{output}"], {{"{name}": (np.float32(images) / 255 - mean) / std}})[0]'
    else:
        yield f'{output} = session.run(["{output}"], {{"{name}": images}})[0]'
    yield "```"


_WHAT = {
    WEIGHTS: "the weights",
    SOURCE: "the network as Python source, for the weights",
    ONNX: "ONNX, any batch size",
    PT2: "torch.export, any batch size",
    INT8: "ONNX in int8",
}


def _files(card: Mapping[str, Any]) -> Iterator[str]:
    takes = "images as they are and gives probabilities"
    if card["output"]["name"] == LOGITS:
        takes = "normalised images and gives logits; a softmax of them are probabilities"
    images = card["metrics"]["test"]["images"]
    yield "## Files"
    yield ""
    yield "| file | what | bytes | test accuracy | same class as the measured student | probabilities within |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, about in card["files"].items():
        measured = ["-"] * 3
        if "same_class" in about:
            same = f"{about['same_class']:,} of {images:,}"
            measured = [f"{100 * about['test_accuracy']:.2f} %", same, f"{about['largest_difference']:.1e}"]
        yield f"| `{name}` | {_WHAT[name]} | {about['bytes']:,} | {' | '.join(measured)} |"
    yield ""
    yield f"`{ONNX}` takes `{card['input']['name']}`, {card['input']['dtype']} `{_shape(card['input'])}`, {takes}. So do"
    yield f"`{PT2}` and `{INT8}`, where they are."


def _metrics(card: Mapping[str, Any]) -> Iterator[str]:
    test, chosen = card["metrics"]["test"], card["chosen_by"]
    yield "## How good it is"
    yield ""
    yield f"On the test split ({test['images']:,} images). Intervals of {CONFIDENCE:.0%} are over images."
    yield ""
    yield "| metric | value | interval |"
    yield "|---|---:|---:|"
    yield f"| accuracy | {_percent(test['accuracy'])} | {_percents(test['accuracy'])} |"
    yield f"| cross-entropy | {test['loss']['value']:.4f} | {test['loss']['low']:.4f} to {test['loss']['high']:.4f} |"
    if agreement := test["agreement_with_teacher"]:
        yield f"| same class as its teacher | {_percent(agreement)} | {_percents(agreement)} |"
    yield f"| calibration error ({BINS} bins) | {100 * test['calibration_error']:.2f} % | |"
    yield f"| mean confidence | {100 * test['mean_confidence']:.2f} % | |"
    for name, each in test["accuracy_by_class"].items():
        yield f"| accuracy on class {name} | {_percent(each)} | {_percents(each)} |"
    yield ""
    interval = ""
    if chosen["low"] is not None:
        interval = f", {CONFIDENCE:.0%} interval over seeds {chosen['low']:.4f} to {chosen['high']:.4f}"
    yield (
        f"Chosen for the highest mean {chosen['metric']} on the {chosen['split']} split: {chosen['mean']:.4f} over "
        f"{_count(chosen['students'], 'student')} of `{card['configuration']}`{interval}. Of these students it is the best on "
        f"validation ({100 * card['metrics']['validation']['accuracy']:.2f} %), so that its test accuracy chose no seed."
    )


def _path(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## How it learned"
    yield ""
    yield "| stage | model | parameters | learned from | T | lambda | loss | seed | epochs | images | validation | key |"
    yield "|---|---|---:|---|---:|---:|---|---:|---:|---:|---:|---|"
    for stage in card["path"]:
        source = " + ".join(["labels", *stage["learned_from"]])
        numbers = ["-" if stage[name] is None else f"{stage[name]:g}" for name in ("temperature", "lambda")]
        accuracy = stage["validation_accuracy"]
        shown = "-" if accuracy is None else f"{100 * accuracy:.2f} %"
        yield (
            f"| {stage['role']} | `{stage['model']}` | {stage['parameters']:,} | {source} | {' | '.join(numbers)} | "
            f"{stage['loss']} | {stage['seed']} | {stage['epochs']} | {stage['examples']:,} | {shown} | "
            f"`{stage['key'][:12]}` |"
        )
    yield ""
    yield f"Everything that determined each stage is in `{CARD}`: a key is the SHA-256 of its `key_input`."


def _data(card: Mapping[str, Any]) -> Iterator[str]:
    data = card["data"]
    sizes = ", ".join(f"{size:,} {split}" for split, size in data["sizes"].items())
    yield "## Data"
    yield ""
    yield f"`{data['name']}`: {sizes} images; content digest `{data['digest'][:16]}`. Licence of the data: {data['license']}"


def _speed(card: Mapping[str, Any]) -> Iterator[str]:
    machine = card["machine"]
    yield "## Speed"
    yield ""
    yield f"{card['flops_per_image']:,} FLOPs an image. Measured in onnxruntime {machine['versions']['onnxruntime']} on"
    yield f"{machine['processor']} ({machine['system']}), {_count(machine['threads'], 'thread')}:"
    yield ""
    yield "| file | batch | median | 95th percentile | images a second |"
    yield "|---|---:|---:|---:|---:|"
    for name, about in card["files"].items():
        for each in about.get("latency", ()):
            rate = 1000 * each["batch"] / each["median_ms"]
            yield (
                f"| `{name}` | {each['batch']} | {each['median_ms']:.3g} ms | {each['p95_ms']:.3g} ms | {rate:,.0f} |"
            )


def _limits(card: Mapping[str, Any]) -> Iterator[str]:
    test, chosen, examples = card["metrics"]["test"], card["chosen_by"], card["path"][-1]["examples"]
    _, channels, height, width = card["input"]["shape"]
    bright = " and ".join(f"{mean:.2f}" for mean in card["input"]["mean"])
    worst = min(test["accuracy_by_class"].items(), key=lambda each: each[1]["value"])
    yield "## Limits"
    yield ""
    yield f"- It knows images like those of `{card['data']['name']}`; nothing was measured on any others. For every image, also one"
    yield "  that shows none of its classes, it names one of them."
    yield f"- Images must be brought to {height} x {width} pixels and {_count(channels, 'channel')}; training pixels have a mean of"
    yield f"  {bright} of 1, so dark on light and light on dark are not the same to it."
    yield f"- It was trained on {examples:,} of the {card['data']['sizes']['train']:,} training images. Its weakest class is {worst[0]}"
    yield f"  ({_percent(worst[1])})."
    off = test["mean_confidence"] - test["accuracy"]["value"]
    yield f"- Its probabilities are not exact: on average it is {100 * abs(off):.1f} points too {'sure' if off > 0 else 'unsure'}."
    if chosen["split"] == "test":
        yield "- Its configuration was chosen among others by their test results, which flatters it a little."
    else:
        yield "- Its configuration was chosen by validation results of the search, without a confirm phase."
    if INT8 in card["files"]:
        lost = 100 * (test["accuracy"]["value"] - card["files"][INT8]["test_accuracy"])
        yield f"- `{INT8}` is another model: it is {abs(lost):.2f} points {'worse' if lost > 0 else 'better'} on test."
    yield f"- `{SOURCE}` and `{PT2}` are programs: run those of people you trust. `{ONNX}` and `{WEIGHTS}` are data."


def _check(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## Check it"
    yield ""
    yield f"`takd verify .` checks every digest and measures the files on the test split again; `sha256sum -c {CHECKSUMS}`"
    yield f"checks the digests alone. Made on {card['made_at'][:10]} by takd {card['machine']['versions']['takd']}."


def _shape(about: Mapping[str, Any]) -> str:
    return f"[{', '.join(map(str, about['shape']))}]"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def _percent(fraction: Mapping[str, Any]) -> str:
    return f"{100 * fraction['value']:.2f} %"


def _percents(fraction: Mapping[str, Any]) -> str:
    return f"{100 * fraction['low']:.2f} to {100 * fraction['high']:.2f} %"
