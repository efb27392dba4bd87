"""Where what must last is kept: a folder of this machine or a shared mount, or a bucket that pyarrow.fs can open.

What is here is whole or absent: a reader sees a file's old content or its new one, and all of a published group of
files or none, also while two write the same. Nothing here knows what the files mean. No torch.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar
from urllib.parse import urlsplit, urlunsplit

import platformdirs
import pyarrow as pa
from pyarrow import fs

from takd.search_spaces import InputError

READ_ATTEMPTS = 5
STALE_SECONDS = 24 * 3600.0
_TEMPORARY = ".tmp-"
_ASIDE = ".set-aside-"
_PIECE = 1 << 22  # bytes of a large file that are in memory at a time

FULL = (errno.ENOSPC, errno.EDQUOT)  # what an OSError says when there is no room
AWAY_SECONDS = 300.0  # that a run waits for its bucket
# What errors of pyarrow's say where a bucket's server can't be reached, or has too much to do.
AWAY = re.compile(
    r"NETWORK_CONNECTION|curlCode|SERVICE_UNAVAILABLE|SLOW_DOWN|REQUEST_TIMEOUT|UNAVAILABLE|HTTP status 50\d"
)

log = logging.getLogger("takd")

P = ParamSpec("P")
T = TypeVar("T")


class RootAwayError(OSError):
    """The bucket doesn't answer."""


@dataclass
class Waiting:
    """How long this process waits for a bucket that is away: who looks asks once, who trains waits."""

    seconds: float = 0.0
    ended: Callable[[], bool] = bool  # whether to wait no more

    def wait(self, seconds: float, ended: Callable[[], bool] = bool) -> None:
        """From now on."""
        self.seconds, self.ended = seconds, ended


PATIENCE = Waiting()


class Stored(NamedTuple):
    """A file that is kept."""

    path: str  # relative to the root
    size: int  # bytes
    modified: float  # seconds since the epoch


class Storage(ABC):
    """Files by paths relative to a root, with `/` between the parts."""

    def __init__(self, root: str) -> None:
        self.root = root

    @abstractmethod
    def prepare(self) -> None:
        """Makes sure that the root can be written; raises InputError."""

    @abstractmethod
    def uri(self, path: str) -> str:
        """What pandas, pyarrow and a person call the file."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError where there is none."""

    @abstractmethod
    def replace(self, path: str, content: bytes) -> None:
        """Readers see the old content or the new, never half of it."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """A file that isn't there is fine."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """What is directly in a folder, sorted; nothing where there is no folder."""

    @abstractmethod
    def files(self, folder: str) -> list[Stored]:
        """All files below a folder, at any depth; nothing where there is no folder."""

    @abstractmethod
    def publish(self, folder: str, contents: Mapping[str, bytes], last: str) -> None:
        """Writes a group of files of which `last` describes the others. Who finds `last` finds all of the group.

        A group that is there and has every file stays: of two writers the first wins.
        """

    @abstractmethod
    def publish_files(self, folder: str, files: Mapping[str, Path], last: str) -> None:
        """As `publish`, of files of this machine, which may be large; what is missing of a group is added to it."""

    @abstractmethod
    def fetch(self, path: str, target: Path) -> None:
        """Makes a file of this machine of what `publish_files` wrote; raises FileNotFoundError where there is none."""

    @abstractmethod
    def place(self, folder: str, name: str, digest: str) -> str:
        """Where a published file with this SHA-256 is."""

    @abstractmethod
    def withdraw(self, folder: str, aside: str, last: str) -> None:
        """Moves a published group out of readers' sight, to the folder `aside`."""

    @abstractmethod
    def remove(self, folder: str, last: str) -> None:
        """Deletes a published group: who finds `last` meanwhile finds all of it. One that isn't there is fine."""

    @abstractmethod
    def sweep(self, folder: str) -> None:
        """Deletes what killed writers left there, when it is a day old."""

    @abstractmethod
    def local(self, path: str, digest: str) -> Path:
        """A file of this machine with that content, for mapping; a bucket's comes into the node's cache once."""


