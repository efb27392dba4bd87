"""What finished stages do on a split that they did not learn from: the one look at the test split above all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from takd.search_spaces import WIDEST, InputError, Path, Stage
from takd.search_spaces.metrics import ACCURACY, Metric
from takd.search_spaces.registry import TABLES
from takd.search_spaces.stage import BINS
from takd.trainables.binary import best_threshold, binary_metrics
from takd.trainables.datasets.dataset import Dataset, load_for
from takd.trainables.datasets.splits import SplitImages
from takd.trainables.measured import Measured
from takd.trainables.models.learned import weights_of
from takd.trainables.models.stage_models import finished_module
from takd.trainables.store.artifacts import LOGITS, ArtifactStore, needed_files
from takd.trainables.training.inputs import Pixels, predict
from takd.trainables.training.lanes import form_of
from takd.trainables.training.losses import measure
from takd.trainables.training.scores import scores
from takd.trainables.width import whole_lanes

CPU = torch.device("cpu")


def measure_on_test(
    store: ArtifactStore,
    stages: Sequence[Stage],
    metric: Metric = ACCURACY,
    threads: int | None = None,
    device: torch.device = CPU,
) -> Measured:
    """Measures finished stages on the test split; raises InputError where that can't be read.

    Metrics: `test_accuracy`, `test_loss` (cross-entropy), `test_ece` (expected calibration error), `test_agreement`
    (the part of the images where stage and teacher choose the same class; an ensemble's is that of its mean
    probabilities; none where it is not known what a teacher says of these images), `test_reliability` (by bin of
    confidence: mean confidence, accuracy, count). With two classes, of which the second is the positive one, also those
    of `binary_metrics`, at the threshold of the best F1 on validation; always the `metric` that the study
    goes by. A given teacher whose logits leave out the test images has none.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    new = {stage.key: stage for stage in stages}
    dataset = load_for(stages[0].dataset, store)
    split = dataset.test()
    logits = _logits_with_teachers(store, new, dataset, "test", split.images, device)
    chosen_on = dataset.validation if len(dataset.classes) == 2 else None
    validation = _logits_of(store, new.values(), dataset, "validation", chosen_on.images, device) if chosen_on else {}
    thresholds = {
        key: best_threshold(positive_scores(logits_of), chosen_on.labels.numpy() == 1)
        for key, logits_of in validation.items()
        if chosen_on
    }
    return Measured(
        {key: _measures(stage, logits, split.labels, thresholds.get(key), metric) for key, stage in new.items()},
        {key: logits[key].max(dim=0).indices.numpy().astype(np.uint16) for key in new if key in logits},
        split.labels.numpy().astype(np.uint16),
        _names(dataset),
    )


def _names(dataset: Dataset) -> Sequence[str] | None:
    """Of the test images, where they are known."""
    try:
        return dataset.examples("test").names
    except InputError:  # an earlier version made the entry
        return None


def measure_on_validation(
    store: ArtifactStore, stages: Sequence[Stage], metric: Metric = ACCURACY
) -> dict[str, dict[str, Any]]:
    """By key what `measure_on_test` measures, of the images that choose, under the same names without `test_`.

    With two classes the threshold is chosen on the same images.
    """
    dataset = load_for(stages[0].dataset, store)
    split, new = dataset.validation, {stage.key: stage for stage in stages}
    logits = _logits_with_teachers(store, new, dataset, "validation", split.images)
    found = {}
    for key, stage in new.items():
        threshold = None
        if len(dataset.classes) == 2 and key in logits:
            threshold = best_threshold(positive_scores(logits[key]), split.labels.numpy() == 1)
        measured = _measures(stage, logits, split.labels, threshold, metric)
        found[key] = {name.removeprefix("test_"): value for name, value in measured.items()}
    return found


