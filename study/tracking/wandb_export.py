"""An export in W&B: a run that uses the artifacts of the student's path and leaves `student` with the alias `best`."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from takd.search_spaces import Path
from takd.study.folder import StudyFolder
from takd.study.search.graph import Description
from takd.study.tracking.wandb_log import Artifact, Entry, Run, md5, write_run
from takd.study.tracking.wandb_runs import project, run_id, stage_artifact
from takd.trainables.store.storage import sha256

log = logging.getLogger("takd")


def write_export_run(
    folder: StudyFolder,
    path: Path,
    descriptions: Mapping[str, Description],
    place: FilePath,
    files: Mapping[str, bytes],
    card: Mapping[str, Any],
) -> None:
    """Where the study has W&B runs; `takd sync` uploads it. The export is there whether or not this succeeds."""
    if os.environ.get("WANDB_MODE") == "disabled" or not (folder.local / "wandb").is_dir():
        return
    accuracy = card["metrics"]["test"]["accuracy"]["value"]
    used = []
    for stage in path.stages:
        if stage.key in descriptions:
            left = stage_artifact(folder, stage, descriptions[stage.key])
            used.append(Artifact(left.name, left.type, left.entries, left.metadata, used=True))
    entries = [
        Entry(name, md5(content), len(content), local=str((place / name).absolute())) for name, content in files.items()
    ]
    metadata = {"stage_key": path.student.key, "arm": path.arm, "test_accuracy": accuracy}
    best = Artifact("student", "model", tuple(entries), metadata, aliases=("latest", "best"))
    now = time.time()
    digest = sha256("".join(each.digest for each in entries).encode())
    run = Run(
        id=run_id(folder.name, f"export/{digest}"),
        project=project(),
        group=folder.name,
        job_type="export",
        name=f"export {path.student.name}",
        config={"stage_key": path.student.key, "arm": path.arm, "path": str(path)},
        tags=["export", path.arm],
        summary={"test_accuracy": accuracy, "parameters": card["parameters"]},
        artifacts=(*used, best),
        started=now,
        ended=now,
    )
    try:
        write_run(folder.local, run)
    except OSError as error:
        log.warning("W&B: the export's run can't be written (%s)", error)
