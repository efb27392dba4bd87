"""Datasets as tensors in memory: converted once to Arrow in a cache that a node's processes share.

An entry of the cache is a folder of Arrow files, named after content and split. What needs no files of a user's is
converted when it is first used. All else is converted with `takd data` on every node that trains; a small file
`NAME.vN.json` in the cache says which entry a name stands for.
"""

import filecmp
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from takd.search_spaces import DatasetFingerprint, InputError
from takd.search_spaces.registry import origin_of
from takd.trainables.datasets.built_in import BUILT_IN, OWN
from takd.trainables.datasets.conversion import EXAMPLES, Normalization, write_entry
from takd.trainables.datasets.division import SPLIT_SEED, generator
from takd.trainables.datasets.reading import Reading, of_shape
from takd.trainables.datasets.sources import Indices, Source
from takd.trainables.datasets.splits import DAMAGE, EncodedSplit, Split, joined, read_split
from takd.trainables.store.artifacts import ArtifactStore, dataset_folder
from takd.trainables.store.storage import cache_folder, write_synced

_ABANDONED_SECONDS = 24 * 3600  # that no conversion takes
_CACHE_FORMAT = 2  # bumped when the files in the cache change

log = logging.getLogger("takd")


@dataclass(frozen=True)
class Examples:
    """Where each example of a split comes from."""

    part: str  # of the source: train, validation or test; all where the source was not divided
    part_size: int  # how many images the user has there
    rows: Indices  # [n], from 0: its place there, before validation was cut
    names: tuple[str, ...] | None  # [n], None where the source has none


@dataclass(frozen=True)
class Dataset:
    """A name, a digest, images and labels. The test split is opened by `test()` alone."""

    folder: Path
    name: str
    digest: str  # SHA-256 over the content of train and test as the source has it
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # channels, height, width
    split_seed: int
    sizes: dict[str, int]  # by split
    class_counts: dict[str, list[int]]  # by split, in the order of the classes
    file_digests: dict[str, str]  # SHA-256 of each split's Arrow file
    normalization: Normalization
    reading: Reading  # makes an image of it of any image file
    parts: dict[str, tuple[str, int]]  # by split: which part of the source it was cut from, and that one's images

    @property
    def fingerprint(self) -> DatasetFingerprint:
        """What of it is in every stage's key."""
        return DatasetFingerprint(
            name=self.name, digest=self.digest, split_seed=self.split_seed, sizes=dict(self.sizes)
        )

    @cached_property
    def train(self) -> Split:
        return self._read("train")

    @cached_property
    def validation(self) -> Split:
        """Held out of the source's training images by the split seed."""
        return self._read("validation")

    @property
    def encoded(self) -> int | None:
        """Bytes of its training images as the user's files have them, where these are kept; None: they are pixels."""
        return self.train.images.nbytes if isinstance(self.train.images, EncodedSplit) else None

    def test(self) -> Split:
        """Read by whoever reports a chosen model, never by what chooses one.

        Raises InputError where its file is missing or damaged: it is not converted again unasked, so that a search
        that ran with the file away is known not to have read it.
        """
        try:
            return self._read("test")
        except DAMAGE as error:
            again = "it is made again" if _source(self.name) else f"run again: {command_for(self.name)}"
            raise InputError(
                f"cache {self.folder}: the test split can't be read ({error}); delete the folder, {again}"
            ) from None

    def examples(self, split: str) -> Examples:
        """In the split's order. Reads no image; raises InputError where an earlier version made the entry."""
        try:
            table = pq.read_table(self.folder / EXAMPLES, filters=[("split", "=", split)])
            part, part_size = self.parts[split]
        except DAMAGE as error:
            raise InputError(
                f"dataset {self.name}: where its images come from is not known ({error}); "
                f"run again: {command_for(self.name)}"
            ) from None
        names = table["name"].to_pylist()
        return Examples(part, part_size, table["row"].to_numpy(), None if None in names else tuple(names))

    def _read(self, split: str) -> Split:
        return read_split(self.folder / f"{split}.arrow", self.file_digests[split], self.reading)


