"""What commands say with --json: docs/json.md has every key."""

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from takd.study.managing.studies import state_of

if TYPE_CHECKING:
    import pandas as pd

    from takd.study.study import Study


def text(value: Any) -> str:
    """One document, with null for what is not a number."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):  # of NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def status(study: "Study") -> dict[str, Any]:
    """How far a study is."""
    from takd.study.status import best_by_arm

    trials, search = study.trials, study.search
    states = Counter(trial.state.name.lower() for trial in search.proposed())
    stages = trials.drop_duplicates("stage_key")
    failed = stages[stages["status"] == "failed"]
    return {
        "study": study.name,
        "state": state_of(study.folder, search),
        "trials": {
            "started": search.asked,
            "budget": search.space.budget,
            **{name: states[name] for name in ("running", "complete", "pruned", "fail")},
        },
        "stages": [
            {"role": role, "status": state, "number": number}
            for (role, state), number in sorted(Counter(zip(stages["role"], stages["status"], strict=True)).items())
        ],
        "best": best_by_arm(trials).to_dict("records"),
        "failures": failed[["role", "model", "seed", "configuration", "stage_key", "error"]].to_dict("records"),
    }


def results(study: "Study") -> dict[str, Any]:
    """The table of arms, as numbers, and the finding."""
    from takd.analysis.evidence.chosen import note
    from takd.analysis.finding import finding
    from takd.analysis.tables import split_of

    trials: pd.DataFrame = study.trials
    return {
        "study": study.name,
        "split": split_of(trials),
        "arms": [
            {name: each for name, each in row.items() if name not in ("paper", "split")}
            for row in study.arms.to_dict("records")
        ],
        "finding": finding(trials),
        "note": note(trials),
    }
