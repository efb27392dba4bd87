"""The study's own W&B run: table of arms, figure, and the best student's files, which lead back to its teacher.

And what makes the runs of a study complete, from its storage alone.
"""

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from takd.analysis.evidence.chosen import chosen_configurations
from takd.analysis.tables import by_cell, read_trials, students
from takd.search_spaces import Stage
from takd.study.folder import StudyFolder
from takd.study.search.graph import Description, Node
from takd.study.search.optimization import Search
from takd.study.tracking.wandb_log import Artifact, Entry, Run, Written, md5, write_run
from takd.study.tracking.wandb_runs import RunWriter, project, run_id, stage_artifact

if TYPE_CHECKING:
    import pandas as pd

KEY = "study"  # in place of a stage's key: the study's run has an id of its own


def complete_runs(folder: StudyFolder, search: Search) -> int:
    """Writes the runs that are missing of stages this study trained, and the study's; returns how many. Raises OSError.

    So it doesn't matter why they are missing: W&B was disabled or failed, or the driver was killed.
    """
    writer = RunWriter(folder, search.space.all_arms)
    stages, arms = search.stages(), defaultdict[str, set[str]](set)
    for path in search.paths():
        arms[path.student.key].add(path.arm)
    missing = [stage for stage in stages.values() if not writer.has(stage.key)]
    found: dict[str, Description] = {}

    def describe(stage: Stage) -> Description | None:
        if stage.key not in found and (description := folder.artifacts.describe(stage.key)):
            found[stage.key] = description
        return found.get(stage.key)

    written = 0
    for stage in missing:
        description = describe(stage)
        if description and description["outcome"].get("origin", {}).get("study") == folder.name:
            upstream = {each.key: known for each in stage.upstream if (known := describe(each))}
            node = Node(stage, "", state="done", description=description, arms=arms[stage.key])
            writer.write(node, upstream)
            written += 1
    return written + write_study_run(folder, writer, stages)


def write_study_run(folder: StudyFolder, writer: RunWriter, stages: Mapping[str, Stage]) -> int:
    """One more row of the study's run, where students have ended since the last; returns how many runs were written."""
    trials = read_trials(folder.trials)
    done = students(trials)
    id = run_id(folder.name, KEY)
    if len(done) <= writer.written.get(id, Written()).last_step:
        return 0
    from takd.analysis.arms import arms_table  # SciPy: not in memory while stages train
    from takd.analysis.teachers import teacher_warnings

    table = arms_table(trials)
    columns = [name for name in table.columns if name != "paper"]
    rows = [[_plain(row[name]) for name in columns] for row in table.to_dict("records")]
    content = json.dumps({"columns": columns, "data": rows}).encode()
    media = {"arms": _Media("table-file", "table", "table.json", content)} | _figures(folder)
    chosen_ones = [name for rows in by_cell(trials).values() for name in chosen_configurations(rows).values()]
    best = done[done["configuration"].isin(chosen_ones)].nlargest(1, "score").iloc[0]
    chosen = stages[best["stage_key"]]
    now = time.time()
    write_run(
        folder.local,
        Run(
            id=id,
            project=project(),
            group=folder.name,
            job_type="study",
            name=f"study {folder.name}",
            config={"study": folder.name, "arms": [arm.name for arm in writer.arms]},
            tags=["confirm" if any(stage.phase == "confirm" for stage in stages.values()) else "search"],
            step_metric="students",
            rows=[
                (
                    len(done),
                    {
                        "students": len(done),
                        "_timestamp": now,
                        **{name: each.reference(name) for name, each in media.items()},
                        "arms": media["arms"].reference("arms") | {"ncols": len(columns), "nrows": len(rows)},
                    },
                )
            ],
            summary={
                **{f"accuracy {_name_of(row)}": _plain(row["accuracy"]) for row in table.to_dict("records")},
                **_judged(table),
                **_taught(table),
                "warnings": [each for rows in by_cell(trials).values() for each in teacher_warnings(rows)],
                "best arm": best["arm"],
                "best student": run_id(folder.name, chosen.key),
            },
            files={each.path(name): each.content for name, each in media.items()},
            artifacts=_exported(folder, chosen),
            started=now,
            ended=now,
        ),
    )
    return 1


def _judged(table: "pd.DataFrame") -> dict[str, Any]:
    """What each arm reaches in what the study goes by, where that is not the accuracy."""
    if "metric" not in table:
        return {}
    return {f"{row['metric_title']} {_name_of(row)}": _plain(row["value"]) for row in table.to_dict("records")}


def _taught(table: "pd.DataFrame") -> dict[str, Any]:
    """What the teacher and the assistants of each arm that has them reach, on the split that the arms are shown on."""
    found: dict[str, Any] = {}
    for row in table.to_dict("records"):
        column = "test_accuracy" if row["split"] == "test" else "val_accuracy"
        if row["teachers"]:
            found[f"teacher accuracy {_name_of(row)}"] = _plain(row[f"teacher_{column}"])
        if row[f"assistants_{column}"]:
            found[f"assistants accuracy {_name_of(row)}"] = row[f"assistants_{column}"]
    return found


def _name_of(row: Mapping[Any, Any]) -> str:
    """The arm, and where there are several its cell."""
    return f"{row['arm']} with {row['cell']}" if row.get("cell") else str(row["arm"])


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True)
class _Media:
    """A table or picture in a run's row: the row has a reference, the run's files the content."""

    type: str
    folder: str
    ending: str
    content: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def path(self, name: str) -> str:
        return f"media/{self.folder}/{name}_{self.digest[:20]}.{self.ending}"

    def reference(self, name: str) -> dict[str, Any]:
        about = {"format": "png"} if self.ending == "png" else {}
        size = len(self.content)
        return {"_type": self.type, "path": self.path(name), "sha256": self.digest, "size": size, **about}


def _figures(folder: StudyFolder) -> dict[str, _Media]:
    """The pictures of the study's report, by name."""
    place = f"{folder.name}/report"
    names = [name for name in folder.storage.names(place) if name.endswith(".png")]
    return {
        name.removesuffix(".png"): _Media("image-file", "images", "png", folder.storage.read(f"{place}/{name}"))
        for name in names
    }


def _exported(folder: StudyFolder, student: Stage) -> tuple[Artifact, ...]:
    """The student's artifact as used, and its files themselves as the study's, where they are on this machine."""
    description = folder.artifacts.describe(student.key)
    if description is None:
        return ()
    learned = stage_artifact(folder, student, description)
    used = Artifact(learned.name, learned.type, learned.entries, learned.metadata, used=True)
    entries = []
    for name, digest in description["files"].items():
        file = folder.storage.local(folder.storage.place(f"artifacts/{student.key}", name, digest), digest)
        content = file.read_bytes()
        entries.append(Entry(name, md5(content), len(content), local=str(file)))
    return used, Artifact(f"{folder.name}-student", "model", tuple(entries), learned.metadata)
