"""`takd data`: a user's files become a dataset that a space may name, and what is there is shown."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from takd.search_spaces import InputError
from takd.trainables.datasets.built_in import BUILT_IN, OWN
from takd.trainables.datasets.dataset import Dataset, check_name, converted, import_dataset, load
from takd.trainables.datasets.own_images import Wishes, name_of, opened_images
from takd.trainables.datasets.sources import SPLITS, Source

SHOWN_CLASSES = 20


def import_files(
    kind: str, place: Path, name: str | None, validation: int | None, download: bool, wishes: Wishes | None = None
) -> Dataset:
    """Checks and converts the files in a folder; `kind` is built in, or OWN. Raises InputError."""
    wishes = replace(wishes or Wishes(), validation=validation)
    for option, given in {"--name": name, **wishes.given()}.items():
        if given is not None and kind != OWN:
            raise InputError(f"{f'{option} {given}'.rstrip()}: is for {OWN} only; {kind} has its own")
    if kind == OWN:
        given, name = name, name_of(place) if name is None else name
        check_name(name, "--name" if given is not None else f"--from {place}: the name")
    else:
        name = kind
    with _opened(kind, place, download, wishes) as source, _progress() as advance:
        return import_dataset(name, source, advance)


@contextmanager
def _opened(kind: str, place: Path, download: bool, wishes: Wishes) -> Iterator[Source]:
    built_in = BUILT_IN.get(kind)
    if download:
        if built_in is None or built_in.download is None:
            able = ", ".join(each for each, others in BUILT_IN.items() if others.download)
            raise InputError(f"--download: {kind} can't be fetched; valid for {able}")
        built_in.download(place)
    if built_in is None:
        with opened_images(place, wishes) as source:
            yield source
    elif built_in.open is None:
        raise InputError(f"data {kind}: needs no files; a space uses it as dataset: {kind}")
    else:
        yield built_in.open(place)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Counts images on a terminal's stderr, and nowhere else; what is read again is counted again."""
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
    if dataset.encoded is not None:
        pixels = dataset.sizes["train"] * math.prod(dataset.image_shape)
        console.print(f"kept encoded: train {dataset.encoded / 1e6:,.1f} MB, as pixels {pixels / 1e6:,.1f} MB")
    console.print(f"in {dataset.folder}; a space uses it as dataset: {dataset.name}")


def print_datasets(console: Console) -> None:
    """All that this node's cache has, and what needs no files."""
    table = _table("dataset", *SPLITS, "classes", "images", "digest", "in")
    for name in dict.fromkeys([*(name for name, each in BUILT_IN.items() if each.source), *converted()]):
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
