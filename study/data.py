"""`takd data`: a user's files become a dataset that a space may name, and what is there is shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from search_spaces import InputError
from trainables.cifar import CIFAR10, CIFAR100
from trainables.datasets import DATASETS, OWN, Dataset, check_name, converted, import_dataset, load
from trainables.image_files import open_images
from trainables.mhist import open_mhist
from trainables.mnist import open_mnist
from trainables.sources import Source

SPLITS = ("train", "validation", "test")
SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Files:
    """What `--from` may hold: `open` checks the folder, as far as that needs no decoding, and raises InputError."""

    open: Callable[[Path], Source]
    download: Callable[[Path], None] | None = None


FILES: dict[str, Files] = {
    "mnist": Files(open_mnist),
    "cifar10": Files(CIFAR10.open, CIFAR10.download),
    "cifar100": Files(CIFAR100.open, CIFAR100.download),
    "mhist": Files(open_mhist),
    OWN: Files(open_images),
}


def import_files(kind: str, folder: Path, name: str | None, validation: int | None, download: bool) -> Dataset:
    """Checks and converts the files in a folder; `kind` is one of FILES. Raises InputError."""
    files = FILES[kind]
    for option, given in (("--name", name), ("--validation", validation)):
        if given is not None and kind != OWN:
            raise InputError(f"{option} {given}: is for {OWN} only; {kind} has its own")
    name = kind if kind != OWN else folder.resolve().name if name is None else name
    if kind == OWN:
        check_name(name)
    if download:
        if files.download is None:
            able = ", ".join(each for each, others in FILES.items() if others.download)
            raise InputError(f"--download: {kind} can't be fetched; valid for {able}")
        files.download(folder)
    source = files.open(folder)
    if validation is not None:
        source = replace(source, validation=validation)
    with _progress() as advance:
        return import_dataset(name, source, advance)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Counts images on a terminal's stderr, and nowhere else."""
    console = Console(stderr=True)
    columns = ("[progress.description]{task.description}", MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("images converted", total=None)
        yield lambda images: progress.advance(task, images)


def print_dataset(dataset: Dataset, console: Console) -> None:
    """One dataset: classes with their counts by split, then shape, digest and place."""
    table = _table("class", *SPLITS)
    for number, name in enumerate(dataset.classes[:SHOWN_CLASSES]):
        table.add_row(name, *(f"{dataset.class_counts[split][number]:,}" for split in SPLITS))
    if len(dataset.classes) > SHOWN_CLASSES:
        table.add_row(f"and {len(dataset.classes) - SHOWN_CLASSES} more", *[""] * len(SPLITS))
    table.add_row("all", *(f"{dataset.sizes[split]:,}" for split in SPLITS))
    console.print(table)
    console.print(f"{dataset.name}: images {_shape(dataset)}, digest {dataset.digest[:12]}")
    console.print(f"in {dataset.folder}; a space uses it as dataset: {dataset.name}")


def print_datasets(console: Console) -> None:
    """All that this node's cache has, and what needs no files."""
    table = _table("dataset", *SPLITS, "classes", "images", "digest", "in")
    for name in dict.fromkeys([*DATASETS, *converted()]):
        dataset = load(name)
        sizes = (f"{dataset.sizes[split]:,}" for split in SPLITS)
        place = str(dataset.folder)
        table.add_row(name, *sizes, str(len(dataset.classes)), _shape(dataset), dataset.digest[:12], place)
    console.print(table)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right" if column in (*SPLITS, "classes") else "left", overflow="fold")
    return table


def _shape(dataset: Dataset) -> str:
    """Channels, height, width."""
    return "x".join(map(str, dataset.image_shape))
