"""Run a study, or go on with it: everything from a space to its tables and figure."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from search_spaces import InputError, Space, Stage
from study.folder import StudyFolder
from study.graph import Description, StageGraph
from study.lease import acquire_lease
from study.observers import Observer, Observers
from study.optimization import Search, create_search, open_optuna, refuse_another_space
from study.plan import check_space, fingerprint
from study.profile import Profile
from study.progress import Progress
from study.report import write_figure
from study.results import write_results
from study.stopping import Stop
from study.tracking import Mode, WandbTracker, wandb_mode
from trainables.artifacts import ArtifactStore, needed_files
from trainables.storage import FULL


@dataclass(frozen=True)
class RunOptions:
    """What a run of a study may choose without changing the study."""

    wandb: Mode | None = None
    slots: int | None = None  # CPU slots of a local Ray; None: as many as there are cores
    address: str | None = None  # of a running Ray cluster; None: a local Ray of our own
    profile: bool = False  # say where the time went


@dataclass
class RunResult:
    """How a run ended."""

    finished: bool
    trained: int = 0  # stages trained by this run
    profile: Profile | None = None  # where it was asked for and something was left to train


def run_study(
    folder: StudyFolder, space: Space, source: str, options: RunOptions, console: Console, stop: Stop | None = None
) -> RunResult:
    """Runs until the budget is spent and every stage has ended, or `stop` is requested.

    Raises InputError before anything is written when the space or the folder can't be, or another process runs it.
    """
    stop, began = stop or Stop(), time.monotonic()
    dataset, warnings = check_space(space, source)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow")
    folder.prepare()
    data = fingerprint(dataset)
    refuse_another_space(folder, space, data)
    lease = acquire_lease(open_optuna(folder), folder.name, on_lost=stop.request, on_wait=console.print)
    try:
        search = create_search(folder, space, data)
        folder.write_space(space)
        result = RunResult(finished=True)
        if search.is_open:
            result = _train(folder, search, options, console, stop, began)
        write_results(folder, search)
        write_figure(folder)
        if result.profile:
            result.profile.write(folder, console)
        return result
    except OSError as error:
        if error.errno not in FULL:
            raise
        stop.request(f"{error.filename or folder.root}: {error.strerror}")
        return RunResult(finished=False)
    finally:
        lease.release()


def _train(
    folder: StudyFolder, search: Search, options: RunOptions, console: Console, stop: Stop, began: float
) -> RunResult:
    # Imports Ray: seconds that a finished study need not wait.
    from study.scheduling import lacking_gpus, run_stages, start_ray

    slots = start_ray(options.slots, options.address)
    if lacking := lacking_gpus(search.space):
        if options.address is None:
            raise InputError(lacking)
        console.print(f"warning: {lacking} yet; stages wait until it has", style="yellow")
    graph = StageGraph(find_artifact(folder.artifacts))
    mode = wandb_mode(options.wandb)
    observers: list[Observer] = [Progress(folder.name, search.space.seeds, slots, console)]
    if mode != "disabled":
        observers.append(WandbTracker(folder.name, folder.local, mode))
    profile = Profile(slots, began) if options.profile else None
    if profile:
        observers.append(profile)
    watching = Observers(observers)
    try:
        run_stages(search, graph, folder.root, watching, stop)
    finally:
        watching.close()
    trained = sum(counts["done"] for counts in graph.counts.values())
    return RunResult(finished=not search.is_open, trained=trained, profile=profile)


def find_artifact(store: ArtifactStore) -> Callable[[Stage], Description | None]:
    """Looks a stage up in the store."""
    return lambda stage: store.check(stage.key, needed_files(stage))
