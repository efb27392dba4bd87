"""What a student's accuracy cost: seconds and FLOPs of its whole path, alone and shared.

Seconds are of training, as measured while other stages trained beside it. FLOPs are of training alone: a step counts
as three forward passes (one forward, two backward; Kaplan et al. 2020, section 2.1), as one while the head alone
trains, and neither evaluation nor soft targets are in them. Layers that stand still below `finetune_from` count only
where they ran in every step.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from takd.analysis.tables import ends_in_anothers_head

STUDENT_COSTS = ("parameters", "flops_per_image", "milliseconds")  # what a student costs to run
LATENCY_FILE = "results/latency.json"  # by `networks_of` the milliseconds of one image, below a study
USE = ["study", "phase", "trial", "configuration", "path_seed"]  # one path use
FORWARD_PASSES_A_STEP = 3


def training_flops(stages: pd.DataFrame) -> "pd.Series[float]":
    """Of training each stage once: none of one that is given; null where it has not ended."""
    whole = stages["whole_epochs"] if "whole_epochs" in stages else stages["epochs"]  # a table of an older version
    flops = stages["flops_per_image"].where(stages["examples"] > 0, 0.0)  # what a file of logits takes is not known
    return FORWARD_PASSES_A_STEP * flops * stages["examples"] * whole


def student_costs(trials: pd.DataFrame, students: pd.DataFrame) -> pd.DataFrame:
    """`students` with the costs of their paths.

    `path_seconds` and `path_flops`: every stage of the path, as if this student were the only one. `shared_seconds` and
    `shared_flops`: a stage's cost is divided among all finished students of the study whose paths use it. NaN where a
    stage of the path has not ended.
    """
    stages = trials.assign(flops=training_flops(trials), trial=trials["trial"].fillna(-1))
    keys = stages.loc[(stages["role"] == "student") & (stages["status"] == "done"), [*USE, "stage_key"]]
    uses = stages.merge(keys.rename(columns={"stage_key": "student"}), on=USE)
    users = uses.groupby("stage_key")["student"].nunique()
    shares = uses["stage_key"].map(users).astype(float)
    costs = pd.DataFrame(
        {
            "path_seconds": uses["train_seconds"],
            "path_flops": uses["flops"],
            "shared_seconds": uses["train_seconds"] / shares,
            "shared_flops": uses["flops"] / shares,
        }
    )
    paths = costs.groupby([uses[name] for name in USE])
    whole = paths.sum().where(paths.count().eq(paths.size(), axis=0))
    chosen = students.assign(trial=students["trial"].fillna(-1)).drop(columns=list(costs), errors="ignore")
    return chosen.merge(whole.reset_index(), on=USE, how="left")


def pareto_front(table: pd.DataFrame, cost: str = "path_seconds") -> list[str]:
    """The arms that no other beats in cost without losing in what the study goes by, from the cheapest up."""
    front, best = [], -np.inf
    for row in table.sort_values([cost, "score"], ascending=[True, False]).to_dict("records"):
        if row["score"] > best:
            front.append(str(row["arm"]))
            best = row["score"]
    return front


def on_front(costs: "np.ndarray[Any, Any]", values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Whether no other has at least the value at a lower cost, or a higher one at the same; all False of NaN."""
    better = (values[None] >= values[:, None]) & (costs[None] < costs[:, None])
    better |= (values[None] > values[:, None]) & (costs[None] <= costs[:, None])
    return np.asarray(~better.any(axis=1) & np.isfinite(costs) & np.isfinite(values))


def networks_of(students: pd.DataFrame) -> "pd.Series[str]":
    """What each of these students runs as: its model, `mlp-8`, and of which size where it ends in another's head."""
    return pd.Series(
        [
            f"{row['model']} of {row['parameters']:.0f} parameters"
            if ends_in_anothers_head(row["arm"])
            else row["model"]
            for row in students.to_dict("records")
        ],
        index=students.index,
        dtype=object,
    )


def students_by_size(trials: pd.DataFrame, table: pd.DataFrame, latencies: Mapping[str, float]) -> pd.DataFrame:
    """The table of arms of a study whose student's size is a factor, with what each row's student costs to run.

    Added: `model`, `parameters`, `flops_per_image`, `milliseconds` (NaN where not measured), and `front_of_COST` for
    each of STUDENT_COSTS.
    """
    rows = trials[(trials["role"] == "student") & (trials["status"] == "done")]
    rows = rows.assign(cell=rows["cell"].fillna("") if "cell" in rows else "")
    sizes = rows.groupby(["cell", "arm"])[["model", "parameters", "flops_per_image"]].first().reset_index()
    found = table.merge(sizes, on=["cell", "arm"])
    found["milliseconds"] = networks_of(found).map(latencies).astype(float)
    for cost in STUDENT_COSTS:
        found[f"front_of_{cost}"] = on_front(found[cost].to_numpy(float), found["score"].to_numpy(float))
    return found
