"""The artifact store: what finished stages leave, checkpoints of those that train, and pretrained weights. No torch."""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from takd.search_spaces import DatasetFingerprint, Derived, LeftName, Stage, ViewName, derived_of, frozen_of
from takd.trainables.store.derived import DerivedStore
from takd.trainables.store.storage import Storage, aside_name, open_storage, sha256, whole_file

FORMAT = 1
ARTIFACTS = "artifacts"
CHECKPOINTS = "checkpoints"
FIRST, SECOND = 0, 1  # places for a stage's checkpoint
PRETRAINED = "weights"
DATASETS = "datasets"
DATASET = "dataset.json"  # says what is in the other files of a data set that is kept
DESCRIPTION = "stage.json"
WEIGHTS = "model.safetensors"
LOGITS = "logits.safetensors"  # in the place of weights, of a stage that is given as what its model says
SOFT_TARGETS = "soft_targets.arrow"  # of artifacts that were written before what is derived had a place of its own
_DIGEST_LENGTH = 64  # of SHA-256, as hex digits

log = logging.getLogger("takd")


@dataclass(frozen=True)
class ArtifactStore:
    """`artifacts/<key>/` below a root, shared by all studies there."""

    root: str

    @property
    def storage(self) -> Storage:
        return open_storage(self.root)

    @property
    def derived(self) -> DerivedStore:
        return DerivedStore(self.root)

    def prepare(self) -> None:
        """Raises InputError where the root can't be written. Takes away what nobody can need."""
        self.storage.prepare()
        for folder in (ARTIFACTS, CHECKPOINTS, PRETRAINED):
            self.storage.sweep(folder)
        for name in self.storage.names(DATASETS):
            self.storage.sweep(f"{DATASETS}/{name}")
        self.derived.collect(lambda key, digest: self._has_file(key, digest) or self._has_weights(digest))

    def keys(self) -> list[str]:
        """Of all artifacts, sorted."""
        return [name for name in self.storage.names(ARTIFACTS) if not name.startswith(".")]

    def _has_weights(self, digest: str) -> bool:
        return f"{digest}.safetensors" in self.storage.names(PRETRAINED)

    def _has_file(self, key: str, digest: str) -> bool:
        description = self.describe(key)
        return description is not None and digest in description["files"].values()

    def publish(self, key: str, description: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Readers see all of it or none. Of two writers of one key the first wins.

        Where what is there lacks a file that this one brings, it is replaced.
        """
        digests = {name: sha256(content) for name, content in files.items()}
        whole = {"format": FORMAT, "key": key, **description, "files": digests}
        text = json.dumps(whole, indent=1, allow_nan=False).encode()
        self.storage.publish(_folder(key), {**files, DESCRIPTION: text}, last=DESCRIPTION)

    def describe(self, key: str) -> dict[str, Any] | None:
        """stage.json of a key, or None where there is no artifact or a damaged one; files' digests are not checked."""
        try:
            return self._description(key)
        except ValueError:
            return None

    def _description(self, key: str) -> dict[str, Any] | None:
        """As `describe`; raises ValueError on one that can't be this key's."""
        try:
            description = json.loads(self.storage.read(f"{_folder(key)}/{DESCRIPTION}"))
        except FileNotFoundError:
            return None
        if not isinstance(description, dict) or (description.get("key"), description.get("format")) != (key, FORMAT):
            raise ValueError(f"{DESCRIPTION} is another's, or of another version")
        return description

    def add_metrics(self, key: str, validation: Mapping[str, float]) -> None:
        """More that is measured of a finished stage on the validation split, beside what its description says."""
        if description := self.describe(key):
            description["outcome"]["metrics"]["validation"] |= validation
            self.storage.replace(
                f"{_folder(key)}/{DESCRIPTION}", json.dumps(description, indent=1, allow_nan=False).encode()
            )

    def has(self, key: str, needed: Set[str]) -> bool:
        """Whether there is a whole artifact with the needed files; touches nothing."""
        description = self.describe(key)
        return bool(description and needed <= set(description["files"]) and not self._damaged(key, description))

    def check(self, key: str, needed: Set[str] = frozenset({WEIGHTS})) -> dict[str, Any] | None:
        """stage.json of a whole artifact with the needed files; a damaged one is set aside with a warning."""
        try:
            while description := self._description(key):
                damaged = self._damaged(key, description)
                if damaged is None:
                    return description if needed <= set(description["files"]) else None
                # Else another writer replaced it meanwhile, maybe more than once, the last time by the same.
                if self.describe(key) == description and self._damaged(key, description):
                    self.set_aside(key, f"{damaged} has not the digest it was written with")
        except ValueError:
            self.set_aside(key, f"{DESCRIPTION} can't be read")
        return None

    def artifact(self, stage: Stage) -> dict[str, Any] | None:
        """stage.json of a stage that is finished, with all that its artifact must have; as `check`."""
        return self.check(stage.key, needed_files(stage))

    def _damaged(self, key: str, description: dict[str, Any]) -> str | None:
        """The first file that is not what the description says; None where all are."""
        for name, digest in description["files"].items():
            try:
                content = self.storage.read(self.storage.place(_folder(key), name, digest))
            except FileNotFoundError:
                return name
            if sha256(content) != digest:
                return name
        return None

    def set_aside(self, key: str, reason: str) -> None:
        """Out of the way, but not deleted: someone may want to look."""
        aside = aside_name(key)
        log.warning("artifact %s: %s; set aside as %s, the stage is trained again", key[:12], reason, aside)
        self.storage.withdraw(_folder(key), f"{ARTIFACTS}/{aside}", last=DESCRIPTION)

    def read(self, key: str, name: str) -> bytes:
        """A file of an artifact; raises FileNotFoundError where there is none, ValueError where it is damaged."""
        return self._local(key, name).read_bytes()

    def soft_targets(self, stage: Stage, views: Collection[ViewName]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """By view the logits `[train examples, classes]` of a finished stage, memory-mapped; raises as `read` does."""
        return self.left(stage, views)

    def left(self, stage: Stage, names: Collection[LeftName]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """What a finished stage leaves by these names, `[train examples, ...]` each, memory-mapped.

        By the name of a view these are the logits. Raises as `read` does.
        """
        description = self.describe(stage.key)
        if description is None:
            raise FileNotFoundError(f"stage {stage.key[:12]} is not in {self.root}/{ARTIFACTS}")
        inside = self._inside(stage) if SOFT_TARGETS in description["files"] else {}
        derived = left_by_name(stage, description)
        return [inside[name] if name in inside else self.derived.read(derived(name).key) for name in names]

    def _inside(self, stage: Stage) -> dict[ViewName, np.ndarray[Any, np.dtype[np.float32]]]:
        """Of an artifact that has its soft targets in it."""
        with pa.memory_map(str(self._local(stage.key, SOFT_TARGETS))) as source:
            [batch] = pa.ipc.open_file(source).read_all().to_batches()
        logits = [column.values.to_numpy(zero_copy_only=True).reshape(len(batch), -1) for column in batch.columns]
        return dict(zip(stage.recipe.view_names, logits, strict=True))

    def lacking(self, stage: Stage, description: Mapping[str, Any], views: Collection[LeftName]) -> list[LeftName]:
        """What nobody can learn yet from a finished stage, by its names; what is damaged is set aside."""
        inside = stage.recipe.view_names if SOFT_TARGETS in description["files"] else ()
        derived = left_by_name(stage, description)
        return [view for view in views if view not in inside and not self.derived.check(derived(view).key)]

    def lacking_frozen(self, stage: Stage, names: Collection[LeftName]) -> list[LeftName]:
        """What is not there of what layers give that stand still below a stage; what is damaged is set aside."""
        return [name for name in names if not self.derived.check(frozen_of(stage, name).key)]

    def _local(self, key: str, name: str) -> Path:
        description = self.describe(key)
        if description is None or name not in description["files"]:
            raise FileNotFoundError(f"{name} of stage {key[:12]} is not in {self.root}/{ARTIFACTS}")
        digest = description["files"][name]
        place = self.storage.place(_folder(key), name, digest)
        return whole_file(self.storage, place, digest, f"{name} of stage {key[:12]}")

    def save_checkpoint(self, key: str, content: bytes, place: int = FIRST) -> None:
        """Replaces the checkpoint of a stage that is not finished, in the first or the second place for one."""
        self.storage.replace(_checkpoint(key, place), sha256(content).encode() + content)

    def load_checkpoint(self, key: str, place: int = FIRST) -> bytes | None:
        """A stage's last checkpoint in that place; None where there is none, or a damaged one, which is deleted."""
        try:
            stored = self.storage.read(_checkpoint(key, place))
        except FileNotFoundError:
            return None
        digest, content = stored[:_DIGEST_LENGTH], stored[_DIGEST_LENGTH:]
        if digest.decode(errors="replace") == sha256(content):
            return content
        log.warning("checkpoint of stage %s is damaged; the stage is trained from its start", key[:12])
        self.drop_checkpoint(key, place)
        return None

    def drop_checkpoint(self, key: str, place: int = FIRST) -> None:
        """The stage is finished, or nothing can come of it."""
        self.storage.delete(_checkpoint(key, place))

    def keep_pretrained(self, content: bytes) -> str:
        """Writes canonical weights, unless they are there whole; returns their digest."""
        digest = sha256(content)
        if not self.has_pretrained(digest):
            self.storage.replace(_pretrained(digest), content)
        return digest

    def has_pretrained(self, digest: str) -> bool:
        """Whether they are there, whole."""
        try:
            return sha256(self.storage.read(_pretrained(digest))) == digest
        except FileNotFoundError:
            return False

    def keep_dataset(self, fingerprint: DatasetFingerprint, folder: Path) -> None:
        """Puts the files of a converted data set below the root, those that are not there."""
        files = {file.name: file for file in folder.iterdir() if not file.name.startswith(".")}
        self.storage.publish_files(dataset_folder(fingerprint), files, last=DATASET)

    def has_dataset(self, fingerprint: DatasetFingerprint) -> bool:
        names = self.storage.names(dataset_folder(fingerprint))
        return DATASET in names and all(f"{split}.arrow" in names for split in fingerprint.sizes)

    def fetch_dataset(self, fingerprint: DatasetFingerprint, target: Path) -> bool:
        """Into a folder of this machine, which is made; whether there is one. What it has is not checked."""
        names = self.storage.names(dataset_folder(fingerprint))
        if DATASET not in names:
            return False
        target.mkdir(parents=True)
        for name in names:
            self.storage.fetch(f"{dataset_folder(fingerprint)}/{name}", target / name)
        return True

    def pretrained(self, digest: str) -> bytes:
        """Raises FileNotFoundError where there are none, ValueError where they are damaged."""
        content = self.storage.local(_pretrained(digest), digest).read_bytes()
        if sha256(content) != digest:
            raise ValueError(f"{self.storage.uri(_pretrained(digest))} has not the digest it was written with")
        return content


def needed_files(stage: Stage) -> Set[str]:
    """What a finished stage's artifact must have: what others learn from it is derived from these."""
    return {WEIGHTS} if stage.has_weights else {LOGITS}


def left_by_name(stage: Stage, description: Mapping[str, Any]) -> Callable[[LeftName], Derived]:
    """Of a finished stage, what all that it leaves is in the store, by its name."""
    [file] = needed_files(stage)
    return partial(derived_of, stage, description["files"][file])


def _folder(key: str) -> str:
    return f"{ARTIFACTS}/{key}"


def _checkpoint(key: str, place: int) -> str:
    return f"{CHECKPOINTS}/{key}{'' if place == FIRST else f'.{place}'}"


def dataset_folder(fingerprint: DatasetFingerprint) -> str:
    """Where a data set is kept: by the digest of its content, and how that is split."""
    sizes = "-".join(str(number) for number in fingerprint.sizes.values())
    return f"{DATASETS}/{fingerprint.digest}-split{fingerprint.split_seed}-{sizes}"


def _pretrained(digest: str) -> str:
    return f"{PRETRAINED}/{digest}.safetensors"
