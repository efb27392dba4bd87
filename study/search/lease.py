"""One process at a time runs a study: a lease kept in the study's own Optuna storage.

Claims are trials of a second Optuna study beside it: storages number trials one after the other, so of two claims made
at the same moment one has the lower number, and both know which. The holder is the lowest claim whose process lives.
"""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from takd.search_spaces import InputError

BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0  # a holder on another machine that gave no sign for so long is dead

log = logging.getLogger("takd")

_released: set[str] = set()  # claims of this process that are held no more, though the storage could not be told


class Lease:
    """Held from `acquire_lease` to `release`; a thread shows that the holder lives."""

    def __init__(self, claims: optuna.Study, trial: optuna.Trial, on_lost: Callable[[str], None]) -> None:
        self._claims, self._trial, self._on_lost = claims, trial, on_lost
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Someone else may run the study at once."""
        self._ended.set()
        self._thread.join()
        try:
            _end(self._claims, self._trial.number)
        except Exception as error:  # whatever the storage has: others know by the process that it fell
            _released.add(self._trial.user_attrs["holder"]["claim"])
            log.debug("lease of %s: %s", self._claims.study_name, error)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._trial.set_user_attr("beat", time.time())
            except UpdateFinishedTrialError:
                self._on_lost("another process runs this study now: this one gave no sign of life for a while")
                return
            except Exception as error:  # a storage that is out of reach may be back at the next beat
                log.debug("lease of %s: %s", self._claims.study_name, error)


def acquire_lease(
    storage: optuna.storages.BaseStorage, study: str, on_lost: Callable[[str], None], on_wait: Callable[[str], None]
) -> Lease:
    """Raises InputError naming the holder where a living process runs the study.

    on_wait is told when it takes a while to see whether a holder on another machine lives.
    """
    claims = optuna.create_study(study_name=lease_of(study), storage=storage, load_if_exists=True)
    trial = claims.ask()
    trial.set_user_attr("holder", _myself())
    for other in claims.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if other.number >= trial.number:
            continue
        if _lives(claims, other, on_wait):
            _end(claims, trial.number)
            raise InputError(f"study {study}: {_name(other)} runs it; stop that one first, or look with takd status")
        _end(claims, other.number)
    return Lease(claims, trial, on_lost)


def runner(storage: optuna.storages.BaseStorage, study: str) -> str | None:
    """Which living process runs a study, as far as can be told at once; None where none does. Writes nothing.

    One on another machine counts as living while its last sign of life is young by this machine's clock.
    """
    try:
        claims = optuna.load_study(study_name=lease_of(study), storage=storage)
    except KeyError:
        return None
    for claim in claims.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        holder = claim.user_attrs.get("holder")
        if holder and holder["host"] == socket.gethostname() and holder["boot"] == _boot():
            living = holder["started"] is not None and _start_of(holder["process"]) == holder["started"]
        else:
            begun = claim.datetime_start.timestamp() if claim.datetime_start else 0.0
            living = abs(time.time() - claim.user_attrs.get("beat", begun)) < SILENT_SECONDS
        if living:
            return _name(claim)
    return None


def lease_of(study: str) -> str:
    """The name of the Optuna study that has the claims to another."""
    return f"{study} (lease)"


def _end(claims: optuna.Study, number: int) -> None:
    """A claim holds no more. Of several drivers that find a dead holder at the same moment each may say so."""
    with contextlib.suppress(UpdateFinishedTrialError):
        claims.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    about = {"host": socket.gethostname(), "boot": _boot(), "process": pid, "started": _start_of(pid)}
    return about | {"claim": uuid.uuid4().hex}


def _lives(claims: optuna.Study, claim: FrozenTrial, on_wait: Callable[[str], None]) -> bool:
    holder = claim.user_attrs.get("holder")
    if holder and holder.get("claim") in _released:
        return False
    if holder and holder["host"] == socket.gethostname() and holder["boot"] == _boot():
        return holder["started"] is not None and _start_of(holder["process"]) == holder["started"]
    # Another machine's clock may be off: what counts is whether its beat changes, by this machine's clock.
    on_wait(f"{_name(claim)} ran this study; waiting up to {SILENT_SECONDS:.0f} s for a sign of life")
    until = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(1)
        now = claims.get_trials(deepcopy=False)[claim.number]
        if now.state != TrialState.RUNNING:
            return False
        if now.user_attrs.get("beat") != claim.user_attrs.get("beat"):
            return True
    return False


def _name(claim: FrozenTrial) -> str:
    holder = claim.user_attrs.get("holder")
    return f"process {holder['process']} on {holder['host']}" if holder else "another process"


def _boot() -> str:
    """Changes when the machine starts anew, and with it what its process numbers mean."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, as the kernel counts; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return _any_start(pid)
    return None if fields[0] == "Z" else fields[19]


def _any_start(pid: int) -> str | None:
    """Where there is no /proc, a process number that is in use must do."""
    if os.path.exists("/proc/self/stat"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
