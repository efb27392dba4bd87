"""Run a study, or go on with it: everything from a space to its tables and figure."""

import logging
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from takd.search_spaces import InputError, Space
from takd.study.apart import apart, begin
from takd.study.confirm import any_missing, best_configurations_of, best_so_far, choice_stands, keep, unmeasured
from takd.study.folder import FIGURE, StorageAwayError, StudyFolder
from takd.study.options import CHECK, Checking, RunOptions, more_than_asked
from takd.study.results import Tables, build_results, standing_results, write_results
from takd.study.search.graph import Proposal, StageGraph
from takd.study.search.lease import acquire_lease
from takd.study.search.measuring import Measuring
from takd.study.search.optimization import Search, create_search, find_search, refuse_to_go_on
from takd.study.search.pruned import Pruned
from takd.study.search.storages import open_optuna
from takd.study.search.workers import fitted
from takd.study.stopping import Stop
from takd.study.tracking.events import EventLog
from takd.study.tracking.observers import Observer, Observers
from takd.study.tracking.profile import Profile, print_use
from takd.study.tracking.progress import Progress
from takd.study.tracking.tensorboard import TensorBoardLog
from takd.study.tracking.uploading import uploads
from takd.study.tracking.wandb_names import check_variables
from takd.study.tracking.wandb_runs import WandbTracker, wandb_mode
from takd.study.tracking.wandb_study import complete_runs
from takd.trainables.own_code import NO_CODE, Code
from takd.trainables.store.storage import AWAY_SECONDS, FULL, PATIENCE, RootAwayError

log = logging.getLogger("takd")


@dataclass
class RunResult:
    """How a run ended."""

    finished: bool
    trained: int = 0  # stages trained by this run
    search: Search | None = None  # None where it was stopped before there was one, as the tables are
    tables: Tables | None = None  # as they were written
    code: Code = NO_CODE  # the user's, as it was checked
    profile: Profile | None = None  # where it was asked for and something was left to train


def run_study(
    folder: StudyFolder,
    space: Space,
    source: str,
    options: RunOptions,
    console: Console,
    stop: Stop | None = None,
    checking: Checking | None = None,
) -> RunResult:
    """Runs until the budget is spent and every stage has ended, or `stop` is requested.

    `checking` is the check of the space where that was begun before. Raises InputError before anything is written when
    the space or the folder can't be, or another process runs it.
    """
    check_variables(options.wandb)
    stop, began = stop or Stop(), time.monotonic()
    checking = checking or begin(CHECK, space, source, folder)
    known = find_search(folder, stop)
    trains = known is None or known.is_open
    if trains:
        _start_ray(options, stop)  # it takes seconds: while the other process checks
    else:
        import takd.study.report  # noqa: F401  # likewise SciPy, with which what has ended is shown
    space, data, largest_class, warnings, code, own_data = checking()
    if stop.requested:
        return RunResult(finished=False)
    if trains and options.address is None:
        _refuse_what_is_not_here(space)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow")
    folder.prepare()
    if known:
        refuse_to_go_on(known, space, data)
    storage = known.study._storage if known else open_optuna(folder, stop)  # opened once: a long journal takes seconds
    lease = acquire_lease(storage, folder.name, on_lost=stop.request, on_wait=console.print)
    PATIENCE.wait(AWAY_SECONDS, lambda: stop.requested)
    try:
        store = folder.artifacts
        kept = all(map(store.has_dataset, own_data)) and all(map(store.has_pretrained, space.digests))
        if not kept:
            apart("takd.study.checks:keep_inputs", space, data, source, folder, code)
        search = create_search(folder, space, data, stop, storage)
        search.note_largest_class(largest_class)
        if choice_stands(folder, search):
            search.keep_choice()
        _say_what_failed(search, search.try_again(), console)
        folder.write_space(space)
        if search.asked > space.budget:
            console.print(more_than_asked(search.asked, space.budget), style="yellow")
        if (
            search.is_open
            or _choose_and_look(folder, search)
            or unmeasured(folder, search)
            or search.incomplete(store.keys())
        ):
            result = _train_and_track(folder, search, options, console, stop, began, code)
        else:
            result = RunResult(finished=True, search=search, tables=_as_it_stands(folder, search))
        result.code = code
        if result.profile:
            result.profile.write(folder, console)
        return result
    except (StorageAwayError, RootAwayError) as error:
        stop.request(str(error))
        return RunResult(finished=False)
    except OSError as error:
        if error.errno not in FULL:
            raise
        stop.request(f"{error.filename or folder.root}: {error.strerror}")
        return RunResult(finished=False)
    finally:
        PATIENCE.wait(0.0)
        lease.release()


def _refuse_what_is_not_here(space: Space) -> None:
    """Before anything is written: raises InputError where this machine has none of what a worker would wait for."""
    from takd.study.search.scheduling import possible_nodes

    if lacking := fitted(space, possible_nodes()).lacking:
        raise InputError(lacking)