def _measures(
    stage: Stage, logits: Mapping[str, Tensor], labels: Tensor, threshold: float | None, metric: Metric
) -> dict[str, Any]:
    """Of one stage, by the logits of all on the same images; nothing where it is not known what it says of them."""
    if stage.key not in logits:
        return {}
    own = logits[stage.key]
    found = measure_logits(own, labels)
    if threshold is not None:
        found |= binary_metrics(positive_scores(own), labels.numpy() == 1, threshold)
    if metric.name in TABLES["metric"] and f"test_{metric.name}" not in found:
        found |= {f"test_{name}": value for name, value in scores(own, labels, [metric.name]).items()}
    above = _teachers_of(stage)
    if above and all(each.key in logits for each in above):  # else it is not known what they say of these images
        taught = torch.stack([logits[each.key].softmax(dim=0) for each in above]).mean(dim=0)
        found["test_agreement"] = float((own.max(dim=0).indices == taught.max(dim=0).indices).float().mean())
    return found


def positive_scores(logits: Tensor) -> "np.ndarray[Any, Any]":
    """Probabilities of the second class `[n]` from logits `[classes, n]`."""
    return logits.double().softmax(dim=0)[1].numpy()


def measure_logits(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy (a fraction), cross-entropy and calibration of logits `[classes, n]`."""
    [(loss, accuracy)] = measure(logits[None], labels)
    confidence, chosen = logits.softmax(dim=0).max(dim=0)
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


def _teachers_of(stage: Stage) -> list[Stage]:
    """The teacher at the head of the path, or the members of the ensemble there; none of a stage on labels alone."""
    return [each for each in Path(arm="", student=stage).stages if not each.upstream and each != stage]


def _logits_with_teachers(
    store: ArtifactStore,
    stages: Mapping[str, Stage],
    dataset: Dataset,
    split: str,
    images: SplitImages,
    device: torch.device = CPU,
) -> dict[str, Tensor]:
    """As `_logits_of`, also of those at the head of their paths, as far as these are there."""
    teachers = {each.key: each for stage in stages.values() for each in _teachers_of(stage) if each.key not in stages}
    there = [each for each in teachers.values() if store.has(each.key, needed_files(each))]
    return _logits_of(store, [*stages.values(), *there], dataset, split, images, device)


def _logits_of(
    store: ArtifactStore,
    stages: Iterable[Stage],
    dataset: Dataset,
    split: str,
    images: SplitImages,
    device: torch.device,
) -> dict[str, Tensor]:
    """By key `[classes, n]` what stages say of a split's images; of one known by logits alone where these have it."""
    stages = list(stages)
    found: dict[str, Tensor] = {}
    for stage in stages:
        if not stage.has_weights:
            given = safetensors.torch.load(store.read(stage.key, LOGITS)).get(split)
            found |= {} if given is None else {stage.key: given.t()}
    return found | predict_stages(store, [each for each in stages if each.has_weights], dataset, images, device)


def predict_stages(
    store: ArtifactStore, stages: Sequence[Stage], dataset: Dataset, images: SplitImages, device: torch.device = CPU
) -> dict[str, Tensor]:
    """Logits of finished stages, by key `[classes, n]`; models of the same layers side by side, as in training."""
    found: dict[str, Tensor] = {}
    groups: dict[tuple[Any, ...], list[Stage]] = {}
    for stage in stages:
        ends = (stage.head_of.model, stage.methods) if stage.head_of else ()
        groups.setdefault((stage.model, stage.recipe.dropout, *ends), []).append(stage)
    for alike in groups.values():
        form, layout = form_of(alike[0].model, dataset)
        pixels = Pixels(images, dataset, device, layout, resident=False)
        width = whole_lanes(alike[0], dataset) or WIDEST
        for batch in (alike[start : start + width] for start in range(0, len(alike), width)):
            lanes = form([trained_module(store, stage, dataset) for stage in batch])
            lanes.to(device, memory_format=layout)  # type: ignore[call-overload]
            predicted = predict(lanes, pixels).cpu()
            found |= {stage.key: logits for stage, logits in zip(batch, predicted, strict=True)}
    return found


def trained_module(store: ArtifactStore, stage: Stage, dataset: Dataset) -> nn.Module:
    """The model of a finished stage, with the weights that it left."""
    return finished_module(stage, dataset, weights_of(stage, store))
