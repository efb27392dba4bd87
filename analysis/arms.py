"""Arms beside each other: their numbers, and the same as tables for people.

Accuracies and differences are in percent and percentage points; no number stands without its interval.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from takd.analysis.cost import student_costs
from takd.analysis.metrics import METRICS
from takd.analysis.statistics import compare_arms, mean_interval
from takd.analysis.tables import (
    Missing,
    accuracy_by_seed,
    arm_order,
    blocks_of,
    chosen_students,
    confirmed,
    hyperparameters_of,
    paper_name,
    remembered,
    split_of,
    students,
)
from takd.analysis.teachers import accuracy_text, teaching, teaching_columns

# Columns of the printed table of arms that a reader misses least, the least one first.
SPARE = ("paper", "students", "configurations", "path seconds", "seeds", "best configuration")
# By column. Absent in older studies.
TEST_METRICS = {metric.confirmed: metric.title for metric in METRICS.values() if metric.title}


@remembered
def comparisons(trials: pd.DataFrame) -> pd.DataFrame:
    """Every arm against `kd` and `labels`; see `compare_arms`."""
    return compare_arms(accuracy_by_seed(trials))


@remembered
def arms_table(trials: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, in the paper's order: its chosen configuration with mean and 95 % interval over seeds.

    `over_kd` and `over_labels` are mean differences paired by seed, with `_low`, `_high` and `_p` (Holm's). What those
    who taught reach is in percent, see `takd.analysis.teachers`. Costs are means over the chosen students, see
    `takd.analysis.cost`; metrics of the test split are fractions.
    """
    chosen = student_costs(trials, chosen_students(trials))
    tried, compared = budgets(trials).set_index("arm"), comparisons(trials)
    taught_by = teaching(trials)
    rows = []
    for arm, accuracy in accuracy_by_seed(trials).items():
        own = chosen[chosen["arm"] == arm]
        estimate = mean_interval(accuracy)
        row: dict[str, Any] = {
            "arm": arm,
            "paper": paper_name(arm),
            "split": split_of(trials),
            "configurations": int(tried["configurations"].get(arm, 0)),
            "students": int(tried["students"].get(arm, 0)),
            "best configuration": hyperparameters_of(own["configuration"].iloc[0]),
            "seeds": len(accuracy),
            "accuracy": float(estimate.mean),
            "low": float(estimate.low),
            "high": float(estimate.high),
        }
        for reference in ("kd", "labels"):
            row |= _over(compared, arm, reference)
        row |= teaching_columns(taught_by.get(arm, ()))
        row |= {name: own[name].mean() for name in COSTS}
        row |= {name: own[name].mean() for name in TEST_METRICS if name in own and own[name].notna().any()}
        rows.append(row)
    return pd.DataFrame(rows)


COSTS = ("path_seconds", "shared_seconds", "path_flops", "shared_flops")


def _over(compared: pd.DataFrame, arm: str, reference: str) -> dict[str, float]:
    """An arm's difference to a reference from the comparisons; that of `labels` to `kd` is the other's turned over."""
    direct = compared[(compared["arm"] == arm) & (compared["reference"] == reference)]
    turned = compared[(compared["arm"] == reference) & (compared["reference"] == arm)]
    name = f"over_{reference}"
    if len(direct):
        row = direct.iloc[0]
        values = [row["difference"], row["low"], row["high"], row["p_holm"]]
    elif len(turned):
        row = turned.iloc[0]
        values = [-row["difference"], -row["high"], -row["low"], row["p_holm"]]
    else:
        values = [np.nan] * 4
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_p"), map(float, values), strict=True))


def budgets(trials: pd.DataFrame) -> pd.DataFrame:
    """What the search gave each arm: configurations tried, students trained to the end, and their training seconds."""
    done = students(trials)
    by_arm = done.groupby("arm", sort=False).agg(
        configurations=("configuration", "nunique"),
        students=("stage_key", "size"),
        student_seconds=("train_seconds", "sum"),
    )
    return by_arm.loc[sorted(by_arm.index, key=lambda arm: arm_order(trials, arm))].reset_index()


def budget_note(trials: pd.DataFrame) -> str:
    """Whether every arm was tried as often as the others."""
    table = budgets(trials)
    if not len(table):
        raise Missing("No student of the search has ended yet.")
    counts = table.set_index("arm")["students"]
    if counts.nunique() <= 1:
        return f"Equal search budget: {counts.iloc[0]} students for every arm."
    listed = ", ".join(f"{arm} {number}" for arm, number in counts.items())
    return (
        f"Unequal search budgets, in students: {listed}. "
        "An arm that was tried more often had more chances to look good."
    )


