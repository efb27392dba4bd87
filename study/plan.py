"""What a study would run, and the checks that need its models and data. Trains nothing."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from search_spaces import (
    ROLES,
    Configuration,
    DatasetFingerprint,
    InputError,
    Recipe,
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
from trainables.models import check_model, normalises_batches, parameters_of
from trainables.pretrained import (
    MissingWeightsError,
    canonical_weights,
    check_takes_pretrained,
    has_weights,
    keep_weights,
)
from trainables.storage import Storage, sha256
from trainables.training import StageTraining
from trainables.transfer import check_layer
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
        used = {(stage.role, stage.model): stage for stage, *_ in _stages_by_model(space, dataset)}
        for who, section, model in _roles(space):  # also what no arm uses
            stage = used.get((who, model))
            dropout = stage.recipe.dropout if stage else None
            try:
                module = check_model(model, dataset.image_shape, len(dataset.classes), dropout)
            except InputError as error:
                raise InputError(f"{who}: {error}") from None
            if stage:
                _check_layers(stage, module, section)
        for role, part in (("teacher", space.teacher), ("assistants", space.assistants), ("student", space.student)):
            _check_transfer_sets(role, part, dataset)
            _check_augmentation(role, part, dataset)
        for _, section, model in _roles(space):
            if section.pretrained is not None:
                check_takes_pretrained(model)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return dataset, [] if space.allow_any_size else list(_odd_sizes(space, dataset))


def _check_layers(stage: Stage, module: torch.nn.Module, section: Training) -> None:
    role = "assistants" if stage.role == "assistant" else stage.role
    for place, layer in examples_of(section.recipe.get("finetune_from")):
        if layer is not None:
            try:
                check_layer(stage.model, module, str(layer))
            except InputError as error:
                raise InputError(f"{role}.recipe.{error}".replace("from is", f"from{place} is")) from None
    if normalises_batches(module):
        for place, size in examples_of(section.recipe.get("batch_size")):
            if size == 1:
                raise InputError(
                    f"{role}.recipe.batch_size{place} is 1; {stage.model} normalises batches, of 2 at least"
                )


def _roles(space: Space) -> Iterator[tuple[Role, Training, str]]:
    """Every role with its section and each model it may have."""
    sections: list[tuple[Role, Training, Sequence[str]]] = [
        ("teacher", space.teacher, space.teacher.models),
        ("assistant", space.assistants, space.assistants.models),
        ("student", space.student, [space.student.model]),
    ]
    for role, section, models in sections:
        yield from ((role, section, model) for model in models)


def with_weights(
    space: Space,
    dataset: Dataset,
    source: str,
    storage: Storage | None = None,
    before: Space | None = None,
    keep: bool = True,
) -> Space:
    """The space with the digests of its pretrained weights, which a storage is to `keep` where one is given.

    Where weights are gone from this machine, those that `before`, the space of the same study, names will do if the
    storage has them.
    """
    found: dict[Role, dict[str, str]] = {}
    for role, section, model in _roles(space):
        if section.pretrained is not None:
            known = before.weights.get(role, {}).get(model) if before else None
            try:
                digest = _digest(model, section.pretrained, dataset, storage if keep else None)
            except MissingWeightsError as error:
                if known is None or storage is None or not has_weights(storage, known):
                    raise InputError(f"{source}: {error}") from None
                digest = known
            except InputError as error:
                raise InputError(f"{source}: {error}") from None
            found.setdefault(role, {})[model] = digest
    return space.model_copy(update={"weights": found})


def _digest(model: str, pretrained: str, dataset: Dataset, storage: Storage | None) -> str:
    content = canonical_weights(model, pretrained, dataset.image_shape, len(dataset.classes))
    return keep_weights(storage, content) if storage else sha256(content)


def _check_augmentation(role: str, section: Training, dataset: Dataset) -> None:
    _, height, width = dataset.image_shape
    for place, augment in examples_of(section.recipe.get("augment")):
        if augment == "flip-rotate" and height != width:
            raise InputError(
                f"{role}.recipe.augment{place} is flip-rotate, which turns squares; images of {dataset.name} are "
                f"{width} x {height}; crop-flip takes any"
            )


def _check_transfer_sets(role: str, section: Training, dataset: Dataset) -> None:
    for place, examples in examples_of(section.recipe.get("examples")):
        if examples is not None:
            try:
                transfer_set(dataset.train.labels, int(examples), seed=0)
            except InputError as error:
                raise InputError(f"{role}.{error}".replace("examples is", f"examples{place} is")) from None


def _stages_by_model(space: Space, dataset: Dataset) -> list[list[Stage]]:
    """The stages of each model in each role, with every teacher and the first of whatever else is varied.

    Of the confirm phase, what its students learn from: where the path has fresh seeds too, these are other stages.
    """
    found: dict[tuple[Role, str], dict[str, Stage]] = {}
    for arm in space.all_arms:
        varied = space.varied(arm)
        first = {name: next(iter(value.examples()))[1] for name, value in varied.items()}
        for _, teacher in varied["teacher.model"].examples() if "teacher.model" in varied else [("", None)]:
            chosen = first | ({"teacher.model": teacher} if teacher else {})
            [path] = space.paths(Configuration(arm, chosen), fingerprint(dataset), [0])
            for stage in path.stages:
                found.setdefault((stage.role, stage.model), {})[stage.key] = stage
        for path in space.confirming_paths(Configuration(arm, first), fingerprint(dataset)):
            for stage in path.stages[:-1]:
                found.setdefault((stage.role, stage.model), {})[stage.key] = stage
    return [list(found[each].values()) for each in sorted(found, key=lambda each: ROLES.index(each[0]))]


def _odd_sizes(space: Space, dataset: Dataset) -> Iterator[str]:
    def parameters(model: str) -> int:
        return parameters_of(model, dataset.image_shape, len(dataset.classes))

    teacher = min(space.teacher.models, key=parameters)
    student = parameters(space.student.model)
    silence = "allow_any_size: true silences this"
    for model in space.assistants.models:
        if parameters(model) >= parameters(teacher):
            yield f"assistants.models: {model} is no smaller than the teacher {teacher}; {silence}"
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
    space = with_weights(space, dataset, source, folder.storage, search.space if search else None, keep=False)
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
    for stages in _stages_by_model(space, dataset):
        stage = stages[0]
        cpu = min(space.resources_of(stage.role).cpu, threads)
        number, cached = len(stages), sum(store.has(each.key, needed_files(each)) for each in stages)
        if stage.role == "student":
            confirming = space.confirm.seeds * len(space.all_arms) if space.confirm else 0
            number, cached = max(0, space.budget - asked) * space.seeds + confirming, 0
        torch.set_num_threads(cpu)
        lanes = space.lanes if isinstance(space.lanes, int) else None
        seconds = estimate_seconds(stage, dataset, number, lanes)
        planned.append(PlannedStages(stage.role, stage.model, number, cached, seconds, cpu))
    torch.set_num_threads(threads)
    return planned


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
    return per_image * wanted * whole_epochs(stage.recipe)


def whole_epochs(recipe: Recipe) -> float:
    """How many epochs of all layers take as long: while the head alone trains, the rest has no backward pass.

    That is a third of an epoch; without views once, as what the rest gives is kept, and with views in every one.
    """
    head = recipe.head_epochs or 0
    return recipe.epochs - head + (head if recipe.views else min(head, 1)) / 3


def total_seconds(planned: list[PlannedStages], slots: int) -> float:
    """Wall time of what is not cached, if the slots are kept busy."""
    return sum((each.number - each.cached) * each.seconds * each.cpu for each in planned) / slots
