"""Where Optuna keeps a study: a journal file, which survives its writers and says what is wrong with it; a database."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import unquote

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import ArgumentError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError

from takd.search_spaces import InputError
from takd.study.folder import StudyFolder, password_of
from takd.study.stopping import Stop

T = TypeVar("T")

SYNC_SECONDS = 1.0
AWAY_SECONDS = 300.0  # that a run waits for its database
CONNECT_SECONDS = 10  # that a connection may take
LOCK_SECONDS = 30.0  # that a lock of the journal stands at most while its holder lives: it writes a few lines


log = logging.getLogger("takd")


class StorageAwayError(InputError):
    """The database doesn't answer any more, though it did."""


def open_optuna(folder: StudyFolder, stop: Stop | None = None) -> BaseStorage:
    """The journal in the study's folder, or the database of its URL; raises InputError on one that can't be opened.

    Of a run, which has a `stop`, a database that is away later on is waited for, until that is requested.
    """
    if folder.journal:
        return JournalStorage(Journal(str(folder.journal)))
    password = password_of(folder.database) or ""
    if "@" in password:
        raise InputError(f"--storage {folder.optuna}: the password has an @ in it; write %40 in the place of each")
    try:
        return Database(folder, stop)
    except (ArgumentError, NoSuchModuleError, OperationalError, ImportError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        if password and (password in reason or unquote(password) in reason):
            reason = type(error).__name__
        raise InputError(f"--storage {folder.optuna}: can't be opened ({reason})") from None


class Database(RDBStorage):
    """A database that may be away for a while: it is restarted, or its machine is.

    What it raises where it doesn't answer, also when it was waited for, is StorageAwayError.
    """

    def __init__(self, folder: StudyFolder, stop: Stop | None) -> None:
        self.shown, self.stop = folder.optuna, stop
        options: dict[str, Any] = {"pool_pre_ping": True}
        if folder.database.startswith("postgres"):
            options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}  # not the minutes of a machine that is gone
        super().__init__(folder.database, engine_kwargs=options)

    def until_it_answers(self, call: Callable[[], T], done_before: T | None = None) -> T:
        """What the call returns. Where its first answer was lost, and it says that it was done, `done_before`."""
        began, pause = time.monotonic(), 0.1
        said = False
        while True:
            try:
                answer = call()
            except UpdateFinishedTrialError:
                if not said or done_before is None:
                    raise
                answer = done_before
            except (StorageInternalError, SQLAlchemyError) as error:
                if not (reason := _away(error)):
                    raise
                self._wait(began, pause, reason, said)
                said, pause = True, min(2 * pause, 2.0)
                continue
            if said:
                log.warning("storage %s answers again after %.0f s", self.shown, time.monotonic() - began)
            return answer

    def _wait(self, began: float, seconds: float, reason: str, said: bool) -> None:
        """Raises StorageAwayError where that was long enough."""
        passed = time.monotonic() - began
        if self.stop is None or self.stop.requested or passed > AWAY_SECONDS:
            after = f" for {passed:.0f} s" if passed >= 1 else ""
            raise StorageAwayError(f"storage {self.shown} doesn't answer{after} ({reason})") from None
        if not said:
            log.warning("storage %s doesn't answer (%s); waiting up to %.0f s", self.shown, reason, AWAY_SECONDS)
        time.sleep(seconds)


def _patient(name: str) -> Callable[..., Any]:
    method, done_before = getattr(RDBStorage, name), True if name == "set_trial_state_values" else None

    def call(self: Database, *arguments: Any, **named: Any) -> Any:
        return self.until_it_answers(lambda: method(self, *arguments, **named), done_before)

    return call


# All that reach the database, those of them that Optuna's cache calls in place of the public ones too.
_REACHING = (
    *("create_new_study", "delete_study", "get_all_studies", "get_study_id_from_name", "get_study_name_from_id"),
    *("get_study_directions", "get_study_user_attrs", "get_study_system_attrs", "set_study_user_attr"),
    *("set_study_system_attr", "_create_new_trial", "_set_trial_param", "get_trial_id_from_study_id_trial_number"),
    *("_get_best_trial_id", "set_trial_state_values", "set_trial_intermediate_value", "set_trial_user_attr"),
    *("set_trial_system_attr", "get_trial", "_get_trials"),
)
for _name in _REACHING:
    setattr(Database, _name, _patient(_name))


def _away(error: BaseException | None) -> str:
    """Why a database doesn't answer; empty where an error is something else."""
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError):
            return str(error.__cause__ or error).strip().splitlines()[0]
        error = error.__cause__ or error.__context__
    return ""


class Journal(JournalFileBackend):
    """A journal file that survives a writer that was cut off in the middle of a line.

    It is synced to disk once a second, where Optuna's own is with every line, a dozen a trial. What a machine that
    loses its power forgets is asked and told again: the artifacts are there.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._file, self._lock, self._synced = file, JournalLock(file), 0.0
        self._place = 0, 0  # how many lines were read, and where the next begins
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
                    yield self._operation(line, number)
                self._place = number, offset

    def _operation(self, line: bytes, number: int) -> dict[str, Any]:
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and {"op_code", "worker_id"} <= set(found):
                return found
        raise InputError(
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

    So it does where a folder was moved or copied while a study ran in it.
    """

    def acquire(self) -> bool:
        self._release_dangling()
        return super().acquire()

    def _release_dangling(self) -> None:
        """Who sees the journal by another path may hold it for a moment, and no longer."""
        until = time.monotonic() + LOCK_SECONDS
        while (since := self._dangling_since()) is not None:
            if time.time() - since > LOCK_SECONDS or time.monotonic() > until:
                with suppress(RuntimeError):  # another process was first
                    self.release()
                return
            time.sleep(0.1)

    def _dangling_since(self) -> float | None:
        """When a lock was made that points to nothing, by the clock of its file system; None where there is none."""
        with suppress(FileNotFoundError):
            since = os.lstat(self._lock_file).st_mtime
            return None if os.path.exists(self._lock_file) else since
        return None


def _ends_whole(file: str) -> bool:
    with open(file, "rb") as journal:
        size = journal.seek(0, os.SEEK_END)
        if size == 0:
            return True
        journal.seek(-1, os.SEEK_END)
        return journal.read(1) == b"\n"
