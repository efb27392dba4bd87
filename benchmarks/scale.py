"""What a study of many trials costs its driver: the real searcher, storage, artifacts and results, stages of no time.

    .venv/bin/python benchmarks/scale.py [--trials 100 1000 10000] [--slots 64] [--sampler tpe]

Stages are not trained: as soon as one is handed out, a small artifact with a made-up accuracy is published in its
place, by the real store, and the searcher hears of it as from a worker. One student a trial; arms `labels`, `kd` and
two assistants; T, lambda and learning rate varied. Tune's own time a trial is in `overhead.py trial`, W&B's in
`tracking.py`. About 8 minutes.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from takd.search_spaces import Space, Stage, space_from
from takd.study.apart import apart
from takd.study.folder import StudyFolder, study_folder
from takd.study.results import write_results
from takd.study.search.graph import StageGraph
from takd.study.search.optimization import Search, create_search
from takd.study.search.scheduling import PathSearcher, start_ray
from takd.study.search.workers import Need
from takd.study.stopping import Stop
from takd.study.tracking.observers import Observers
from takd.trainables.store.artifacts import SOFT_TARGETS, WEIGHTS

EPOCHS = [
    {"epoch": n, "learning_rate": 1e-3, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "seconds": 0.01,
     "val_seconds": 0.0}
    for n in range(1, 13)
]  # fmt: skip


def space(trials: int, sampler: str) -> Space:
    return space_from(
        {
            "dataset": "mnist",
            "teacher": {"model": "mlp-1200"},
            "assistants": ["mlp-64", "mlp-16"],
            "student": {"model": "mlp-8", "recipe": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}},
            "trials": trials,
            "sampler": sampler,
            "lanes": 16,
        },
        "benchmark",
    )


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - started

        return wrapped


def publish(folder: StudyFolder, stage: Stage, dice: random.Random) -> None:
    """What a worker leaves, with an accuracy that T and lambda have a say in."""
    accuracy = 0.5 + 0.01 * dice.random() - 0.001 * abs((stage.temperature or 5) - 5) + 0.01 * (stage.lambda_ or 0)
    outcome = {
        "name": stage.name, "role": stage.role, "metrics": {"validation": {"accuracy": accuracy, "loss": 1.0}},
        "selected_epoch": 12, "epochs": EPOCHS, "train_seconds": 0.1, "soft_targets_seconds": 0.0, "parameters": 1000,
        "flops_per_image": 2000, "origin": {"study": folder.name, "use": "0.0"},
    }  # fmt: skip
    files = {WEIGHTS: b"w"} | ({} if stage.role == "student" else {SOFT_TARGETS: b"s"})
    folder.artifacts.publish(stage.key, {"input": stage.key_input(), "outcome": outcome}, files)


class Assigned:
    """In the place of a worker's handle: what is assigned stands in a row and is done in order."""

    def __init__(self, name: str, row: deque[tuple[str, dict[str, Any]]]) -> None:
        self.name, self.row = name, row
        self.assign = self  # `assign.remote`

    def remote(self, given: dict[str, Any]) -> None:
        self.row.append((self.name, given))


def drive(folder: StudyFolder, search: Search, slots: int, clock: Clock) -> None:
    """The searcher to its end, as Tune drives it, with `slots` workers."""
    find = folder.artifacts
    for name in ("artifact", "lacking"):
        object.__setattr__(find, name, clock.timed("look at artifacts", getattr(find, name)))
    graph, dice = StageGraph(find), random.Random(0)
    search.ask = clock.timed("ask the sampler", search.ask)  # type: ignore[method-assign]
    search.tell = clock.timed("tell the storage", search.tell)  # type: ignore[method-assign]
    searcher = PathSearcher(search, graph, folder.root, Observers([]), Stop())
    searcher.workers.nodes = {"here": Need(slots, 0)}
    searcher.looked = float("inf")  # not at Ray's own nodes
    searcher.shared_root.seen.add("here")
    nothing: dict[str, Any] = {"stages": [], "width": None, "idle": True}
    row: deque[tuple[str, dict[str, Any]]] = deque()
    names, ended, last = (str(number) for number in range(10**9)), 0, time.perf_counter()
    marks: list[float] = []
    while not searcher.over:
        while isinstance(searcher.suggest(name := next(names)), dict):
            searcher.report(name, nothing | {"node": "here", "actor": Assigned(name, row)})
        for name in [name for name, each in searcher.workers.living.items() if each.batch is None]:
            searcher.report(name, nothing)
        if not row:
            continue
        name, given = row.popleft()
        stages = [Stage.model_validate(each) for each in given["stages"]]
        for stage in stages:
            clock.timed("publish, in the worker", publish)(folder, stage, dice)
        states = [{"key": stage.key, "state": "done", "reason": None, "epochs": EPOCHS} for stage in stages]
        searcher.report(name, nothing | {"stages": states})
        ended += len(stages)
        if ended >= (len(marks) + 1) * search.space.budget / 10:
            marks.append(time.perf_counter() - last)
            last = time.perf_counter()
    clock.seconds["last tenth, all parts"] = marks[-1]


def measure(trials: int, sampler: str, slots: int) -> None:
    with tempfile.TemporaryDirectory(prefix="takd-scale-") as root:
        folder, wanted, clock = study_folder(root, "scale"), space(trials, sampler), Clock()
        wanted, data, *_ = apart("takd.study.checks:check", wanted, "benchmark", folder)
        folder.prepare()
        search = create_search(folder, wanted, data)
        started = time.perf_counter()
        drive(folder, search, slots, clock)
        whole, resident = time.perf_counter() - started, resident_mib()
        clock.timed("write results", write_results)(folder, search)
        started = time.perf_counter()
        again = create_search(folder, wanted, data)
        assert not again.is_open
        write_results(folder, again)
        resume = time.perf_counter() - started
        sizes = Counter({Path(file).name: Path(file).stat().st_size for file in Path(root, "scale").rglob("*.*")})
        report(trials, whole, clock, resume, sizes, resident)


def resident_mib() -> float:
    """The largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(trials: int, whole: float, clock: Clock, resume: float, sizes: Counter[str], resident: float) -> None:
    seconds = dict(clock.seconds)
    last, results = seconds.pop("last tenth, all parts"), seconds.pop("write results")
    publishing = seconds.pop("publish, in the worker")
    driver = whole - publishing
    print(f"{trials:,} trials: {1000 * driver / trials:.1f} ms a trial of the driver's")
    for part, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:<24} {1000 * spent / trials:7.2f} ms")
    print(f"  {'searcher and graph':<24} {1000 * (driver - sum(seconds.values())) / trials:7.2f} ms")
    print(f"  the last tenth           {1000 * last / (trials / 10):7.2f} ms a trial, publishing included")
    print(f"  publish, in the worker   {1000 * publishing / trials:7.2f} ms")
    print(f"  write results            {results:7.1f} s;   resume when finished {resume:.1f} s")
    print(f"  largest resident set     {resident:7.0f} MiB; {resident_mib():.0f} with tables and a second look")
    print(
        "  files                    "
        + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items() if size > 1e4)
    )
    print(json.dumps({"trials": trials, "driver_ms": 1000 * driver / trials, "resume_s": resume}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--sampler", choices=("tpe", "random"), default="tpe")
    options = parser.parse_args()
    start_ray(1)
    for trials in options.trials:
        measure(trials, options.sampler, options.slots)
    ray.shutdown()


if __name__ == "__main__":
    main()
