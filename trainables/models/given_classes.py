"""The classes of what is given, in the file's order, and where in it those of the data set are."""

from collections.abc import Sequence

from takd.search_spaces import InputError
from takd.trainables.datasets.dataset import Dataset

_SHOWN = 10  # names of classes


def class_order(named: Sequence[str] | None, of_file: Sequence[str] | None, dataset: Dataset, about: str) -> list[int]:
    """By class of the data set, its place in the file; as they come where nobody names them."""
    if named is not None and of_file is not None and list(named) != list(of_file):
        raise InputError(f"{about}: its classes are {some(of_file)}; classes says {some(named)}")
    names = list(named or of_file or dataset.classes)
    if sorted(names) != sorted(dataset.classes):
        whose = "classes are" if named else "its classes are"
        raise InputError(f"{about}: {whose} {some(names)}; dataset {dataset.name} has {some(dataset.classes)}")
    return [names.index(each) for each in dataset.classes]


def some(names: Sequence[str]) -> str:
    """For people; not all of a thousand."""
    return ", ".join(names if len(names) <= _SHOWN else [*names[:_SHOWN], "..."])