class Folder(Storage):
    """A folder of this machine or a shared mount: temporary names, synced, then renamed."""

    def _path(self, path: str) -> Path:
        return Path(self.root) / path

    def prepare(self) -> None:
        try:
            self._path("").mkdir(parents=True, exist_ok=True)
            probe = self._path(_temporary())
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"root {self.root}: can't be written ({error.strerror}); use --root") from None

    def uri(self, path: str) -> str:
        return str(self._path(path))

    def read(self, path: str) -> bytes:
        try:
            return self._path(path).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def replace(self, path: str, content: bytes) -> None:
        target = self._path(path)
        temporary = target.with_name(_temporary())
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(temporary, content)
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def delete(self, path: str) -> None:
        self._path(path).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self._path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: str) -> list[Stored]:
        found = []
        for place, _, names in os.walk(self._path(folder)):
            for path in (Path(place) / name for name in names):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    about = path.lstat()
                    found.append(Stored(str(path.relative_to(self.root)), about.st_size, about.st_mtime))
        return found

    def publish(self, folder: str, contents: Mapping[str, bytes], last: str) -> None:
        target = self._path(folder)
        temporary = target.with_name(_temporary())
        try:
            temporary.mkdir(parents=True)
            for name, content in contents.items():
                write_synced(temporary / name, content)
            if target.exists() and not all((target / name).exists() for name in contents):
                old = temporary.with_name(_temporary())
                with suppress(FileNotFoundError):  # another writer took it away first
                    target.rename(old)
                shutil.rmtree(old, ignore_errors=True)
            try:
                temporary.rename(target)
            except OSError:
                if not target.exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_folder(target.parent)

    def publish_files(self, folder: str, files: Mapping[str, Path], last: str) -> None:
        target = self._path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in sorted(files, key=lambda name: name == last):
            if not (target / name).exists():
                temporary = target / _temporary()
                try:
                    _link_or_copy(files[name], temporary)
                    temporary.replace(target / name)
                finally:
                    temporary.unlink(missing_ok=True)
        _sync_folder(target)

    def fetch(self, path: str, target: Path) -> None:
        _link_or_copy(self._path(path), target)

    def place(self, folder: str, name: str, digest: str) -> str:
        return f"{folder}/{name}"

    def withdraw(self, folder: str, aside: str, last: str) -> None:
        with suppress(FileNotFoundError):  # another process was first
            self._path(folder).rename(self._path(aside))

    def remove(self, folder: str, last: str) -> None:
        aside = self._path(folder).with_name(_temporary())
        with suppress(FileNotFoundError):  # another process was first
            self._path(folder).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def sweep(self, folder: str) -> None:
        for name in self.names(folder):
            path = self._path(f"{folder}/{name}")
            with suppress(FileNotFoundError):
                if name.startswith(_TEMPORARY) and time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def local(self, path: str, digest: str) -> Path:
        return self._path(path)


def _patient(method: "Callable[Concatenate[Bucket, P], T]") -> "Callable[Concatenate[Bucket, P], T]":
    """What may be done twice is done again until the bucket answers; RootAwayError where PATIENCE is over."""

    @wraps(method)
    def call(self: "Bucket", *arguments: P.args, **named: P.kwargs) -> T:
        began, pause, said = time.monotonic(), 0.5, False
        while True:
            try:
                answer = method(self, *arguments, **named)
            except RootAwayError:
                raise
            except OSError as error:
                if not AWAY.search(str(error)):
                    raise
                passed, reason = time.monotonic() - began, _why_away(error)
                if passed >= PATIENCE.seconds or PATIENCE.ended():
                    raise RootAwayError(f"root {self.root}: doesn't answer for {passed:.0f} s ({reason})") from None
                if not said:
                    log.warning(
                        "root %s doesn't answer (%s); waiting up to %.0f s", self.root, reason, PATIENCE.seconds
                    )
                said = True
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
                continue
            if said:
                log.warning("root %s answers again after %.0f s", self.root, time.monotonic() - began)
            return answer

    found: Callable[Concatenate[Bucket, P], T] = call  # type: ignore[assignment]  # what `wraps` makes of it
    return found


def _why_away(error: OSError) -> str:
    """The last part of what pyarrow says: the others name the object and the call."""
    line = first_line(error)
    return line.rpartition("Details: ")[2] if "Details: " in line else line


