"""The students of a space of methods by takd, and by torchdistill's own training loop, one after the other.

    .venv/bin/python benchmarks/methods/beside_torchdistill.py [--space mnist-methods] [--set KEY=VALUE ...] [--count 1]
        [--slots 2] [--threads 2] [--most 300]

Teacher and assistants are given: takd trains them first, not timed, and both sides load the same weights. takd runs all
students, from `takd run` to the table, without its confirmation. torchdistill trains `--count` of each arm, spread
evenly, and their time is scaled by count (one that takes more than `--most` seconds is cut off, and its time scaled by
steps: its CRD takes hours): its `DistillationBox` with the loop of its examples, the teacher frozen and
evaluated in every step, its losses and auxiliary wrappers, the same optimizer, schedule, transfer set and order of
magnitude of everything else. Its images are tensors in memory that are normalised once, which its examples, that decode
and transform each image in a worker, are slower than. Its random numbers are other ones, so accuracies agree within
noise only.

What torchdistill has not (`dkd`, `simkd`, an assistant that is several upstreams) is said and left out on both sides,
takd's part by the seconds of its stages. Exits 1 where accuracies don't agree: where the mean difference of an arm is
more than 3 standard errors, from the deviation over takd's seeds.
"""

import argparse
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchdistill.core.distillation import DistillationBox

from takd.analysis.tables import read_trials, students
from takd.search_spaces import Stage, Term, load_space
from takd.search_spaces.methods import METHODS
from takd.trainables.datasets.dataset import load, transfer_set
from takd.trainables.models.families import build

TAKD = str(Path(sys.executable).with_name("takd"))


class Digits(Dataset[tuple[Tensor, int]]):
    """A transfer set in memory, as torchdistill's wrappers want one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.targets = images, labels.tolist()
        self.classes = sorted(set(self.targets))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


@dataclass(frozen=True)
class Split:
    images: Tensor  # float32, normalised
    labels: Tensor


def split(dataset: str, name: str, examples: int | None = None) -> Split:
    loaded = load(dataset)
    chosen = getattr(loaded, name)
    index = slice(None) if examples is None else transfer_set(chosen.labels, examples, seed=0)
    mean, deviation = (torch.tensor(each).reshape(-1, 1, 1) for each in loaded.normalization)
    return Split(
        (torch.as_tensor(chosen.images[index]) / 255 - mean) / deviation, torch.as_tensor(chosen.labels[index])
    )


def head_of(model: nn.Module) -> tuple[str, int]:
    """The layer before the last linear layer, by name, and how many features enter this."""
    names = [name for name, module in model.named_modules() if name and not list(module.children())]
    last = max(place for place, name in enumerate(names) if isinstance(model.get_submodule(name), nn.Linear))
    head = model.get_submodule(names[last])
    assert isinstance(head, nn.Linear)
    return names[last - 1], head.in_features


def before_heads(stage: Stage, teacher: nn.Module, student: nn.Module) -> tuple[str, str]:
    """The layers that leave the embeddings of student and teacher, by their names in torchdistill's wrappers."""
    methods = {term.method for term in stage.terms or ()}
    own, upstream = head_of(student)[0], head_of(teacher)[0]
    return f"model.{own}" if methods & {"hint", "crd"} else own, f"model.{upstream}" if "crd" in methods else upstream


def criterion(stage: Stage, teacher: nn.Module, student: nn.Module) -> dict[str, Any]:
    """The loss of a stage, as torchdistill is configured to have it."""
    has_kd, weight = stage.loss is not None, stage.lambda_ or 0.0
    labels = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {"reduction": "mean"}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                "target": {"uses_label": True},
            },
        },
        "weight": 1 - weight if has_kd else 1.0,
    }
    terms: dict[str, Any] = {"labels": labels}
    if has_kd:
        assert stage.temperature
        terms["kd"] = {
            "criterion": {"key": "KDLoss", "kwargs": {**LOGITS, "temperature": stage.temperature, "beta": 1.0}},
            "weight": weight * stage.temperature**2,
        }
    for term in stage.terms or ():
        terms[term.method] = {**method(term, stage, teacher, student), "weight": term.weight}
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}}


