"""The datasets that there are by name, a row each. A user's own images are one more kind, under names of their own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from takd.search_spaces.registry import TABLES, Origin, define
from takd.trainables.datasets.cifar import CIFAR10, CIFAR100
from takd.trainables.datasets.mhist import open_mhist
from takd.trainables.datasets.mnist import MNIST, open_mnist
from takd.trainables.datasets.own_data import Read, own_source
from takd.trainables.datasets.sources import Source


@dataclass(frozen=True)
class BuiltIn:
    """`open` checks the folder of `takd data`, as far as that needs no decoding, and raises InputError."""

    licence: str  # said by the model card of an export
    source: Source | None = None  # what any node can read without a user's files
    open: Callable[[Path], Source] | None = None
    download: Callable[[Path], None] | None = None  # puts the files into the folder


BUILT_IN: dict[str, BuiltIn] = TABLES["dataset"]
OWN = "images"
UNKNOWN_LICENCE = "not stated; ask where the data come from."


def dataset(
    name: str, *, classes: Sequence[str], validation: int | None = None, licence: str = UNKNOWN_LICENCE
) -> Callable[[Read], Read]:
    """Defines a data set, for `dataset: NAME`.

    The function reads it: it returns `train` and `test`, and `validation` where that is not held out of train (so many
    images, by default a tenth), each as images uint8 `[n, channels, height, width]` and labels `[n]`, numbers of
    `classes` from 0. `licence` is said by the model card of an export.
    """

    def put(read: Read) -> Read:
        def row(origin: Origin) -> BuiltIn:
            return BuiltIn(licence, source=own_source(name, read, classes, validation, origin))

        define("dataset", name, row)
        return read

    return put


def dataset_of_files(name: str, row: BuiltIn) -> None:
    """The same of takd's own, whose files and digests are known."""
    define("dataset", name, lambda origin: row)


dataset_of_files(
    "mnist",
    BuiltIn(
        "MNIST by Yann LeCun and Corinna Cortes, CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/).",
        source=MNIST,
        open=open_mnist,
    ),
)
dataset_of_files(
    "cifar10",
    BuiltIn(
        "CIFAR-10 by Krizhevsky, Nair and Hinton; no licence is stated, cite Krizhevsky 2009.",
        open=CIFAR10.open,
        download=CIFAR10.download,
    ),
)
dataset_of_files(
    "cifar100",
    BuiltIn(
        "CIFAR-100 by Krizhevsky, Nair and Hinton; no licence is stated, cite Krizhevsky 2009.",
        open=CIFAR100.open,
        download=CIFAR100.download,
    ),
)
dataset_of_files(
    "mhist",
    BuiltIn(
        "MHIST by Wei et al. 2021, given out on request under its authors' terms (https://bmirds.github.io/MHIST).",
        open=open_mhist,
    ),
)


def dataset_names() -> list[str]:
    """What `takd data` takes: takd's own, and that of images of a user's own."""
    return [*BUILT_IN, OWN]
