"""A folder of images: splits, in them classes, in them files; or classes alone."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from takd.search_spaces import InputError, some
from takd.trainables.datasets.listing import SPLIT_NAMES, Listing, Part, check_learnable, labels_of
from takd.trainables.datasets.reading import SUFFIXES
from takd.trainables.datasets.sources import ALL, SPLITS


@dataclass
class _Skipped:
    """What is passed over, by why."""

    no_images: list[str] = field(default_factory=list)
    no_class: list[str] = field(default_factory=list)
    no_split: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        reasons = {
            "no images by their names": self.no_images,
            "in no class folder": self.no_class,
            "beside the splits": self.no_split,
        }
        return tuple(f"skipped {len(names)}, {why}: {some(names)}" for why, names in reasons.items() if names)


def list_folder(folder: Path, shown: str) -> Listing:
    """Classes and files in the order of their names; `shown` is what a user calls the folder."""
    skipped = _Skipped()
    directories, files = _entries(folder, "", skipped)
    splits: dict[str, str] = {}
    for name in directories:
        if (split := SPLIT_NAMES.get(name.lower())) is not None:
            if split in splits:
                raise InputError(
                    f"--from {shown}: has {splits[split]} and {name}; expected one folder of {split} images"
                )
            splits[split] = name
    if "train" in splits or "test" in splits:
        skipped.no_split += [f"{name}/" for name in directories if name not in splits.values()] + files
        found = {split: _classes(folder, splits[split], skipped) for split in SPLITS if split in splits}
    else:
        found = {ALL: _classes(folder, "", skipped)}
    classes = tuple(sorted(set().union(*found.values())))
    if not classes:
        raise InputError(f"--from {shown}: has no classes; expected train/<class>/* and test/<class>/*, or <class>/*")
    for name in classes:
        if not any(by_class.get(name) for by_class in found.values()):
            place = "/".join(filter(None, (shown, splits.get(next(iter(found)), ""), name)))
            raise InputError(f"{place}: the class has no images; expected files that end in {', '.join(SUFFIXES)}")
    parts = {split: _part(folder, shown, classes, by_class) for split, by_class in found.items()}
    for split, part in parts.items():
        if not len(part.labels):
            raise InputError(f"{shown}/{splits.get(split, '')}: has no images in class folders")
        if "train" in parts:
            check_learnable(classes, part.labels, part.places, parts["train"].labels)
    return Listing(
        classes,
        parts,
        frozenset(parts),
        skipped.notes(),
        f"has the classes {some(classes)} and no splits" if ALL in parts else "has no test split",
    )


def _entries(folder: Path, below: str, skipped: _Skipped) -> tuple[list[str], list[str]]:
    """The names of the folders in it and of its images, sorted; what is neither is skipped."""
    directories, files = [], []
    with os.scandir(folder / below) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.is_dir() and not _is_junk(entry.name):
                directories.append(entry.name)
            elif not entry.is_dir() and _is_image(entry.name):
                files.append(entry.name)
            else:
                skipped.no_images.append(f"{_joined(below, entry.name)}{'/' if entry.is_dir() else ''}")
    return directories, files


def _classes(folder: Path, below: str, skipped: _Skipped) -> dict[str, list[str]]:
    """By class, its images' paths relative to the folder; they may lie deeper than in the class's own folder."""
    directories, files = _entries(folder, below, skipped)
    skipped.no_class += [_joined(below, name) for name in files]
    return {name: _images(folder, _joined(below, name), skipped) for name in directories}


def _images(folder: Path, below: str, skipped: _Skipped) -> list[str]:
    directories, files = _entries(folder, below, skipped)
    deeper = [each for name in directories for each in _images(folder, _joined(below, name), skipped)]
    return [_joined(below, name) for name in files] + deeper


def _joined(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return not _is_junk(name) and name.lower().endswith(SUFFIXES)


def _part(folder: Path, shown: str, classes: tuple[str, ...], by_class: dict[str, list[str]]) -> Part:
    names = [name for each in classes for name in by_class.get(each, ())]
    numbers = [len(by_class.get(each, ())) for each in classes]
    labels = labels_of(np.repeat(np.arange(len(classes)), numbers), classes)
    return Part(Prefixed(f"{folder}/", names), labels, Prefixed(f"{shown}/", names), names)


@dataclass(frozen=True)
class Prefixed:
    """Names with what stands before them all, which is not kept for each."""

    prefix: str
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Any) -> Any:
        found = self.names[rows]
        return self.prefix + found if isinstance(found, str) else [self.prefix + name for name in found]
