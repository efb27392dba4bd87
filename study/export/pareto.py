"""The students that no other beats both in what they reach and in what they cost to run: a front over their sizes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from takd.analysis.cost import LATENCY_FILE, STUDENT_COSTS, on_front
from takd.analysis.metrics import shown
from takd.search_spaces import DatasetFingerprint, InputError
from takd.search_spaces.metrics import ACCURACY
from takd.study.export.candidates import Candidate
from takd.study.export.onnx_file import LOGITS, latency, needs_onnx, onnx_file
from takd.study.export.torch_files import traced
from takd.trainables.datasets.dataset import load_for
from takd.trainables.models.families import build
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

    @property
    def folder(self) -> str:
        """What its files are below."""
        return str(self.candidate.row["model"]).replace("/", "-")


def front_of(candidates: Sequence[Candidate], milliseconds: Callable[[Candidate], float]) -> list[OnFront]:
    """Of each model the best candidate, where no other model is at least as good at a lower cost; cheapest first.

    Candidates come best first, see `find_candidates`. Raises InputError where there is one model: it has no front.
    """
    best: dict[str, Candidate] = {}
    for each in candidates:
        best.setdefault(str(each.row["model"]), each)
    if len(best) < 2:
        raise InputError(
            f"--pareto: all students are {', '.join(best)}; a front needs students of several sizes, as factors: "
            "{student.model: [mlp-4, mlp-8]} has them"
        )
    costs = {
        model: {
            "parameters": float(each.row["parameters"]),
            "flops_per_image": float(each.row["flops_per_image"]),
            "milliseconds": milliseconds(each),
        }
        for model, each in best.items()
    }
    higher = candidates[0].metric.higher
    values = np.array([each.mean if higher else -each.mean for each in best.values()])
    fronts = {name: on_front(np.array([own[name] for own in costs.values()]), values) for name in STUDENT_COSTS}
    found = [
        OnFront(each, costs[model], tuple(name for name in STUDENT_COSTS if fronts[name][place]))
        for place, (model, each) in enumerate(best.items())
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


def measure_latencies(root: str, study: str, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Into `results/latency.json` of a study: milliseconds by model of one image in one thread, of those not there.

    `datasets` has by model the fingerprint of the data set, as JSON. Weights don't matter: they are random ones.
    """
    needs_onnx("measuring latency")
    store = ArtifactStore(root)
    place = f"{study}/{LATENCY_FILE}"
    try:
        known = json.loads(store.storage.read(place))
    except (FileNotFoundError, ValueError):
        known = {}
    for model, fingerprint in datasets.items():
        if model not in known:
            dataset = load_for(DatasetFingerprint.model_validate(fingerprint), store)
            module = build(model, dataset.image_shape, len(dataset.classes)).eval()
            image = np.zeros(dataset.image_shape, np.float32)
            known[model] = latency(onnx_file(traced(module, dataset.image_shape), LOGITS), image)[0]["median_ms"]
    store.storage.replace(place, json.dumps(known, indent=1).encode())
