"""The classes of what is given, in the file's order, and where in it those of the data set are."""

from collections.abc import Sequence

from takd.search_spaces import InputError, some
from takd.trainables.datasets.dataset import Dataset

NAMED = 10  # classes, of what a line names


def class_order(named: Sequence[str] | None, of_file: Sequence[str] | None, dataset: Dataset, about: str) -> list[int]:
    """By class of the data set, its place in the file; as they come where nobody names them."""
    if named is not None and of_file is not None and list(named) != list(of_file):
        raise InputError(f"{about}: its classes are {some(of_file, NAMED)}; classes says {some(named, NAMED)}")
    names = list(named or of_file or dataset.classes)
    if sorted(names) != sorted(dataset.classes):
        whose = "classes are" if named else "its classes are"
        of_dataset = f"dataset {dataset.name} has {some(dataset.classes, NAMED)}"
        raise InputError(f"{about}: {whose} {some(names, NAMED)}; {of_dataset}")
    return [names.index(each) for each in dataset.classes]
