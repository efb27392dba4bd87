"""The Parquet tables of a study, rebuilt from Optuna's storage and the artifact store alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from takd.analysis.metrics import COLUMNS, column_of
from takd.analysis.tables import assistant_size
from takd.search_spaces import Path, Stage
from takd.search_spaces.metrics import METRICS, Metric
from takd.study.folder import EPOCHS as EPOCHS_FILE
from takd.study.folder import PREDICTIONS, StudyFolder
from takd.study.folder import TRIALS as TRIALS_FILE
from takd.study.predictions import right_by_stage
from takd.study.search.graph import Description, Proposal
from takd.study.search.optimization import Search
from takd.study.search.pruned import Pruned
from takd.trainables.store.storage import sha256

STATE = "results/state.json"  # what the tables were made of
TEST = "results/test.json"  # what confirmed students and those who taught them do on the test split, by stage key
RELIABILITY = pa.struct([("confidence", pa.float64()), ("accuracy", pa.float64()), ("count", pa.int64())])

TRIALS = pa.schema(
    [
        ("study", pa.string()),
        ("phase", pa.string()),  # search or confirm
        ("trial", pa.int32()),  # of Optuna: one configuration
        ("configuration", pa.string()),  # arm and varied hyperparameters; several trials may repeat one
        ("cell", pa.string()),  # values of the space's factors, "teacher.model=mlp-200 examples=500"; "" without any
        ("late_cell", pa.bool_()),  # a factor got one of its values when the confirm phase had begun
        ("arm", pa.string()),
        ("path", pa.string()),
        ("path_seed", pa.int32()),  # the student's: with `trial` it names the path
        ("replicate", pa.int32()),  # the path's number among those that the confirm phase draws anew
        ("redrawn", pa.string()),  # what it then has of its own beside its students, with commas between
        ("smallest_effect", pa.float64()),  # the smallest difference that matters, in points
        ("smallest_effect_before", pa.float64()),  # what it was when the confirm phase began, where that was another
        ("role", pa.string()),
        ("model", pa.string()),
        ("parameters", pa.int64()),
        ("flops_per_image", pa.int64()),
        ("upstream_models", pa.list_(pa.string())),
        ("temperature", pa.float64()),
        ("lambda", pa.float64()),
        ("assistant_size", pa.int64()),  # of the path, where it was searched; of several the last one's
        ("learning_rate", pa.float64()),
        ("examples", pa.int64()),  # size of the transfer set; 0 of what is given
        ("seed", pa.int32()),
        ("stage_key", pa.string()),
        ("status", pa.string()),  # done, failed, pruned or unfinished
        ("epochs", pa.int32()),
        (
            "whole_epochs",
            pa.float64(),
        ),  # of all layers, that would cost as much
        ("selected_epoch", pa.int32()),
        ("val_accuracy", pa.float64()),  # fraction
        ("val_loss", pa.float64()),
        ("val_auc", pa.float64()),  # fractions, where the study goes by them
        ("val_f1", pa.float64()),
        ("metric", pa.string()),  # that the study goes by
        ("metric_title", pa.string()),  # as people read it
        ("metric_higher", pa.bool_()),  # whether more of it is better
        ("metric_fraction", pa.bool_()),  # whether it lies between 0 and 1
        ("val_images", pa.int64()),
        ("val_majority", pa.float64()),  # the largest class's share of them: what who knows nothing is right on
        # On test: of confirmed students and of those who taught them.
        *((each.confirmed, pa.float64()) for each in COLUMNS.values()),
        ("test_images", pa.int64()),
        ("test_right", pa.binary()),  # a bit an image: 1 where its class was chosen
        ("test_auc_low", pa.float64()),  # 95 % interval over the images
        ("test_auc_high", pa.float64()),
        ("test_threshold", pa.float64()),  # chosen on validation: test_f1 and test_accuracy_at_threshold are at it
        ("test_reliability", pa.list_(RELIABILITY)),  # by bin of confidence
        ("train_seconds", pa.float64()),
        ("total_path_seconds", pa.float64()),  # training seconds of all stages of the path
        ("host", pa.string()),  # of the worker that trained it
        ("process", pa.int64()),  # likewise, its id there
        ("lanes", pa.int32()),  # stages that it trained side by side
        ("finished_at", pa.timestamp("ms", tz="UTC")),  # Parquet has no coarser
        ("cached", pa.bool_()),  # this path found the artifact there
        ("error", pa.string()),
    ]
)

EPOCHS = pa.schema(
    [
        ("study", pa.string()),
        ("stage_key", pa.string()),
        ("role", pa.string()),
        ("model", pa.string()),
        ("epoch", pa.int32()),
        ("learning_rate", pa.float64()),
        ("train_loss", pa.float64()),
        ("val_loss", pa.float64()),
        ("val_accuracy", pa.float64()),
        ("val_auc", pa.float64()),
        ("val_f1", pa.float64()),
        ("seconds", pa.float64()),
        ("val_seconds", pa.float64()),  # of these, for the look at the validation split
    ]
)


class Tables(NamedTuple):
    """Of a study, with the columns of TRIALS and EPOCHS."""

    trials: pa.Table
    epochs: pa.Table


def write_results(folder: StudyFolder, search: Search) -> Tables:
    """Rebuilds `results/trials.parquet` and `results/epochs.parquet`; returns both."""
    state, tables = _state(folder, search), build_results(folder, search)
    files = {TRIALS_FILE: _parquet(tables.trials), EPOCHS_FILE: _parquet(tables.epochs)}
    for file, content in files.items():
        folder.write(file, content)
    about = {"of": state, "files": list(map(sha256, files.values()))}
    folder.write(STATE, json.dumps(about, indent=1).encode())
    return tables


def standing_results(folder: StudyFolder, search: Search) -> Tables | None:
    """The files of a study that has ended, where nothing has changed since they were written; else None."""
    try:
        written = json.loads(folder.storage.read(f"{folder.name}/{STATE}"))
        contents = [folder.storage.read(f"{folder.name}/{file}") for file in (TRIALS_FILE, EPOCHS_FILE)]
        if written["of"] != _state(folder, search) or written["files"] != list(map(sha256, contents)):
            return None
        return Tables(*(pq.read_table(pa.BufferReader(content)) for content in contents))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _state(folder: StudyFolder, search: Search) -> str:
    """A digest of all that the tables are made of but artifacts, which never change."""
    trials = [
        (trial.number, trial.state.name, trial.values, trial.params, trial.user_attrs)
        for trial in search.study.get_trials(deepcopy=False)
    ]
    form = f"{version('takd')} {TRIALS} {EPOCHS}"
    told = json.dumps([form, trials, search.study.user_attrs, Pruned(folder.artifacts, folder.name).names()])
    measured = []
    for file in (TEST, PREDICTIONS):
        with suppress(FileNotFoundError):
            measured.append(folder.storage.read(f"{folder.name}/{file}"))
    return sha256(b"\0".join([told.encode(), *measured]))


def build_results(folder: StudyFolder, search: Search, known: dict[str, Description] | None = None) -> Tables:
    """The tables of TRIALS and EPOCHS as they are now; reads only.

    Who looks again and again keeps what finished stages left in `known`.
    """
    known = {} if known is None else known
    found: dict[str, Description | None] = {}
    rows: list[dict[str, Any]] = []
    test, right = read_test(folder), right_by_stage(folder)
    pruned = Pruned(folder.artifacts, folder.name).read() if search.space.asha else {}
    metric = search.space.goes_by
    images, largest = search.dataset.sizes.get("validation"), search.largest_class
    about = {
        "val_images": images,
        "val_majority": largest / images if images and largest is not None else None,
        "metric": metric.name,
        **{f"metric_{name}": getattr(metric, name) for name in ("title", "higher", "fraction")},
        "smallest_effect": search.space.smallest_effect,
        "smallest_effect_before": search.smallest_effect_before,
        "test_images": search.dataset.sizes.get("test"),
    }
    late = search.late_cells
    redrawn = {cell.name: ", ".join(cell.space.redrawn) for cell in search.space.cells}
    for proposal, ended in _proposals(search, pruned):
        for path in proposal.paths:
            for stage in path.stages:
                if stage.key not in found:
                    found[stage.key] = known.get(stage.key) or folder.artifacts.describe(stage.key)
            use = {"study": folder.name, "use": proposal.use(path)}
            for row in _path_rows(proposal, ended, path, found, use, metric):
                measured = {}
                if proposal.phase == "confirm":
                    measured = test.get(row["stage_key"], {}) | {"test_right": right.get(row["stage_key"])}
                    measured["redrawn"] = redrawn[proposal.cell]
                row["late_cell"] = proposal.cell in late
                rows.append({"study": folder.name, **about, **row, **measured})
    known |= {key: description for key, description in found.items() if description}
    own = _own_columns(metric)
    epochs = [row for each in found.values() if each for row in _epoch_rows(folder.name, each, metric)]
    for row in _of_pruned(rows, found, pruned):
        shown: dict[str, Any] = {name: row[name] for name in ("study", "stage_key", "role", "model")}
        epochs += [shown | epoch for epoch in pruned[row["stage_key"]]]
    trials, by_epoch = (_with(TRIALS, own), _with(EPOCHS, own[:1]))
    return Tables(pa.Table.from_pylist(rows, trials), pa.Table.from_pylist(epochs, by_epoch))


def _own_columns(metric: Metric) -> list[str]:
    """Of a metric of a user's, on validation and on test: beside those of TRIALS."""
    column = column_of(metric)
    return [] if metric.name in METRICS else [column.searched or "", column.confirmed]


