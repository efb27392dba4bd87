"""The lease: one living process runs a study, and a dead one holds nobody up."""

import os
import socket
import subprocess
import sys
import threading
import time

import optuna
import pytest

from takd.search_spaces import InputError
from takd.study.folder import StudyFolder
from takd.study.search import lease
from takd.study.search.lease import Lease, acquire_lease
from takd.study.search.storages import open_optuna

HOLD = """
import sys, time
from takd.study.folder import StudyFolder
from takd.study.search.lease import acquire_lease
from takd.study.search.storages import open_optuna
acquire_lease(open_optuna(StudyFolder(*sys.argv[1:])), "tiny", on_lost=print, on_wait=print)
print("held", flush=True)
time.sleep(600)
"""


def acquire(folder: StudyFolder, on_lost=lambda reason: None, waits: list[str] | None = None) -> Lease:
    return acquire_lease(open_optuna(folder), "tiny", on_lost, (waits if waits is not None else []).append)


def hold(folder: StudyFolder) -> "subprocess.Popen[str]":
    """Another process that holds the lease."""
    command = [sys.executable, "-c", HOLD, folder.root, folder.name, folder.database]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def become_another_machine(monkeypatch) -> None:
    """Claims made until now look to this process as if made elsewhere."""
    monkeypatch.setattr(lease, "_boot", lambda: "another")


def test_a_second_process_is_refused_and_told_who_holds_it(stored):
    process = hold(stored)
    try:
        with pytest.raises(InputError, match=f"study tiny: process {process.pid} on {socket.gethostname()} runs it"):
            acquire(stored)
    finally:
        process.kill()
        process.wait()


def test_a_killed_holder_is_followed_at_once(stored):
    process = hold(stored)
    process.kill()
    process.wait()
    started = time.monotonic()
    acquire(stored).release()
    assert time.monotonic() - started < 5


def test_a_released_lease_is_free(stored):
    acquire(stored).release()
    acquire(stored).release()


def test_of_many_at_the_same_moment_one_gets_it(stored):
    acquire(stored).release()  # the tables exist
    start, outcomes = threading.Barrier(4), []

    def try_it() -> None:
        start.wait()
        try:
            outcomes.append(acquire(stored))
        except InputError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=try_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [each for each in outcomes if isinstance(each, Lease)]
    assert len(held) == 1, outcomes
    held[0].release()


def test_a_living_holder_on_another_machine_is_seen_by_its_beat(stored, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(lease, "SILENT_SECONDS", 8.0)
    held, waits = acquire(stored), []
    become_another_machine(monkeypatch)
    with pytest.raises(InputError, match=f"study tiny: process {os.getpid()} on .* runs it"):
        acquire(stored, waits=waits)
    assert "waiting up to 8 s for a sign of life" in waits[0]
    held.release()


def test_a_silent_holder_on_another_machine_is_followed_and_told_when_it_comes_back(stored, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 4.0)
    monkeypatch.setattr(lease, "SILENT_SECONDS", 1.0)
    lost: list[str] = []
    silent = acquire(stored, on_lost=lost.append)
    become_another_machine(monkeypatch)
    follower = acquire(stored)
    until = time.monotonic() + 10
    while not lost and time.monotonic() < until:
        time.sleep(0.1)
    assert lost == ["another process runs this study now: this one gave no sign of life for a while"]
    silent.release()
    claims = optuna.load_study(study_name="tiny (lease)", storage=open_optuna(stored))
    assert [trial.state.name for trial in claims.trials] == ["FAIL", "RUNNING"]
    follower.release()


def test_a_dead_holder_that_two_drivers_end_at_the_same_moment_stops_neither(stored, monkeypatch):
    monkeypatch.setattr(lease, "SILENT_SECONDS", 0.2)
    acquire(stored)
    become_another_machine(monkeypatch)
    claims = optuna.load_study(study_name="tiny (lease)", storage=open_optuna(stored))

    def the_other_driver_ends_it(waiting: str) -> None:
        claims.tell(0, state=optuna.trial.TrialState.FAIL)

    acquire_lease(open_optuna(stored), "tiny", on_lost=print, on_wait=the_other_driver_ends_it).release()


def test_a_process_number_that_was_given_to_another_does_not_hold_it(stored, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(lease, "_start_of", lambda pid: "long ago")
        acquire(stored)
    acquire(stored).release()
