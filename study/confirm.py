"""The confirm phase: the chosen configurations from fresh seeds, and the one look at the test split."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from search_spaces import Stage
from study.folder import StudyFolder
from study.graph import Proposal
from study.results import TEST, read_test
from trainables.artifacts import WEIGHTS, needed_files
from trainables.datasets import Dataset, load
from trainables.lanes import Alone
from trainables.models import build, family_of
from trainables.training import Pixels, measure, predict

BINS = 15  # of the calibration error, as Guo et al. 2017 have it


def measure_on_test(folder: StudyFolder, proposals: Sequence[Proposal]) -> bool:
    """Measures the finished students of the proposals on the test split; returns whether there were any new ones.

    The study's folder keeps the numbers by stage key. Opens the test split unless every student was measured before.
    Metrics: `test_accuracy`, `test_loss` (cross-entropy), `test_ece` (expected calibration error), `test_agreement`
    (the part of the images where student and teacher choose the same class), `test_reliability` (by bin of confidence:
    mean confidence, accuracy, count).
    """
    known = read_test(folder)
    students = {path.student.key: path.student for proposal in proposals for path in proposal.paths}
    new = {key: stage for key, stage in students.items() if key not in known and _is_done(folder, stage)}
    if not new:
        return False
    dataset = load(next(iter(new.values())).dataset.name)
    split = dataset.test()

    predicted: dict[str, Tensor] = {}  # a teacher's once, whoever is compared with it

    def logits(stage: Stage) -> Tensor:
        if stage.key not in predicted:
            predicted[stage.key] = _logits(folder, stage, dataset, split.images)
        return predicted[stage.key]

    for key, stage in new.items():
        known[key] = measure_logits(logits(stage), split.labels)
        if stage.upstream:
            agree = logits(stage).argmax(dim=1) == logits(_teacher_of(stage)).argmax(dim=1)
            known[key]["test_agreement"] = float(agree.float().mean())
    folder.write(TEST, json.dumps(known, indent=1).encode())
    return True


def measure_logits(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy (a fraction), cross-entropy and calibration of logits `[n, classes]`."""
    [(loss, accuracy)] = measure(logits.t()[None], labels)
    confidence, chosen = logits.softmax(dim=1).max(dim=1)
    bins = reliability(confidence.numpy(), (chosen == labels).numpy())
    error = sum(each["count"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / len(labels)
    return {"test_accuracy": accuracy, "test_loss": loss, "test_ece": error, "test_reliability": bins}


def reliability(confidence: "np.ndarray[Any, Any]", right: "np.ndarray[Any, Any]") -> list[Mapping[str, float]]:
    """By bin of equal width, those that are empty left out: mean confidence, accuracy, count."""
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "confidence": float(confidence[index == number].mean()),
            "accuracy": float(right[index == number].mean()),
            "count": int((index == number).sum()),
        }
        for number in np.unique(index)
    ]


def _is_done(folder: StudyFolder, stage: Stage) -> bool:
    return folder.artifacts.has(stage.key, needed_files(stage))


def _teacher_of(stage: Stage) -> Stage:
    while stage.upstream:
        stage = stage.upstream[0]
    return stage


def _logits(folder: StudyFolder, stage: Stage, dataset: Dataset, images: Tensor) -> Tensor:
    """`[n, classes]`"""
    module = build(stage.model, dataset.image_shape, len(dataset.classes), stage.recipe.dropout)
    module.load_state_dict(safetensors.torch.load(folder.artifacts.read(stage.key, WEIGHTS)))
    convolutional = family_of(stage.model)[0].convolutional
    layout = torch.channels_last if convolutional else torch.contiguous_format
    pixels = Pixels(images, dataset, torch.device("cpu"), layout)
    return predict(Alone([module.to(memory_format=layout)]), pixels)[0].t()
