"""The same students by the script that an expert writes once plain Ray Tune has become too slow; no Ray, no search.

    .venv/bin/python benchmarks/beside/expert.py --students JSON --out JSON [--slots 2]

One process a slot, with one thread, goes through its part of a list. Images are normalised once and stay in memory, a
batch is an index into them, a teacher's logits are computed once a process, Adam is fused, convolutions are
channels-last. Nothing survives an interruption, and nothing is kept but accuracies. The list is that of
`plain_ray_tune.py --students`.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from takd.trainables.datasets.dataset import load, transfer_set
from takd.trainables.models.families import build


def train(setting: dict[str, Any]) -> dict[str, Any]:
    """The accuracies on validation of one student, as fractions."""
    images, labels = examples(setting["dataset"], setting["examples"])
    validation, expected = whole(setting["dataset"], "validation")
    soft = logits_of(*(setting[each] for each in ("teacher_file", "teacher", "teacher_dropout", "dataset", "examples")))
    T, weight, rate = setting["temperature"], setting["lambda"], setting["learning_rate"]
    targets = (soft / T).softmax(dim=1)
    torch.manual_seed(setting["seed"])
    student = made(setting["student"], setting["dataset"])
    optimizer = torch.optim.Adam(student.parameters(), lr=rate, fused=True)
    steps = setting["epochs"] * -(-len(labels) // setting["batch_size"])
    one_cycle = setting["schedule"] == "one-cycle"
    scheduler = (
        OneCycleLR(optimizer, rate, steps, cycle_momentum=False) if one_cycle else CosineAnnealingLR(optimizer, steps)
    )
    cross_entropy, divergence = nn.CrossEntropyLoss(), nn.KLDivLoss(reduction="batchmean")
    found = []
    for epoch in range(1, setting["epochs"] + 1):
        student.train()
        for batch in torch.randperm(len(labels)).split(setting["batch_size"]):
            logits = student(images[batch])
            distilled = T**2 * divergence((logits / T).log_softmax(dim=1), targets[batch])
            loss = (1 - weight) * cross_entropy(logits, labels[batch]) + weight * distilled
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        if epoch % setting["evaluate_every"] == 0 or epoch == setting["epochs"]:
            predicted = outputs(student, validation).argmax(dim=1)
            found.append(float((predicted == expected).float().mean()))
    return setting | {"last": found[-1], "best": max(found)}


def made(model: str, dataset: str, dropout: float | None = None) -> nn.Module:
    data = load(dataset)
    module = build(model, data.image_shape, len(data.classes), dropout)
    return module.to(memory_format=torch.channels_last)


@lru_cache
def whole(dataset: str, split: str) -> tuple[Tensor, Tensor]:
    """Normalised images and labels."""
    data = load(dataset)
    scale, shift = data.normalization.of_bytes()
    chosen = getattr(data, split)
    images = chosen.images[:].float().mul_(scale).add_(shift)
    return images.contiguous(memory_format=torch.channels_last), chosen.labels


@lru_cache
def examples(dataset: str, number: int | None) -> tuple[Tensor, Tensor]:
    images, labels = whole(dataset, "train")
    if number is None:
        return images, labels
    index = transfer_set(labels, number, seed=0)
    return images[index].contiguous(memory_format=torch.channels_last), labels[index]


@lru_cache
def logits_of(file: str, model: str, dropout: float, dataset: str, number: int | None) -> Tensor:
    teacher = made(model, dataset, dropout or None)
    teacher.load_state_dict(torch.load(file))
    return outputs(teacher, examples(dataset, number)[0])


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(each) for each in images.split(1000)])


def part(students: list[dict[str, Any]]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [train(each) for each in students]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=Path, required=True, metavar="JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    students, started = json.loads(options.students.read_text()), time.time()
    with ProcessPoolExecutor(options.slots, get_context("spawn")) as pool:
        parts = list(pool.map(part, [students[number :: options.slots] for number in range(options.slots)]))
    done = [student for of_one in parts for student in of_one]
    options.out.write_text(json.dumps({"seconds": time.time() - started, "students": done}, indent=1))


if __name__ == "__main__":
    main()
