"""Students an hour: lanes beside the best arrangement of the same slots without lanes.

    .venv/bin/python benchmarks/lanes.py [--models mlp-8 mlp-32 mlp-128 mlp-784 cnn] [--slots 2] [--rounds 2]

Students of the preset mnist-gap (2,000 images, 60 epochs, 12 looks at the validation split; `cnn` 2 epochs) learn from
one upstream at settings of their own. Three arrangements take turns in fresh processes that start together: a worker a
slot with one thread and one student after another, one worker with all threads and one student after another, and a
worker a slot with as many lanes as `auto` measures there. From the worker's first step to its last student's weights;
without Ray, artifacts and process starts, all of which cost more a student without lanes. About 4 minutes on 2 cores.
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from queue import Queue

import numpy as np
import torch

from takd.search_spaces import WIDEST, Recipe, Stage, load_space
from takd.trainables.datasets.dataset import load
from takd.trainables.training.loop import StageTraining
from takd.trainables.width import best_width

UNLANED = 3  # students a worker trains without lanes


def students(model: str, number: int) -> list[Stage]:
    space, dataset = load_space("mnist-gap"), load("mnist").fingerprint
    given = dict(space.student.recipe) | ({"epochs": 2, "evaluate_every": 2} if model == "cnn" else {})
    recipe = Recipe.model_validate(given)
    teacher = Stage(role="teacher", dataset=dataset, model="mlp-1200", recipe=Recipe(), seed=0)
    return [
        Stage(
            role="student", dataset=dataset, model=model, recipe=recipe, seed=seed, upstream=(teacher,),
            loss=space.loss, temperature=float(1 + seed % 16), **{"lambda": 0.3 + 0.6 * seed / number},
        )
        for seed in range(number)
    ]  # fmt: skip


def start(stages: Sequence[Stage]) -> StageTraining:
    dataset = load("mnist")
    logits = np.random.default_rng(0).normal(size=(dataset.sizes["train"], len(dataset.classes))).astype(np.float32)
    return StageTraining(stages, dataset, [[[logits]]] * len(stages))


def work(model: str, threads: int, lanes: bool, together: Barrier, answers: "Queue[tuple[int, int, float]]") -> None:
    """Trains for a while; answers with the lanes at once, the students trained and the seconds they took."""
    torch.set_num_threads(threads)
    stages = students(model, WIDEST if lanes else UNLANED)
    start(stages[:1]).run_epoch()  # warms up
    width = best_width(stages, load("mnist"), start) or WIDEST if lanes else 1
    batches = [stages[at : at + width] for at in range(0, max(width, UNLANED), width)]
    together.wait()
    started = time.perf_counter()
    for batch in batches:
        training = start(batch)
        while not training.done:
            training.run_epoch()
        training.finish()
    answers.put((width, sum(map(len, batches)), time.perf_counter() - started))


def students_an_hour(model: str, workers: int, threads: int, lanes: bool) -> tuple[float, int]:
    """Of all workers at once, and the lanes of one of them."""
    context = multiprocessing.get_context("spawn")
    together, answers = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=work, args=(model, threads, lanes, together, answers)) for _ in range(workers)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(3600 * number / seconds for _, number, seconds in found), found[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp-8", "mlp-32", "mlp-128", "mlp-784", "cnn"])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="the best round of each arrangement counts")
    options = parser.parse_args()
    print(
        f"{'model':<8} {'worker a slot':>13} {'one worker':>11} {'lanes':>8} {'at once':>7}  times the better without"
    )
    for model in options.models:
        by_slot = one = lanes = 0.0
        for _ in range(options.rounds):
            by_slot = max(by_slot, students_an_hour(model, options.slots, 1, lanes=False)[0])
            one = max(one, students_an_hour(model, 1, options.slots, lanes=False)[0])
            rate, width = students_an_hour(model, options.slots, 1, lanes=True)
            lanes = max(lanes, rate)
        ratio = lanes / max(by_slot, one)
        print(f"{model:<8} {by_slot:13,.0f} {one:11,.0f} {lanes:8,.0f} {width:7}  {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
