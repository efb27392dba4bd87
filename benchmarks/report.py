"""What `takd report` takes on a big study.

    .venv/bin/python benchmarks/report.py [--trials 1000]

Makes up a study of 1,000 configurations with 3 students each (its tables and soft targets; nothing is trained), then
runs `takd report` on it and prints its seconds and the most memory that it and its notebooks held together, beside the
60 s and 1 GB that are wanted. Memory is the sum of the processes' own pages (USS), looked at every 0.2 s.
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

ARMS = ("labels", "kd", "takd:mlp-200", "takd:mlp-64", "takd:mlp-32", "takd:mlp-16")
SIZES = {
    "mlp-1200": 2_395_210,
    "mlp-200": 199_210,
    "mlp-64": 55_050,
    "mlp-32": 26_506,
    "mlp-16": 13_002,
    "mlp-8": 6_442,
}
SEEDS, EPOCHS = 3, 20
TEMPERATURES, LAMBDAS = (1, 2, 4, 8, 16), tuple(round(0.1 * step, 1) for step in range(1, 10))
IMAGES, CLASSES = 50_000, 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        make_up(Path(root), options.trials)
        seconds, cpu, memory = measure(
            [str(Path(sys.executable).with_name("takd")), "report", "made-up", "--root", root]
        )
        size = (Path(root) / "made-up/report/report.html").stat().st_size
    print(f"report: {options.trials:,} trials of {SEEDS} students: {seconds:.0f} s, at most 60 wanted; CPU {cpu:.0f} s")
    print(f"memory: {memory / 1e6:.0f} MB, at most 1,000 wanted; report.html has {size / 1e6:.1f} MB")


def make_up(root: Path, trials: int) -> None:
    """Writes a study's tables and soft targets."""
    random = np.random.default_rng(0)
    rows, epochs = [], []
    for trial in range(trials):
        arm = ARMS[trial % len(ARMS)]
        chain = [] if arm == "labels" else ["mlp-1200", *([arm.partition(":")[2]] if ":" in arm else [])]
        temperature, lambda_ = float(random.choice(TEMPERATURES)), float(random.choice(LAMBDAS))
        configuration = arm if arm == "labels" else f"{arm} temperature={temperature:.4g} lambda={lambda_:.4g}"
        for seed in range(trial * SEEDS, (trial + 1) * SEEDS):
            accuracy = 0.85 + 0.01 * bool(chain) - 0.001 * temperature + random.normal(0, 0.005)
            models = [*chain, "mlp-8"]
            for place, model in enumerate(models):
                rows.append(row(trial, configuration, arm, seed, models[:place], model, accuracy, temperature, lambda_))
            epochs += epoch_rows(f"student-{seed}", "student", "mlp-8", accuracy)
    for model in list(SIZES)[:-1]:
        write_soft_targets(root / "artifacts" / f"stage-{model}", random.normal(0, 4, (IMAGES, CLASSES)))
        epochs += epoch_rows(f"stage-{model}", "teacher" if model == "mlp-1200" else "assistant", model, 0.97)
    results = root / "made-up" / "results"
    results.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(results / "trials.parquet")
    pd.DataFrame(epochs).to_parquet(results / "epochs.parquet")


def row(
    trial: int,
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
        "stage_key": f"student-{seed}" if student else f"stage-{model}",
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
