"""Where Optuna keeps a study: a database, or a journal file, which survives its writers and says what is wrong."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from takd.search_spaces import InputError
from takd.study.folder import StudyFolder
from takd.study.stopping import Stop
from takd.trainables.store.storage import FULL

SYNC_SECONDS = 1.0
LOCK_SECONDS = 30.0  # that a lock of the journal stands at most while its holder lives: it writes a few lines


log = logging.getLogger("takd")


def open_optuna(folder: StudyFolder, stop: Stop | None = None) -> BaseStorage:
    """The journal in the study's folder, or the database of its URL; raises InputError on one that can't be opened.

    Of a run, which has a `stop`, a database that is away later on is waited for, until that is requested.
    """
    if folder.journal:
        return _open_journal(str(folder.journal))
    from takd.study.search.database import open_database  # SQLAlchemy, which a journal file does without

    return open_database(folder, stop)


def _open_journal(file: str) -> JournalStorage:
    try:
        journal = Journal(file)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{file}: can't be read or written ({error.strerror})") from None
    try:
        return JournalStorage(journal)
    except (KeyError, IndexError, TypeError, AttributeError, AssertionError):
        # Optuna's own words of a line that says what can't have happened, which is one or comes after one that is lost.
        raise journal.damage(journal.reading) from None


class Journal(JournalFileBackend):
    """A journal file that survives a writer that was cut off in the middle of a line.

    It is synced to disk once a second, where Optuna's own is with every line, a dozen a trial. What a machine that
    loses its power forgets is asked and told again: the artifacts are there.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._file, self._lock, self._synced = file, JournalLock(file), 0.0
        self._place = 0, 0  # how many lines were read, and where the next begins
        self.reading = 0  # the number of the line that was handed out last
        self._drop_half_line()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The lines from one on; raises InputError on one that is not as it was written."""
        number, offset = self._place if self._place[0] <= log_number_from else (0, 0)
        with open(self._file, "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written
                number, offset = number + 1, offset + len(line)
                if number > log_number_from:
                    self.reading = number
                    yield self._operation(line, number)
                self._place = number, offset

    def _operation(self, line: bytes, number: int) -> dict[str, Any]:
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and {"op_code", "worker_id"} <= set(found):
                return found
        raise self.damage(number)

    def damage(self, number: int) -> InputError:
        """That a line is damaged, and what is kept."""
        return InputError(
            f"{self._file}: line {number} is damaged. Kept are all finished stages, and the trials in the lines before "
            f"it; to go on with these: cp {self._file} {self._file}.damaged && head -n {number - 1} "
            f"{self._file}.damaged > {self._file}, and run the study again. It asks for the other trials anew, and "
            "trains nothing again that is finished"
        )

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(f"{json.dumps(each, separators=(',', ':'))}\n" for each in logs)
        self._lock.acquire()
        try:
            self._append(lines.encode())
        except OSError:
            self._truncate_half_line()
            raise
        finally:
            self._lock.release()

    def _append(self, lines: bytes) -> None:
        with open(self._file, "ab") as file:
            file.write(lines)
            file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(file.fileno())
                self._synced = time.monotonic()

    def _drop_half_line(self) -> None:
        """What was not written to its line's end never happened; Optuna can't read past it."""
        if _ends_whole(self._file):
            return
        self._lock.acquire()  # whoever is still writing ends first
        try:
            self._truncate_half_line()
        finally:
            self._lock.release()

    def _truncate_half_line(self) -> None:
        with open(self._file, "r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)


class JournalLock(JournalFileSymlinkLock):
    """Optuna's, which is a link to the journal, and which waits for ever where that points to nothing.

    So it does where a folder was moved or copied while a study ran in it. One that a killed writer left is released
    at once where it is old.
    """

    def acquire(self) -> bool:
        self._release_left()
        return super().acquire()

    def _release_left(self) -> None:
        """Who sees the journal by another path may hold it for a moment, and no longer."""
        until = time.monotonic() + LOCK_SECONDS
        while (since := self._left_since()) is not None:
            if time.time() - since > LOCK_SECONDS or time.monotonic() > until:
                with suppress(RuntimeError):  # another process was first
                    self.release()
                return
            time.sleep(0.1)

    def _left_since(self) -> float | None:
        """When a lock was made that points to nothing, or that no holder would need for so long, by the clock of its
        file system; None where there is none."""
        with suppress(FileNotFoundError):
            since = os.lstat(self._lock_file).st_mtime
            held = os.path.exists(self._lock_file) and time.time() - since <= LOCK_SECONDS
            return None if held else since
        return None


def _ends_whole(file: str) -> bool:
    with open(file, "rb") as journal:
        size = journal.seek(0, os.SEEK_END)
        if size == 0:
            return True
        journal.seek(-1, os.SEEK_END)
        return journal.read(1) == b"\n"