def as_good_as_best(trials: pd.DataFrame, arms: Collection[str]) -> list[str]:
    """Of these arms the best, and those whose difference to it, paired by seed, has an interval that reaches zero."""
    accuracy = {arm: values for arm, values in accuracy_by_seed(trials).items() if arm in arms}
    best = max(accuracy, key=lambda arm: accuracy[arm].mean())
    behind = {arm: (accuracy[best] - values).dropna() for arm, values in accuracy.items() if arm != best}
    return [best, *(arm for arm, points in behind.items() if len(points) > 1 and mean_interval(points).low <= 0)]


def cheapest_as_good(trials: pd.DataFrame, table: pd.DataFrame) -> "pd.Series[Any]":
    """Of the rows of a table of arms the one that cost least, of those as good as the best."""
    good = as_good_as_best(trials, table["arm"].tolist())
    return table[table["arm"].isin(good)].sort_values("path_seconds").iloc[0]


# For people: cells are text


def budget_table(trials: pd.DataFrame) -> pd.DataFrame:
    """What the search spent on each arm."""
    names = {"student_seconds": "seconds of training of its students"}
    return budgets(trials).round(1).rename(columns=names)


def comparison_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Every comparison with its difference, effect size, corrected p and verdict."""
    table = comparisons(trials)
    if not len(table):
        raise Missing("No two arms to compare have ended yet.")
    rows = table.to_dict("records")
    return pd.DataFrame(
        {
            "comparison": [f"{row['arm']} - {row['reference']}" for row in rows],
            "seeds": [row["seeds"] for row in rows],
            "difference, points (95 % CI)": [
                with_interval(row["difference"], row["low"], row["high"], "+") for row in rows
            ],
            "Hedges' g": [_number(row["hedges_g"], "+.2f") for row in rows],
            "p (Holm)": [_number(row["p_holm"], ".3f") for row in rows],
            "verdict": [row["verdict"] for row in rows],
        }
    )


def accuracy_table(trials: pd.DataFrame) -> pd.DataFrame:
    """The table of arms as `takd run` prints it."""
    if not len(chosen_students(trials)):
        raise Missing("No student has ended yet.")
    header, *rows = format_arms(arms_table(trials))
    return pd.DataFrame(rows, columns=header)


def page_table(trials: pd.DataFrame) -> pd.DataFrame:
    """The same for a page, which is seen from the left: what is missed least comes last."""
    table = accuracy_table(trials)
    return table[[*(name for name in table.columns if name not in SPARE), *reversed(SPARE)]]


def published_table(trials: pd.DataFrame, published: Mapping[str, float]) -> pd.DataFrame:
    """What was measured beside what a paper reports, in percent, for the arms that it reports."""
    rows = [row for row in arms_table(trials).to_dict("records") if row["arm"] in published]
    return pd.DataFrame(
        {
            "arm": [row["arm"] for row in rows],
            "paper": [row["paper"] for row in rows],
            "published %": [f"{published[row['arm']]:.2f}" for row in rows],
            f"measured, {split_of(trials)} %": [
                with_interval(row["accuracy"], row["low"], row["high"]) for row in rows
            ],
            "difference": [f"{row['accuracy'] - published[row['arm']]:+.2f}" for row in rows],
        }
    )


def settings_table(trials: pd.DataFrame) -> pd.DataFrame:
    """What temperature and lambda did per arm: its configurations, the best three and the last."""
    done = students(trials)
    if not len(done):
        raise Missing("No student of the search has ended yet.")
    rows = []
    for arm in sorted(done["arm"].unique(), key=lambda arm: arm_order(trials, arm)):
        tried = done[done["arm"] == arm].groupby("configuration")["accuracy"]
        ranked = list(tried.mean().sort_values(ascending=False).index)
        for place in sorted({0, 1, 2, len(ranked) - 1} & set(range(len(ranked)))):
            estimate = mean_interval(tried.get_group(ranked[place]))
            mean, low, high = map(float, (estimate.mean, estimate.low, estimate.high))
            chosen = hyperparameters_of(str(ranked[place]))
            rows.append((arm, f"{place + 1} of {len(ranked)}", chosen, with_interval(mean, low, high)))
    return pd.DataFrame(rows, columns=["arm", "rank", "configuration", "val. accuracy %"])


def studies_table(studies: Mapping[str, pd.DataFrame], value: str = "accuracy") -> pd.DataFrame:
    """One row an arm, one column a study: `accuracy`, `over_kd` or `over_labels` with its interval."""
    tables = {name: arms_table(trials) for name, trials in studies.items() if len(chosen_students(trials))}
    low, high = ("low", "high") if value == "accuracy" else (f"{value}_low", f"{value}_high")
    every = pd.concat(studies.values(), ignore_index=True)
    arms = sorted({arm for table in tables.values() for arm in table["arm"]}, key=lambda arm: arm_order(every, arm))
    columns: dict[str, list[str]] = {"arm": arms}
    for name, trials in studies.items():
        rows = {row["arm"]: row for row in tables[name].to_dict("records")} if name in tables else {}
        columns[f"{name} ({split_of(trials)})"] = [
            with_interval(rows[arm][value], rows[arm][low], rows[arm][high], "" if value == "accuracy" else "+")
            if arm in rows
            else "-"
            for arm in arms
        ]
    return pd.DataFrame(columns)


def accuracies_by_block(trials: pd.DataFrame) -> pd.DataFrame:
    """Every arm's accuracy by study and cell."""
    return studies_table(blocks_of(trials))


