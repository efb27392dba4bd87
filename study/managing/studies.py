"""Which studies are below a root, how each stands, and how one is removed."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.table import Table

from takd.analysis.evidence.chosen import chosen_students
from takd.analysis.files import read_results
from takd.analysis.metrics import value_text
from takd.analysis.tables import metric_of, split_of
from takd.search_spaces import InputError
from takd.study.folder import SPACE, StudyFolder, can_be_name, study_folder
from takd.study.search.lease import acquire_lease, lease_of, runner
from takd.study.search.optimization import Search, delete_search, find_search
from takd.study.search.storages import open_optuna

State = Literal["running", "stopped", "finished", "unreadable"]
JOURNAL = "optuna.journal"


@dataclass(frozen=True)
class Standing:
    """How a study stands; what is not known is None."""

    study: str
    state: State
    dataset: str | None = None
    student: str | None = None  # its model, or models where it is a factor
    trials: int | None = None  # started
    budget: int | None = None
    best_arm: str | None = None
    best_accuracy: float | None = None  # percent, mean over seeds
    metric: str | None = None  # what the study goes by, and so what the arm is best in
    best_value: float | None = None  # its mean, in percent where it is a fraction
    best: str | None = None  # the same for people
    split: str | None = None  # that these were measured on
    bytes: int = 0  # of its folder, artifacts left out
    changed: str | None = None  # the last file, ISO 8601, UTC
    problem: str | None = None  # why it can't be read


def studies_below(root: str | None, database: str | None) -> Iterator[StudyFolder]:
    """The folders of all studies below a root, by name; of those that have begun."""
    storage = study_folder(root, "any", database).storage
    for name in storage.names(""):
        if can_be_name(name) and {SPACE, JOURNAL} & set(storage.names(name)):
            yield study_folder(root, name, database)


def standing(folder: StudyFolder) -> Standing:
    """How a study stands, from its storage and the tables it last wrote; reads only."""
    files = folder.storage.files(folder.name)
    last = max((each.modified for each in files), default=0.0)
    about: dict[str, Any] = {
        "study": folder.name,
        "bytes": sum(each.size for each in files),
        "changed": datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds") if files else None,
    }
    try:
        search = find_search(folder)
    except (InputError, ValueError, KeyError) as error:
        return Standing(state="unreadable", problem=" ".join(str(error).split()), **about)
    if search is None:
        return Standing(state="unreadable", problem=f"none in {folder.optuna}; is it in another --storage?", **about)
    return Standing(
        state=state_of(folder, search),
        dataset=search.space.dataset,
        student=", ".join(dict.fromkeys(cell.space.student.model for cell in search.space.cells)),
        trials=search.asked,
        budget=search.space.budget,
        **_best(folder),
        **about,
    )


def state_of(folder: StudyFolder, search: Search) -> State:
    """Whether a process runs it, or it has ended, or waits to go on, as it does for stages that failed."""
    if runner(open_optuna(folder), folder.name):
        return "running"
    from takd.study.confirm import left_to_confirm

    trials = _trials(folder)
    left = search.is_open or search.failed_before or (trials is not None and left_to_confirm(folder, search, trials))
    return "stopped" if left else "finished"


def _trials(folder: StudyFolder) -> pd.DataFrame | None:
    try:
        return read_results(folder.root, folder.name).all_trials
    except InputError:
        return None


def _best(folder: StudyFolder) -> dict[str, Any]:
    trials = _trials(folder)
    if trials is None or not len(chosen := chosen_students(trials)):
        return {}
    cell = chosen["cell"].fillna("") if "cell" in chosen else pd.Series("", index=chosen.index)
    means = chosen.groupby([cell.rename("cell"), chosen["arm"]])[["accuracy", "value", "score"]].mean().reset_index()
    best, metric, split = means.sort_values("score", kind="stable").iloc[-1], metric_of(trials), split_of(trials)
    return {
        "best_arm": str(best["arm"]),
        "best_accuracy": float(best["accuracy"]),
        "metric": metric.name,
        "best_value": float(best["value"]),
        "best": value_text(best["value"] / metric.times, metric).replace("validation", split),
        "split": split,
    }


def list_studies(root: str | None, database: str | None) -> list[dict[str, Any]]:
    """Of each study below a root how it stands, as docs/json.md says."""
    return [asdict(standing(folder)) for folder in studies_below(root, database)]


def print_studies(root: str | None, database: str | None, console: Console) -> None:
    """A line a study."""
    found = [standing(folder) for folder in studies_below(root, database)]
    if not found:
        console.print(f"no study below {study_folder(root, 'any', database).root}")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("study", "state", "data set", "student", "trials", "best", "size", "last change"):
        table.add_column(column, justify="right" if column in ("trials", "size") else "left", overflow="fold")
    for each in found:
        best = f"{each.best_arm} {each.best}" if each.best_arm else "-"
        trials = f"{each.trials}/{each.budget}" if each.trials is not None else "-"
        when = each.changed[:16].replace("T", " ") if each.changed else "-"
        cells = (each.dataset or "-", each.student or "-", trials, best, size(each.bytes), when)
        table.add_row(each.study, each.state, *cells)
    console.print(table)
    for each in found:
        if each.problem:
            console.print(f"{each.study}: {each.problem}")


def size(number: int) -> str:
    """`3.1 MB`, in powers of ten."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def what_goes(folder: StudyFolder) -> str:
    """What removing a study deletes, in a line; raises InputError where there is none, or a process runs it."""
    files = folder.storage.files(folder.name)
    there = not folder.journal or folder.journal.exists()
    search_there = there and _has_search(folder)
    if not files and not search_there:
        raise InputError(f"study {folder.name}: none in {folder.root}; `takd list` names those that are there")
    if there and (who := runner(open_optuna(folder), folder.name)):
        raise InputError(f"study {folder.name}: {who} runs it; stop that one first")
    return f"study {folder.name}: {len(files)} files, {size(sum(each.size for each in files))}, and its trials"


def _has_search(folder: StudyFolder) -> bool:
    try:
        return find_search(folder) is not None
    except (InputError, ValueError, KeyError):
        return True


def remove_study(folder: StudyFolder) -> None:
    """Deletes a study's trials and folder; what it trained stays for others, and `takd gc` collects the rest."""
    what_goes(folder)
    lease = None
    if not folder.journal or folder.journal.exists():
        lease = acquire_lease(open_optuna(folder), folder.name, on_lost=_nothing, on_wait=_nothing)
    try:
        if folder.database:
            delete_search(folder)
        folder.storage.remove(folder.name, last=SPACE)
        if "://" in folder.root and folder.local.exists():
            shutil.rmtree(folder.local)
    finally:
        if lease:
            lease.release()
    if folder.database:
        delete_search(folder, [lease_of(folder.name)])


def _nothing(_: str) -> None: ...
