"""What images cost that are never in memory as a whole: mapped as pixels, or kept encoded and decoded ahead.

    .venv/bin/python benchmarks/devices/streaming.py [--images 200000] [--model plain-2] [--keep DIR]

Made-up JPEG images of 64 x 64 in Parquet files (`--keep` makes them once) become a data set by `takd data images` in
both forms. Then two processes train a teacher for an epoch over all of them, each under a limit of the memory that it
may write to (`RLIMIT_DATA`) which loading the images would break, and that is tried first. They take turns of some
steps, so that what else the machine does meets both; then each computes the soft targets of all training images, one
after the other. Printed are seconds and CPU seconds (with the processes that decode), and by how much the anonymous
memory (`RssAnon`) grows after the first turn. With 200,000 images about ten minutes on 2 idle cores. Linux.
"""

import argparse
import io
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE, CLASSES, TEST, PART, BATCH = 64, 10, 2000, 5000, 128
LIMIT = 0.8  # of the bytes of all pixels, that a process may write to beside what it has and what it maps
DATA = "import sys; from takd.study.cli import main; sys.exit(main(sys.argv[1:]))"
FORMS = {"mapped": (), "encoded": ("--keep-encoded",)}


def jpeg(random: "np.random.Generator", label: int) -> bytes:
    """Soft coloured patches, brighter by class: 2 kB."""
    small = (random.normal(60 + 14 * label, 40, (8, 8, 3))).clip(0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def write_part(folder: Path, split: str, number: int, images: int) -> None:
    random = np.random.default_rng([number, split == "test"])
    labels = random.permutation(np.arange(images) % CLASSES)
    struct = pa.array([{"bytes": jpeg(random, int(each))} for each in labels], pa.struct({"bytes": pa.binary()}))
    pq.write_table(pa.table({"image": struct, "label": labels}), folder / f"{split}-{number:05d}.parquet")


def make(folder: Path, images: int) -> None:
    """In as many processes as there are cores; what is there stays."""
    parts = [("train", number, min(PART, images - PART * number)) for number in range(ceil(images / PART))]
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        waiting = [
            pool.submit(write_part, folder, *part)
            for part in [*parts, ("test", 0, TEST)]
            if not (folder / f"{part[0]}-{part[1]:05d}.parquet").exists()
        ]
        for each in waiting:
            each.result()


def status(field: str, process: int | str = "self") -> int:
    """Bytes, as Linux has them of a process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def cpu_seconds() -> float:
    """Of this process and of those that it started and that live."""
    import psutil

    here = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in [here, *here.children(recursive=True)])


def train(talk: Connection, name: str, model: str, threads: int, turn: int) -> None:
    """An epoch, `turn` steps whenever it is told to; then the soft targets. It says what each part took."""
    import torch

    from takd.search_spaces import Recipe, Stage
    from takd.trainables.datasets.dataset import load
    from takd.trainables.training.loop import StageTraining

    torch.set_num_threads(threads)
    dataset = load(name)
    pixels = int(np.prod(dataset.image_shape)) * sum(dataset.sizes.values())
    mapped = 0 if dataset.encoded is not None else sum(each.stat().st_size for each in dataset.folder.glob("*.arrow"))
    limit = status("VmData") + int(LIMIT * pixels)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        _ = torch.empty(pixels, dtype=torch.uint8).fill_(1)
        talk.send(f"{name}: the limit of {limit / 1e6:,.0f} MB is too large: all images had room")
        return
    except RuntimeError:
        talk.send((dataset.encoded or 0, mapped, limit))
    recipe = Recipe.model_validate({"epochs": 1, "batch_size": BATCH, "optimizer": "sgd", "learning_rate": 0.01})
    stage = Stage(role="teacher", dataset=dataset.fingerprint, model=model, recipe=recipe, seed=0)
    training = StageTraining([stage], dataset, [[]])
    steps = ceil(dataset.sizes["train"] / BATCH)
    step: Callable[..., Any] = training.train_step
    began = [0.0, 0.0]

    def begin() -> None:
        talk.recv()
        began[:] = time.perf_counter(), cpu_seconds()

    def end() -> None:
        talk.send((time.perf_counter() - began[0], cpu_seconds() - began[1], status("RssAnon")))

    def watched(batch: Any, factor: float, number: int = 0) -> Any:
        if number % turn == 0:
            if number:
                end()
            begin()
        losses = step(batch, factor, number)
        if number == steps - 1:
            end()
        return losses

    training.train_step = watched  # type: ignore[method-assign]
    training.run_epoch()
    begin()
    [(lane, trained)] = training.finish()
    end()
    assert trained.soft_targets is not None
    talk.send((trained.soft_targets.double().sum().item(), lane.epochs[-1].train_loss))


def main() -> None:
    from takd.trainables.datasets.dataset import converted

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--model", default="plain-2")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the images and data sets are, or will be")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = options.keep or Path(scratch)
        os.environ["TAKD_CACHE"] = str(place / "cache")
        source = place / f"images-{options.images}"
        make(source, options.images)
        rows: dict[str, list[str]] = {}
        for form, flags in FORMS.items():
            started = time.perf_counter()
            command = ["data", "images", "--from", str(source), "--name", f"{form}-{options.images}", *flags]
            if f"{form}-{options.images}" not in converted():
                subprocess.run([sys.executable, "-c", DATA, *command], check=True, stdout=subprocess.DEVNULL)
            rows.setdefault("`takd data`, seconds", []).append(f"{time.perf_counter() - started:,.0f}")
        measure(options, rows)


def measure(options: argparse.Namespace, rows: dict[str, list[str]]) -> None:
    start, steps = multiprocessing.get_context("spawn"), ceil((options.images - options.images // 10) / BATCH)
    turn = ceil(steps / options.turns)
    pipes = [start.Pipe() for _ in FORMS]
    processes = [
        start.Process(
            target=train, args=(pipe[1], f"{form}-{options.images}", options.model, options.threads, turn), daemon=True
        )
        for form, pipe in zip(FORMS, pipes, strict=True)
    ]
    for each in processes:
        each.start()
    talks = [pipe[0] for pipe in pipes]
    for talk in talks:
        given = talk.recv()
        if isinstance(given, str):
            sys.exit(given)
        encoded, mapped, limit = given
        rows.setdefault("on the disk, MB", []).append(f"{(mapped or encoded) / 1e6:,.0f}")
        rows.setdefault("may write to, MB", []).append(f"{limit / 1e6:,.0f}")
    told: list[list[tuple[float, float, int]]] = [[], []]
    for _ in range(ceil(steps / turn) + 1):  # the last are the soft targets
        for talk, own in zip(talks, told, strict=True):
            talk.send("go on")
            own.append(talk.recv())
            print(f"  {own[-1][0]:.1f} s, {own[-1][1]:.1f} CPU s, {own[-1][2] / 1e6:.0f} MB", flush=True)
    left = [talk.recv() for talk in talks]
    for own in told:
        wall, cpu, memory = zip(*own, strict=True)
        rows.setdefault("an epoch's steps, seconds", []).append(f"{sum(wall[:-1]):,.1f}")
        rows.setdefault("the same, CPU seconds", []).append(f"{sum(cpu[:-1]):,.1f}")
        rows.setdefault("soft targets, seconds", []).append(f"{wall[-1]:,.1f}")
        rows.setdefault("the same, CPU seconds ", []).append(f"{cpu[-1]:,.1f}")
        rows.setdefault("anonymous memory after the first turn, MB", []).append(f"{memory[0] / 1e6:,.0f}")
        rows.setdefault("the most after that", []).append(f"{100 * (max(memory[1:-1]) / memory[0] - 1):+.1f} %")
        rows.setdefault("with the soft targets", []).append(f"{100 * (memory[-1] / memory[0] - 1):+.1f} %")
    for each in processes:
        each.join()
    print(f"{options.images:,} images of {SIDE} x {SIDE}, {options.model}, {options.threads} threads\n")
    print(f"| | {' | '.join(FORMS)} | encoded to mapped |\n| --- | ---: | ---: | ---: |")
    for name, (one, other) in rows.items():
        plain = [float(each.replace(",", "")) for each in (one, other) if "%" not in each]
        ratio = f"{plain[1] / plain[0]:.2f}" if len(plain) == 2 and plain[0] else ""
        print(f"| {name.strip()} | {one} | {other} | {ratio} |")
    print(f"\nthe two left the same soft targets and loss: {left[0] == left[1]}")


if __name__ == "__main__":
    main()
