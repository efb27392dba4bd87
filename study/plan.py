"""What a study would run and what that would cost. Trains a few steps, and keeps nothing of them."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from takd.search_spaces import (
    VALIDATION,
    WIDEST,
    InputError,
    Kept,
    Left,
    LeftName,
    Role,
    Space,
    Stage,
    What,
    frozen_for,
    is_called,
    learned_by,
    sizes_of,
    some,
)
from takd.search_spaces.methods import KD
from takd.search_spaces.registry import PAGE
from takd.search_spaces.sections import Confirm
from takd.search_spaces.stage import BELOW, HEAD
from takd.study.checks import check_space, first_stages, gpu_here, stages_by_model, with_weights
from takd.study.code_checks import use_code, with_code
from takd.study.confirm import left_to_confirm, what_confirms
from takd.study.folder import StudyFolder
from takd.study.options import more_than_asked
from takd.study.results import build_results
from takd.study.search.optimization import Search, find_search, refuse_to_go_on
from takd.study.search.stored_choices import parameters_of
from takd.trainables import room
from takd.trainables.datasets.dataset import Dataset, load_for, most_balanced, taught_on
from takd.trainables.models.families import build, stacks
from takd.trainables.models.frozen import cut_in, head_in
from takd.trainables.models.stage_models import head_weights
from takd.trainables.store.artifacts import ArtifactStore, needed_files
from takd.trainables.store.derived import Array
from takd.trainables.training.devices import device_of
from takd.trainables.training.features import Frozen, embedding_in, maps_in
from takd.trainables.training.lanes import form_of
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.teaching import ByView, Lessons
from takd.trainables.width import best_width, widest

PROBE_STEPS = 5
CPU = torch.device("cpu")


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
    apart: str = ""  # what tells them from others of the model in this role: how much they are trained
    sized: str = ""  # the name of an assistant whose size is searched: `model` is the one in the middle
    about: bool = False  # how many there will be, of assistants, depends on the sizes that are chosen
    gpu: float = 0.0  # of this machine's, where it was timed on one

    @property
    def left(self) -> int:
        return 0 if self.given else self.number - self.cached


def print_plan(space: Space, source: str, folder: StudyFolder, console: Console) -> None:
    """What `run` would do, with a cost estimate. Raises InputError where it refuses."""
    use_code(space, source)
    space = with_code(space, source)
    dataset, warnings = check_space(space, source, folder)
    for warning in warnings:
        console.print(f"warning: {warning}")
    space = with_weights(space, dataset, source, folder)
    search = find_search(folder)
    if search:
        refuse_to_go_on(search, space, dataset.fingerprint)
        search.space = space
    try:
        planned = plan(space, dataset, folder, search)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    asked = search.asked if search else 0
    arms = ", ".join(arm.name for arm in space.all_arms)
    console.print(f"arms: {arms}")
    for line in _dimensions(space):
        console.print(line)
    if space.factors:
        per_cell = len(space.all_arms)
        console.print(
            f"cells: {len(space.cells)}, each with its own search of {space.cells[0].space.budget} trials for all "
            f"{per_cell} arms: {'; '.join(f'{name} {list(values)}' for name, values in space.factors.items())}"
        )
    console.print(
        f"{space.budget} trials x {space.seeds} seeds by {space.sampler}, {len(space.guaranteed())} of them guaranteed"
        + (f"; {asked} already started" if asked else "")
        + (
            f"; then every arm{' of every cell' if space.factors else ''} {_confirmed(space.confirm)}"
            if space.confirm
            else ""
        ),
    )
    if asked > space.budget:
        console.print(more_than_asked(asked, space.budget))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("role", "model", "stages", "cached", "s each", "CPUs"):
        table.add_column(column, justify="left" if column in ("role", "model") else "right")
    for row in planned:
        cached = "given" if row.given else str(row.cached)
        seconds = f"{row.seconds:.3g}" if row.left or row.given else "-"
        at_most = f"about {row.number}" if row.about and row.left else str(row.number)
        table.add_row(row.role, f"{row.sized or row.model}{row.apart}", at_most, cached, seconds, str(row.cpu))
    console.print(table)
    for row in planned:
        if row.sized and row.left:
            console.print(f"{row.sized}: one for each size that is chosen, with the time of {row.model}, in the middle")
    for line in _in_loop(space, dataset):
        console.print(line)
    for line in _run_in_every_step(space, dataset):
        console.print(line)
    for line in _memory(space, dataset):
        console.print(line)
    for model in _alone(space, dataset):
        console.print(f"{model} trains alone: not all of its layers have a form for lanes, see {PAGE}")
    if not any(row.left for row in planned):
        console.print("nothing is left to train: takd run shows the tables")
        return
    slots, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    minutes = total_seconds(planned, slots, gpus) / 60
    here = f"the {slots} CPUs" + (f" and {gpus} {'GPUs' if gpus > 1 else 'GPU'}" if gpus else "")
    console.print(f"about {minutes:.1f} min of training on {here} here, from timed steps")


def _dimensions(space: Space) -> Iterator[str]:
    """How many parameters the search has in each arm, where other methods than kd are compared."""
    if all(arm.methods in ((), (KD,)) for arm in space.all_arms):
        return
    found = {arm.name: [*space.cells[0].space.varied(arm)] for arm in space.all_arms}
    said = [f"{arm} {len(names)}{f' ({some(names)})' if names else ''}" for arm, names in found.items()]
    yield f"dimensions of the search by arm: {'; '.join(said)}"


def _in_loop(space: Space, dataset: Dataset) -> list[str]:
    """Of students whose methods look inside a model, whether it runs in every step or what it leaves is read."""
    too_much = (
        f"runs in the loop, since what it leaves takes more than features.cache_gb, {space.features.cache_gb:g} GB"
    )
    found: dict[tuple[str, str], dict[str, None]] = {}
    for stage in (stage for alike in stages_by_model(space, dataset) for stage in alike):
        if all(term.needed == "logits" for term in stage.terms or ()):
            continue
        teaches = " and ".join(each.model for each in stage.upstream)
        how = "runs in the loop, which was measured to be faster" if stage.loop in space.loops else too_much
        how = how if stage.in_loop else "runs once, and what it leaves is read"
        found.setdefault((f"{stage.role} {stage.model}", f"{teaches} {how}"), {})[stage.methods] = None
    return [f"{who} by {', '.join(methods)}: {how}" for (who, how), methods in found.items()]


def _run_in_every_step(space: Space, dataset: Dataset) -> list[str]:
    """Of layers that stand still and yet run in every step of those above them, and why."""
    found = []
    for stage in (stage for alike in stages_by_model(space, dataset) for stage in alike):
        recipe, kept, known = stage.recipe, stage.frozen or Kept(), space.inside.get(stage.model, {})
        if stage.pretrained is None or recipe.head_epochs is None:
            continue
        large = f"what they give takes more than features.cache_gb, {space.features.cache_gb:g} GB"
        apart = "the network can't be cut there"
        who = f"{stage.role} {stage.model}: the layers below"
        if kept.head is None:
            is_cut = f"{BELOW}{HEAD}" in known
            found.append(f"{who} its head run in the loop, since {large if is_cut else apart}")
        if kept.rest is None and recipe.finetune_from is not None and recipe.epochs > recipe.head_epochs:
            is_cut = f"{BELOW}{recipe.finetune_from}" in known
            found.append(f"{who} {recipe.finetune_from} run in the loop, since {large if is_cut else apart}")
    return list(dict.fromkeys(found))


def _memory(space: Space, dataset: Dataset) -> list[str]:
    """Where a worker's images are, and on a GPU what else has to have room there."""
    memory, found = room.memory_of_gpu(), list[str | None]()
    for stage in (stages[0] for stages in stages_by_model(space, dataset)):
        gpu = gpu_here(space, stage.role) if memory else space.resources_of(stage.role).gpu
        found.append(room.on_gpu(stage, dataset, gpu, memory) if gpu and not stage.given else room.on_cpu(dataset))
    return list(dict.fromkeys(filter(None, found)))


