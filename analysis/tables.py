"""Tables from `results/trials.parquet`. Accuracies and differences are in percent and percentage points."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from search_spaces import parse_arm

# Said wherever the table of arms is shown, as long as the numbers are what they are.
SEARCH_NOTE = (
    "These are validation numbers of the search: the split that chose the best setting of each arm also measured it, "
    "so they flatter every arm, most the one with the most settings tried. They rank; they don't prove."
)


def read_trials(file: str) -> pd.DataFrame:
    """One row a stage and path use, from a path or a URI; see `study.results.TRIALS` for the columns."""
    filesystem, path = FileSystem.from_uri(file) if "://" in file else (None, file)
    return pq.read_table(path, filesystem=filesystem).to_pandas()


def students(trials: pd.DataFrame) -> pd.DataFrame:
    """The finished students, one row a stage, with `accuracy` in percent."""
    rows = trials[(trials["role"] == "student") & (trials["status"] == "done")].drop_duplicates("stage_key")
    return rows.assign(accuracy=100 * rows["val_accuracy"])


def best_configurations(trials: pd.DataFrame) -> dict[str, str]:
    """By arm the configuration whose students have the highest mean accuracy; ties by lower path cost."""
    means = students(trials).groupby(["arm", "configuration"], sort=False)
    scores = means.agg(accuracy=("accuracy", "mean"), seconds=("total_path_seconds", "mean")).reset_index()
    ordered = scores.sort_values(["accuracy", "seconds"], ascending=[False, True])
    return dict(ordered.groupby("arm", sort=False)["configuration"].first().items())  # type: ignore[arg-type]


def arms_table(trials: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, in the paper's order: its best configuration with mean and standard error over seeds.

    `over_kd` is the mean difference to arm `kd`'s best configuration, paired by student seed; its standard error is
    NaN where fewer than two seeds pair.
    """
    done = students(trials)
    best = best_configurations(trials)
    by_seed = {arm: _by_seed(done, arm, name) for arm, name in best.items()}
    rows = []
    for arm in sorted(done["arm"].unique(), key=lambda name: arm_order(trials, name)):
        accuracy = by_seed[arm]
        chosen = done[(done["arm"] == arm) & (done["configuration"] == best[arm])]
        difference = (accuracy - by_seed["kd"]).dropna() if "kd" in by_seed and arm != "kd" else accuracy.iloc[:0]
        rows.append(
            {
                "arm": arm,
                "paper": parse_arm(arm).paper_name,
                "settings": done.loc[done["arm"] == arm, "configuration"].nunique(),
                "students": int((done["arm"] == arm).sum()),
                "best setting": best[arm].removeprefix(arm).strip() or "-",
                "seeds": len(accuracy),
                "accuracy": accuracy.mean(),
                "accuracy_se": standard_error(accuracy),
                "over_kd": difference.mean() if len(difference) else np.nan,
                "over_kd_se": standard_error(difference),
                "path_seconds": chosen["total_path_seconds"].mean(),
            }
        )
    return pd.DataFrame(rows)


def arm_order(trials: pd.DataFrame, arm: str) -> tuple[int, float]:
    """labels, kd, then assistants from the largest down."""
    assistants = parse_arm(arm).assistants
    if not assistants:
        return (int(parse_arm(arm).distilled), 0.0)
    parameters = trials.loc[trials["model"] == assistants[-1], "parameters"].max()
    return (1 + len(assistants), -float(parameters))


def standard_error(values: "pd.Series[float]") -> float:
    """Of the mean; NaN for fewer than two values."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _by_seed(done: pd.DataFrame, arm: str, configuration: str) -> "pd.Series[float]":
    rows = done[(done["arm"] == arm) & (done["configuration"] == configuration)]
    return rows.set_index("seed")["accuracy"]


def format_arms(table: pd.DataFrame) -> list[list[str]]:
    """The table of arms as text cells, the header first."""

    def plus_minus(mean: float, error: float, sign: str = "") -> str:
        if np.isnan(mean):
            return "-"
        return f"{mean:{sign}.2f}" + ("" if np.isnan(error) else f" ±{error:.2f}")

    header = ["arm", "paper", "settings", "students", "best setting", "seeds", "val. accuracy %", "over kd", "path s"]
    rows = [
        [
            row["arm"],
            row["paper"],
            str(row["settings"]),
            str(row["students"]),
            row["best setting"],
            str(row["seeds"]),
            plus_minus(row["accuracy"], row["accuracy_se"]),
            plus_minus(row["over_kd"], row["over_kd_se"], "+"),
            f"{row['path_seconds']:.1f}",
        ]
        for row in table.to_dict("records")
    ]
    return [header, *rows]
