"""The students that no other beats both in what they reach and in what they cost to run: a front over their sizes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from takd.analysis.cost import LATENCY_FILE, STUDENT_COSTS, on_front
from takd.analysis.metrics import shown
from takd.search_spaces import DatasetFingerprint, InputError
from takd.search_spaces.methods import reuses_head
from takd.search_spaces.metrics import ACCURACY
from takd.search_spaces.stage import Term
from takd.study.export.candidates import Candidate
from takd.study.export.onnx_file import LOGITS, latency, needs_onnx, onnx_file
from takd.study.export.torch_files import traced
from takd.trainables.datasets.dataset import Dataset, load_for
from takd.trainables.models.families import build
from takd.trainables.models.stage_models import ending_in_head
from takd.trainables.store.artifacts import ArtifactStore

TABLE = "pareto.csv"
TABLE_TEXT = "PARETO.md"
TITLES = {"parameters": "parameters", "flops_per_image": "FLOPs an image", "milliseconds": "ms an image"}


@dataclass(frozen=True)
class OnFront:
    """A candidate of the front, with its costs by name of STUDENT_COSTS and those that it is on the front of."""

    candidate: Candidate
    costs: Mapping[str, float]
    fronts: tuple[str, ...]
    folder: str  # what its files are below


def front_of(candidates: Sequence[Candidate], milliseconds: Callable[[Candidate], float]) -> list[OnFront]:
    """Of each network the best candidate, where no other is at least as good at a lower cost; cheapest first.

    Those of one model that end in their teacher's head are networks of their own. Candidates come best first, see
    `find_candidates`. Raises InputError where there is one model: it has no front.
    """
    best: dict[tuple[str, int], Candidate] = {}
    for each in candidates:
        best.setdefault((str(each.row["model"]), int(each.row["parameters"])), each)
    models = Counter(model for model, _ in best)
    if len(models) < 2:
        raise InputError(
            f"--pareto: all students are {', '.join(models)}; a front needs students of several sizes, as factors: "
            "{student.model: [mlp-4, mlp-8]} has them"
        )
    costs = [
        {
            "parameters": float(each.row["parameters"]),
            "flops_per_image": float(each.row["flops_per_image"]),
            "milliseconds": milliseconds(each),
        }
        for each in best.values()
    ]
    higher = candidates[0].metric.higher
    values = np.array([each.mean if higher else -each.mean for each in best.values()])
    fronts = {name: on_front(np.array([own[name] for own in costs]), values) for name in STUDENT_COSTS}
    found = [
        OnFront(
            each,
            costs[place],
            tuple(name for name in STUDENT_COSTS if fronts[name][place]),
            "-".join([model.replace("/", "-"), *([str(parameters)] if models[model] > 1 else [])]),
        )
        for place, ((model, parameters), each) in enumerate(best.items())
    ]
    return sorted((each for each in found if each.fronts), key=lambda each: each.costs["parameters"])


def tables(front: Sequence[OnFront], cards: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The summary of an export of a front, for programs and for people, by file name."""
    header, *rows = _cells(front, cards)
    text = [f"# The Pareto front of {cards[0]['study']}\n", _sentence(front[0].candidate)]
    text += ["", _row(header), _row("---" for _ in header), *map(_row, rows), ""]
    comma = [",".join(f'"{cell}"' if "," in cell else cell for cell in line) for line in _numbers(front, cards)]
    return {TABLE: ("\n".join(comma) + "\n").encode(), TABLE_TEXT: "\n".join(text).encode()}


def _sentence(candidate: Candidate) -> str:
    whose = "fresh students of the confirm phase" if candidate.phase == "confirm" else "the students of the search"
    return (
        f"Each student is the best of its size: chosen on validation, by the mean {candidate.metric.title} of {whose}. "
        "None is left out that no other beats in that mean at a lower cost; the last column says in which costs. Test "
        "results chose nothing."
    )


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(front: Sequence[OnFront], cards: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    metric = front[0].candidate.metric
    yield ["folder", "arm", f"mean validation {metric.title}", "test accuracy", *TITLES.values(), "on the front of"]
    for each, card in zip(front, cards, strict=True):
        costs = each.costs
        yield [
            each.folder,
            str(each.candidate.row["arm"]),
            shown(each.candidate.mean, metric),
            shown(card["metrics"]["test"]["accuracy"]["value"], ACCURACY),
            f"{costs['parameters']:,.0f}",
            f"{costs['flops_per_image']:,.0f}",
            f"{costs['milliseconds']:.3g}",
            ", ".join(TITLES[cost] for cost in each.fronts),
        ]


def _numbers(front: Sequence[OnFront], cards: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["folder", "model", "arm", "configuration", "metric", "validation_mean", "test_accuracy", *TITLES, "fronts"]
    for each, card in zip(front, cards, strict=True):
        row, measured = each.candidate.row, card["metrics"]["test"]["accuracy"]["value"]
        about = [each.folder, row["model"], row["arm"], row["configuration"], each.candidate.metric.name]
        numbers = [each.candidate.mean, measured, *each.costs.values()]
        yield [*map(str, about), *(repr(float(number)) for number in numbers), " ".join(each.fronts)]


def measure_latencies(root: str, study: str, inputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Into `results/latency.json` of a study: milliseconds of one image in one thread, of the networks not there.

    `inputs` has by the name of a network what determined a student that has it. Weights don't matter: they are random
    ones.
    """
    needs_onnx("measuring latency")
    store = ArtifactStore(root)
    place = f"{study}/{LATENCY_FILE}"
    try:
        known = dict(json.loads(store.storage.read(place)))
    except (FileNotFoundError, ValueError, TypeError):
        known = {}
    for network, about in inputs.items():
        if network not in known:
            dataset = load_for(DatasetFingerprint.model_validate(about["dataset"]), store)
            module = _network(about, dataset, store).eval()
            image = np.zeros(dataset.image_shape, np.float32)
            known[network] = latency(onnx_file(traced(module, dataset.image_shape), LOGITS), image)[0]["median_ms"]
    store.storage.replace(place, json.dumps(known, indent=1).encode())


def _network(about: Mapping[str, Any], dataset: Dataset, store: ArtifactStore) -> nn.Module:
    model, shape, classes = about["model"], dataset.image_shape, len(dataset.classes)
    module = build(model, shape, classes)
    terms = [Term.model_validate(each) for each in about.get("terms") or ()]
    teacher = store.describe(about["upstream"][0]) if any(reuses_head(term.method) for term in terms) else None
    return ending_in_head(module, model, terms[0], teacher["input"]["model"], shape, classes) if teacher else module
