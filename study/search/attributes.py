"""What an Optuna trial says of its configuration and paths in the field's words, for Optuna's dashboard."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from takd.search_spaces import Path
from takd.search_spaces.metrics import ACCURACY, Metric
from takd.study.search.graph import Description

KEY_DIGITS = 12  # of a stage's key, among what a trial says of it


def proposal_attributes(paths: Iterable[Path]) -> dict[str, Any]:
    """What a trial's user attributes say of its paths when it is proposed, beside arm, path and seeds."""
    stages = {
        stage.key: f"{stage.role} {stage.model} {stage.key[:KEY_DIGITS]}" for path in paths for stage in path.stages
    }
    return {"stages": list(stages.values())}


def keys_of(attributes: Mapping[str, Any]) -> list[str]:
    """The first digits of the keys of a trial's stages; none of one of an older version."""
    return [each.rpartition(" ")[2] for each in attributes.get("stages", ())]


def outcome_attributes(
    paths: Iterable[Path], found: Mapping[str, Description | None], metric: Metric = ACCURACY
) -> dict[str, Any]:
    """What they say when it has ended; `found` has descriptions by stage key."""
    outcomes = {key: description["outcome"] for key, description in found.items() if description}
    stages = {stage.key: stage for path in paths for stage in path.stages}
    values = {
        path.student.seed: outcomes[path.student.key]["metrics"]["validation"].get(metric.kept)
        for path in paths
        if path.student.key in outcomes
    }
    students = {
        str(seed): round(metric.times * value, metric.digits) for seed, value in values.items() if value is not None
    }
    seconds = sum(outcomes[key]["train_seconds"] for key in stages if key in outcomes)
    return {"students": json.dumps(students), "path_seconds": round(seconds, 2)}


def students_of(attributes: Mapping[str, Any]) -> dict[str, float]:
    """By seed the metric, in percent where it is a fraction, of a trial's students that were trained to their end."""
    found: dict[str, float] = json.loads(attributes.get("students", "{}"))
    return found
