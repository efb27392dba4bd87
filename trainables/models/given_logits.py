"""What a model says of the images, in place of the model: an .npz of logits, in the data set's order of both."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from takd.search_spaces import Existing, InputError, some
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.datasets.sources import SPLITS
from takd.trainables.models.given_classes import NAMED, class_order
from takd.trainables.models.weights_files import MissingWeightsError
from takd.trainables.store.storage import first_line

Logits = np.ndarray[Any, np.dtype[np.float32]]

log = logging.getLogger("takd")

# Of the file, by what the source calls its parts: those that validation is cut out of, and the others.
_ARRAYS = {"train": "logits", "all": "logits", "validation": "validation_logits", "test": "test_logits"}
_VALID = (*dict.fromkeys(_ARRAYS.values()), "names", "validation_names", "test_names", "classes")


def canonical_logits(path: Path, existing: Existing, dataset: Dataset) -> bytes:
    """safetensors of `train`, and `validation` and `test` where they are known, each `[images, classes]`."""
    arrays = _read_npz(path)
    about = f"logits {path}"
    classes = arrays.pop("classes", None)
    named = None if classes is None else [str(each) for each in classes.tolist()]
    order = class_order(existing.classes, named, dataset, about)
    for name in [each for each in arrays if each.endswith("logits")]:
        _check_array(arrays[name], name, dataset, about)
    rows = _Rows(arrays, dataset, about)
    found = {split: rows.of(split) for split in SPLITS}
    if found["train"] is None:
        raise InputError(f"{about}: has no row of a training image of {dataset.name}")
    known = {split: np.ascontiguousarray(each[:, order]) for split, each in found.items() if each is not None}
    return safetensors.numpy.save(known)


def _read_npz(path: Path) -> dict[str, Any]:
    if path.suffix != ".npz":
        raise InputError(f"logits {path}: expected a path to an .npz file")
    if not path.is_file():
        raise MissingWeightsError(f"logits {path}: no such file; expected a path to an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        pickled = "pickle" in str(error)
        reason = "it holds objects; only numbers and text are read" if pickled else first_line(error)
        raise InputError(f"logits {path}: can't be read as .npz ({reason})") from None
    if "logits" not in arrays:
        raise InputError(f"logits {path}: has no array named logits; it has {', '.join(arrays) or 'none'}")
    for name in arrays:
        if name.endswith(("names", "classes")) and (arrays[name].dtype.kind != "U" or arrays[name].ndim != 1):
            raise InputError(f"logits {path}: {name} is {_kind(arrays[name])}; expected a list of text")
    if unused := [name for name in arrays if name not in _VALID]:
        log.warning("logits %s: %s not used; used are %s", path, ", ".join(unused), ", ".join(_VALID))
    return {name: each for name, each in arrays.items() if name in _VALID}


def _kind(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _check_array(logits: Any, name: str, dataset: Dataset, about: str) -> None:
    classes = len(dataset.classes)
    if logits.dtype.kind != "f" or logits.ndim != 2:
        raise InputError(f"{about}: {name} is {_kind(logits)}; expected numbers with a point, [images, classes]")
    if logits.shape[1] != classes:
        raise InputError(
            f"{about}: {name} is of {logits.shape[1]:,} classes; dataset {dataset.name} has {classes} "
            f"({some(dataset.classes, NAMED)})"
        )
    with np.errstate(over="ignore"):
        odd = np.argwhere(~np.isfinite(logits.astype(np.float32)))
    if len(odd):
        row, column = odd[0]
        raise InputError(f"{about}: {name}[{row}] is {logits[row, column]} for class {column}; expected finite float32")


class _Rows:
    """Which rows of a file are whose: by the names of images, or as the source has them before validation is cut."""

    def __init__(self, arrays: Mapping[str, Any], dataset: Dataset, about: str) -> None:
        self.arrays, self.dataset, self.about = arrays, dataset, about
        self.examples = {split: dataset.examples(split) for split in SPLITS}
        used = {_ARRAYS[each.part] for each in self.examples.values()}
        self.by_name = {name: self._lookup(name) for name in arrays if name.endswith("logits")}
        for name in self.by_name:
            if name not in used and self.by_name[name] is None:
                raise InputError(f"{about}: {name} is of no part of {dataset.name}; its images are in logits")

    def _lookup(self, name: str) -> dict[str, int] | None:
        """Rows by name, where the array has names; raises InputError on one that is no image's, or is there twice."""
        names = self.arrays.get(name.replace("logits", "names"))
        if names is None:
            return None
        if len(names) != len(self.arrays[name]):
            raise InputError(f"{self.about}: {name} has {len(self.arrays[name]):,} rows and {len(names):,} names")
        known = {each for examples in self.examples.values() for each in examples.names or ()}
        if not known:
            raise InputError(
                f"{self.about}: images of {self.dataset.name} have no names; give rows in the source's order, without "
                f"{name.replace('logits', 'names')}"
            )
        rows: dict[str, int] = {}
        for row, each in enumerate(names.tolist()):
            if each not in known:
                raise InputError(f"{self.about}: {name}[{row}] is of {each!r}, no image of dataset {self.dataset.name}")
            if rows.setdefault(each, row) != row:
                raise InputError(f"{self.about}: {name}[{row}] is of {each!r}, as {name}[{rows[each]}] is")
        return rows

    def of(self, split: str) -> Logits | None:
        """`[images, classes]` in the data set's order; None where they are not known."""
        examples = self.examples[split]
        name = _ARRAYS[examples.part]
        if self.by_name.get("logits") is not None and self._named("logits", split):
            name = "logits"
        if name not in self.arrays:
            return None
        logits = self.arrays[name].astype(np.float32)
        lookup = self.by_name[name]
        if lookup is None:
            if len(logits) != examples.part_size:
                more = " (those held out for validation among them)" if name == "logits" else ""
                raise InputError(
                    f"{self.about}: {name} has {len(logits):,} rows; {examples.part} of dataset {self.dataset.name} "
                    f"has {examples.part_size:,} images{more}"
                )
            return logits[examples.rows]
        own = examples.names or ()
        missing = [each for each in own if each not in lookup]
        if len(missing) == len(own) and split != "train":
            return None
        if missing:
            raise InputError(
                f"{self.about}: {len(missing):,} of {len(own):,} {split} images have no row, {missing[0]!r} the first; "
                + ("give all" if split == "train" else "give all of them or none")
            )
        return logits[[lookup[each] for each in own]]

    def _named(self, name: str, split: str) -> bool:
        lookup = self.by_name[name] or {}
        return any(each in lookup for each in self.examples[split].names or ())
