"""Work that needs torch, in a process of its own: torch would take 500 MB of a study's process for as long as it runs.

Children of `subprocess` rather than of `multiprocessing`, which would run the main script in them once more.
"""

import importlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any


class NoAnswerError(RuntimeError):
    """The other process died."""


def apart(function: str, *arguments: Any) -> Any:
    """What `function`, named as `module:name`, returns; its exceptions are raised here, their traceback as a note."""
    return begin(function, *arguments)()


def begin(function: str, *arguments: Any) -> Callable[[], Any]:
    """As `apart`, but returns at once: what is returned waits for the answer.

    Where torch is in memory already it is called here, as there is nothing to save.
    """
    if "torch" in sys.modules:
        return partial(_named(function), *arguments)
    # Ctrl-C is the parent's to handle: a process group of its own does not get it from the terminal.
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "takd.study.apart"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # it died: that is said with the answer
        pickle.dump((function, arguments), child.stdin)
        child.stdin.flush()
    return partial(_answer_of, child, function)


def _answer_of(child: "subprocess.Popen[bytes]", function: str) -> Any:
    assert child.stdout is not None
    with child:
        try:
            answer = child.stdout.read()
        except BaseException:
            child.kill()
            raise
    if answer:
        returned, raised = pickle.loads(answer)
        if raised is not None:
            raise raised
        return returned
    if child.returncode in (-signal.SIGINT, -signal.SIGTERM):  # of all processes of the job, before it ignored them
        raise KeyboardInterrupt
    how = "SIGKILL; out of memory?" if child.returncode == -signal.SIGKILL else f"exit code {child.returncode}"
    raise NoAnswerError(f"the process of {function} ended without an answer ({how})")


def log_to_stderr() -> None:
    """As the command line does, in each of its processes."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)


def _named(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _answer() -> None:
    """The child's side: reads one call, answers, and ends; at once when the parent is gone."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGTTOU):
        signal.signal(each, signal.SIG_IGN)
    log_to_stderr()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed meanwhile is no answer
    function, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    returned = raised = None
    try:
        returned = _named(function)(*arguments)
    except Exception as error:  # whatever it is, it is the caller's
        error.add_note("".join(traceback.format_exception(error)))
        raised = error
    sys.stdout.flush()
    try:
        content = pickle.dumps((returned, raised))
        pickle.loads(content)  # not all that is written can be read
    except Exception:
        content = pickle.dumps((None, RuntimeError(f"{function}: {raised or returned!r} can't be passed on")))
    answers.write(content)
    answers.close()


def _end_with_the_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    _answer()
