"""A second rank in a process of its own, which trains what the test's process trains."""

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from takd.search_spaces import Stage
from takd.trainables.datasets.dataset import load
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.ranks import Meeting, Ranks

CPU = torch.device("cpu")
FEW = 201  # images to validate on, which no two ranks share evenly: all would take longer than what is trained


def training_of(stage: Stage, dataset: Any = None) -> StageTraining:
    """With soft targets that are drawn, where it learns from any."""
    dataset = dataset or load(stage.dataset.name)
    random = np.random.default_rng(0)
    logits = 3 * random.standard_normal((dataset.sizes["train"], len(dataset.classes))).astype(np.float32)
    by_view = [logits] * stage.recipe.view_count
    training = StageTraining([stage], dataset, [[by_view for _ in stage.upstream]])
    inputs = training.inputs
    inputs.validation.images = inputs.validation.images[:FEW]
    inputs.validation_labels = inputs.validation_labels[:FEW]
    return training


def trained(stage: Stage, ranks: Ranks | None, dataset: Any = None) -> StageTraining:
    """After its first epoch it goes on from a checkpoint."""
    training = training_of(stage, dataset)
    if ranks is not None:
        training.join(ranks)
    training.run_epoch()
    left = training.checkpoint(training.lanes[0])
    training = training_of(stage, dataset)
    training.restore([Checkpoint.parse(left)])
    if ranks is not None:
        training.join(ranks)
    while not training.done:
        training.run_epoch()
    return training


def weights(training: StageTraining) -> dict[str, Tensor]:
    """What it would leave, with what batch normalisation counts."""
    if training.stopped:  # by its patience
        return training.stopped[0][1].weights
    return training.taught.selected(0)


def _follow(where: tuple[str, int], stages: Sequence[str]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(1, 2, where, CPU)
    for each in stages:
        trained(Stage.model_validate_json(each), ranks)
    ranks.leave()


@contextmanager
def second_rank(stages: Sequence[Stage]) -> Iterator[Ranks]:
    """The first of two ranks, of which the other trains these stages one after the other."""
    meeting = Meeting("127.0.0.1")
    given = (meeting.host, meeting.port), [stage.model_dump_json() for stage in stages]
    other = multiprocessing.get_context("spawn").Process(target=_follow, args=given)
    other.start()
    ranks = Ranks(0, 2, meeting, CPU)
    try:
        yield ranks
        other.join(60)
        assert other.exitcode == 0
    finally:
        ranks.leave()
        other.kill()
        other.join()
