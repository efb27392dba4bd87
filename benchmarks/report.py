"""What `takd report` takes on a big study.

    .venv/bin/python benchmarks/report.py [--trials 142] [--seeds 8] [--confirm 20]

Makes up a study as large as that of `mnist-gap`: 142 configurations with 8 students each, and a confirm phase of 20
seeds for each arm (its tables and soft targets; nothing is trained). Then it runs `takd report` on it and prints its
seconds, beside the 15 that are wanted, and the most memory that it held. With `--trials 1000 --seeds 3` it is the study
that docs/performance.md has too. Memory is the sum of the processes' own pages (USS), looked at every 0.2 s.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa

ARMS = ("labels", "label_smoothing", "kd", "takd:mlp-200", "takd:mlp-64", "takd:mlp-32", "takd:mlp-16")
SIZES = {
    "mlp-1200": 2_395_210,
    "mlp-200": 199_210,
    "mlp-64": 55_050,
    "mlp-32": 26_506,
    "mlp-16": 13_002,
    "mlp-8": 6_442,
}
EPOCHS, FRESH_SEED = 20, 1_000_000
TEMPERATURES, LAMBDAS = (1, 2, 4, 8, 16), tuple(round(0.1 * step, 1) for step in range(1, 10))
IMAGES, CLASSES = 50_000, 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=142)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--confirm", type=int, default=20, help="seeds of each arm in the confirm phase; 0: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        make_up(Path(root), options.trials, options.seeds, options.confirm)
        seconds, cpu, memory = measure(
            [str(Path(sys.executable).with_name("takd")), "report", "made-up", "--root", root]
        )
        size = (Path(root) / "made-up/report/report.html").stat().st_size
    print(f"report: {options.trials:,} trials of {options.seeds} students: {seconds:.1f} s, 15 wanted; CPU {cpu:.1f} s")
    print(f"memory: {memory / 1e6:.0f} MB, at most 1,000 wanted; report.html has {size / 1e6:.1f} MB")


def make_up(root: Path, trials: int, seeds: int, confirm: int) -> None:
    """Writes a study's tables and soft targets."""
    random = np.random.default_rng(0)
    rows, epochs = [], []

    def add(phase: str, trial: int | None, arm: str, t: float, lam: float, students: range) -> None:
        chain = [] if arm.startswith("label") else ["mlp-1200", *([arm.partition(":")[2]] if ":" in arm else [])]
        configuration = f"{arm} temperature={t:.4g} lambda={lam:.4g}" if chain else arm
        for seed in students:
            accuracy = 0.85 + 0.01 * bool(chain) - 0.001 * t + random.normal(0, 0.005)
            models = [*chain, "mlp-8"]
            for place, model in enumerate(models):
                one = row(trial, configuration, arm, seed, models[:place], model, accuracy, t, lam)
                rows.append(one | tested(phase, accuracy if model == "mlp-8" else 0.97))
            epochs.extend(epoch_rows(f"student-{arm}-{trial}-{seed}", "student", "mlp-8", accuracy))

    for trial in range(trials):
        t, lam = float(random.choice(TEMPERATURES)), float(random.choice(LAMBDAS))
        add("search", trial, ARMS[trial % len(ARMS)], t, lam, range(seeds))
    for arm in ARMS:
        add("confirm", None, arm, 4, 0.3, range(FRESH_SEED, FRESH_SEED + confirm))
    for model in list(SIZES)[:-1]:
        write_soft_targets(root / "artifacts" / f"stage-{model}", random.normal(0, 4, (IMAGES, CLASSES)))
        epochs += epoch_rows(f"stage-{model}", "teacher" if model == "mlp-1200" else "assistant", model, 0.97)
    results = root / "made-up" / "results"
    results.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(results / "trials.parquet")
    pd.DataFrame(epochs).to_parquet(results / "epochs.parquet")


def tested(phase: str, accuracy: float) -> dict[str, object]:
    """What the confirm phase measures."""
    if phase == "search":
        return {"phase": phase}
    bins = [{"confidence": low / 15 + 0.03, "accuracy": low / 15, "count": 700} for low in range(15)]
    return {"phase": phase, "test_accuracy": accuracy, "test_loss": 0.5, "test_ece": 0.02, "test_reliability": bins}


def row(
    trial: int | None,
    configuration: str,
    arm: str,
    seed: int,
    chain: list[str],
    model: str,
    accuracy: float,
    t: float,
    lam: float,
) -> dict[str, object]:
    """One row as `study.results.TRIALS` has it."""
    student = model == "mlp-8"
    distilled = bool(chain)
    return {
        "study": "made-up",
        "phase": "search",
        "trial": trial,
        "configuration": configuration,
        "arm": arm,
        "path": f"{arm} {seed}",
        "path_seed": seed,
        "role": "student" if student else "assistant" if chain else "teacher",
        "model": model,
        "parameters": SIZES[model],
        "flops_per_image": 2 * SIZES[model],
        "upstream_models": chain[-1:],
        "temperature": t if distilled else None,
        "lambda": lam if distilled else None,
        "learning_rate": 0.003,
        "examples": 2000 if student else IMAGES,
        "seed": seed if student else 0,
        "stage_key": f"student-{arm}-{trial}-{seed}" if student else f"stage-{model}",
        "status": "done",
        "epochs": EPOCHS,
        "selected_epoch": EPOCHS,
        "val_accuracy": accuracy if student else 0.97,
        "test_accuracy": None,
        "val_loss": 0.5,
        "train_seconds": 0.9 if student else SIZES[model] / 40_000,
        "total_path_seconds": 0.9,
        "cached": not student,
        "error": None,
    }


def epoch_rows(key: str, role: str, model: str, accuracy: float) -> list[dict[str, object]]:
    return [
        {
            "study": "made-up",
            "stage_key": key,
            "role": role,
            "model": model,
            "epoch": epoch,
            "learning_rate": 0.003,
            "train_loss": 1 / epoch,
            "val_loss": 1 / epoch,
            "val_accuracy": accuracy * (1 - 0.5**epoch),
            "seconds": 0.04,
        }
        for epoch in range(1, EPOCHS + 1)
    ]


def write_soft_targets(folder: Path, logits: np.ndarray) -> None:
    folder.mkdir(parents=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(logits.astype(np.float32).reshape(-1)), CLASSES)
    table = pa.table({"view_0": column})
    with pa.ipc.new_file(folder / "soft_targets.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "stage.json").write_text(json.dumps({"files": {"soft_targets.arrow": "0" * 64}}))


def measure(command: list[str]) -> tuple[float, float, int]:
    """Seconds of a command, its CPU seconds, and the most bytes that it and its children held at once."""
    started, most = time.monotonic(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        most = max(most, sum(map(own_pages, [watched, *watched.children(recursive=True)])))
        time.sleep(0.2)
    assert process.returncode == 0, f"{command} exited with {process.returncode}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu, most


def own_pages(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:  # it ended meanwhile
        return 0


if __name__ == "__main__":
    main()