def _with(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([*schema, *(pa.field(name, pa.float64()) for name in columns)])


def read_test(folder: StudyFolder) -> dict[str, dict[str, Any]]:
    """What was measured before; nothing where that can't be read: it is measured again."""
    try:
        known = json.loads(folder.storage.read(f"{folder.name}/{TEST}"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


@dataclass(frozen=True)
class _Ended:
    """How stages of a proposal ended that left no artifact."""

    failures: dict[str, str]
    pruned: bool  # the trial was: of what an earlier version ran, nothing else says it of a student
    epochs: dict[str, list[dict[str, Any]]]  # of each student of the study that was ended early, by stage key


def _proposals(search: Search, pruned: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[Proposal, _Ended]]:
    for trial in search.proposed():
        ended = _Ended(trial.user_attrs.get("failures", {}), trial.state.name == "PRUNED", pruned)
        yield search.proposal_of(trial), ended
    for proposal in search.confirming():
        yield proposal, _Ended(search.confirm_failures, False, {})


def _path_rows(
    proposal: Proposal,
    ended: _Ended,
    path: Path,
    found: dict[str, Description | None],
    use: dict[str, str],
    metric: Metric,
) -> Iterator[dict[str, Any]]:
    there = {stage.key: found[stage.key] for stage in path.stages}
    outcomes = {key: description["outcome"] for key, description in there.items() if description}
    seconds = [outcomes[stage.key]["train_seconds"] for stage in path.stages if stage.key in outcomes]
    for stage in path.stages:
        outcome = outcomes.get(stage.key)
        row = _stage_row(stage) | {
            "phase": proposal.phase,
            "trial": proposal.trial,
            "configuration": proposal.configuration,
            "cell": proposal.cell,
            "arm": path.arm,
            "path": str(path),
            "assistant_size": assistant_size(proposal.configuration),
            "path_seed": path.student.seed,
            "replicate": path.replicate,
            "status": _status(stage, ended, outcome),
            "total_path_seconds": sum(seconds) if len(seconds) == len(path.stages) else None,
            "cached": outcome["origin"] != use if outcome else None,
            "error": None if outcome else ended.failures.get(stage.key),
        }
        if outcome:
            row |= _outcome_row(outcome, metric)
            if "whole_epochs" in outcome:
                row["whole_epochs"] = outcome["whole_epochs"]
            elif stage.recipe.patience is not None and not stage.given:  # it may have ended early
                row["whole_epochs"] = max(0.0, row["whole_epochs"] - stage.recipe.epochs + row["epochs"])
        elif stage.key in ended.epochs and stage.role == "student":
            row |= _pruned_row(ended.epochs[stage.key], metric)
        yield row


def _stage_row(stage: Stage) -> dict[str, Any]:
    return {
        "role": stage.role,
        "model": stage.model,
        "upstream_models": [upstream.model for upstream in stage.upstream],
        "temperature": stage.temperature,
        "lambda": stage.lambda_,
        "learning_rate": None if stage.given else stage.recipe.learning_rate,
        "examples": 0 if stage.given else stage.images,
        "whole_epochs": 0.0 if stage.given else stage.recipe.whole_epochs,
        "seed": stage.seed,
        "stage_key": stage.key,
    }


def _outcome_row(outcome: dict[str, Any], metric: Metric) -> dict[str, Any]:
    validation = outcome["metrics"]["validation"] or {}  # null of one whose answers to these images nobody has
    return {
        "parameters": outcome["parameters"],
        "flops_per_image": outcome["flops_per_image"],
        "epochs": len(outcome["epochs"]),
        "selected_epoch": outcome["selected_epoch"],
        "val_accuracy": validation.get("accuracy"),
        "val_loss": validation.get("loss"),
        "val_auc": validation.get("auc"),
        "val_f1": validation.get("f1"),
        f"val_{metric.name}": validation.get(metric.kept),
        "train_seconds": outcome["train_seconds"],
        "host": outcome.get("host"),
        "process": outcome.get("process"),
        "lanes": outcome.get("lanes"),
        "finished_at": datetime.fromisoformat(outcome["finished_at"]) if "finished_at" in outcome else None,
    }


def _pruned_row(epochs: list[dict[str, Any]], metric: Metric) -> dict[str, Any]:
    """What a student had reached when it was ended."""
    looks = [each for each in epochs if each["val_accuracy"] is not None]
    return {
        "epochs": len(epochs),
        "val_accuracy": looks[-1]["val_accuracy"] if looks else None,
        "val_loss": looks[-1]["val_loss"] if looks else None,
        "val_auc": looks[-1].get("val_auc") if looks else None,
        "val_f1": looks[-1].get("val_f1") if looks else None,
        f"val_{metric.name}": looks[-1].get(f"val_{metric.name}") if looks else None,
        "train_seconds": sum(each["seconds"] for each in epochs),
    }


def _of_pruned(
    rows: list[dict[str, Any]], found: Mapping[str, Description | None], pruned: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row for each student that was ended early, in the order of the table."""
    first = {row["stage_key"]: row for row in reversed(rows) if row["stage_key"] in pruned}
    return [row for row in reversed(first.values()) if row["role"] == "student" and not found[row["stage_key"]]]


def _status(stage: Stage, ended: _Ended, outcome: dict[str, Any] | None) -> str:
    if outcome:
        return "done"
    if stage.key in ended.failures:
        return "failed"
    return "pruned" if stage.role == "student" and (ended.pruned or stage.key in ended.epochs) else "unfinished"


def _epoch_rows(study: str, description: Description, metric: Metric) -> Iterator[dict[str, Any]]:
    outcome = description["outcome"]
    about = {
        "study": study,
        "stage_key": description["key"],
        "role": outcome["role"],
        "model": description["input"].get("model"),  # of logits there is none, and no epoch either
    }
    # Of a metric of code the artifact says whose code it was, and its epochs do not.
    other = metric.digest is not None and metric.kept not in (outcome["metrics"]["validation"] or {})
    hidden = {f"val_{metric.name}": None} if other else {}
    return (about | epoch | hidden for epoch in outcome["epochs"])


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
