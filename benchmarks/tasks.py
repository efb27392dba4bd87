"""From raw files to an exported student, by the command line as a user types it: how long each step takes.

    .venv/bin/python benchmarks/tasks.py mhist
    .venv/bin/python benchmarks/tasks.py cifar --images DIR

mhist  made-up histology in MHIST's form (tests/histology.py), 64x64: resnet18 > mobilenet_v2, from weights on disk that
       are random, in two parts and with views; wanted: 3 minutes
cifar  5,000 images of DIR (train/<class>/*, test/<class>/*), 4,000 to train on: plain-6 > plain-4 > plain-2; wanted:
       8 minutes
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision

TAKD = str(Path(sys.executable).with_name("takd"))
HISTOLOGY = Path(__file__).parents[1] / "tests" / "histology.py"
TRAIN, TEST = 400, 100  # images a class

MHIST = """
dataset: mhist
teacher:
  model: torchvision/resnet18
  pretrained: {weights}/resnet18.pth
  recipe: &recipe
    epochs: 4
    head_epochs: 2
    batch_size: 16
    learning_rate: 1e-3
    class_weights: balanced
    augment: flip-rotate
    views: 2
student:
  model: torchvision/mobilenet_v2
  pretrained: {weights}/mobilenet_v2.pth
  temperature: {{choices: [2, 4]}}
  lambda: 0.5
  recipe: *recipe
arms: [labels, kd]
sampler: grid
confirm: {{seeds: 2}}
"""
CIFAR = """
dataset: cifar
teacher:
  model: plain-6
  recipe: &recipe
    epochs: 8
    batch_size: 64
    optimizer: sgd
    learning_rate: 0.05
    weight_decay: 5e-4
    precision: bfloat16
assistants: {models: [plain-4], recipe: *recipe}
student: {model: plain-2, temperature: {choices: [2, 4]}, lambda: 0.7, recipe: *recipe}
sampler: grid
confirm: {seeds: 2}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("mhist", "cifar"))
    parser.add_argument("--images", type=Path, help="CIFAR-10 as a folder of images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["TAKD_CACHE"] = str(work / "cache")
        started = time.perf_counter()
        if options.task == "mhist":
            seconds, wanted = mhist(work), 3
        else:
            seconds, wanted = cifar(work, options.images), 8
        total = time.perf_counter() - started
    for step, each in seconds.items():
        print(f"  {step:<8} {each:6.1f} s")
    print(f"{options.task}: {total / 60:.1f} min, at most {wanted} wanted")


def mhist(work: Path) -> dict[str, float]:
    make = [sys.executable, HISTOLOGY, work / "raw", "--train", "60", "--test", "30", "--size", "64"]
    subprocess.run(list(map(str, make)), check=True)
    weights = work / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    for name in ("resnet18", "mobilenet_v2"):
        torch.save(torchvision.models.get_model(name).state_dict(), weights / f"{name}.pth")
    data: list[str | Path] = ["data", "mhist", "--from", work / "raw"]
    return steps(work, "mhist-small", MHIST.format(weights=weights), data)


def cifar(work: Path, images: Path) -> dict[str, float]:
    for split, number in (("train", TRAIN), ("test", TEST)):
        for folder in sorted((images / split).iterdir()):
            (work / "raw" / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:number]:
                (work / "raw" / split / folder.name / file.name).symlink_to(file.absolute())
    data: list[str | Path] = ["data", "images", "--from", work / "raw", "--name", "cifar"]
    return steps(work, "cifar-small", CIFAR, data)


def steps(work: Path, name: str, space: str, data: list[str | Path]) -> dict[str, float]:
    (work / f"{name}.yaml").write_text(space)
    root: list[str | Path] = ["--root", work / "runs"]
    commands: list[list[str | Path]] = [
        data,
        ["run", work / f"{name}.yaml", "--wandb", "disabled", *root],
        ["export", name, "--out", work / "student", *root],
        ["verify", work / "student"],
    ]
    return {str(command[0]): timed([TAKD, *map(str, command)]) for command in commands}


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
