"""What a study would run, and the checks that need its models and data. Trains nothing."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from search_spaces import (
    ROLES,
    Configuration,
    DatasetFingerprint,
    InputError,
    Role,
    Space,
    Stage,
    Training,
    examples_of,
)
from study.folder import StudyFolder
from study.optimization import find_search
from trainables.artifacts import ArtifactStore, needed_files
from trainables.datasets import Dataset, load, most_balanced, transfer_set
from trainables.models import build, parameters_of
from trainables.training import StageTraining
from trainables.width import WIDEST, best_width, widest

PROBE_STEPS = 5


def fingerprint(dataset: Dataset) -> DatasetFingerprint:
    """What of a dataset is in every stage's key."""
    return DatasetFingerprint(
        name=dataset.name, digest=dataset.digest, split_seed=dataset.split_seed, sizes=dict(dataset.sizes)
    )


def check_space(space: Space, source: str) -> tuple[Dataset, list[str]]:
    """The space's dataset, and warnings about sizes; raises InputError on models or data that can't be."""
    try:
        dataset = load(space.dataset)
        for stage in _one_stage_a_model(space, dataset):
            with torch.device("meta"):
                build(stage.model, dataset.image_shape, len(dataset.classes), stage.recipe.dropout)
        for role, section in (("teacher", space.teacher), ("assistants", space.assistants), ("student", space.student)):
            _check_transfer_sets(role, section, dataset)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return dataset, [] if space.allow_any_size else list(_odd_sizes(space, dataset))


def _check_transfer_sets(role: str, section: Training, dataset: Dataset) -> None:
    for place, examples in examples_of(section.recipe.get("examples")):
        if examples is not None:
            try:
                transfer_set(dataset.train.labels, int(examples), seed=0)
            except InputError as error:
                raise InputError(f"{role}.{error}".replace("examples is", f"examples{place} is")) from None


def _one_stage_a_model(space: Space, dataset: Dataset) -> list[Stage]:
    """A stage of each model in each role, with the first of whatever is varied."""
    found: dict[tuple[Role, str], Stage] = {}
    for arm in space.all_arms:
        chosen = {name: next(iter(value.examples()))[1] for name, value in space.varied(arm).items()}
        [path] = space.paths(Configuration(arm, chosen), fingerprint(dataset), [0])
        for stage in path.stages:
            found.setdefault((stage.role, stage.model), stage)
    return sorted(found.values(), key=lambda stage: ROLES.index(stage.role))


def _odd_sizes(space: Space, dataset: Dataset) -> Iterator[str]:
    def parameters(model: str) -> int:
        return parameters_of(model, dataset.image_shape, len(dataset.classes))

    teacher, student = parameters(space.teacher.model), parameters(space.student.model)
    silence = "allow_any_size: true silences this"
    for model in space.assistants.models:
        if parameters(model) >= teacher:
            yield f"assistants.models: {model} is no smaller than the teacher {space.teacher.model}; {silence}"
        if parameters(model) <= student:
            yield f"assistants.models: {model} is no larger than the student {space.student.model}; {silence}"


@dataclass(frozen=True)
class PlannedStages:
    """The stages of one model in one role."""

    role: Role
    model: str
    number: int
    cached: int
    seconds: float  # to train one, estimated
    cpu: int


def print_plan(space: Space, source: str, folder: StudyFolder, console: Console) -> None:
    """Arms, stages, which are cached, and a cost estimate."""
    dataset, warnings = check_space(space, source)
    for warning in warnings:
        console.print(f"warning: {warning}")
    search = find_search(folder)
    asked = search.asked if search else 0
    planned = plan(space, dataset, folder.artifacts, asked)
    arms = ", ".join(arm.name for arm in space.all_arms)
    console.print(f"arms: {arms}")
    console.print(
        f"{space.budget} trials x {space.seeds} seeds by {space.sampler}, {len(space.guaranteed())} of them guaranteed"
        + (f"; {asked} already proposed" if asked else "")
        + (f"; then every arm from {space.confirm.seeds} fresh seeds" if space.confirm else ""),
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("role", "model", "stages", "cached", "s each", "CPUs"):
        table.add_column(column, justify="left" if column in ("role", "model") else "right")
    for row in planned:
        table.add_row(row.role, row.model, str(row.number), str(row.cached), f"{row.seconds:.3g}", str(row.cpu))
    console.print(table)
    slots = os.cpu_count() or 1
    minutes = total_seconds(planned, slots) / 60
    console.print(f"about {minutes:.1f} min of training on the {slots} CPUs here, from timed steps")


def plan(space: Space, dataset: Dataset, store: ArtifactStore, asked: int) -> list[PlannedStages]:
    """What is left to train. Upstream stages are known where nothing of theirs is varied; students are counted.

    Seconds are estimated from a few timed training steps of each model on this machine, with the CPUs its role gets.
    """
    threads = torch.get_num_threads()
    planned = []
    for stage in _one_stage_a_model(space, dataset):
        cpu = min(space.resources_of(stage.role).cpu, threads)
        cached = store.has(stage.key, needed_files(stage))
        number = 1
        if stage.role == "student":
            confirming = space.confirm.seeds * len(space.all_arms) if space.confirm else 0
            number, cached = max(0, space.budget - asked) * space.seeds + confirming, False
        torch.set_num_threads(cpu)
        lanes = space.lanes if isinstance(space.lanes, int) else None
        seconds = estimate_seconds(stage, dataset, number, lanes)
        planned.append(PlannedStages(stage.role, stage.model, number, int(cached), seconds, cpu))
    torch.set_num_threads(threads)
    return planned


def estimate_seconds(stage: Stage, dataset: Dataset, number: int = 1, lanes: int | None = None) -> float:
    """Seconds to train one of a number of stages alike, from a few timed steps.

    They train `lanes` at once, or as many as go fastest; with soft targets of zeros where they learn from any.
    """
    wanted = stage.recipe.examples or dataset.sizes["train"]
    examples = min(wanted, PROBE_STEPS * stage.recipe.batch_size, most_balanced(dataset.train.labels)[0])
    recipe = stage.recipe.model_copy(update={"examples": examples, "evaluate_every": 10**9})
    probes = [stage.model_copy(update={"recipe": recipe, "seed": seed}) for seed in range(max(1, min(number, WIDEST)))]
    logits = np.zeros((dataset.sizes["train"], len(dataset.classes)), np.float32)

    def start(some: Sequence[Stage]) -> StageTraining:
        return StageTraining(some, dataset, [[logits] * len(stage.upstream)] * len(some))

    width = widest(stage) or lanes or (best_width(probes, start) if len(probes) > 1 else 1)
    training = start(probes[:width])
    training.run_epoch()  # the first one warms up
    started = time.perf_counter()
    training.run_epoch()
    per_image = (time.perf_counter() - started) / examples / len(training.lanes)
    return per_image * wanted * stage.recipe.epochs


def total_seconds(planned: list[PlannedStages], slots: int) -> float:
    """Wall time of what is not cached, if the slots are kept busy."""
    return sum((each.number - each.cached) * each.seconds * each.cpu for each in planned) / slots
