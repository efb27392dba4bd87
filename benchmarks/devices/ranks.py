"""What it costs to divide a stage: an epoch of two ranks with a thread each, beside one process with two threads.

    .venv/bin/python benchmarks/devices/ranks.py [--data NAME] [--models resnet-20 plain-10] [--rounds 5]

Both train the same stage on the same batches of 128 images, in processes that are there all the time; they take turns,
`--rounds` times after one to warm up. `--data` is a data set that `takd data` knows (CIFAR-10 in `docs/cluster.md`);
without it the images are MNIST's. Without Ray, which a stage meets once an epoch. On CPUs, over gloo: on two cores
neither has more than the other. About 4 minutes on 2 cores.
"""

import argparse
import multiprocessing
import statistics
from collections.abc import Sequence
from multiprocessing.connection import Connection

import torch

from takd.search_spaces import Recipe, Stage
from takd.trainables.datasets.dataset import load
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.ranks import Meeting, Ranks

CPU = torch.device("cpu")
Seconds = tuple[float, float]  # of an epoch's steps, and of its look at the validation split


def training_of(data: str, model: str, images: int, rounds: int) -> StageTraining:
    dataset = load(data)
    given = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1, "batch_size": 128, "epochs": rounds}
    recipe = Recipe.model_validate(given | {"examples": images})
    stage = Stage(role="teacher", dataset=dataset.fingerprint, model=model, recipe=recipe, seed=0)
    return StageTraining([stage], dataset, [[]])


def work(
    talk: Connection, rank: int | None, threads: int, data: str, models: Sequence[str], images: int, rounds: int
) -> None:
    """An epoch whenever it is told to, of one model after the other; the first rank says where the others find it."""
    torch.set_num_threads(threads)
    ranks = None
    if rank == 0:
        meeting = Meeting("127.0.0.1")
        talk.send((meeting.host, meeting.port))
        ranks = Ranks(0, 2, meeting, CPU)
    elif rank is not None:
        ranks = Ranks(rank, 2, talk.recv(), CPU)
    for model in models:
        training = training_of(data, model, images, rounds)
        if ranks is not None:
            training.join(ranks)
        for _ in range(rounds):
            talk.recv()
            training.run_epoch()
            [lane] = training.lanes
            talk.send((lane.epochs[-1].seconds - lane.epochs[-1].val_seconds, lane.epochs[-1].val_seconds))
    if ranks is not None:
        ranks.leave()


def epoch(talks: Sequence[Connection]) -> Seconds:
    """That these processes do together: the slower one's."""
    for each in talks:
        each.send("go on")
    found: list[Seconds] = [each.recv() for each in talks]
    return max(found)


def middle(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--models", nargs="+", default=["resnet-20"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=3840)
    given = parser.parse_args()
    start = multiprocessing.get_context("spawn")
    rounds = given.rounds + 1
    pipes = [start.Pipe() for _ in range(3)]
    processes = [
        start.Process(target=work, args=(pipe[1], rank, threads, given.data, given.models, given.images, rounds))
        for pipe, rank, threads in zip(pipes, (None, 0, 1), (2, 1, 1), strict=True)
    ]
    for each in processes:
        each.start()
    alone, *ranks = [pipe[0] for pipe in pipes]
    ranks[1].send(ranks[0].recv())
    for model in given.models:
        by_one, by_two = [], []
        for _ in range(rounds):
            by_one.append(epoch([alone]))
            by_two.append(epoch(ranks))
        print(f"{model}, {given.images} images of {given.data}, {given.rounds} epochs each:")
        for what, place in (("steps", 0), ("a look at the validation split", 1)):
            one, two = ([each[place] for each in found[1:]] for found in (by_one, by_two))
            ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
            print(f"  {what}: one process {middle(one)}, two ranks {middle(two)}, {100 * (ratio - 1):+.1f} %")
    for each in processes:
        each.join()


if __name__ == "__main__":
    main()
