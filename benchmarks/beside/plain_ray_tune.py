"""A distillation study the plain way, as Ray Tune's documentation teaches it: what `side_by_side.py` measures takd by.

    .venv/bin/python benchmarks/beside/plain_ray_tune.py [--trials 4] [--epochs 3] [--retrain-teacher]

A function trainable, torchvision's MNIST or CIFAR-10 and transforms behind a DataLoader, the teacher's forward pass in
the loop, KLDivLoss, OptunaSearch, W&B's callback (offline), one CPU a trial. Models, initial weights, epochs, schedule,
transfer set and validation split are takd's; the rest is what one would write. The teacher is trained once and loaded
from a file, or trained in every trial, as code without a checkpoint does. By default `mlp-784` learns from `cnn`, 12
epochs each. With --students a fixed list is trained in place of the search.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
import torchvision
from ray import tune
from ray.air.integrations.wandb import WandbLoggerCallback
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader
from torchvision import transforms

from takd.trainables.datasets.dataset import load, transfer_set
from takd.trainables.datasets.splits import Split
from takd.trainables.models import families

# What one trial needs to know.
SETTING: dict[str, Any] = {
    "dataset": "mnist",
    "student": "mlp-784",
    "teacher": "cnn",
    "teacher_dropout": 0.5,
    "teacher_file": None,  # None: the trial trains its teacher
    "teacher_epochs": 12,
    "teacher_steps": None,  # a number: the teacher's training is cut off, to be measured and scaled
    "temperature": 4.0,
    "lambda": 0.5,
    "seed": 0,
    "epochs": 12,
    "examples": None,
    "batch_size": 256,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "evaluate_every": 1,
}

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, float, int], LRScheduler]] = {
    "cosine": lambda optimizer, rate, steps: CosineAnnealingLR(optimizer, steps),
    "one-cycle": lambda optimizer, rate, steps: OneCycleLR(optimizer, rate, steps, cycle_momentum=False),
}


class Digits(torchvision.datasets.MNIST):
    """torchvision's dataset, item by item as it is, with the images of takd's splits."""

    def __init__(self, split: str, examples: int | None = None) -> None:
        dataset = load("mnist")
        chosen: Split = getattr(dataset, split)
        index = slice(None) if examples is None else transfer_set(chosen.labels, examples, seed=0)
        self.data, self.targets, self.target_transform = chosen.images[index][:, 0], chosen.labels[index], None
        to_tensor, normalize = transforms.ToTensor(), transforms.Normalize(*dataset.normalization)
        self.transform = transforms.Compose([to_tensor, normalize])


class Pictures(torchvision.datasets.CIFAR10):
    """The same of a data set of colour images, which that of CIFAR-10 holds as `[height, width, channels]`."""

    def __init__(self, name: str, split: str, examples: int | None = None) -> None:
        dataset = load(name)
        chosen: Split = getattr(dataset, split)
        index = slice(None) if examples is None else transfer_set(chosen.labels, examples, seed=0)
        self.data, self.targets = chosen.images[index].permute(0, 2, 3, 1).numpy(), chosen.labels[index].tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*dataset.normalization)])
        self.target_transform = None


def examples_of(name: str, split: str, number: int | None = None) -> "Digits | Pictures":
    return Digits(split, number) if name == "mnist" else Pictures(name, split, number)


def build(model: str, dropout: float, dataset: str = "mnist") -> nn.Module:
    if model.startswith("resnet"):
        data = load(dataset)
        return families.build(model, data.image_shape, len(data.classes), None)
    drop = [nn.Dropout(dropout)] if dropout else []
    if model == "cnn":
        features = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2, stride=1), nn.Conv2d(32, 64, 3), nn.ReLU()]
        head = [nn.Flatten(), nn.Linear(64 * 11 * 11, 128), nn.ReLU(), *drop, nn.Linear(128, 10)]
        return nn.Sequential(*features, nn.MaxPool2d(2, stride=2), *drop, *head)
    width = int(model.removeprefix("mlp-"))
    first, second = nn.Linear(28 * 28, width), nn.Linear(width, width)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), *drop, second, nn.ReLU(), *drop, nn.Linear(width, 10))


@torch.no_grad()
def accuracy(model: nn.Module, loader: "DataLoader[tuple[Tensor, Tensor]]") -> float:
    """A fraction."""
    model.eval()
    right = [(model(images).argmax(dim=1) == labels).float().mean() for images, labels in loader]
    return float(torch.stack(right).mean())


def train_teacher(model: str, dropout: float, epochs: int, steps: int | None = None) -> nn.Module:
    """On labels alone and all training images; seed 0."""
    torch.manual_seed(0)
    teacher = build(model, dropout)
    loader: DataLoader[Any] = DataLoader(Digits("train"), batch_size=256, shuffle=True)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    scheduler = SCHEDULES["cosine"](optimizer, 1e-3, epochs * len(loader))
    batches = itertools.chain.from_iterable(loader for _ in range(epochs))
    for images, labels in itertools.islice(batches, steps):
        loss = nn.functional.cross_entropy(teacher(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return teacher


def train_student(config: dict[str, Any]) -> None:
    """The function that Tune runs, one trial a student."""
    setting = config["setting"]
    started = time.perf_counter()
    if setting["teacher_file"] is None:
        teacher = train_teacher(*(setting[f"teacher{field}"] for field in ("", "_dropout", "_epochs", "_steps")))
    else:
        teacher = build(setting["teacher"], setting["teacher_dropout"], setting["dataset"])
        teacher.load_state_dict(torch.load(setting["teacher_file"]))
    teacher.eval()
    teacher_seconds = time.perf_counter() - started

    torch.manual_seed(setting["seed"])
    student = build(setting["student"], 0.0, setting["dataset"])
    train = examples_of(setting["dataset"], "train", setting["examples"])
    loader: DataLoader[Any] = DataLoader(train, batch_size=setting["batch_size"], shuffle=True)
    validation: DataLoader[Any] = DataLoader(examples_of(setting["dataset"], "validation"), batch_size=1000)
    optimizer = torch.optim.Adam(student.parameters(), lr=setting["learning_rate"])
    steps = setting["epochs"] * len(loader)
    scheduler = SCHEDULES[setting["schedule"]](optimizer, setting["learning_rate"], steps)
    cross_entropy, divergence = nn.CrossEntropyLoss(), nn.KLDivLoss(reduction="batchmean")
    T, weight = setting["temperature"], setting["lambda"]
    for epoch in range(1, setting["epochs"] + 1):
        student.train()
        for images, labels in loader:
            with torch.no_grad():
                soft = (teacher(images) / T).softmax(dim=1)
            logits = student(images)
            distilled = T**2 * divergence((logits / T).log_softmax(dim=1), soft)
            loss = (1 - weight) * cross_entropy(logits, labels) + weight * distilled
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        if epoch % setting["evaluate_every"] == 0 or epoch == setting["epochs"]:
            tune.report({"val_accuracy": accuracy(student, validation), "teacher_seconds": teacher_seconds})


def tuner(setting: dict[str, Any], students: list[dict[str, Any]] | None, trials: int) -> tune.Tuner:
    """Trains a list of students, or lets Optuna choose temperature and lambda."""
    varied = {"temperature": tune.choice([1, 2, 4, 16, 32, 64]), "lambda": tune.choice([0.1, 0.3, 0.5, 0.7, 0.9])}
    space = setting | varied if students is None else tune.grid_search([setting | each for each in students])
    optuna = OptunaSearch(metric="val_accuracy", mode="max") if students is None else None
    return tune.Tuner(
        tune.with_resources(train_student, {"cpu": 1}),
        param_space={"setting": space},
        tune_config=tune.TuneConfig(search_alg=optuna, num_samples=trials if students is None else 1),
        run_config=tune.RunConfig(
            storage_path=tempfile.mkdtemp(prefix="plain-ray-tune-"),
            callbacks=[WandbLoggerCallback(project="plain-ray-tune")],
        ),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, help="students that Optuna chooses T and lambda for")
    parser.add_argument("--epochs", type=int, default=12, help="of teacher and student")
    parser.add_argument("--teacher-file", type=Path, default=Path("teacher.pt"), help="made where there is none")
    parser.add_argument("--retrain-teacher", action="store_true", help="in every trial, in place of the file")
    parser.add_argument("--students", type=Path, metavar="JSON", help="train this list, each what differs from SETTING")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the seconds of all trials, and the students")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="CPUs, each for one trial")
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    setting = SETTING | {"epochs": options.epochs, "teacher_epochs": options.epochs}
    students = json.loads(options.students.read_text()) if options.students else None
    if students is None and not options.retrain_teacher:
        if not options.teacher_file.exists():
            teacher = train_teacher(setting["teacher"], setting["teacher_dropout"], setting["teacher_epochs"])
            torch.save(teacher.state_dict(), options.teacher_file)
        setting["teacher_file"] = str(options.teacher_file.resolve())
    ray.init(address="local", num_cpus=options.slots, include_dashboard=False)
    started = time.time()
    results = tuner(setting, students, options.trials).fit()
    if results.num_errors:
        print(*results.errors, sep="\n", file=sys.stderr)
        return 1
    found = []
    for result in results:
        history, metrics = result.metrics_dataframe["val_accuracy"], result.metrics
        outcome = {"last": float(history.iloc[-1]), "best": float(history.max())}
        found.append(result.config["setting"] | outcome | {"teacher_seconds": metrics["teacher_seconds"]})
        print({name: found[-1][name] for name in ("teacher", "student", "temperature", "lambda", "seed", "last")})
    seconds = max(result.metrics["timestamp"] for result in results) - started
    if options.out:
        options.out.write_text(json.dumps({"seconds": seconds, "students": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