def _say_what_failed(search: Search, again: int, console: Console) -> None:
    """Of an earlier run."""
    if again:
        console.print(f"{again} trial{'s' * (again > 1)} that failed before: tried again")
    if lasting := search.lasting:
        console.print(
            f"{len(lasting)} stage{'s' * (len(lasting) > 1)} that failed before by what the space says, and would "
            f"again: not tried ({next(iter(lasting.values()))})"
        )


def _train_and_track(
    folder: StudyFolder, search: Search, options: RunOptions, console: Console, stop: Stop, began: float, code: Code
) -> RunResult:
    mode = wandb_mode(options.wandb)
    with uploads(folder.local) if mode == "online" else nullcontext():
        tracker = WandbTracker(folder, search.space.all_arms, mode) if mode != "disabled" else None
        observers: list[Observer] = [EventLog(folder.local), *([tracker] if tracker else [])]
        if options.tensorboard:
            observers.append(TensorBoardLog(folder.local))
        result = _train(folder, search, options, observers, console, stop, began, code)
        result.search, result.tables = search, _conclude(folder, search)
        if tracker and not tracker.failed:
            _complete_wandb(folder, search)
    return result


def _conclude(folder: StudyFolder, search: Search) -> Tables:
    """The tables and the figure."""
    tables = write_results(folder, search)
    from takd.study.report import write_figure  # SciPy and matplotlib: not in memory while stages train

    write_figure(folder, tables.trials.to_pandas())
    return tables


def _as_it_stands(folder: StudyFolder, search: Search) -> Tables:
    """The tables of a study that has ended; they and the figure are made again only where something has changed."""
    place, _, figure = f"{folder.name}/{FIGURE}".rpartition("/")
    drawn = any(name.startswith(figure) for name in folder.storage.names(place))
    return (standing_results(folder, search) if drawn else None) or _conclude(folder, search)


def _choose_and_look(folder: StudyFolder, search: Search) -> bool:
    """Of a finished search: chooses what is to be confirmed, and returns whether some of it is left to train."""
    if search.space.confirm is None:
        return False
    return any_missing(folder, search, _to_confirm(search, lambda: build_results(folder, search)))


def _to_confirm(search: Search, tables: Callable[[], Tables]) -> list[Proposal]:
    """Chooses each arm's best configuration by the tables, unless that was done, and returns what is to train."""
    if not search.choice_stands:
        search.choose(best_configurations_of(tables().trials.to_pandas()))
    return search.confirming()


def _complete_wandb(folder: StudyFolder, search: Search) -> None:
    try:
        complete_runs(folder, search)
    except Exception as error:  # whatever it is, the study is complete without
        log.warning("W&B: the study's run is not written: %s; `takd sync` writes it", error)


def _train(
    folder: StudyFolder,
    search: Search,
    options: RunOptions,
    observers: list[Observer],
    console: Console,
    stop: Stop,
    began: float,
    code: Code,
) -> RunResult:
    # Not above: Ray takes seconds, which who has nothing to train need not wait.
    from takd.study.search.scheduling import PathSearcher, leave_ray, possible_nodes, run_stages

    slots = _start_ray(options, stop)
    if options.slots not in (None, slots):
        console.print(
            f"warning: Ray runs in this process already, with {slots} slots: they are used in place of "
            f"{options.slots}; ray.shutdown() ends it",
            style="yellow",
        )
    fits = fitted(search.space, possible_nodes())
    if fits.lacking:
        if options.address is None:
            raise InputError(fits.lacking)
        console.print(f"warning: {fits.lacking} yet; stages wait until it has", style="yellow")
    for warning in fits.warnings:
        console.print(f"warning: {warning}", style="yellow")
    asha = search.space.asha
    pruned = Pruned(folder.artifacts, folder.name).read() if asha else {}
    look_every = asha.grace_epochs if asha else None
    graph = StageGraph(
        folder.artifacts, search.lasting, pruned, look_every, search.space.fixed_lanes, search.space.goes_by
    )
    profile = Profile(slots, began) if options.profile else None
    progress = Progress(folder.name, search.space.seeds, slots, console, search.space.goes_by)
    watching = Observers([progress, *observers, *([profile] if profile else [])])

    def confirm(ended: Collection[tuple[str, str]] | None = None) -> list[Proposal]:
        if ended is not None:
            return search.confirming(best_so_far(search, ended))
        tables = write_results(folder, search)
        return _to_confirm(search, lambda: tables)

    try:
        confirms = confirm if search.space.confirm else None
        test = Measuring(partial(unmeasured, folder, search), partial(keep, folder)) if search.space.confirm else None
        searcher = PathSearcher(search, graph, folder.root, watching, stop, confirms, code, test)
        run_stages(searcher)
    except KeyboardInterrupt:  # asked to stop for the second time
        leave_ray()
        raise
    finally:
        watching.close()
    print_use(searcher.workers, searcher.use, console)
    if profile:
        profile.workers, profile.use = searcher.workers, searcher.use
    if test and test.refused:
        write_results(folder, search)
        raise InputError(test.refused)
    trained = sum(node.trained for node in graph.nodes.values())
    return RunResult(finished=not search.is_open, trained=trained, profile=profile)


def _start_ray(options: RunOptions, stop: Stop) -> int:
    from takd.study.search.scheduling import start_ray

    return start_ray(options.slots, options.address, stop)