class Bucket(Storage):
    """An object store. Objects appear whole; a group's have their digest in their names, and `last` comes last."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._parts = urlsplit(root)
        if "@" in self._parts.netloc:
            shown = self._parts._replace(netloc=self._parts.netloc.rpartition("@")[2])
            raise InputError(f"root {urlunsplit(shown)}: has a secret in it; give secrets by the environment alone")
        try:
            self._files, base = fs.FileSystem.from_uri(root)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"root {root}: {first_line(error)}; expected a folder, s3://... or gs://...") from None
        self._base = base.rstrip("/")

    def _path(self, path: str) -> str:
        return f"{self._base}/{path}".rstrip("/")

    def prepare(self) -> None:
        probe = _temporary()
        try:
            self.replace(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise InputError(f"root {self.root}: can't be written ({first_line(error)}); use --root") from None

    def uri(self, path: str) -> str:
        return urlunsplit(self._parts._replace(path=f"{self._parts.path.rstrip('/')}/{path}"))

    @_patient
    def read(self, path: str) -> bytes:
        # An object may be replaced between the look at its size and the reading of so many bytes.
        for attempt in range(READ_ATTEMPTS):
            try:
                with self._files.open_input_file(self._path(path)) as file:
                    content: bytes = file.readall()
                if self._files.get_file_info(self._path(path)).size == len(content):
                    return content
            except FileNotFoundError:
                raise
            except OSError as error:
                if attempt == READ_ATTEMPTS - 1 or AWAY.search(str(error)):
                    raise
        raise OSError(f"{self.uri(path)} changes while it is read")

    @_patient
    def replace(self, path: str, content: bytes) -> None:
        with self._files.open_output_stream(self._path(path)) as file:
            file.write(content)

    @_patient
    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.delete_file(self._path(path))

    @_patient
    def names(self, folder: str) -> list[str]:
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        return sorted(entry.base_name for entry in self._files.get_file_info(selector))

    @_patient
    def files(self, folder: str) -> list[Stored]:
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        return [
            Stored(entry.path.removeprefix(f"{self._base}/"), entry.size, (entry.mtime_ns or 0) / 1e9)
            for entry in self._files.get_file_info(selector)
            if entry.type == fs.FileType.File
        ]

    def publish(self, folder: str, contents: Mapping[str, bytes], last: str) -> None:
        others = {name: content for name, content in contents.items() if name != last}
        there = self.names(folder)
        if last in there and all(any(each.endswith(f".{name}") for each in there) for name in others):
            return
        for name, content in others.items():
            self.replace(self.place(folder, name, sha256(content)), content)
        self.replace(f"{folder}/{last}", contents[last])

    @_patient
    def publish_files(self, folder: str, files: Mapping[str, Path], last: str) -> None:
        there = self.names(folder)
        for name in sorted(set(files) - set(there), key=lambda name: name == last):
            with files[name].open("rb") as source, self._files.open_output_stream(self._path(f"{folder}/{name}")) as to:
                shutil.copyfileobj(source, to, _PIECE)

    @_patient
    def fetch(self, path: str, target: Path) -> None:
        with self._files.open_input_stream(self._path(path)) as source, target.open("wb") as to:
            shutil.copyfileobj(source, to, _PIECE)

    def place(self, folder: str, name: str, digest: str) -> str:
        return f"{folder}/{digest[:16]}.{name}"

    @_patient
    def withdraw(self, folder: str, aside: str, last: str) -> None:
        for name in sorted(self.names(folder), key=lambda name: name != last):
            with suppress(FileNotFoundError):  # another process was first
                self._files.move(self._path(f"{folder}/{name}"), self._path(f"{aside}/{name}"))

    @_patient
    def remove(self, folder: str, last: str) -> None:
        self.delete(f"{folder}/{last}")
        with suppress(FileNotFoundError):  # with the mark of an empty folder that deleting a file can leave
            self._files.delete_dir(self._path(folder))

    def sweep(self, folder: str) -> None:
        """Object stores have no temporary names."""

    def local(self, path: str, digest: str) -> Path:
        target = cache_folder() / "artifacts" / digest
        if not target.exists():
            content = self.read(path)
            if sha256(content) != digest:  # else who writes it again would be given this one
                raise ValueError(f"{self.uri(path)} has not the digest it was written with")
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(_temporary())
            write_synced(temporary, content)
            temporary.replace(target)
        return target


@lru_cache(maxsize=16)
def open_storage(root: str) -> Storage:
    """A folder's absolute path, or a URI; raises InputError on one that pyarrow can't open."""
    return Bucket(root) if "://" in root else Folder(root)


def cache_folder() -> Path:
    """TAKD_CACHE, or the user's cache directory: what all processes of a node share and anyone may delete."""
    return Path(os.environ.get("TAKD_CACHE") or platformdirs.user_cache_path("takd"))


def sha256(content: bytes | pa.Buffer) -> str:
    """As hex digits."""
    return hashlib.sha256(content).hexdigest()


def aside_name(key: str) -> str:
    """Of what is damaged, out of readers' sight: it says when that was seen."""
    return f"{_ASIDE}{key}-{int(time.time())}-{uuid.uuid4().hex[:6]}"


def seconds_aside(name: str) -> float | None:
    """For how long what has this name has been set aside; None of what was not."""
    if not name.startswith(_ASIDE):
        return None
    with suppress(ValueError):
        return time.time() - int(name.split("-")[-2])
    return 0.0


def whole_file(storage: Storage, path: str, digest: str, what: str) -> Path:
    """A published file, for mapping; raises FileNotFoundError, and ValueError, which says `what`, on a damaged one."""
    file = storage.local(path, digest)
    if sha256(file.read_bytes()) != digest:
        raise ValueError(f"{what} has not the digest it was written with")
    return file


def write_synced(path: Path, content: bytes | pa.Buffer) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _link_or_copy(source: Path, target: Path) -> None:
    """One file by two names where both are of one file system, which costs no room; neither is ever written again."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        with source.open("rb") as file, target.open("wb") as to:
            shutil.copyfileobj(file, to, _PIECE)
            to.flush()
            os.fsync(to.fileno())


def _temporary() -> str:
    return f"{_TEMPORARY}{uuid.uuid4().hex}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