def _alone(space: Space, dataset: Dataset) -> list[str]:
    """The models of a user's code of which no two train as one."""
    named = {stage.model: stage.code or {} for stages in stages_by_model(space, dataset) for stage in stages}
    own = [model for model, code in named.items() if any(name.startswith("model_family ") for name in code)]
    return [model for model in own if not stacks(model, dataset.image_shape, len(dataset.classes))]


def _confirmed(confirm: Confirm) -> str:
    if confirm.replicates is None:
        return f"from {confirm.seeds} fresh seeds"
    return f"on {confirm.replicates} fresh paths of {confirm.students // confirm.replicates} students"


def plan(space: Space, dataset: Dataset, folder: StudyFolder, search: Search | None) -> list[PlannedStages]:
    """What a run would go through. Upstream stages are known where nothing of theirs is varied; students are counted.

    Seconds are estimated from a few timed training steps of each model on this machine, with the CPUs its role gets, on
    a GPU where there is one and the role would get a part of it. Several ranks are taken to share the time evenly.
    """
    needed, ended, new = _stages(space, dataset, folder, search)
    threads = torch.get_num_threads()
    planned = []
    firsts = [stages[0] for stages in stages_by_model(space, dataset)]
    alike, done = (_rows(space, stages, firsts) for stages in (needed, ended))
    for row, stage in enumerate(firsts):
        cpu = min(space.resources_of(stage.role).cpu, threads)
        ranks = _ranks_here(space, stage.role)
        number = len(alike[row]) + len(done[row]) + new[stage.role, *_cost_of(space, stage)]
        cached = len(done[row]) + sum(folder.artifacts.has(each.key, needed_files(each)) for each in alike[row])
        given, apart, gpu = stage.given is not None, _apart(stage, firsts), gpu_here(space, stage.role)
        sized = _searched(space, stage) or ""
        about = stage.role == "assistant" and new[stage.role, *_cost_of(space, stage)] > 0
        planned.append(
            PlannedStages(
                stage.role, stage.model, number, cached, 0.0, ranks * cpu, given, apart, sized, about, ranks * gpu
            )
        )
        if not planned[-1].left:
            continue
        torch.set_num_threads(cpu)
        lanes = space.lanes if isinstance(space.lanes, int) else None
        try:
            seconds = estimate_seconds(stage, dataset, number - cached, lanes, device_of(gpu), folder.artifacts)
        except (RuntimeError, MemoryError) as error:
            known = (MemoryError, torch.OutOfMemoryError)
            if not isinstance(error, known) and "can't allocate memory" not in str(error):
                raise
            raise InputError(f"{stage.role} {stage.model}: has no room in this machine's memory") from None
        planned[-1] = replace(planned[-1], seconds=seconds / ranks)
    torch.set_num_threads(threads)
    return planned


