"""What no study below a root uses any more: artifacts, checkpoints, weights, what was derived from them, data sets.

Nothing is taken from under a study that runs: whatever its space could still name stays, as does all that is young.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from takd.search_spaces import DatasetFingerprint, InputError
from takd.study.folder import StudyFolder, study_folder
from takd.study.managing.studies import size, studies_below
from takd.study.search.lease import runner
from takd.study.search.optimization import Search, open_search
from takd.study.search.storages import open_optuna
from takd.trainables.store.artifacts import (
    ARTIFACTS,
    CHECKPOINTS,
    DATASET,
    DATASETS,
    DESCRIPTION,
    PRETRAINED,
    dataset_folder,
)
from takd.trainables.store.derived import DERIVED
from takd.trainables.store.derived import DESCRIPTION as DERIVED_DESCRIPTION
from takd.trainables.store.storage import Stored

KINDS = {
    ARTIFACTS: "artifacts",
    CHECKPOINTS: "checkpoints",
    PRETRAINED: "weights",
    DERIVED: "derived data",
    DATASETS: "data sets",
}
LAST = {ARTIFACTS: DESCRIPTION, DERIVED: DERIVED_DESCRIPTION, DATASETS: DATASET}  # of a group of files, who finds it


@dataclass
class Used:
    """What the studies below a root use, and what those that run could still come to use."""

    stages: set[str] = field(default_factory=set)  # keys
    weights: set[str] = field(default_factory=set)  # digests
    datasets: set[str] = field(default_factory=set)  # folders
    running: list[str] = field(default_factory=list)  # names of studies
    models: set[tuple[str, str | None]] = field(default_factory=set)  # digest of the data set, model: of those that run


@dataclass(frozen=True)
class Entry:
    """One artifact, checkpoint, file of weights, derived array or data set."""

    kind: str
    name: str
    size: int  # bytes
    modified: float


def used_below(root: str | None, database: str | None) -> Used:
    """Raises InputError where a study can't be read: what it uses is not known."""
    used = Used()
    for folder in studies_below(root, database):
        try:
            search = open_search(folder)
            stages = search.stages()
        except (InputError, ValueError, KeyError) as error:
            raise InputError(
                f"gc: {' '.join(str(error).split())}; what this study uses is not known, so nothing is collected: give "
                f"its --storage, or `takd remove {folder.name}`"
            ) from None
        used.stages |= set(stages)
        used.weights |= search.space.digests
        used.datasets.add(dataset_folder(search.dataset))
        if search.space.transfer_data is not None:
            used.datasets.add(dataset_folder(DatasetFingerprint.model_validate_json(search.space.transfer_data)))
        if runner(open_optuna(folder), folder.name):
            used.running.append(folder.name)
            used.models |= {(search.dataset.digest, model) for model in _models(search)}
    return used


def _models(search: Search) -> set[str | None]:
    spaces = [cell.space for cell in search.space.cells]
    models = {model for own in spaces for model in (*own.teacher.models, *own.assistants.names, own.student.model)}
    return {*models, *(stage.model for stage in search.stages().values()), None}


def unused(root: str | None, database: str | None, older: float) -> tuple[list[Entry], Used]:
    """What could go: used by no study, and not touched for so many seconds."""
    used, folder = used_below(root, database), study_folder(root, "any", database)
    before = time.time() - older
    found = [each for kind in KINDS for each in _entries(folder, kind) if each.modified < before]
    return [each for each in found if not _is_used(folder, each, used)], used


def _entries(folder: StudyFolder, kind: str) -> Iterator[Entry]:
    by_name: dict[str, list[Stored]] = {}
    for file in folder.storage.files(kind):
        by_name.setdefault(file.path.split("/")[1], []).append(file)
    for name, files in sorted(by_name.items()):
        yield Entry(kind, name, sum(each.size for each in files), max(each.modified for each in files))


def _is_used(folder: StudyFolder, entry: Entry, used: Used) -> bool:
    if entry.name.startswith("."):  # set aside, or what a killed writer left
        return False
    if entry.kind == CHECKPOINTS:
        return entry.name.partition(".")[0] in used.stages
    if entry.kind == PRETRAINED:
        return entry.name.partition(".")[0] in used.weights
    if entry.kind == DATASETS:
        return f"{DATASETS}/{entry.name}" in used.datasets
    if entry.kind == ARTIFACTS:
        return entry.name in used.stages or _could_be(folder.artifacts.describe(entry.name), used)
    about = folder.artifacts.derived.describe(entry.name)
    if about is not None and about["input"].get("what") == "frozen":  # of no stage: of the weights that some start from
        return about["input"]["weights"] in used.weights
    return about is None or about["stage"] in used.stages or _could_be(about, used)


def _could_be(description: dict[str, Any] | None, used: Used) -> bool:
    """Whether a study that runs could still propose a stage like this one."""
    given = (description or {}).get("input", {})
    return (given.get("dataset", {}).get("digest"), given.get("model")) in used.models


def collect(root: str | None, database: str | None, older: float, delete: bool, console: Console) -> None:
    """Prints what nobody uses, with sizes; deletes it where it is told to, after a second look."""
    found, used = unused(root, database, older)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("unused", "number", "size"):
        table.add_column(column, justify="left" if column == "unused" else "right")
    numbers, sizes = Counter(each.kind for each in found), Counter[str]()
    for each in found:
        sizes[each.kind] += each.size
    for kind, words in KINDS.items():
        table.add_row(words, str(numbers[kind]), size(sizes[kind]))
    table.add_row("all", str(len(found)), size(sizes.total()))
    console.print(table)
    if used.running:
        console.print(f"{', '.join(used.running)} runs: what its space could still use is kept")
    if not found:
        console.print("there is nothing to delete")
        return
    if not delete:
        console.print("nothing was deleted; --yes deletes it")
        return
    folder, still = study_folder(root, "any", database), unused(root, database, older)[0]
    gone = [each for each in found if each in still]
    for each in gone:
        _delete(folder, each)
    console.print(f"deleted  {len(gone)}, {size(sum(each.size for each in gone))}")


def _delete(folder: StudyFolder, entry: Entry) -> None:
    path = f"{entry.kind}/{entry.name}"
    if entry.kind in (CHECKPOINTS, PRETRAINED):
        folder.storage.delete(path)
    else:
        folder.storage.remove(path, last=LAST[entry.kind])