def gains_by_block(trials: pd.DataFrame) -> pd.DataFrame:
    """What every arm has over kd, by study and cell."""
    return studies_table(blocks_of(trials), "over_kd")


def cost_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Seconds and FLOPs of a student's path, alone and shared, beside its accuracy."""
    if not len(chosen_students(trials)):
        raise Missing("No student has ended yet.")
    rows = arms_table(trials).to_dict("records")
    return pd.DataFrame(
        {
            "arm": [row["arm"] for row in rows],
            f"{split_of(trials)} accuracy %": [with_interval(row["accuracy"], row["low"], row["high"]) for row in rows],
            "seconds alone": [_number(row["path_seconds"], ".1f") for row in rows],
            "seconds shared": [_number(row["shared_seconds"], ".2f") for row in rows],
            "FLOPs alone": [_number(row["path_flops"], ".3g") for row in rows],
            "FLOPs shared": [_number(row["shared_flops"], ".3g") for row in rows],
        }
    )


def test_table(trials: pd.DataFrame) -> pd.DataFrame:
    """What the confirm phase measured beside accuracy, with intervals over seeds, in percent."""
    final = confirmed(trials)
    there = [name for name in TEST_METRICS if name in final and final[name].notna().any()]
    if not there:
        raise Missing("Calibration, agreement, AUC and F1 are of the confirm phase; this study has none yet.")
    rows = []
    for arm in sorted(final["arm"].unique(), key=lambda arm: arm_order(trials, arm)):
        own = final[final["arm"] == arm]
        rows.append([arm, *(_percents(own[name].dropna()) for name in there)])
    table = pd.DataFrame(rows, columns=["arm", *(TEST_METRICS[name] for name in there)])
    if "test_auc" in there:
        means = 100 * final.groupby("arm")[["test_auc", "test_auc_low", "test_auc_high"]].mean()
        table["AUC (%), its interval over images"] = [with_interval(*means.loc[arm]) for arm in table["arm"]]
    return table


def _percents(values: "pd.Series[float]") -> str:
    if not len(values):
        return "-"
    estimate = mean_interval(100 * values)
    return with_interval(float(estimate.mean), float(estimate.low), float(estimate.high))


def _number(value: float, form: str) -> str:
    return "-" if np.isnan(value) else f"{value:{form}}"


def with_interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """`86.00 (84.75 to 87.25)`: no number without its interval; a dash where there is no number."""
    if np.isnan(mean):
        return "-"
    return f"{mean:{sign}.2f} " + ("(one seed)" if np.isnan(low) else f"({low:{sign}.2f} to {high:{sign}.2f})")


def _teacher(row: Mapping[Any, Any], split: str) -> str:
    if not row["teachers"]:
        return "-"
    return accuracy_text(row["teacher_val_accuracy"], row["teacher_test_accuracy"], row["teachers"], split)


def format_arms(table: pd.DataFrame) -> list[list[str]]:
    """The table of arms as text cells, the header first."""
    split = table["split"].iloc[0] if len(table) else "validation"
    short, column = {"validation": ("val.", "val_accuracy"), "test": ("test", "test_accuracy")}[split]
    header = [
        "arm",
        "paper",
        "configurations",
        "students",
        "best configuration",
        "seeds",
        f"{short} accuracy %",
        "over kd",
        f"teacher, {short} %",
        f"assistants, {short} %",
        "path seconds",
    ]
    rows = [
        [
            row["arm"],
            row["paper"],
            str(row["configurations"]),
            str(row["students"]),
            row["best configuration"],
            str(row["seeds"]),
            with_interval(row["accuracy"], row["low"], row["high"]),
            with_interval(row["over_kd"], row["over_kd_low"], row["over_kd_high"], "+"),
            _teacher(row, split),
            row[f"assistants_{column}"] or "-",
            f"{row['path_seconds']:.1f}",
        ]
        for row in table.to_dict("records")
    ]
    return [header, *rows]
