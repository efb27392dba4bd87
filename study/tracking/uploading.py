"""Sends W&B run files to the server: `wandb sync` in processes of their own, in the background or for `takd sync`."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path

from takd.study.tracking.wandb_log import read_records

BATCH = 25  # runs a process of W&B's
SYNC_SECONDS = 15.0  # between two looks in the background
RUN_SECONDS, START_SECONDS = 2.0, 60.0  # that the upload of a run, and a process' start, may take
PATIENCE = 10.0  # seconds that a study's end waits for the next run to arrive
RETRIES = "3"  # of one request; W&B's own 20 take half an hour

log = logging.getLogger("takd")


def unsynced(folder: Path) -> list[Path]:
    """The run files that W&B has not seen whole."""
    logs = [file for file in (folder / "wandb").glob("offline-run-*/*.wandb") if not _synced(file).exists()]
    return sorted(logs, key=lambda file: file.parent.name)


def _synced(file: Path) -> Path:
    """W&B's own mark."""
    return file.with_name(f"{file.name}.synced")


@cache  # a log is whole when it has its name
def _upstream_runs(file: Path) -> Sequence[str] | None:
    """The ids of the runs that a stage's run learned from; None of another run: the study's, an export's."""
    for record in read_records(file):
        if record.HasField("run"):
            config = {each.key: each.value_json for each in record.run.config.update}
            return tuple(json.loads(config["upstream_runs"])) if "upstream_runs" in config else None
    return ()


def batches(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """What goes to one process: W&B takes them side by side, so none with what it learned from, which goes before."""
    upstream = {file.stem.removeprefix("run-"): _upstream_runs(file) for file in files}

    @cache
    def depth(run: str) -> int:
        """How many runs the longest chain above it has, of those that are not sent."""
        above = upstream.get(run, ())
        return len(files) if above is None else max((depth(each) + 1 for each in above if each in upstream), default=0)

    def depth_of(file: Path) -> int:
        return depth(file.stem.removeprefix("run-"))

    for _, level in groupby(sorted(files, key=depth_of), depth_of):
        group = list(level)
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


class Upload:
    """One process of W&B's that sends some run files; low in priority, it never holds the study up."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.files = files
        command = [sys.executable, "-m", "wandb", "sync", *(str(file.parent) for file in files)]
        for option in ("project", "entity"):
            if value := os.environ.get(f"WANDB_{option.upper()}"):
                command += [f"--{option}", value]
        self._process = subprocess.Popen(
            command,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for the study
        )
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)

    def wait(self) -> str | None:
        """What went wrong, in a line; None when W&B has all of it. Ends the process when it takes too long."""
        seconds = START_SECONDS + RUN_SECONDS * len(self.files)
        try:
            output, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"no answer after {seconds:.0f} s"
        if all(_synced(file).exists() for file in self.files):
            return None
        said = [line.partition(": ")[2] for line in output.splitlines() if line.startswith(("Error: ", "wandb: ERROR"))]
        lines = [line.removeprefix("ERROR ") for line in said if "error logs at" not in line]
        return next((line for line in lines if line.strip()), "not all runs arrived")

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # W&B's own service as well
            self._process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """WANDB_MODE says how runs are written; they are sent whatever it says."""
    kept = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    return (
        {"WANDB_X_GRAPHQL_RETRY_MAX": RETRIES, "WANDB_X_FILE_STREAM_RETRY_MAX": RETRIES}
        | kept
        | {
            "WANDB_DIR": str(folder),
            "WANDB_SILENT": "false",
        }
    )


@contextmanager
def uploads(folder: Path, seconds: float = 60.0) -> Iterator[None]:
    """Sends runs in the background while the body runs, and the rest after it, for some seconds."""
    uploader = Uploader(folder)
    try:
        yield
    finally:
        uploader.close(seconds)


class Uploader:
    """Sends what is there every so often while a study runs. The first failure is said once, and it sends no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._upload: Upload | None = None
        self._thread = threading.Thread(target=self._run, name="wandb sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                last = self._closing.wait(SYNC_SECONDS)
                reason = self._send_all()
                if self._given_up.is_set():
                    reason = "not all runs had arrived when the study ended"
                if reason:
                    log.warning("W&B: %s; the runs are kept, `takd sync` sends them", reason)
                    return
                if last:
                    return
        except Exception as error:  # whatever it is, the study goes on
            log.warning("W&B: %s; the runs are kept, `takd sync` sends them", error)

    def _send_all(self) -> str | None:
        for files in batches(unsynced(self.folder)):
            self._upload = Upload(self.folder, files)
            if (reason := self._upload.wait()) or self._given_up.is_set():
                return reason
        return None

    def close(self, seconds: float) -> None:
        """Sends the rest, as long as runs arrive and for so long at most; what then is left is kept."""
        until, left, patience = time.monotonic() + seconds, -1, 0.0
        self._closing.set()
        while self._thread.is_alive() and time.monotonic() < until:
            if (now := len(unsynced(self.folder))) != left:
                left, patience = now, time.monotonic() + PATIENCE
            elif time.monotonic() > patience:
                break
            self._thread.join(0.5)
        if self._thread.is_alive():
            self._given_up.set()
            if self._upload:
                self._upload.kill()
            self._thread.join()