def _searched(space: Space, stage: Stage) -> str | None:
    """The name of an assistant whose size is searched, where a stage is one of these."""
    names = space.assistants.names if stage.role == "assistant" and stage.model not in space.assistants.names else ()
    return next((name for name in names if is_called(name, stage.model)), None)


def _rows(space: Space, stages: Mapping[str, Stage], firsts: Sequence[Stage]) -> list[list[Stage]]:
    """The stages by whose row of the plan they are in: one that costs the same, else the first of their model.

    All sizes of an assistant whose size is searched are in the row of the one in the middle.
    """
    found: list[list[Stage]] = [[] for _ in firsts]
    costs = [(first.role, *_cost_of(space, first)) for first in firsts]
    for stage in stages.values():
        own = (stage.role, *_cost_of(space, stage))
        same = [row for row, cost in enumerate(costs) if cost[:2] == own[:2]]
        exact = [row for row in same if costs[row] == own]
        if same:
            found[(exact or same)[0]].append(stage)
    return found


Kind = tuple[Role, str, int | None, int, str]  # role, model or name, examples, epochs, methods that cost something


def stages_left(space: Space, dataset: Dataset, asked: Mapping[str, int]) -> Counter[Kind]:
    """How many students, and assistants whose size is searched, are to train at most; a free sampler's trials are
    shared out evenly.

    `asked` has the trials that were started, by the name of their cell.
    """
    found: Counter[Kind] = Counter()
    for cell in space.cells:
        own, arms = cell.space, cell.space.all_arms
        points = Counter(point["arm"] for point in own.grid()) if own.sampler == "grid" else None
        shares = [points[arm.name] if points else 1 for arm in arms]
        left = max(0, own.budget - asked.get(cell.name, 0))
        sized: dict[tuple[str, ...], tuple[Kind, int]] = {}  # by those it learns from: how many trials have one
        for place, arm in enumerate(arms):
            upto = [left * own.seeds * sum(shares[:end]) // sum(shares) for end in (place, place + 1)]
            *others, student = first_stages(own, arm, dataset, confirming=False)
            found["student", *_cost_of(own, student)] += (
                upto[1] - upto[0] + (own.confirm.students if own.confirm else 0)
            )
            for stage in others:
                if names := _of_searched_size(own, stage):
                    before = sized.get(names, (None, 0))[1]
                    kind: Kind = ("assistant", *_cost_of(own, stage))
                    sized[names] = kind, before - (upto[0] - upto[1]) // own.seeds
        for names, (kind, number) in sized.items():
            varied = [size for name in names if (size := own.assistants.size(name))]
            found[kind] += min(number, math.prod(len(sizes_of(size)) for size in varied))
    return found


def _of_searched_size(space: Space, stage: Stage) -> tuple[str, ...]:
    """The names of the models it learned through and its own, where a size among them is searched; else none."""
    stages = [stage]
    while stages[-1].upstream:
        stages.append(stages[-1].upstream[-1])
    if not any(_searched(space, each) for each in stages):
        return ()
    guides = f"{len(stage.upstream)} guides"  # a dense path's assistant is another than that of a chain
    return (*tuple(_searched(space, each) or each.model for each in stages), guides)


def _cost_of(space: Space, stage: Stage) -> tuple[str, int | None, int, str]:
    return _searched(space, stage) or stage.model, stage.recipe.examples, stage.recipe.epochs, stage.methods


def _apart(stage: Stage, others: Sequence[Stage]) -> str:
    """What tells a stage's group from others of the same model and role."""
    same = [each.recipe for each in others if (each.role, each.model) == (stage.role, stage.model)]
    differs = [name for name in ("examples", "epochs") if len({getattr(each, name) for each in same}) > 1]
    said = [f"{'all' if (value := getattr(stage.recipe, name)) is None else value} {name}" for name in differs]
    said += [f"by {stage.methods}"] if stage.methods else []
    return f", {', '.join(said)}" if said else ""


def _stages(
    space: Space, dataset: Dataset, folder: StudyFolder, search: Search | None
) -> tuple[dict[str, Stage], dict[str, Stage], Counter[Kind]]:
    """By key the stages that a run would look at, the finished ones that it would not, and what it adds of others.

    What failed is looked at again unless it would fail again. A search that is over is else not, whatever became of its
    stages; what confirms it is.
    """
    needed: dict[str, Stage] = {}
    ended: dict[str, Stage] = {}
    asked: Counter[str] = Counter()
    again = {trial.number for trial in search.failed_before} if search else set()
    for trial in search.proposed() if search else ():
        assert search is not None
        asked[search.space.cell(parameters_of(trial)).name] += 1
        stages = {stage.key: stage for path in search.paths_of(trial) for stage in path.stages}
        over = trial.state.is_finished() and trial.number not in again
        (ended if over else needed).update(stages)
    if search and not search.is_open and not again:
        new: Counter[Kind] = Counter()
        trials = build_results(folder, search).trials.to_pandas()
        confirming = [path for proposal in what_confirms(folder, search, trials) for path in proposal.paths]
        confirms = {stage.key: stage for path in confirming for stage in path.stages}
        (needed if left_to_confirm(folder, search, trials) else ended).update(confirms)
    else:
        known = [stage for stages in stages_by_model(space, dataset) for stage in stages if stage.role != "student"]
        needed |= {
            stage.key: stage for stage in known if stage.phase == "confirm" or not _of_searched_size(space, stage)
        }
        new = stages_left(space, dataset, asked)
    lasting = search.lasting if search else {}
    needed = {key: stage for key, stage in needed.items() if key not in lasting}
    found = {key: stage for key, stage in ended.items() if key not in needed and folder.artifacts.describe(key)}
    return needed, found, new


def _ranks_here(space: Space, role: Role) -> int:
    """How many of the role would train a stage together on this machine, as `fitted` gives it."""
    own = space.resources_of(role)
    most = torch.cuda.device_count() if own.gpu else (os.cpu_count() or 1) // own.cpu
    return max(1, min(own.together, most))


def estimate_seconds(
    stage: Stage,
    dataset: Dataset,
    number: int = 1,
    lanes: int | None = None,
    device: torch.device = CPU,
    store: ArtifactStore | None = None,
) -> float:
    """Seconds to train one of a number of stages alike, from a few timed steps.

    They train `lanes` at once, or as many as go fastest; with soft targets of zeros where they learn from any.
    """
    if stage.transfer:
        dataset = taught_on(dataset, load_for(stage.transfer, store), bool(stage.with_own))
    wanted = stage.images
    examples = min(wanted, PROBE_STEPS * stage.recipe.batch_size, most_balanced(dataset.train.labels)[0])
    if stage.frozen is not None:
        return _seconds_above(stage, dataset, examples, number, lanes, device)
    whole = {"head_epochs": None, "finetune_from": None, "finetune_factor": None}
    recipe = stage.recipe.model_copy(update={"examples": examples, "evaluate_every": 10**9} | whole)
    own: dict[str, Any] = {"recipe": recipe, "pretrained": None}
    probes = [stage.model_copy(update=own | {"seed": seed}) for seed in range(max(1, min(number, WIDEST)))]
    logits = np.zeros((dataset.sizes["train"], len(dataset.classes)), np.float32)

    def start(some: Sequence[Stage]) -> StageTraining:
        by_view = [logits] * recipe.view_count
        lessons = [_zeros(stage, each, by_view, dataset, device) for each in stage.upstream]
        heads = [_zero_head(stage.head_of, dataset)] * len(some) if stage.head_of else None
        return StageTraining(some, dataset, [lessons] * len(some), device, heads=heads)

    width = widest(stage, dataset) or lanes or (best_width(probes, dataset, start) if len(probes) > 1 else 1)
    training = start(probes[:width])
    started = time.perf_counter()
    training.run_epoch()  # the first one warms up
    if training.running:  # else it diverged, and the second would have nothing to train
        started = time.perf_counter()
        training.run_epoch()
    per_image = (time.perf_counter() - started) / examples / len(training.lanes)
    return per_image * wanted * stage.recipe.whole_epochs


def _zero_head(upstream: Stage, dataset: Dataset) -> dict[str, torch.Tensor]:
    about = dataset.image_shape, len(dataset.classes)
    return {
        name: each.zero_()
        for name, each in head_weights(upstream.model, build(upstream.model, *about).state_dict(), *about).items()
    }


def _seconds_above(
    stage: Stage, dataset: Dataset, examples: int, number: int, lanes: int | None, device: torch.device
) -> float:
    """Seconds to train a stage above layers that stand still, by a timed epoch of its head and one of all above.

    What they give is zeros, and to compute it, once for all such stages, is not in it.
    """
    head, seconds = stage.recipe.head_epochs or 0, 0.0
    for start, epochs in ((0, head), (head, stage.recipe.epochs - head)):
        if not epochs:
            continue
        recipe = stage.recipe.model_copy(update={"examples": examples, "evaluate_every": 10**9})
        own: dict[str, Any] = {"recipe": recipe, "pretrained": None}
        probe = stage.model_copy(update=own)
        most = widest(probe, dataset) or lanes or max(1, min(number, WIDEST))
        probes = [probe.model_copy(update={"seed": seed}) for seed in range(min(most, max(1, number)))]
        logits = [np.zeros((dataset.sizes["train"], len(dataset.classes)), np.float32)] * recipe.view_count
        lessons = [_zeros(probe, each, logits, dataset, device) for each in stage.upstream]
        kept = _zeros_below(probe, dataset)
        training = StageTraining(probes, dataset, [lessons] * len(probes), device, kept=kept)
        for _ in range(2):
            training.epoch = start  # the first one warms up
            started = time.perf_counter()
            training.run_epoch()
        seconds += epochs * (time.perf_counter() - started) / len(probes)
    return seconds / examples * stage.images


def _zeros_below(stage: Stage, dataset: Dataset) -> dict[LeftName, Array]:
    """What is kept of layers that stand still, if they gave nothing."""
    about = stage.model, dataset.image_shape, len(dataset.classes), stage.recipe.dropout
    kept = stage.frozen or Kept()
    found: dict[LeftName, Array] = {}
    for name in frozen_for(stage):
        left = Left.parse(name)
        cut = cut_in(*about, first=kept.rest) if kept.rest and left.layer == kept.rest else None
        shape = cut.shape if cut else head_in(*about)[1]
        images = dataset.sizes["validation"] if left.images == VALIDATION else stage.images
        found[name] = np.zeros((images, *shape), np.float32)
    return found


def _zeros(stage: Stage, upstream: Stage, logits: ByView, dataset: Dataset, device: torch.device) -> Lessons:
    """What a stage learns from an upstream stage, if that said nothing."""
    found: dict[tuple[What, str | None], ByView | Frozen] = {}
    about = dataset.image_shape, len(dataset.classes)
    for what, layer in learned_by(stage):
        found[what, layer] = logits
        if what == "embedding":
            shape: tuple[int, ...] = (embedding_in(upstream.model, *about).features,)
        elif what == "map":
            shape = maps_in(upstream.model, *about)[str(layer)]
        else:
            continue
        found[what, layer] = [np.zeros((dataset.sizes["train"], *shape), np.float32)] * len(logits)
        if stage.in_loop:
            form, layout = form_of(upstream.model, dataset)
            model = form([build(upstream.model, *about)]).to(device, memory_format=layout)  # type: ignore[call-overload]
            found[what, layer] = Frozen(model, upstream.model, dataset)
    return found


def total_seconds(planned: list[PlannedStages], slots: int, gpus: int = 0) -> float:
    """Wall time of what is not cached, if CPUs or GPUs, whichever there are fewer of for it, are kept busy.

    Where several share a GPU, each was timed alone on it: together they may take longer.
    """
    by_cpu = sum(each.left * each.seconds * each.cpu for each in planned) / slots
    return max(by_cpu, sum(each.left * each.seconds * each.gpu for each in planned) / gpus if gpus else 0.0)
