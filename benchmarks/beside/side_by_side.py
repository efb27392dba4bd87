"""The same students by takd, the plain way (`plain_ray_tune.py`) and an expert's script (`expert.py`): time and memory.

    .venv/bin/python benchmarks/beside/side_by_side.py [--part gap|temperature|cifar] [--images TAR] [--markdown]

gap          400 students of the preset mnist-gap: kd and 4 takd arms, 10 settings of T and lambda, 8 seeds
temperature  24 students of mnist-temperature cut to 3 epochs: 4 temperatures, 3 lambdas, 2 seeds; beside it the plain
             way that trains its teacher in every trial (float32, as one would; takd's recipe has bfloat16)
cifar        16 students `resnet-8` of `resnet-20` on 2,000 images of CIFAR-10, 4 epochs: 2 temperatures, 2 lambdas, 4
             seeds. `--images` is a tar of `train/CLASS/*` and `test/CLASS/*`; without it this part is left out

Teacher and assistants are given: takd trains them first, not timed, and all sides load the same weights. takd and the
script train all students, takd from `takd run` to the table. The plain way runs some, spread evenly over the list; the
time of its trials is scaled by count, that of its start and end is not. A retrained teacher is measured over 40 steps,
in as many trials as there are slots, and scaled to its epochs. CPU seconds are those of all processes, looked at twice
a second; memory is the peak of the sum of their proportional set sizes (PSS). W&B is offline on both sides.

Exits 1 where the accuracies of the same students don't agree: where the mean of their differences is more than 3
standard errors. takd trains all students in one order of examples, whose luck is no smaller for many students: with
the differences' standard deviation s, the standard error is s * sqrt(1 + 1 / students).
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import psutil
import safetensors.torch
import torch

from takd.analysis.tables import read_trials, students
from takd.search_spaces import Recipe, Space, load_space, parse_arm
from takd.trainables.datasets.dataset import load

TAKD = str(Path(sys.executable).with_name("takd"))
PLAIN, EXPERT = (str(Path(__file__).with_name(name)) for name in ("plain_ray_tune.py", "expert.py"))
SAMPLED_EVERY = 0.5  # seconds
TEACHER_STEPS = 40  # of a retrained teacher, measured
STUDENT = ["arm", "temperature", "lambda", "seed"]


CIFAR_RECIPE = (
    *("examples=5000", "batch_size=64", "optimizer=adam", "learning_rate=0.001", "weight_decay=0", "schedule=cosine"),
    *("precision=float32", "select=last"),
)


@dataclass(frozen=True)
class Part:
    preset: str
    cut: tuple[str, ...]  # `--set` of takd
    teacher_epochs: int
    plain_students: int
    retrained: bool = False  # also beside the plain way that trains the teacher in every trial
    images: str = ""  # the name of the data set that is made of `--images`


PARTS = {
    "gap": Part(
        "mnist-gap",
        (
            "arms=[kd, 'takd:mlp-200', 'takd:mlp-64', 'takd:mlp-32', 'takd:mlp-16']",
            "student.temperature={choices: [1, 2, 4, 8, 16]}",
            "student.lambda={choices: [0.4, 0.7]}",
            "sampler=grid",
            "trials=50",
            "confirm=null",
        ),
        teacher_epochs=8,
        plain_students=10,
    ),
    "temperature": Part(
        "mnist-temperature",
        (
            "arms=[kd]",
            "student.temperature={choices: [1, 4, 16, 64]}",
            "student.lambda={choices: [0.3, 0.5, 0.9]}",
            "student.recipe.epochs=3",
            "seeds=2",
            "confirm=null",
        ),
        teacher_epochs=3,
        plain_students=6,
        retrained=True,
    ),
    "cifar": Part(
        "cifar10-resnet",
        (
            "dataset=cifar-images",
            "teacher.model=resnet-20",
            "arms=[kd]",
            "loss={kl_reduction: batchmean}",
            "student.temperature={choices: [1, 4]}",
            "student.lambda={choices: [0.5, 0.9]}",
            *(f"{role}.recipe.{each}" for role in ("teacher", "student") for each in CIFAR_RECIPE),
            "student.recipe.epochs=4",
            "student.recipe.examples=2000",
            "sampler=grid",
            "trials=4",
            "seeds=4",
            "confirm=null",
            "published=null",
        ),
        teacher_epochs=2,
        plain_students=4,
        images="cifar-images",
    ),
}


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_seconds: float
    memory: float  # GiB


def measured(command: Sequence[str], log: Path) -> Cost:
    """What a command costs with all processes it starts; raises SystemExit with its last words where it fails."""
    used: dict[psutil.Process, float] = {}
    peak, started = 0.0, time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        memory = 0
        with suppress(psutil.NoSuchProcess):
            used |= dict.fromkeys({root, *root.children(recursive=True)} - used.keys(), 0.0)
        for each in used:
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                times = each.cpu_times()
                used[each] = times.user + times.system
                memory += each.memory_full_info().pss
        peak = max(peak, memory / 2**30)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SAMPLED_EVERY)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-4000:]}")
    return Cost(time.perf_counter() - started, sum(used.values()), peak)


def takd(part: Part, name: str, root: Path, cut: Sequence[str], slots: int) -> tuple[Cost, pd.DataFrame]:
    """Runs a study; returns its cost and the rows of its table."""
    settings = [f"--set={each}" for each in (*part.cut, *cut)]
    where = ["--name", name, "--root", str(root), "--slots", str(slots), "--wandb", "offline"]
    cost = measured([TAKD, "run", part.preset, *where, *settings], root / f"{name}.log")
    return cost, read_trials(str(root / name / "results" / "trials.parquet"))


def by(script: str, listed: list[dict[str, Any]], folder: Path, slots: int) -> tuple[Cost, dict[str, Any]]:
    """Trains the listed students by a script; returns its cost and what it wrote."""
    given, out = folder / "students.json", folder / "found.json"
    given.write_text(json.dumps(listed))
    command = [sys.executable, script, "--students", str(given), "--out", str(out), "--slots", str(slots)]
    cost = measured(command, folder / "script.log")
    return cost, json.loads(out.read_text())


def give(part: Part, root: Path, cut: Sequence[str], slots: int) -> dict[str, Path]:
    """Trains teacher and assistants, by way of a study of one tiny student an arm; returns their artifacts by model."""
    space = load_space(part.preset, [*part.cut, *cut])
    fixed = {"student.temperature": 1, "student.lambda": 0.5, "student.recipe.epochs": 1, "student.recipe.examples": 10}
    tiny = [f"{name}={value}" for name, value in (fixed | {"seeds": 1, "trials": len(space.all_arms)}).items()]
    _, rows = takd(part, f"given-{part.preset}-{space.teacher.recipe['epochs']}", root, [*cut, *tiny], slots)
    others = rows[rows["role"] != "student"]
    return {row["model"]: root / "artifacts" / row["stage_key"] for _, row in others.iterrows()}


def as_plain(space: Space, point: dict[str, Any], seed: int, files: dict[str, str]) -> dict[str, Any]:
    """A student of the grid as a setting of `plain_ray_tune.py`."""
    recipe = Recipe.model_validate(space.student.recipe)
    [lone] = space.teacher.models
    teacher = [lone, *parse_arm(point["arm"]).assistants][-1]
    fields = ("epochs", "examples", "batch_size", "learning_rate", "schedule", "evaluate_every")
    return {
        **{name: getattr(recipe, name) for name in fields},
        **point,
        "seed": seed,
        "dataset": space.dataset,
        "student": space.student.model,
        "teacher": teacher,
        "teacher_dropout": 0.5 if teacher == lone and not lone.startswith("resnet") else 0.0,
        "teacher_file": files[teacher],
    }


def compare(part: Part, root: Path, cut: Sequence[str], count: int, slots: int) -> tuple[list[list[str]], bool]:
    """The rows of a part's table, and whether the accuracies agree. `count` students are trained the plain way."""
    space = load_space(part.preset, [*part.cut, *cut])
    artifacts = give(part, root, cut, slots)
    with tempfile.TemporaryDirectory(prefix="takd-study-") as temporary:
        folder = Path(temporary)
        files = {model: str(folder / f"{model}.pt") for model in artifacts}
        for model, artifact in artifacts.items():
            shutil.copytree(artifact, folder / "artifacts" / artifact.name)
            torch.save(safetensors.torch.load_file(artifact / "model.safetensors"), files[model])
        every = [as_plain(space, point, seed, files) for point in space.grid() for seed in range(space.seeds)]
        apart = len(every) // count
        chosen = every[apart // 2 :: apart][:count]
        here, rows = takd(part, part.preset, folder, cut, slots)
        there, found = by(PLAIN, chosen, folder, slots)
        expert, by_expert = by(EXPERT, every, folder, slots)
        retrained = {"teacher_file": None, "teacher_steps": TEACHER_STEPS, "epochs": 1, "examples": 10}
        cut_off = [each | retrained for each in chosen[:slots]]
        teachers = by(PLAIN, cut_off, folder, slots)[1]["students"] if part.retrained else []

    seconds = there.seconds + found["seconds"] * (len(every) / count - 1)
    cpu_seconds = there.cpu_seconds * seconds / there.seconds
    work, part_of_it = f"{len(every)} students of `{part.preset}`", f" ({there.seconds:,.0f} s for {count})"
    table = [row(f"{work}, wall time", seconds, here.seconds, "{:,.0f} s", part_of_it)]
    if teachers:
        epochs = Recipe.model_validate(space.teacher.recipe).epochs
        steps = epochs * math.ceil(load("mnist").sizes["train"] / 256)
        teacher = fmean(each["teacher_seconds"] for each in teachers) * steps / TEACHER_STEPS
        part_of_it = f" ({teacher:,.0f} s a teacher, from {TEACHER_STEPS} of {steps} steps)"
        what = f"the same, a teacher of {epochs} epochs in every trial"
        table.append(row(what, seconds + teacher * len(every) / slots, here.seconds, "{:,.0f} s", part_of_it))
    table.append(row("CPU seconds", cpu_seconds, here.cpu_seconds, "{:,.0f} s"))
    table.append(row("peak memory", there.memory, here.memory, "{:.1f} GiB"))
    last, agree = accuracies(space, students(rows), found["students"])
    strong = [
        row("wall time, by an expert's script", expert.seconds, here.seconds, "{:,.0f} s"),
        row("CPU seconds, by that script", expert.cpu_seconds, here.cpu_seconds, "{:,.0f} s"),
    ]
    same, agree_too = accuracies(space, students(rows), by_expert["students"])
    return [*table, last, *strong, same], agree and agree_too


def row(what: str, plain: float, takd: float, form: str, part_of_it: str = "") -> list[str]:
    return [what, form.format(plain) + part_of_it, form.format(takd), f"{plain / takd:.1f}x"]


def accuracies(space: Space, done: pd.DataFrame, listed: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """The row of the validation accuracies of the listed students, and whether both sides agree."""
    kept = "best" if space.student.recipe.get("select") == "best" else "last"
    accuracy = done.set_index(STUDENT)["accuracy"]
    here = [accuracy[tuple(each[field] for field in STUDENT)] for each in listed]
    there = [100 * each[kept] for each in listed]
    differences = [one - other for one, other in zip(there, here, strict=True)]
    noise = 3 * stdev(differences) * (1 + 1 / len(listed)) ** 0.5
    words = f"{fmean(differences):+.2f} points (noise: {noise:.2f})"
    cells = [f"accuracy of the same {len(listed)} students", f"{fmean(there):.2f} %", f"{fmean(here):.2f} %", words]
    return cells, abs(fmean(differences)) <= noise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="default: all")
    parser.add_argument("--images", type=Path, help="a tar or a folder, for the part cifar")
    parser.add_argument(
        "--students", type=int, help="of the plain way (default: 10, 6 and 4); best a multiple of the slots"
    )
    parser.add_argument("--teacher-epochs", type=int, help="default: 8 for gap, as its preset has it, else 3 and 2")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="CPUs, on both sides")
    parser.add_argument("--root", type=Path, help="keeps teacher and assistants (default: a temporary folder)")
    parser.add_argument("--markdown", action="store_true", help="print a table as a README has it")
    options = parser.parse_args()
    if options.students is not None and options.students < 2:
        parser.error("--students: the spread of differences takes at least 2")
    table, agree = [["", "plain Ray Tune", "takd", ""]], True
    with tempfile.TemporaryDirectory(prefix="takd-given-") as temporary:
        root = options.root or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        for name in [options.part] if options.part else PARTS:
            part = PARTS[name]
            if part.images and options.images is None:
                if options.part:
                    parser.error(f"--part {name} needs --images")
                continue
            if part.images:
                os.environ["TAKD_CACHE"] = str(root / "cache")
                given = ["--from", str(options.images), "--name", part.images, "--size", "32"]
                subprocess.run([TAKD, "data", "images", *given], check=True, stdout=subprocess.DEVNULL)
            cut = [f"teacher.recipe.epochs={options.teacher_epochs or part.teacher_epochs}"]
            rows, agrees = compare(part, root, cut, options.students or part.plain_students, options.slots)
            table, agree = table + rows, agree and agrees
    if options.markdown:
        table.insert(1, ["---", *["---:"] * 3])
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |" if options.markdown else "  ".join(cells).rstrip())
    if not agree:
        print("the accuracies differ by more than noise", file=sys.stderr)
    return int(not agree)


if __name__ == "__main__":
    sys.exit(main())
