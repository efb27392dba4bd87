"""A database as the place where Optuna keeps studies."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from takd.search_spaces import InputError
from takd.study.folder import StorageAwayError, StudyFolder, password_of
from takd.study.stopping import Stop

T = TypeVar("T")

AWAY_SECONDS = 300.0  # that a run waits for its database
OPENING_SECONDS = 15.0  # that it waits when it begins
CONNECT_SECONDS = 10  # that a connection may take

MADE_MEANWHILE = {"42710", "42P07"}  # PostgreSQL's duplicate_object and duplicate_table

log = logging.getLogger("takd")


def open_database(folder: StudyFolder, stop: Stop | None) -> "Database":
    """That of the folder's URL; raises InputError on one that can't be opened.

    A run waits a little for one that doesn't answer: it may have been started while the database is. Of several
    processes that open a new one at the same moment one makes the tables, and the others find them.
    """
    password = password_of(folder.database) or ""
    if "@" in password:
        raise InputError(f"--storage {folder.optuna}: the password has an @ in it; write %40 in the place of each")
    began = time.monotonic()
    said = False
    while True:
        try:
            return Database(folder, stop)
        except (ArgumentError, NoSuchModuleError, DBAPIError, ImportError, ValueError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            if password and (password in reason or unquote(password) in reason):
                reason = type(error).__name__
            made = _made_meanwhile(error)
            away = isinstance(error, OperationalError) and stop is not None and not stop.requested
            if not (made or away) or time.monotonic() - began > OPENING_SECONDS:
                raise InputError(f"--storage {folder.optuna}: can't be opened ({reason})") from None
        if not (said or made):
            log.warning("storage %s can't be opened (%s); waiting up to %.0f s", folder.optuna, reason, OPENING_SECONDS)
            said = True
        time.sleep(0.2)


def _made_meanwhile(error: Exception) -> bool:
    """Whether another process made a table, a type or a row while this one was about to."""
    if isinstance(error, IntegrityError):
        return True
    told = error.orig if isinstance(error, DBAPIError) else None
    return getattr(told, "sqlstate", None) in MADE_MEANWHILE or "already exists" in str(told)  # of SQLite


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
