"""Where a study lives: `runs/<study>/`, with the artifacts of all studies beside it."""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from search_spaces import InputError, Space
from trainables.artifacts import ArtifactStore

ROOT = "runs"


@dataclass(frozen=True)
class StudyFolder:
    """The files of one study below a root."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) or self.name == "artifacts":
            raise InputError(f"--name {self.name}: expected letters, digits, dots, dashes, and not 'artifacts'")

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def storage(self) -> Path:
        return self.path / "optuna.journal"

    @property
    def trials(self) -> Path:
        return self.path / "results" / "trials.parquet"

    @property
    def epochs(self) -> Path:
        return self.path / "results" / "epochs.parquet"

    @property
    def figure(self) -> Path:
        """Without its ending: there is a PNG and an SVG."""
        return self.path / "report" / "accuracy_by_assistant"

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(str(self.root))

    def prepare(self) -> None:
        """Creates the folders; raises InputError where they can't be written."""
        self.artifacts.prepare()
        try:
            for folder in (self.path, self.trials.parent, self.figure.parent):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"root {self.root}: {error.filename} can't be written ({error.strerror})") from None

    def write_space(self, space: Space) -> None:
        """The resolved space, for people."""
        text = yaml.safe_dump(space.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        replace_file(self.path / "space.yaml", text.encode())


def study_folder(root: str, name: str) -> StudyFolder:
    """Raises InputError on a root that is no folder of this machine."""
    if "://" in root:
        raise InputError(f"--root {root}: object stores are not supported yet; expected a folder")
    return StudyFolder(Path(root).expanduser().absolute(), name)


def replace_file(path: Path, content: bytes) -> None:
    """Readers see the old content or the new, never half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".tmp-{path.name}-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
