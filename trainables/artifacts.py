"""The artifact store: what finished stages leave, one folder a key, published whole or not at all. No torch."""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from search_spaces import InputError

FORMAT = 1
DESCRIPTION = "stage.json"
WEIGHTS = "model.safetensors"
SOFT_TARGETS = "soft_targets.arrow"

log = logging.getLogger("takd")


@dataclass(frozen=True)
class ArtifactStore:
    """`artifacts/<key>/` below a root folder, shared by all studies there."""

    root: str

    def __post_init__(self) -> None:
        if "://" in self.root:
            raise InputError(f"root {self.root}: object stores are not supported yet; expected a folder")

    @property
    def folder(self) -> Path:
        return Path(self.root) / "artifacts"

    def prepare(self) -> None:
        """Creates the folder; raises InputError where it can't be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".tmp-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"root {self.root}: can't be written ({error.strerror}); use --root") from None

    def path(self, key: str, name: str) -> Path:
        return self.folder / key / name

    def publish(self, key: str, description: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Writes to a temporary folder, syncs, renames: readers see all of it or none.

        Of two writers of one key the first wins, unless what is there lacks a file that this one brings.
        """
        temporary = self.folder / f".tmp-{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
        digests = {name: _digest(content) for name, content in files.items()}
        whole = {"format": FORMAT, "key": key, **description, "files": digests}
        contents = {**files, DESCRIPTION: json.dumps(whole, indent=1, allow_nan=False).encode()}
        for name, content in contents.items():
            _write_synced(temporary / name, content)
        target = self.folder / key
        if target.exists() and not all((target / name).exists() for name in contents):
            self.set_aside(key, "it lacks what this stage now leaves")
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
            shutil.rmtree(temporary)
        _sync_folder(self.folder)

    def describe(self, key: str) -> dict[str, Any] | None:
        """stage.json of a key, or None where there is no artifact; digests are not checked."""
        try:
            return json.loads(self.path(key, DESCRIPTION).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            return None  # damaged: `check` sets it aside

    def check(self, key: str, needed: tuple[str, ...] = (WEIGHTS,)) -> dict[str, Any] | None:
        """stage.json of a whole artifact with the needed files; a damaged one is set aside with a warning."""
        if not (self.folder / key).exists():
            return None
        description = self.describe(key)
        if description is None or description.get("key") != key:
            self.set_aside(key, f"{DESCRIPTION} can't be read")
            return None
        for name, digest in description["files"].items():
            try:
                found = _digest(self.path(key, name).read_bytes())
            except FileNotFoundError:
                found = "no file"
            if found != digest:
                self.set_aside(key, f"{name} has not the digest it was written with")
                return None
        return description if set(needed) <= set(description["files"]) else None

    def set_aside(self, key: str, reason: str) -> None:
        """Out of the way, but not deleted: someone may want to look."""
        target = self.folder / f".set-aside-{key}-{int(time.time())}-{uuid.uuid4().hex[:6]}"
        log.warning("artifact %s: %s; set aside as %s, the stage is trained again", key[:12], reason, target.name)
        (self.folder / key).rename(target)

    def soft_targets(self, key: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits `[train examples, classes]`, memory-mapped."""
        with pa.memory_map(str(self.path(key, SOFT_TARGETS))) as source:
            column = pa.ipc.open_file(source).read_all().column("view_0")
        [chunk] = column.chunks
        logits: np.ndarray[Any, np.dtype[np.float32]] = chunk.values.to_numpy(zero_copy_only=True)
        return logits.reshape(len(chunk), -1)


def soft_targets_file(logits: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Arrow IPC: one row an example, one fixed-size list of logits a view."""
    examples, classes = logits.shape
    column = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), classes)
    table = pa.table({"view_0": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=examples)
    return sink.getvalue().to_pybytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
