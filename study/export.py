"""Export the best student: its weights and its description, copied out of the artifact store."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from analysis.tables import best_configurations, students
from search_spaces import InputError
from study.folder import StudyFolder
from study.optimization import open_search
from study.results import build_results
from trainables.artifacts import DESCRIPTION, WEIGHTS


@dataclass(frozen=True)
class Exported:
    """The student that was chosen; accuracy in percent, of the search's validation."""

    path: str
    configuration: str
    seed: int
    stage_key: str
    accuracy: float


def export_best(folder: StudyFolder, out: Path, arm: str | None) -> Exported:
    """Copies the best student's files to `out`, whole or not at all; returns what was chosen.

    The configuration is chosen by its mean validation accuracy over seeds, the student in it by its own.
    """
    trials = build_results(folder, open_search(folder))[0].to_pandas()
    done = students(trials)
    best = best_configurations(trials)
    if arm is not None and arm not in best:
        raise InputError(f"--arm {arm}: no finished student; arms with one: {', '.join(best) or 'none'}")
    if not best:
        raise InputError(f"study {folder.name}: no student has ended yet")
    chosen = done[done["configuration"].isin([best[arm]] if arm else best.values())]
    means = chosen.groupby("configuration")["accuracy"].mean()
    row = chosen[chosen["configuration"] == means.idxmax()].sort_values("accuracy").iloc[-1]
    key = row["stage_key"]
    description = folder.artifacts.check(key)
    if description is None:
        raise InputError(f"artifact {key[:12]} is missing or damaged; `takd run` trains it again")
    files = {
        "student.safetensors": folder.artifacts.read(key, WEIGHTS),
        DESCRIPTION: json.dumps(description, indent=1).encode(),
    }
    _write_folder(out, files)
    return Exported(row["path"], row["configuration"], row["seed"], key, row["accuracy"])


def _write_folder(out: Path, files: dict[str, bytes]) -> None:
    if out.exists():
        raise InputError(f"--out {out}: exists; name a folder that doesn't")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise InputError(f"--out {out}: can't be written ({error.strerror})") from None
    for name, content in files.items():
        (temporary / name).write_bytes(content)
    temporary.chmod(0o755)
    os.rename(temporary, out)
