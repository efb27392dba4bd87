"""What is derived from models: `derived/<key>/` below a root, shared by all studies there. No torch.

Each is one array, float32 or float16, whose rows are the training images of a data set in one view. Whatever it is, and
whoever computes it, it is written, found, checked, mapped and swept away here.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from takd.search_spaces import Derived
from takd.trainables.store.storage import (
    STALE_SECONDS,
    Storage,
    aside_name,
    open_storage,
    seconds_aside,
    sha256,
    whole_file,
)

FORMAT = 1
DERIVED = "derived"
DESCRIPTION = "derived.json"
VALUES = "values.arrow"

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]  # float32, or float16

log = logging.getLogger("takd")


@dataclass(frozen=True)
class DerivedStore:
    """Readers see all of an entry or none; of two writers of one key the first wins."""

    root: str

    @property
    def storage(self) -> Storage:
        return open_storage(self.root)

    def publish(self, derived: Derived, stage: str, values: Array, about: Mapping[str, Any]) -> None:
        """Values `[training images, ...]` of the stage with that key, whose artifact has the weights."""
        content = _arrow(values)
        description = {
            "format": FORMAT,
            "key": derived.key,
            "input": derived.key_input(),
            "stage": stage,
            "shape": list(values.shape),
            **about,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": {VALUES: sha256(content)},
        }
        text = json.dumps(description, indent=1, allow_nan=False).encode()
        self.storage.publish(_folder(derived.key), {VALUES: content, DESCRIPTION: text}, last=DESCRIPTION)

    def describe(self, key: str) -> dict[str, Any] | None:
        """Its derived.json, or None where there is none that can be this key's; the array is not looked at."""
        try:
            description = json.loads(self.storage.read(f"{_folder(key)}/{DESCRIPTION}"))
        except (FileNotFoundError, ValueError):
            return None
        whole = isinstance(description, dict) and (description.get("key"), description.get("format")) == (key, FORMAT)
        return description if whole else None

    def check(self, key: str) -> bool:
        """Whether it is there, whole; what is damaged is set aside with a warning, to be derived again."""
        try:
            self.read(key)
        except FileNotFoundError:
            if DESCRIPTION not in self.storage.names(_folder(key)):
                return False
            self._set_aside(key, "is not whole")
            return False
        except ValueError as error:
            self._set_aside(key, str(error))
            return False
        return True

    def read(self, key: str) -> Array:
        """Memory-mapped `[training images, ...]`; raises FileNotFoundError, and ValueError where it is damaged."""
        description = self.describe(key)
        if description is None:
            raise FileNotFoundError(f"derived {key[:12]} is not in {self.root}/{DERIVED}")
        digest = description["files"][VALUES]
        place = self.storage.place(_folder(key), VALUES, digest)
        file = whole_file(self.storage, place, digest, f"{VALUES} of derived {key[:12]}")
        with pa.memory_map(str(file)) as source:
            [batch] = pa.ipc.open_file(source).read_all().to_batches()
        values: Array = batch.column("values").values.to_numpy(zero_copy_only=True).reshape(description["shape"])
        return values

    def _set_aside(self, key: str, reason: str) -> None:
        aside = aside_name(key)
        log.warning("derived %s: %s; set aside as %s, it is derived again", key[:12], reason, aside)
        self.storage.withdraw(_folder(key), f"{DERIVED}/{aside}", last=DESCRIPTION)

    def collect(self, has_weights: Callable[[str, str], bool]) -> list[str]:
        """Deletes what is a day old and set aside, or of weights that no artifact has any more; returns the keys.

        `has_weights(stage, digest)` says whether the artifact of a stage has a file of that digest. What is younger may
        be of a stage whose artifact is about to come.
        """
        self.storage.sweep(DERIVED)
        gone = [name for name in self.storage.names(DERIVED) if self._is_garbage(name, has_weights)]
        for name in gone:
            self.storage.remove(_folder(name), last=DESCRIPTION)
        return gone

    def _is_garbage(self, name: str, has_weights: Callable[[str, str], bool]) -> bool:
        if (aside := seconds_aside(name)) is not None:
            return aside > STALE_SECONDS
        description = self.describe(name)
        if description is None:
            return False  # of another version, or one that is being written
        age = time.time() - datetime.fromisoformat(description["made_at"]).timestamp()
        return age > STALE_SECONDS and not has_weights(description["stage"], description["input"]["weights"])


def _folder(key: str) -> str:
    return f"{DERIVED}/{key}"


def _arrow(values: Array) -> bytes:
    """Arrow IPC of one column: a fixed-size list of float32, or float16, for each row."""
    kind = np.float16 if values.dtype == np.float16 else np.float32
    width = math.prod(values.shape[1:])
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(kind, copy=False).reshape(-1)), width)
    table = pa.table({"values": column})
    sink = pa.BufferOutputStream()
    write_whole(sink, table)
    return sink.getvalue().to_pybytes()


def write_whole(sink: Any, table: pa.Table) -> None:
    """Arrow IPC of one record batch, so that each column lies in one piece, of more than 2^31 values too."""
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(allow_64bit=True)) as writer:
        writer.write_table(table, max_chunksize=len(table))
