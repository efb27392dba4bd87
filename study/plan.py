"""What a study would run and what that would cost. Trains a few steps, and keeps nothing of them."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from takd.analysis.tables import best_configurations
from takd.search_spaces import WIDEST, InputError, Path, Role, Space, Stage
from takd.study.checks import check_space, stages_by_model, with_weights
from takd.study.folder import StudyFolder
from takd.study.options import more_than_asked
from takd.study.results import build_results
from takd.study.search.optimization import Search, find_search, refuse_another_space
from takd.trainables.datasets.dataset import Dataset, most_balanced
from takd.trainables.store.artifacts import needed_files
from takd.trainables.training.loop import StageTraining
from takd.trainables.width import best_width, widest

PROBE_STEPS = 5


@dataclass(frozen=True)
class PlannedStages:
    """The stages of one model in one role: those that the study has, and those that a run would add."""

    role: Role
    model: str
    number: int
    cached: int  # of these, those that are finished
    seconds: float  # to train one, estimated; 0 where none is left
    cpu: int
    given: bool = False  # nothing is trained

    @property
    def left(self) -> int:
        return 0 if self.given else self.number - self.cached


def print_plan(space: Space, source: str, folder: StudyFolder, console: Console) -> None:
    """What `run` would do, with a cost estimate. Raises InputError where it refuses."""
    dataset, warnings = check_space(space, source)
    for warning in warnings:
        console.print(f"warning: {warning}")
    space = with_weights(space, dataset, source, folder)
    refuse_another_space(folder, space, dataset.fingerprint)
    search = find_search(folder)
    if search:
        search.space = space
    try:
        planned = plan(space, dataset, folder, search)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    asked = search.asked if search else 0
    arms = ", ".join(arm.name for arm in space.all_arms)
    console.print(f"arms: {arms}")
    console.print(
        f"{space.budget} trials x {space.seeds} seeds by {space.sampler}, {len(space.guaranteed())} of them guaranteed"
        + (f"; {asked} already started" if asked else "")
        + (f"; then every arm from {space.confirm.seeds} fresh seeds" if space.confirm else ""),
    )
    if asked > space.budget:
        console.print(more_than_asked(asked, space.budget))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("role", "model", "stages", "cached", "s each", "CPUs"):
        table.add_column(column, justify="left" if column in ("role", "model") else "right")
    for row in planned:
        cached, seconds = (
            ("given" if row.given else str(row.cached)),
            f"{row.seconds:.3g}" if row.left or row.given else "-",
        )
        table.add_row(row.role, row.model, str(row.number), cached, seconds, str(row.cpu))
    console.print(table)
    if not any(row.left for row in planned):
        console.print("nothing is left to train: takd run would write the tables again")
        return
    slots = os.cpu_count() or 1
    minutes = total_seconds(planned, slots) / 60
    console.print(f"about {minutes:.1f} min of training on the {slots} CPUs here, from timed steps")


def plan(space: Space, dataset: Dataset, folder: StudyFolder, search: Search | None) -> list[PlannedStages]:
    """What a run would go through. Upstream stages are known where nothing of theirs is varied; students are counted.

    Seconds are estimated from a few timed training steps of each model on this machine, with the CPUs its role gets.
    """
    needed, ended, new_students = _stages(space, dataset, folder, search)
    threads = torch.get_num_threads()
    planned = []
    for stages in stages_by_model(space, dataset):
        stage = stages[0]
        alike = [each for each in needed.values() if (each.role, each.model) == (stage.role, stage.model)]
        done = sum(each.role == stage.role and each.model == stage.model for each in ended.values())
        cpu = min(space.resources_of(stage.role).cpu, threads)
        number = len(alike) + done + (new_students if stage.role == "student" else 0)
        cached = done + sum(folder.artifacts.has(each.key, needed_files(each)) for each in alike)
        planned.append(PlannedStages(stage.role, stage.model, number, cached, 0.0, cpu, given=stage.given is not None))
        if not planned[-1].left:
            continue
        torch.set_num_threads(cpu)
        lanes = space.lanes if isinstance(space.lanes, int) else None
        try:
            seconds = estimate_seconds(stage, dataset, number - cached, lanes)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
                raise
            raise InputError(f"{stage.role} {stage.model}: has no room in this machine's memory") from None
        planned[-1] = replace(planned[-1], seconds=seconds)
    torch.set_num_threads(threads)
    return planned


def _stages(
    space: Space, dataset: Dataset, folder: StudyFolder, search: Search | None
) -> tuple[dict[str, Stage], dict[str, Stage], int]:
    """By key the stages that a run would look at, the finished ones that it would not, and how many students it adds.

    A search that is over is not looked at again, whatever became of its stages; what confirms it is.
    """
    needed, ended, remaining = {}, {}, space.budget
    if search:
        remaining = search.remaining
        for trial in search.proposed():
            stages = {stage.key: stage for path in search.paths_of(trial) for stage in path.stages}
            (ended if trial.state.is_finished() else needed).update(stages)
    new_students = remaining * space.seeds
    if search and not search.is_open:
        if space.confirm:
            best = best_configurations(build_results(folder, search).trials.to_pandas())
            paths = [path for proposal in search.confirming(best) for path in proposal.paths]
            needed |= (
                {stage.key: stage for path in paths for stage in path.stages} if _misses_one(folder, paths) else {}
            )
            ended |= {stage.key: stage for path in paths for stage in path.stages}
    else:
        known = [stage for stages in stages_by_model(space, dataset) for stage in stages if stage.role != "student"]
        needed |= {stage.key: stage for stage in known}
        new_students += space.confirm.seeds * len(space.all_arms) if space.confirm else 0
    found = {key: stage for key, stage in ended.items() if key not in needed and folder.artifacts.describe(key)}
    return needed, found, new_students


def _misses_one(folder: StudyFolder, paths: Sequence[Path]) -> bool:
    return any(folder.artifacts.describe(path.student.key) is None for path in paths)


def estimate_seconds(stage: Stage, dataset: Dataset, number: int = 1, lanes: int | None = None) -> float:
    """Seconds to train one of a number of stages alike, from a few timed steps.

    They train `lanes` at once, or as many as go fastest; with soft targets of zeros where they learn from any.
    """
    wanted = stage.recipe.examples or dataset.sizes["train"]
    examples = min(wanted, PROBE_STEPS * stage.recipe.batch_size, most_balanced(dataset.train.labels)[0])
    whole = {"head_epochs": None, "finetune_from": None, "finetune_factor": None}
    recipe = stage.recipe.model_copy(update={"examples": examples, "evaluate_every": 10**9} | whole)
    own: dict[str, Any] = {"recipe": recipe, "pretrained": None}
    probes = [stage.model_copy(update=own | {"seed": seed}) for seed in range(max(1, min(number, WIDEST)))]
    logits = np.zeros((dataset.sizes["train"], len(dataset.classes)), np.float32)

    def start(some: Sequence[Stage]) -> StageTraining:
        by_view = [logits] * (recipe.views or 1)
        return StageTraining(some, dataset, [[by_view] * len(stage.upstream)] * len(some))

    width = widest(stage) or lanes or (best_width(probes, start) if len(probes) > 1 else 1)
    training = start(probes[:width])
    started = time.perf_counter()
    training.run_epoch()  # the first one warms up
    if training.running:  # else it diverged, and the second would have nothing to train
        started = time.perf_counter()
        training.run_epoch()
    per_image = (time.perf_counter() - started) / examples / len(training.lanes)
    return per_image * wanted * stage.recipe.whole_epochs


def total_seconds(planned: list[PlannedStages], slots: int) -> float:
    """Wall time of what is not cached, if the slots are kept busy."""
    return sum(each.left * each.seconds * each.cpu for each in planned) / slots
