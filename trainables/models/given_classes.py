"""The classes of what is given, in the file's order, and where in it those of the data set are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

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


def classes_in(path: Path) -> list[str] | None:
    """That a file of weights names, which could be read before."""
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            about: Any = {name: _json_or_text(each) for name, each in (file.metadata() or {}).items()}
    else:
        about = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("classes", "class_names", "class_to_idx"):
        found = about.get(name) if isinstance(about, dict) else None
        if isinstance(found, dict) and all(isinstance(each, int) for each in found.values()):
            found = sorted(found, key=found.__getitem__)
        if isinstance(found, list | tuple) and found and all(isinstance(each, str) for each in found):
            return list(found)
    return None


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def some(names: Sequence[str]) -> str:
    """For people; not all of a thousand."""
    return ", ".join(names if len(names) <= _SHOWN else [*names[:_SHOWN], "..."])
