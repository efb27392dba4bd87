"""A W&B run as W&B itself keeps it offline: a transaction log of its own records, written in one go.

`wandb.init` holds a run open from its start to its end and costs the driver 75 ms of Python as it comes, 12 ms at best;
a file costs 1 ms. `wandb sync` uploads these files, `wandb leet` shows them. The format is LevelDB's log: blocks of
32 KiB, in each a header of 7 bytes (CRC-32, length, kind) before every part of a record.
"""

import hashlib
import json
import platform
import secrets
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # bytes
MAGIC = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of parts
MIN_CONSUMER = "0.70.0"


@dataclass(frozen=True)
class Entry:
    """A file of a W&B artifact: referred to by `ref`, or uploaded from `local`."""

    path: str
    digest: str  # MD5, base64, as W&B has it
    size: int  # bytes
    ref: str = ""
    local: str = ""


@dataclass(frozen=True)
class Artifact:
    """A W&B artifact that a run logs, or with `used` one it learned from. Equal files are one version of it."""

    name: str
    type: str
    entries: tuple[Entry, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    used: bool = False
    aliases: Sequence[str] = ("latest",)

    @property
    def digest(self) -> str:
        """As W&B computes it, hex."""
        lines = [f"{entry.path}:{entry.digest}\n" for entry in sorted(self.entries, key=lambda each: each.path)]
        return hashlib.md5("".join(["wandb-artifact-manifest-v1\n", *lines]).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """What is written of a run at once: all of it, or with `open` what there is so far.

    `rows` are `(step, values)`. Several files of one id are fragments of one run; each has the steps after the last.
    """

    id: str
    project: str
    group: str
    job_type: str
    name: str
    config: Mapping[str, Any]
    tags: Sequence[str] = ()
    rows: Sequence[tuple[int, Mapping[str, Any]]] = ()
    step_metric: str = "epoch"
    summary: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Sequence[Artifact] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)  # that rows refer to, by path
    started: float = 0.0  # seconds since the epoch
    ended: float = 0.0
    failed: bool = False
    open: bool = False


def write_run(folder: Path, run: Run) -> Path:
    """A new run folder in `folder/wandb`; W&B finds all of it or nothing. Raises OSError."""
    place = _new_folder(folder / "wandb", run)
    for path, content in run.files.items():
        (place / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (place / "files" / path).write_bytes(content)
    log = place / f"run-{run.id}.wandb"
    unfinished = log.with_suffix(".part")
    unfinished.write_bytes(_log([record.SerializeToString() for record in _records(run)]))
    unfinished.rename(log)
    return place


def _new_folder(folder: Path, run: Run) -> Path:
    second = int(run.ended)
    while True:
        stamp = datetime.fromtimestamp(second, UTC).strftime("%Y%m%d_%H%M%S")
        place = folder / f"offline-run-{stamp}-{run.id}"
        try:
            (place / "files").mkdir(parents=True)
            return place
        except FileExistsError:
            if not place.is_dir():
                raise
            second += 1


def _log(records: Sequence[bytes]) -> bytes:
    log = bytearray(MAGIC)
    for content in records:
        at, kind = 0, FIRST
        while True:
            room = BLOCK - len(log) % BLOCK
            if room <= HEADER:
                log += bytes(room)
                room = BLOCK
            part = content[at : at + room - HEADER]
            at += len(part)
            ends = at == len(content)
            kind = (WHOLE if kind == FIRST else LAST) if ends else kind
            log += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            if ends:
                break
            kind = MIDDLE
    return bytes(log)


def _records(run: Run) -> Iterator[Any]:
    from wandb import __version__
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    number = 0

    def record(**content: Any) -> Any:
        nonlocal number
        number += 1
        return Record(num=number, _info={"stream_id": run.id}, **content)

    yield record(header={"version_info": {"producer": __version__, "min_consumer": MIN_CONSUMER}})
    seconds = int(run.started)
    yield record(
        run={
            "run_id": run.id,
            "project": run.project,
            "run_group": run.group,
            "job_type": run.job_type,
            "display_name": run.name,
            "tags": list(run.tags),
            "host": platform.node(),
            "start_time": {"seconds": seconds, "nanos": int((run.started - seconds) * 1e9)},
            "config": {
                "update": [{"key": name, "value_json": json.dumps(value)} for name, value in run.config.items()]
            },
            "telemetry": {"python_version": platform.python_version(), "cli_version": __version__},
        }
    )
    yield record(metric={"name": run.step_metric, "options": {"defined": True}})
    everything = {"glob_name": "*", "step_metric": run.step_metric, "options": {"step_sync": True, "defined": True}}
    yield record(metric=everything)
    for artifact in run.artifacts:
        yield record(artifact=_artifact(run, artifact))
    if run.files:
        yield record(files={"files": [{"path": path} for path in run.files]})
    for step, values in run.rows:
        yield record(history={"item": _items({**values, "_step": step}), "step": {"num": step}})
    last = {**run.rows[-1][1], "_step": run.rows[-1][0]} if run.rows else {}
    yield record(summary={"update": _items({**last, **run.summary, "_runtime": run.ended - run.started})})
    yield record(exit={"exit_code": int(run.failed), "runtime": int(run.ended - run.started), "not_complete": run.open})


def _artifact(run: Run, artifact: Artifact) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "project": run.project,
        "type": artifact.type,
        "name": artifact.name,
        "digest": artifact.digest,
        "metadata": json.dumps(dict(artifact.metadata)),
        "aliases": list(artifact.aliases),
        "manifest": {
            "version": 1,
            "storage_policy": "wandb-storage-policy-v1",
            "storage_policy_config": [{"key": "storageLayout", "value_json": '"V2"'}],
            "contents": [
                {
                    "path": entry.path,
                    "digest": entry.digest,
                    "size": entry.size,
                    "ref": entry.ref,
                    "local_path": entry.local,
                }
                for entry in artifact.entries
            ],
        },
        "finalize": True,
        "user_created": artifact.used,
        "use_after_commit": artifact.used,
        "client_id": secrets.token_hex(64),
        "sequence_client_id": secrets.token_hex(64),
        "digest_algorithm": "MANIFEST_MD5",
    }


def _items(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"nested_key": [name], "value_json": json.dumps(value)} for name, value in values.items()]


def md5(content: bytes) -> str:
    """Base64, as W&B has it."""
    return b64encode(hashlib.md5(content).digest()).decode()


def read_records(log: Path) -> Iterator[Any]:
    """The records of a log; what a writer that was cut off left of its last one is ignored."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    content, at, whole = log.read_bytes(), len(MAGIC), b""
    while at + HEADER <= len(content):
        if (room := BLOCK - at % BLOCK) < HEADER:
            at += room
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (WHOLE, LAST):
            yield Record.FromString(whole)
            whole = b""


@dataclass(frozen=True)
class Written:
    """What the files of one run hold already."""

    last_step: int = 0
    ended: bool = False
    failed: bool = False


def written_runs(folder: Path) -> dict[str, Written]:
    """By run id, from the files in `folder/wandb`; a file of W&B's that can't be read counts as nothing."""
    found: dict[str, Written] = {}
    for log in sorted((folder / "wandb").glob("*run-*/*.wandb")):
        before = found.get(id := log.stem.removeprefix("run-"), Written())
        steps, ended, failed = [before.last_step], before.ended, before.failed
        for record in read_records(log):
            if record.HasField("history"):
                steps.append(record.history.step.num)
            elif record.HasField("exit"):
                ended, failed = ended or not record.exit.not_complete, record.exit.exit_code != 0
        found[id] = Written(max(steps), ended, failed)
    return found