LOGITS = {
    "student_module_path": ".",
    "student_module_io": "output",
    "teacher_module_path": ".",
    "teacher_module_io": "output",
}


def method(term: Term, stage: Stage, teacher: nn.Module, student: nn.Module) -> dict[str, Any]:
    """One method by torchdistill's names; raises KeyError where it has none."""
    own, upstream = before_heads(stage, teacher, student)
    ends = {"student_output_path": own, "teacher_output_path": upstream}
    params = published(term)
    layers = {
        "student_module_path": own,
        "student_module_io": "output",
        "teacher_module_path": upstream,
        "teacher_module_io": "output",
    }
    examples = stage.recipe.examples or load("mnist").sizes["train"]
    known: dict[str, dict[str, Any]] = {
        "dist": {"criterion": {"key": "DISTLoss", "kwargs": {**LOGITS, **params}}},
        "rkd": {
            "criterion": {
                "key": "RKDLoss",
                "kwargs": {
                    **ends,
                    "dist_factor": params.get("distance"),
                    "angle_factor": params.get("angle"),
                    "reduction": "mean",
                },
            }
        },
        "pkt": {"criterion": {"key": "PKTLoss", "kwargs": layers}},
        "sp_pooled": {"criterion": {"key": "SPKDLoss", "kwargs": {**ends, "reduction": "batchmean"}}},
        "hint": {
            "criterion": {"key": "MSELoss", "kwargs": {"reduction": "mean"}},
            "criterion_wrapper": {
                "key": "SimpleLossWrapper",
                "kwargs": {
                    "input": {"is_from_teacher": False, "module_path": "linear", "io": "output"},
                    "target": {"is_from_teacher": True, "module_path": upstream, "io": "output"},
                },
            },
        },
        "crd": {
            "criterion": {
                "key": "CRDLoss",
                "kwargs": {
                    "student_norm_module_path": "normalizer",
                    "student_empty_module_path": "empty",
                    "teacher_norm_module_path": "normalizer",
                    "input_size": params.get("width"),
                    "output_size": examples,
                    "num_negative_samples": params.get("negatives"),
                    "num_samples": examples,
                    "temperature": params.get("tau"),
                    "momentum": params.get("momentum"),
                },
            }
        },
    }
    return known[term.method]


def published(term: Term) -> dict[str, Any]:
    """All parameters of a method, with those that its stage leaves as published."""
    params = METHODS[term.method].params
    found = {name: param.default for name, param in params.items()} | dict(term.params or {})
    return {name: int(value) if params[name].whole else value for name, value in found.items()}


