"""Where a study lives: `<root>/<study>/`, with the artifacts of all studies beside it, and its Optuna storage."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml

from takd.search_spaces import InputError, Space, space_from, without_code
from takd.search_spaces.loading import overridden, parse_space
from takd.search_spaces.yaml_text import read_yaml, write_yaml
from takd.trainables.store.artifacts import ARTIFACTS, CHECKPOINTS, DATASETS, PRETRAINED, ArtifactStore
from takd.trainables.store.derived import DERIVED
from takd.trainables.store.storage import Storage, cache_folder, open_storage

ROOT = "runs"
_TAKEN = (ARTIFACTS, CHECKPOINTS, PRETRAINED, DERIVED, DATASETS)


class StorageAwayError(InputError):
    """The database doesn't answer any more, though it did."""


@dataclass(frozen=True)
class StudyFolder:
    """The files of one study below a root; `database` is the URL of Optuna's, or empty for the journal file there."""

    root: str
    name: str
    database: str = field(default="", repr=False)  # it may have a password in it

    def __post_init__(self) -> None:
        check_name(self.name)
        if "://" in self.root and not self.database:
            raise InputError(
                f"root {self.root}: a bucket can't hold Optuna's journal; give --storage or TAKD_STORAGE a database, "
                "such as postgresql://host/takd"
            )

    @property
    def storage(self) -> Storage:
        return open_storage(self.root)

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.root)

    @property
    def journal(self) -> Path | None:
        """Optuna's journal file; None where a database is used."""
        return None if self.database else self.local / "optuna.journal"

    @property
    def optuna(self) -> str:
        """Where Optuna's storage is, for people."""
        return without_password(self.database) or str(self.journal)

    @cached_property
    def local(self) -> Path:
        """What this machine alone writes (the journal, W&B's offline runs): the folder, or for a bucket a part of the
        cache."""
        if "://" not in self.root:
            return Path(self.root) / self.name
        return cache_folder() / "studies" / f"{self.name}-{hashlib.sha256(self.root.encode()).hexdigest()[:12]}"

    @property
    def trials(self) -> str:
        return self.place(TRIALS)

    @property
    def epochs(self) -> str:
        return self.place(EPOCHS)

    def place(self, path: str) -> str:
        """The path or URI of a file of the study."""
        return self.storage.uri(f"{self.name}/{path}")

    def prepare(self) -> None:
        """Creates the folders; raises InputError where they can't be written."""
        self.artifacts.prepare()
        try:
            self.local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"root {self.root}: {error.filename} can't be written ({error.strerror})") from None

    def write(self, path: str, content: bytes) -> None:
        """Replaces a file of the study: readers see the old content or the new."""
        self.storage.replace(f"{self.name}/{path}", content)

    def read_space(self) -> Space | None:
        """As it was last run; None where this version can't read it."""
        try:
            return without_code(space_from(read_yaml(self.storage.read(f"{self.name}/{SPACE}")), SPACE))
        except (FileNotFoundError, InputError, yaml.YAMLError):
            return None

    def own_space(self, overrides: Sequence[str]) -> Space | None:
        """The space that the study was last run with, to go on with; None where there is none.

        Raises InputError where it can't be read, and where it names code: nothing read from a root may name what runs.
        """
        try:
            content = self.storage.read(f"{self.name}/{SPACE}")
        except FileNotFoundError:
            return None
        source = f"space {self.place(SPACE)}"
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise InputError(f"{source}: is damaged; give the space's own file, with --name {self.name}") from None
        given = parse_space(text, source)
        if isinstance(given, dict) and given.get("code"):
            raise InputError(
                f"{source}: names code, and none is run that a study's folder names; give the space's own file, with "
                f"--name {self.name}"
            )
        return overridden(given, overrides, source)

    def write_space(self, space: Space) -> None:
        """The resolved space, for people."""
        self.write(SPACE, write_yaml(space.model_dump(mode="json")).encode())


SPACE = "space.yaml"
TRIALS = "results/trials.parquet"
EPOCHS = "results/epochs.parquet"
PREDICTIONS = "results/predictions.parquet"
FIGURE = "report/accuracy_by_assistant"  # without its ending: there is a PNG and an SVG


def study_folder(root: str | os.PathLike[str] | None, name: str, database: str | None = None) -> StudyFolder:
    """As people name it: a root relative to here; root and database from the environment where none is told."""
    return StudyFolder(absolute_root(root), name, database or os.environ.get("TAKD_STORAGE", ""))


def absolute_root(root: str | os.PathLike[str] | None) -> str:
    """A folder's absolute path; a URI as it is; of None TAKD_ROOT, else `runs` here."""
    root = os.environ.get("TAKD_ROOT", ROOT) if root is None else os.fspath(root)
    return root if "://" in root else str(Path(root).expanduser().absolute())


def check_name(name: str, what: str = "study") -> None:
    """Raises InputError on what can't be a study's name; `what` says where it was given."""
    if not can_be_name(name):
        raise InputError(f"{what} {name}: expected letters, digits, dots and dashes, and not {' or '.join(_TAKEN)}")


def can_be_name(name: str) -> bool:
    """Whether a study may be called so."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)) and name not in _TAKEN


def without_password(url: str) -> str:
    """A database's URL as it may be shown, whatever is in its password."""
    if (password := password_of(url)) is not None:
        scheme, _, rest = url.partition("://")
        user, _, rest = rest.partition(":")
        url = f"{scheme}://{user}:***@{rest[len(password) + 1 :]}"
    return re.sub(r"(?i)([?&]\w*(?:pass|secret|token)\w*=)[^&]*", r"\1***", url)


def password_of(url: str) -> str | None:
    """The password in a URL, as it is written there: up to the last @ before the options, however many it has."""
    _, separator, rest = url.partition("://")
    before, at, _ = rest.rpartition("@")
    if separator and at and "?" in before and ":" not in before.partition("?")[0]:  # the @ is in an option
        before, at, _ = rest.partition("?")[0].rpartition("@")
    _, colon, password = before.partition(":")
    return password if separator and at and colon else None
