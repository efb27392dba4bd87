"""The same students by takd and the plain way (`plain_ray_tune.py`): time, memory, and that the accuracies agree.

    .venv/bin/python benchmarks/study.py [--part gap] [--part temperature] [--markdown]

gap          400 students of the preset mnist-gap: kd and 4 takd arms, 10 settings of T and lambda, 8 seeds
temperature  24 students of mnist-temperature: 4 temperatures, 3 lambdas, 2 seeds, cut to 3 epochs; beside it the plain
             way that trains the teacher in every trial

Teacher and assistants are given on both sides: trained first by takd, not timed, the same weights for both. takd runs
all students, from `takd run` to the table. The plain way runs a part, evenly spaced over the list (--students); the
time of its trials is scaled by count, its start and end are not. A retrained teacher is measured over 40 steps in as
many trials as there are slots, and scaled to its epochs. CPU seconds are those of all processes, sampled twice a
second; memory is the highest sum of their proportional set sizes (PSS). W&B is offline on both sides.

The accuracies of the same students must agree, or this exits 1: the difference of the means is at most 3 standard
errors, by the spread between takd's seeds of one setting. 5 minutes for gap on 2 cores, 20 for temperature, of which
the cnn teacher's 3 epochs take 3; with --root they are trained once.
"""

import argparse
import importlib
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
from statistics import fmean
from typing import Any

import pandas as pd
import psutil
import safetensors.torch
import torch

from analysis.tables import read_trials, students
from search_spaces import Recipe, Space, load_space, parse_arm
from trainables.datasets import load

if __name__ == "study":  # other benchmarks mean the package of this name, but Python looks beside the script first
    sys.path.remove(str(Path(__file__).parent))
    del sys.modules["study"]
    importlib.import_module("study")

TAKD = str(Path(sys.executable).with_name("takd"))
PLAIN = str(Path(__file__).with_name("plain_ray_tune.py"))
SAMPLED_EVERY = 0.5  # seconds
TEACHER_STEPS = 40  # of a retrained teacher, measured
STUDENT = ["arm", "temperature", "lambda", "seed"]


@dataclass(frozen=True)
class Part:
    preset: str
    cut: tuple[str, ...]  # `--set` of takd
    teacher_epochs: int
    plain_students: int
    retrained: bool = False  # also beside the plain way that trains the teacher in every trial


PARTS = {
    "gap": Part(
        "mnist-gap",
        (
            "arms=[kd, 'takd:mlp-200', 'takd:mlp-64', 'takd:mlp-32', 'takd:mlp-16']",
            "student.temperature={choices: [1, 2, 4, 8, 16]}",
            "student.lambda={choices: [0.4, 0.7]}",
            "sampler=grid",
            "trials=50",
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
        ),
        teacher_epochs=3,
        plain_students=4,
        retrained=True,
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


def plain(listed: list[dict[str, Any]], folder: Path, slots: int) -> tuple[Cost, dict[str, Any]]:
    """Trains the listed students the plain way; returns its cost and what it wrote."""
    given, out = folder / "students.json", folder / "found.json"
    given.write_text(json.dumps(listed))
    command = [sys.executable, PLAIN, "--students", str(given), "--out", str(out), "--slots", str(slots)]
    cost = measured(command, folder / "plain.log")
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
    teacher = [space.teacher.model, *parse_arm(point["arm"]).assistants][-1]
    fields = ("epochs", "examples", "batch_size", "learning_rate", "schedule", "evaluate_every")
    return {
        **{name: getattr(recipe, name) for name in fields},
        **point,
        "seed": seed,
        "student": space.student.model,
        "teacher": teacher,
        "teacher_dropout": 0.5 if teacher == space.teacher.model else 0.0,
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
        there, found = plain(chosen, folder, slots)
        retrained = {"teacher_file": None, "teacher_steps": TEACHER_STEPS, "epochs": 1, "examples": 10}
        teachers = plain([each | retrained for each in chosen[:slots]], folder, slots)[1]["students"] * part.retrained

    seconds = there.seconds + found["seconds"] * (len(every) / count - 1)
    cpu_seconds = there.cpu_seconds * seconds / there.seconds
    table = [
        [
            f"{len(every)} students of `{part.preset}`, wall time",
            f"{seconds:,.0f} s ({there.seconds:,.0f} s for {count})",
            f"{here.seconds:,.0f} s",
            f"{seconds / here.seconds:.1f}x",
        ]
    ]
    if teachers:
        epochs = space.teacher.recipe["epochs"]
        steps = epochs * math.ceil(load("mnist").sizes["train"] / 256)
        a_teacher = fmean(each["teacher_seconds"] for each in teachers) * steps / TEACHER_STEPS
        longer = seconds + a_teacher * len(every) / slots
        table.append(
            [
                f"the same, its teacher's {epochs} epochs in every trial",
                f"{longer:,.0f} s ({a_teacher:,.0f} s a teacher, from {TEACHER_STEPS} of {steps} steps)",
                f"{here.seconds:,.0f} s",
                f"{longer / here.seconds:.1f}x",
            ]
        )
    cpu = [cpu_seconds, here.cpu_seconds]
    table.append(["CPU seconds", *(f"{each:,.0f} s" for each in cpu), f"{cpu[0] / cpu[1]:.1f}x"])
    memory = [there.memory, here.memory]
    table.append(["peak memory", *(f"{each:.1f} GiB" for each in memory), f"{memory[0] / memory[1]:.1f}x"])
    row, agree = accuracies(space, students(rows), found["students"])
    return [*table, row], agree


def accuracies(space: Space, done: pd.DataFrame, listed: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """The row of the validation accuracies of the listed students, and whether both sides agree."""
    kept = "best" if Recipe.model_validate(space.student.recipe).select == "best" else "last"
    accuracy = done.set_index(STUDENT)["accuracy"]
    same = [accuracy[tuple(each[field] for field in STUDENT)] for each in listed]
    theirs = [100 * each[kept] for each in listed]
    difference = fmean(theirs) - fmean(same)
    spread = done.groupby(STUDENT[:-1])["accuracy"].var().mean() ** 0.5  # between seeds of a setting
    noise = 3 * spread * (2 / len(listed)) ** 0.5
    print([round(a - b, 2) for a, b in zip(theirs, same, strict=True)], spread, file=sys.stderr)
    means = [f"{fmean(each):.2f} %" for each in (theirs, same)]
    words = f"{difference:+.2f} points, up to {noise:.2f} is noise"
    return [f"accuracy of the same {len(listed)} students", *means, words], abs(difference) <= noise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="default: both")
    parser.add_argument("--students", type=int, help="trained the plain way; a multiple of the slots is fair")
    parser.add_argument("--teacher-epochs", type=int, help="default: 8 for gap, as its preset has it, and 3")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="CPUs, on both sides")
    parser.add_argument("--root", type=Path, help="keeps teacher and assistants (default: a temporary folder)")
    parser.add_argument("--markdown", action="store_true", help="print a table as a README has it")
    options = parser.parse_args()
    table, agree = [["", "plain Ray Tune", "takd", ""]], True
    with tempfile.TemporaryDirectory(prefix="takd-given-") as temporary:
        root = options.root or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        for name in [options.part] if options.part else PARTS:
            part = PARTS[name]
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