def taught_on(own: Dataset, other: Dataset, with_own: bool = False) -> Dataset:
    """A data set with the training images of another in the place of its own, or after them, normalised as its own are.

    Their labels are the other's: they mean nothing here.
    """
    train = other.train
    if with_own:
        images = joined(own.train.images, train.images)
        train = Split(images, torch.cat([own.train.labels, train.labels]))
    found = replace(own, sizes={**own.sizes, "train": len(train.labels)})
    found.__dict__["train"] = train
    return found


def any_examples(images: int, examples: int, seed: int) -> Tensor:
    """Sorted indices of a seeded subset, whatever the labels; a smaller one of the same seed is a part of a larger."""
    if not 1 <= examples <= images:
        raise InputError(f"transfer.examples is {examples}; there are {images:,} training images")
    return torch.from_numpy(generator(seed).permutation(images)[:examples]).sort().values


@lru_cache
def load(name: str) -> Dataset:
    """The dataset from the cache; what reads itself is converted first where needed.

    Raises InputError on one that isn't known, and on one that this node must convert first.
    """
    source = _source(name)
    if source is None:
        return _load_imported(name)
    folder = _entry(name, source, source.digest or "")
    if folder.is_dir():
        try:
            dataset = _open(name, folder)
            if dataset.parts and (folder / EXAMPLES).is_file():
                return dataset
            log.info("cached dataset %s is of an earlier version; it is converted again", folder)
        except DAMAGE as error:
            log.warning("cached dataset %s is damaged (%s); it is converted again", folder, error)
    return _convert(name, source, _nobody)


def load_for(fingerprint: DatasetFingerprint, store: ArtifactStore | None = None) -> Dataset:
    """The very dataset that a stage is to train on: of this node's cache, else from the store, where that keeps it.

    Raises InputError where this node lacks it, or has another, and the store has none.
    """
    try:
        return _load_same(fingerprint)
    except InputError:
        if store is None or (fetched := _fetched(store, fingerprint.model_dump_json())) is None:
            raise
        return fetched


def _load_same(fingerprint: DatasetFingerprint) -> Dataset:
    name, place = fingerprint.name, f"the cache {cache_folder()} of {socket.gethostname()}"
    command = command_for(name, fingerprint.sizes.get("validation"))
    if not _source(name) and not _pointer(name).exists():
        raise InputError(
            f"dataset {name}: not in {place}, nor kept below the root; run on this node, with the options it was made "
            f"with, and then the study again: {command}"
        )
    dataset = load(name)
    if (dataset.digest, dataset.sizes) != (fingerprint.digest, fingerprint.sizes):
        raise InputError(
            f"dataset {name}: {place} has {_brief(dataset.digest, dataset.sizes)}, the study has "
            f"{_brief(fingerprint.digest, fingerprint.sizes)}; run on this node, with the same files and options, and "
            f"then the study again: {command}"
        )
    return dataset


_found: dict[tuple[str, str], Dataset] = {}  # what was fetched, by root and fingerprint: each look at it costs a digest


