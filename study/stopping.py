"""How a run is asked to stop before its end: by a signal, a full disk, or a lost lease."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Asked for once, from any thread; the first reason stands."""

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


@contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a clean stop; the second ends the process at once, with all its workers.

    Nothing is lost by that: what was finished is in the two durable places already.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            os._exit(INTERRUPTED)
        stop.request(f"{signal.Signals(number).name} received", interrupted=True)
        print("takd: stopping: checkpoints are written; once more stops at once", file=sys.stderr, flush=True)

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, ask) for each in handled}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
