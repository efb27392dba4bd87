"""How a run is asked to stop before its end: by a signal, a full disk, or a lost lease."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class StoppedError(RuntimeError):
    """A run that ended before its study did: the disk is full, or another process has the study. Run it again."""


class Stop:
    """Asks a run to end early, from any thread; the first reason stands. Stages in training write a checkpoint."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason: str | None = None
        self.interrupted = False

    def request(self, reason: str, interrupted: bool = False) -> None:
        if not self._event.is_set():
            self.reason, self.interrupted = reason, interrupted
            self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()


INTERRUPTED = 130  # the exit code of a run that a signal ended


def end_process() -> NoReturn:
    """At once, with all workers. Nothing is lost by that: what was finished is in the two durable places already."""
    os._exit(INTERRUPTED)


def interrupt() -> NoReturn:
    """As Python does: for a process that is not ours to end."""
    raise KeyboardInterrupt


@contextmanager
def stopped_by_signals(stop: Stop, again: Callable[[], NoReturn]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a clean stop; of the second `again` is called.

    Python has signals in the main thread alone: in another nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            again()
        stop.request(f"{signal.Signals(number).name} received", interrupted=True)
        print("takd: stopping: checkpoints are written; once more stops at once", file=sys.stderr, flush=True)

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, ask) for each in handled}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
