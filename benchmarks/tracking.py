"""What tracking costs a study: W&B offline on against off, the driver's memory over 1,000 runs, the start-up.

    .venv/bin/python benchmarks/tracking.py [study] [memory] [start] [run]

study   200 tiny students of real MNIST on two slots, tracking off and on in turns, three times each: wall seconds
memory  the driver's resident set while a tracker writes 1,000 runs of 10 epochs, and the CPU seconds of one
start   what tracking adds before the first stage: imports, the look at what is written, the thread
run     one run by `wandb.init`, as it comes and with all that can be spared turned off, beside one written here

About 6 minutes on 2 cores for all four. Wanted: at most 5 % more wall time and 0.15 s a stage, memory flat, at most
1.5 s more at the start.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import ray
import wandb
from wandb.proto import wandb_internal_pb2  # noqa: F401  # counted in the start

from takd.search_spaces import DatasetFingerprint, Recipe, Stage, space_from
from takd.search_spaces.arms import parse_arm
from takd.study.checks import check_space
from takd.study.folder import study_folder
from takd.study.results import write_results
from takd.study.search.graph import Node, StageGraph
from takd.study.search.optimization import create_search
from takd.study.search.scheduling import PathSearcher, run_stages, start_ray
from takd.study.stopping import Stop
from takd.study.tracking.observers import Observer, Observers
from takd.study.tracking.wandb_runs import WandbTracker
from takd.study.tracking.wandb_study import complete_runs

STUDENTS, TURNS, RUNS, EPOCHS, BY_INIT = 200, 3, 1000, 10, 20


def study_seconds(tracked: bool) -> float:
    """Wall seconds of a study of tiny students in a new root, from its first stage to its last run written."""
    space = space_from(
        {
            "dataset": "mnist",
            "teacher": "mlp-16",
            "student": {"model": "mlp-4", "recipe": {"epochs": 2, "examples": 500}},
            "arms": ["labels"],
            "trials": STUDENTS,
        },
        "benchmark",
    )
    with tempfile.TemporaryDirectory(prefix="takd-tracking-") as root:
        folder = study_folder(root, "tracking")
        dataset, _ = check_space(space, "benchmark")
        folder.prepare()
        search = create_search(folder, space, dataset.fingerprint)
        start_ray(2)
        started = time.perf_counter()
        watching: list[Observer] = [WandbTracker(folder, space.all_arms, "offline")] if tracked else []
        observers = Observers(watching)
        run_stages(PathSearcher(search, StageGraph(folder.artifacts), root, observers, Stop()))
        observers.close()
        write_results(folder, search)
        if tracked:
            complete_runs(folder, search)
        seconds = time.perf_counter() - started
        written = len(list(folder.local.rglob("*.wandb")))
        assert written == (STUDENTS + 1 if tracked else 0), written
    ray.shutdown()
    return seconds


def measure_study() -> None:
    study_seconds(tracked=False)  # the first is slower
    off, on = [], []
    for _ in range(TURNS):
        off.append(study_seconds(tracked=False))
        on.append(study_seconds(tracked=True))
        print(f"study: {STUDENTS} students, off {off[-1]:.1f} s, on {on[-1]:.1f} s", flush=True)
    more = median(on) - median(off)
    print(f"  medians differ by  {100 * more / median(off):+.1f} %            at most 5 wanted")
    print(f"                     {more / STUDENTS:+.4f} s a stage   at most 0.15 wanted")


def ended_node(number: int) -> Node:
    data = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})
    stage = Stage(role="student", dataset=data, model="mlp-8", recipe=Recipe(epochs=EPOCHS), seed=number)
    return Node(stage, "0.0", "failed", reason="made up")


def epochs() -> list[dict[str, Any]]:
    about = {"learning_rate": 1e-3, "train_loss": 0.5, "val_loss": 0.5, "val_accuracy": 0.5, "seconds": 0.1}
    return [{"epoch": epoch, **about} for epoch in range(1, EPOCHS + 1)]


def measure_memory() -> None:
    process, resident = psutil.Process(), []
    with tempfile.TemporaryDirectory(prefix="takd-tracking-") as root:
        tracker = WandbTracker(study_folder(root, "memory"), [parse_arm("labels")], "offline")
        before = time.process_time()
        for number in range(RUNS):
            node = ended_node(number)
            tracker.stage_started(node)
            tracker.stage_reported(node, epochs())
            tracker.stage_ended(node)
            if number % 100 == 99:
                time.sleep(0.5)  # the writer catches up
                resident.append(process.memory_info().rss / 2**20)
        tracker.close()
        cpu = (time.process_time() - before) / RUNS
        assert len(list(Path(root).rglob("*.wandb"))) == RUNS
    first, last = resident[0], resident[-1]
    print(f"memory: {first:.0f} MiB after 100 runs, {last:.0f} after {RUNS:,}: {last - first:+.1f} MiB")
    print(f"  CPU seconds a run      {cpu:.4f}   stage, epochs, file")


def measure_start() -> None:
    def seconds(more: str) -> tuple[float, float]:
        """Wall and CPU."""
        script = (
            "import takd.study.run, takd.study.search.scheduling, tempfile\n"
            f"from takd.study.folder import study_folder\n{more}"
        )
        walls, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(TURNS):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", script], check=True)
            walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return median(walls), (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / TURNS

    tracking = (
        "from takd.study.tracking.wandb_runs import WandbTracker, wandb_mode\nwandb_mode(None)\n"
        "from wandb.proto import wandb_internal_pb2\n"
        "WandbTracker(study_folder(tempfile.mkdtemp(), 'start'), [], 'offline').close()"
    )
    (without, cpu_without), (tracked, cpu_tracked) = seconds(""), seconds(tracking)
    print(f"start: {without:.2f} s, with W&B {tracked:.2f} s: {tracked - without:+.2f} s   at most 1.5 wanted")
    print(f"  CPU seconds            {cpu_tracked - cpu_without:+.2f}")


def measure_run() -> None:
    spared = {"x_save_requirements": False, "x_disable_meta": True, "disable_git": True, "x_disable_stats": True}
    for name, settings in (("as it comes", {}), ("spared", spared)):
        with tempfile.TemporaryDirectory(prefix="takd-tracking-") as root:
            by_init(root, settings)  # the service starts
            started, before = time.perf_counter(), cpu_of_all()
            for _ in range(BY_INIT):
                by_init(root, settings)
            wall, cpu = (time.perf_counter() - started) / BY_INIT, (cpu_of_all() - before) / BY_INIT
        print(f"run by wandb.init, {name:<12} {wall:.4f} s, {cpu:.4f} CPU seconds of this process and W&B's service")
    wandb.teardown()


def by_init(root: str, settings: dict[str, Any]) -> None:
    run = wandb.init(
        project="takd",
        dir=root,
        mode="offline",
        reinit="create_new",
        config=ended_node(0).stage.key_input(),
        settings=wandb.Settings(console="off", silent=True, **settings),
    )
    for epoch in epochs():
        run.log(epoch)
    run.finish()


def cpu_of_all() -> float:
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(each.user + each.system for each in times)


PARTS = {"study": measure_study, "memory": measure_memory, "start": measure_start, "run": measure_run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    for part in parser.parse_args().parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
