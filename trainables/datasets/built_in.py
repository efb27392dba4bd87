"""The datasets that are built in, a row each. A user's own images are one more kind, under names of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from takd.trainables.datasets.cifar import CIFAR10, CIFAR100
from takd.trainables.datasets.mhist import open_mhist
from takd.trainables.datasets.mnist import MNIST, open_mnist
from takd.trainables.datasets.sources import Source


@dataclass(frozen=True)
class BuiltIn:
    """`open` checks the folder of `takd data`, as far as that needs no decoding, and raises InputError."""

    licence: str  # said by the model card of an export
    source: Source | None = None  # what any node can read without a user's files
    open: Callable[[Path], Source] | None = None
    download: Callable[[Path], None] | None = None  # puts the files into the folder


BUILT_IN: dict[str, BuiltIn] = {
    "mnist": BuiltIn(
        "MNIST by Yann LeCun and Corinna Cortes, CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/).",
        source=MNIST,
        open=open_mnist,
    ),
    "cifar10": BuiltIn(
        "CIFAR-10 by Krizhevsky, Nair and Hinton; no licence is stated, cite Krizhevsky 2009.",
        open=CIFAR10.open,
        download=CIFAR10.download,
    ),
    "cifar100": BuiltIn(
        "CIFAR-100 by Krizhevsky, Nair and Hinton; no licence is stated, cite Krizhevsky 2009.",
        open=CIFAR100.open,
        download=CIFAR100.download,
    ),
    "mhist": BuiltIn(
        "MHIST by Wei et al. 2021, given out on request under its authors' terms (https://bmirds.github.io/MHIST).",
        open=open_mhist,
    ),
}
OWN = "images"
UNKNOWN_LICENCE = "not stated; ask where the data come from."