def _fetched(store: ArtifactStore, wanted: str) -> Dataset | None:
    """What the store keeps of a fingerprint, as JSON, by way of this node's cache; None where it keeps nothing.

    It has a folder of its own there: what the name stands for on this node stays as it is.
    """
    if (known := _found.get((store.root, wanted))) is not None:
        return known
    fingerprint = DatasetFingerprint.model_validate_json(wanted)
    folder = _cache() / dataset_folder(fingerprint).rpartition("/")[2]
    with suppress(*DAMAGE):
        return _found.setdefault((store.root, wanted), _open(fingerprint.name, folder))
    temporary = _cache() / f".tmp-{uuid.uuid4().hex}"
    try:
        if not store.fetch_dataset(fingerprint, temporary):
            return None
        _put_in_place(temporary, folder)
        return _found.setdefault((store.root, wanted), _open(fingerprint.name, folder))
    except (ValueError, KeyError, TypeError) as error:
        place = store.storage.uri(dataset_folder(fingerprint))
        raise InputError(
            f"dataset {fingerprint.name}: what is kept in {place} is damaged ({error}); delete that folder, and run "
            "the study again on a machine that has the data set"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_own(name: str) -> bool:
    """Whether it was converted from a user's files, which a node may not have."""
    return _source(name) is None


def import_dataset(
    name: str, source: Source, advance: Callable[[int], None] | None = None, by_code: bool = False
) -> Dataset:
    """Converts a source's files into the cache, where `load` finds them by that name.

    A name that stood for other content stands for this from now on; what was converted before stays where it is.
    `advance` is called with the number of images that were written since the last call.
    """
    load.cache_clear()
    dataset = _convert(name, source, advance or _nobody)
    if not _source(name):
        pointer = _pointer(name)
        temporary = pointer.with_name(f".tmp-{uuid.uuid4().hex}")
        marks = {BY_CODE: True} if by_code else {}
        write_synced(temporary, json.dumps({"entry": dataset.folder.name} | marks).encode())
        temporary.replace(pointer)
    return dataset


def converted() -> list[str]:
    """The names of imported datasets that this node's cache has, sorted."""
    return sorted(file.name.removesuffix(_SUFFIX) for file in _cache().glob(f"*{_SUFFIX}"))


def check_name(name: str, what: str = "--name") -> None:
    """Raises InputError where a dataset of a user's own can't have it; `what` says where it was given."""
    again = "choose another" if what == "--name" else "give another with --name"
    if name in BUILT_IN or name == OWN:
        raise InputError(f"{what} {name}: is built in; {again}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise InputError(
            f"{what} {name}: a name has letters, digits, - and _, and begins with a letter or digit; {again}"
        )


def command_for(name: str, validation: int | None = None) -> str:
    """What a user runs to have that dataset on a node."""
    if name in BUILT_IN:
        return f"takd data {name} --from DIR"
    held = f" --validation {validation}" if validation else ""
    return f"takd data {OWN} --from DIR --name {name}{held}"


def transfer_set(labels: Tensor, examples: int, seed: int) -> Tensor:
    """Sorted indices of a seeded subset whose classes differ by one example at most.

    A smaller set of the same seed is part of a larger one. Raises InputError where a class has too few.
    """
    classes = int(labels.max()) + 1
    most, scarce = most_balanced(labels)
    if not 1 <= examples <= most:
        raise InputError(
            f"recipe.examples is {examples}; 1 to {most} can be balanced over {classes} classes "
            f"(class {scarce} has {int((labels == scarce).sum())})"
        )
    order = torch.from_numpy(generator(seed).permutation(len(labels)))
    share, rest = divmod(examples, classes)
    chosen = [order[labels[order] == label][: share + (label < rest)] for label in range(classes)]
    return torch.cat(chosen).sort().values


def most_balanced(labels: Tensor) -> tuple[int, int]:
    """The size of the largest transfer set, and the class that it ends with."""
    available = labels.bincount().tolist()
    # The first classes get the examples that don't divide: one that has k suffices up to k * classes + its number.
    return min((number * len(available) + label, label) for label, number in enumerate(available))


def _source(name: str) -> Source | None:
    """What is read on any node, without a user's files or code; None of another dataset, or of none at all."""
    return BUILT_IN[name].source if name in BUILT_IN and not _is_of_code(name) else None


def _is_of_code(name: str) -> bool:
    """Whether a user's code that is in use here reads it."""
    origin = origin_of("dataset", name)
    return origin is not None and origin.digest is not None


def read_by_code(name: str) -> None:
    """Where a user's code reads that dataset, converts what it gives into the cache, where `load` finds it.

    Each time anew: what was read may have changed. Raises InputError with the user's line.
    """
    if not _is_of_code(name):
        return
    by_code = True
    with suppress(*DAMAGE):  # of no file, or a damaged one, which is written anew
        by_code = BY_CODE in json.loads(_pointer(name).read_bytes())
    if not by_code:
        raise InputError(
            f"{origin_of('dataset', name)}: dataset {name!r}: takd data has converted one of that name here; "
            "give yours another"
        )
    source = BUILT_IN[name].source
    assert source
    import_dataset(name, source, by_code=True)


BY_CODE = "by_code"  # in the pointer of a dataset that a user's code reads


_SUFFIX = f".v{_CACHE_FORMAT}.json"


def _cache() -> Path:
    return cache_folder() / "datasets"


def _entry(name: str, source: Source, digest: str) -> Path:
    held = "tenth" if source.validation is None else source.validation
    form = "-encoded" if source.keeps_encoded else ""
    return _cache() / f"{name}-{digest[:16]}-split{SPLIT_SEED}-{held}{form}-v{_CACHE_FORMAT}"


def _pointer(name: str) -> Path:
    """The file that says which entry an imported dataset's name stands for."""
    return _cache() / f"{name}{_SUFFIX}"


def _load_imported(name: str) -> Dataset:
    here = converted()
    if name not in here and name in BUILT_IN:
        raise InputError(
            f"dataset {name}: not converted yet in the cache {cache_folder()} of {socket.gethostname()}; "
            f"run on every node: {command_for(name)}"
        )
    if name not in here:
        own = [each for each in here if each not in BUILT_IN]
        raise InputError(
            f"dataset {name!r} does not exist; valid: {', '.join([*BUILT_IN, *own])}; your own images: "
            f"takd data {OWN} --from DIR"
        )
    try:
        return _open(name, _cache() / json.loads(_pointer(name).read_bytes())["entry"])
    except DAMAGE as error:
        raise InputError(
            f"dataset {name}: its files in the cache {cache_folder()} are damaged ({error}); "
            f"run again: {command_for(name)}"
        ) from None


def _open(name: str, folder: Path) -> Dataset:
    """The converted dataset; raises one of DAMAGE where train or validation is not what was written."""
    about = json.loads((folder / "dataset.json").read_bytes())
    dataset = Dataset(
        folder=folder,
        name=name,
        digest=about["digest"],
        classes=tuple(about["classes"]),
        image_shape=tuple(about["image_shape"]),
        split_seed=SPLIT_SEED,
        sizes=about["sizes"],
        class_counts=about["class_counts"],
        file_digests=about["file_digests"],
        normalization=Normalization(*map(tuple, about["normalization"])),
        reading=Reading(**about["reading"]) if "reading" in about else of_shape(about["image_shape"]),
        parts={split: (part, size) for split, (part, size) in about.get("parts", {}).items()},
    )
    _ = dataset.train, dataset.validation  # opening them checks their content
    return dataset


def _convert(name: str, source: Source, advance: Callable[[int], None]) -> Dataset:
    """Checks the content and writes the cache entry. Two processes at once write the same bytes."""
    _sweep()
    temporary = _cache() / f".tmp-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        found, warnings = write_entry(temporary, source, source.read(), advance)
        while (better := source.judged()) is not None:
            source = better
            found, warnings = write_entry(temporary, source, source.read(), advance)
        for line in warnings:
            log.warning("%s", line)
        if source.digest not in (None, found):
            raise InputError(
                f"dataset {name}: its content has digest {found}, expected {source.digest}; install takd again"
            )
        folder = _entry(name, source, found)
        _put_in_place(temporary, folder)
    except OSError as error:
        raise InputError(f"cache {cache_folder()}: can't be written ({error.strerror}); set TAKD_CACHE") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        return _open(name, folder)
    except DAMAGE as error:
        raise InputError(f"cache {folder}: can't be read back ({error}); set TAKD_CACHE to another folder") from None


def _sweep() -> None:
    """Takes away what a conversion that was killed has left."""
    for folder in _cache().glob(".tmp-*"):
        with suppress(FileNotFoundError):  # another process does the same, or has put it in place
            if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """All at once where nothing is; else what is missing or damaged, file by file.

    Nothing is taken away and no good file replaced: other processes may have them mapped, or be doing the same.
    """
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        _, damaged, missing = filecmp.cmpfiles(temporary, folder, os.listdir(temporary), shallow=False)
        for file in damaged + missing:
            (temporary / file).replace(folder / file)


def _brief(digest: str, sizes: dict[str, int]) -> str:
    return f"digest {digest[:12]} ({', '.join(f'{number} {split}' for split, number in sizes.items())})"


def _nobody(images: int) -> None:
    """Watches no conversion."""