def sides(stage: Stage, teacher: nn.Module, student: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """What torchdistill hooks and wraps of teacher and student: `Linear4CRD` of both, `Linear4CCKD` as a regressor."""
    terms = {term.method: term for term in stage.terms or ()}
    their_features, features = head_of(teacher)[1], head_of(student)[1]
    layer, their_layer = before_heads(stage, teacher, student)
    upstream: dict[str, Any] = {
        "forward_proc": "forward_batch_only",
        "requires_grad": False,
        "forward_hook": {"input": [], "output": [their_layer]},
    }
    own: dict[str, Any] = {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": [layer]}}
    if "hint" in terms:
        linear = {"in_features": features, "out_features": their_features}
        given = {"input_module": {"path": layer, "io": "output"}, "linear_kwargs": linear}
        own["auxiliary_model_wrapper"] = {"key": "Linear4CCKD", "kwargs": given}
        own["forward_hook"]["output"].append("linear")
    if "crd" in terms:
        upstream["requires_grad"] = True  # its linear embedding's; the teacher below is frozen
        width = published(terms["crd"])["width"]
        for side, path, wide in ((upstream, their_layer, their_features), (own, layer, features)):
            given = {"input_module_path": path, "linear_kwargs": {"in_features": wide, "out_features": width}}
            side["auxiliary_model_wrapper"] = {"key": "Linear4CRD", "kwargs": given}
            side["forward_proc"] = "forward_batch_supp_dict"
            side["forward_hook"]["output"].append("normalizer")
            side["forward_hook"]["input"].append("empty")
    if "hint" in terms and "crd" in terms:
        raise KeyError("hint+crd")  # one wrapper a model
    return upstream, own


def torchdistilled(
    stage: Stage, teacher: nn.Module, kept: Split, shown: Split, most: float = math.inf
) -> tuple[float | None, float]:
    """Validation accuracy, a fraction, and seconds of a student by torchdistill's loop.

    After `most` seconds it is cut off: then its seconds are scaled by steps, and it has no accuracy.
    """
    recipe = stage.recipe
    torch.manual_seed(1000 + stage.seed)
    student = build(stage.model, image_shape(kept), 10)
    started = time.perf_counter()
    teacher_side, student_side = sides(stage, teacher, student)
    steps = recipe.epochs * math.ceil(len(kept.labels) / recipe.batch_size)
    loader: dict[str, Any] = {
        "dataset_id": "train",
        "sampler": {"class_or_func": torch.utils.data.RandomSampler},
        "kwargs": {"batch_size": recipe.batch_size, "num_workers": 0},
    }
    if any(term.method == "crd" for term in stage.terms or ()):
        negatives = next(published(term)["negatives"] for term in stage.terms or () if term.method == "crd")
        wrapped = {"num_negative_samples": negatives, "mode": "exact", "ratio": 1.0}
        loader["dataset_wrapper"] = {"key": "CRDDatasetWrapper", "kwargs": wrapped}
    config = {
        "num_epochs": recipe.epochs,
        "train_data_loader": loader,
        "teacher": teacher_side,
        "student": student_side,
        "criterion": criterion(stage, teacher, student),
        "optimizer": {"key": "Adam", "kwargs": {"lr": recipe.learning_rate}},
        "scheduler": {
            "key": "OneCycleLR",
            "kwargs": {"max_lr": recipe.learning_rate, "total_steps": steps, "cycle_momentum": False},
            "scheduling_step": 1,
        },
    }
    box = DistillationBox(
        teacher, student, {"train": Digits(kept.images, kept.labels)}, config, torch.device("cpu"), None, False, 1
    )
    for epoch in range(recipe.epochs):
        box.pre_epoch_process(epoch=epoch)
        teacher.eval()
        for images, labels, more in box.train_data_loader:
            loss = box.forward_process(images, labels, more)
            box.post_forward_process(loss=loss)
            taken = time.perf_counter() - started
            if taken > most:
                return None, taken * steps / box.stage_grad_count
        box.post_epoch_process()
    seconds = time.perf_counter() - started
    student.eval()
    with torch.no_grad():
        right = student(shown.images).argmax(dim=1) == shown.labels
    return float(right.float().mean()), seconds


@dataclass(frozen=True)
class Arm:
    """What both sides say of an arm."""

    name: str
    students: int
    here: float  # seconds of its stages by takd, in sum
    there: float  # seconds of all its students by torchdistill, scaled
    difference: float | None  # of accuracies, takd - torchdistill, in points; None: torchdistill was cut off
    error: float  # of that

    @property
    def agrees(self) -> bool:
        return self.difference is None or abs(self.difference) <= 3 * self.error

    def row(self) -> str:
        there, here = f"{self.there:,.0f} s", f"{self.here:,.0f} s"
        agree = "cut off" if self.difference is None else f"{self.difference:+.2f} +- {self.error:.2f}"
        return f"| `{self.name}` | {self.students} | {there} | {here} | {self.there / self.here:.1f} | {agree} |"


def takd(space: str, name: str, root: Path, cut: Sequence[str], slots: int) -> tuple[float, pd.DataFrame]:
    """Runs a study; returns its seconds and the rows of its table."""
    words = [f"--set={each}" for each in (*cut, "confirm=null")]
    command = [TAKD, "run", space, "--name", name, "--root", str(root), "--slots", str(slots), *words]
    started = time.perf_counter()
    run = subprocess.run([*command, "--wandb", "disabled"], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stdout[-2000:] + run.stderr[-2000:])
    return time.perf_counter() - started, read_trials(str(root / name / "results" / "trials.parquet"))


def given(space: str, root: Path, cut: Sequence[str], slots: int) -> None:
    """Teacher and assistants, by way of one tiny student an arm."""
    arms = len(load_space(space, cut).all_arms)
    tiny = ["student.recipe.epochs=1", "student.recipe.examples=20", "seeds=1", f"trials={arms}"]
    takd(space, "given", root, [*cut, *tiny], slots)


def image_shape(images: Split) -> tuple[int, int, int]:
    """Channels, height, width."""
    _, channels, height, width = images.images.shape
    return channels, height, width


def compared(name: str, rows: pd.DataFrame, root: Path, count: int, most: float) -> Arm | str:
    """An arm by both; a sentence where torchdistill can't have it."""
    stages = [read_stage(root, key) for key in rows["stage_key"]]
    if not stages[0].upstream:
        return f"{name}: learns from labels alone"
    if len(stages[0].upstream) > 1:
        return f"{name}: torchdistill learns from one upstream"
    if stages[0].loss and (stages[0].loss.divergence or stages[0].loss.standardize):
        return f"{name}: torchdistill has no such loss"
    places = [round((place + 0.5) * len(stages) / count - 0.5) for place in range(count)]
    seconds, differences = [], []
    for place in places:
        stage = stages[place]
        upstream = stage.upstream[0]
        loaded = load(stage.dataset.name)
        kept = split(stage.dataset.name, "train", stage.recipe.examples)
        shown = split(stage.dataset.name, "validation")
        teacher = build(upstream.model, image_shape(kept), len(loaded.classes), upstream.recipe.dropout)
        teacher.load_state_dict(safetensors.torch.load_file(root / "artifacts" / upstream.key / "model.safetensors"))
        teacher.eval().requires_grad_(False)
        try:
            accuracy, took = torchdistilled(stage, teacher, kept, shown, most)
        except KeyError as error:
            return f"{name}: torchdistill has no {error}"
        seconds.append(took)
        if accuracy is not None:
            differences.append(100 * (rows["val_accuracy"].iloc[place] - accuracy))
    of_seeds = rows.groupby("trial")["val_accuracy"].std().dropna() * 100
    apart = stdev(differences) if len(differences) > 1 else math.inf  # of one seed and one student nothing is said
    deviation = float(of_seeds.mean()) if len(of_seeds) else apart
    standard_error = deviation * math.sqrt(2 / max(len(differences), 1))
    total = fmean(seconds) * len(rows)
    difference = fmean(differences) if differences else None
    return Arm(name, len(rows), float(rows["train_seconds"].sum()), total, difference, standard_error)


def read_stage(root: Path, key: str, role: str = "student") -> Stage:
    """A stage by what its artifact says that it was made of."""
    made_of = json.loads((root / "artifacts" / key / "stage.json").read_text())["input"]
    upstream = tuple(read_stage(root, each, "teacher") for each in made_of.pop("upstream"))
    del made_of["training_revision"]
    return Stage.model_validate({**made_of, "role": role, "upstream": upstream})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="mnist-methods")
    parser.add_argument("--set", action="append", default=[], dest="cut")
    parser.add_argument("--count", type=int, default=1, help="students of each arm by torchdistill")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--most", type=float, default=300, help="seconds of a student by torchdistill, then scaled")
    parser.add_argument("--threads", type=int, default=2, help="of torchdistill's process")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="takd-methods-") as temporary:
        root = Path(temporary)
        given(options.space, root, options.cut, options.slots)
        here, rows = takd(options.space, "all", root, options.cut, options.slots)
        torch.set_num_threads(options.threads)
        found = [
            compared(str(name), each, root, options.count, options.most) for name, each in students(rows).groupby("arm")
        ]
    arms = [each for each in found if isinstance(each, Arm)]
    print("| arm | students | torchdistill | takd, its stages | times | accuracy, points |\n|---|---|---|---|---|---|")
    print(*(arm.row() for arm in arms), sep="\n")
    print(*(each for each in found if isinstance(each, str)), sep="\n")
    there, stages = sum(arm.there for arm in arms), sum(arm.here for arm in arms)
    every = float(students(rows)["train_seconds"].sum())
    part = here * stages / every
    print(f"as a whole: {there:,.0f} s by torchdistill, {part:,.0f} s by takd ({here:,.0f} s with what is left out)")
    print(f"{there / part:.1f} times")
    sys.exit(0 if all(arm.agrees for arm in arms) else 1)


if __name__ == "__main__":
    main()
