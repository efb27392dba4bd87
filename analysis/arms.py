"""Arms beside each other: their numbers, and the same as tables for people.

Accuracies and differences are in percent and percentage points; no number stands without its interval.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from takd.analysis.cost import student_costs
from takd.analysis.evidence.chosen import chosen_students, scope, unit_of
from takd.analysis.evidence.measured import Measured, measured, spread_between
from takd.analysis.evidence.statistics import (
    Interval,
    best_arms,
    bounded_interval,
    difference,
    holm,
    mean_interval,
    spread_of_images,
    spread_of_paths,
)
from takd.analysis.evidence.wording import Compared, verdict, without_minus_zero
from takd.analysis.metrics import COLUMNS, label
from takd.analysis.tables import (
    Missing,
    arm_order,
    blocks_of,
    by_cell,
    confirmed,
    hyperparameters_of,
    metric_of,
    paper_name,
    remembered,
    smallest_effect,
    split_of,
    students,
)
from takd.analysis.teachers import accuracy_text, teaching, teaching_columns
from takd.search_spaces.metrics import ACCURACY, Metric

# Columns of the printed table of arms that a reader misses least, the least one first.
SPARE = ("paper", "students", "configurations", "path seconds", "seeds", "paths", "best configuration")
# By column. Absent in older studies.
TEST_METRICS = {each.confirmed: each.heading for each in COLUMNS.values() if each.heading}


REFERENCES = ("kd", "labels")
COMPARISON = [
    "cell", "arm", "reference", "unit", "units", "difference", "low", "high", "hedges_g", "p", "p_holm", "covers",
    "verdict",
]  # fmt: skip


@remembered
def comparisons(trials: pd.DataFrame) -> pd.DataFrame:
    """Every arm against `kd` and `labels`, within each cell; one row a comparison, one family for Holm's correction.

    Columns: `cell`, `arm`, `reference`, `unit` (`path` or `student`), `units` that both have, `difference` in points of
    what the study goes by, positive where the arm is better (of a loss what it is less), with
    `low` and `high`, `hedges_g`, `p`, `p_holm`, `covers` (what intervals hold for), `verdict`.
    """
    rows = [row for cell, part in by_cell(trials).items() for row in _within_a_cell(cell, part)]
    table = pd.DataFrame(rows, columns=[*COMPARISON[:-1], "scope"])
    table["p_holm"] = holm(table["p"].to_numpy(float))
    about = {"matters": smallest_effect(trials), "metric": metric_of(trials)}
    table["verdict"] = [verdict(_compared(row, len(table), **about)) for row in table.to_dict("records")]
    return table[COMPARISON]


def _within_a_cell(cell: str, trials: pd.DataFrame) -> Iterator[dict[str, Any]]:
    arms, unit = measured(trials), unit_of(trials)
    for reference in REFERENCES:
        for arm in arms:
            if reference in arms and arm != reference and (arm, reference) != ("labels", "kd"):
                about = {"cell": cell, "arm": arm, "reference": reference, "unit": unit}
                where = [f"at {cell}"] if cell else []
                where += [said] if (said := scope(trials, arm, reference)) else []
                yield about | {"scope": ", ".join(where)} | paired_difference(arms[arm], arms[reference])


def paired_difference(arm: Measured, reference: Measured) -> dict[str, Any]:
    """Of the students that both have, with the columns of COMPARISON; `units` alone where there are none."""
    arm, reference = arm.beside(reference)
    if not arm.units:
        return {"units": 0}
    found = difference(spread_between(arm, reference))
    return {
        "units": arm.units,
        "difference": 100 * float(found.mean),
        "low": 100 * float(found.low),
        "high": 100 * float(found.high),
        "hedges_g": float(found.hedges_g),
        "p": float(found.p),
        "covers": ", ".join(found.covers),
    }


def _compared(row: Mapping[Any, Any], comparisons: int, **about: Any) -> Compared:
    own = {name: row[name] for name in ("arm", "reference", "unit", "units", "difference", "low", "high", "scope")}
    return Compared(**own, p=row["p_holm"], comparisons=comparisons, **about)


@remembered
def arms_table(trials: pd.DataFrame) -> pd.DataFrame:
    """One row an arm of each cell, in the paper's order: its chosen configuration with mean and 95 % interval.

    Intervals are over units, a `path` or a `student`, and over the test images where `covers` says so. `value` is what
    the study goes by, `score` the same with more for better. `over_kd` and `over_labels` are mean differences of it
    paired by unit, with `_low`, `_high` and `_p` (Holm's, over all cells). What those who taught reach is in percent,
    see `takd.analysis.teachers`. Costs are means over the chosen students, see `takd.analysis.cost`; metrics of the
    test split are fractions.
    """
    compared = comparisons(trials)
    rows: list[dict[str, Any]] = []
    for cell, part in by_cell(trials).items():
        if len(chosen_students(part)):
            rows += _rows_of_a_cell(cell, part, compared[compared["cell"] == cell])
    return pd.DataFrame(rows)


def _rows_of_a_cell(cell: str, trials: pd.DataFrame, compared: pd.DataFrame) -> Iterator[dict[str, Any]]:
    chosen = student_costs(trials, chosen_students(trials))
    tried, taught_by = budgets(trials).set_index("arm"), teaching(trials)
    for arm, reached in measured(trials).items():
        own = chosen[chosen["arm"] == arm]
        estimate = accuracy_interval(reached)
        row: dict[str, Any] = {
            "cell": cell,
            "arm": arm,
            "paper": paper_name(arm),
            "split": split_of(trials),
            "configurations": int(tried["configurations"].get(arm, 0)),
            "students": int(tried["students"].get(arm, 0)),
            "best configuration": hyperparameters_of(own["configuration"].iloc[0], cell),
            "unit": unit_of(trials),
            "units": reached.units,
            "seeds": len(reached.rows),
            "accuracy": 100 * float(estimate.mean),
            "low": 100 * float(estimate.low),
            "high": 100 * float(estimate.high),
            "covers": ", ".join(estimate.covers),
            **metric_columns(
                trials, reached, [100 * float(each) for each in (estimate.mean, estimate.low, estimate.high)]
            ),
        }
        for reference in REFERENCES:
            row |= _over(compared, arm, reference)
        row |= teaching_columns(taught_by.get(arm, ()))
        row |= {name: own[name].mean() for name in COSTS}
        row |= {name: own[name].mean() for name in TEST_METRICS if name in own and own[name].notna().any()}
        yield row


VALUE = ["value", "value_low", "value_high"]


def metric_columns(trials: pd.DataFrame, reached: Measured, accuracy: Sequence[float]) -> dict[str, Any]:
    """What the study goes by, of an arm on the split that its accuracy is of: `value` with its interval over units.

    `score` is the same, but the higher the better. `accuracy` is that with its interval, which covers test images too.
    """
    metric = metric_of(trials)
    if metric == ACCURACY:
        return {"score": accuracy[0], **dict(zip(VALUE, accuracy, strict=True))}
    values = reached.by_unit("value").dropna().to_numpy()
    found = _interval_of(values, metric) if len(values) else [np.nan] * 3
    told = {f"metric_{name}": getattr(metric, name) for name in ("title", "higher", "fraction")}
    score = found[0] if metric.higher else -found[0]
    return {"metric": metric.name, **told, "score": score, **dict(zip(VALUE, found, strict=True))}


def _interval_of(values: "np.ndarray[Any, Any]", metric: Metric) -> list[float]:
    """Mean, low and high of values as people read them, one a unit."""
    if not metric.fraction:
        found = mean_interval(values)
        return [float(found.mean), float(found.low), float(found.high)]
    bounded = bounded_interval(spread_of_paths(values / 100))
    return [100 * float(bounded.mean), 100 * float(bounded.low), 100 * float(bounded.high)]


def value_cell(row: Mapping[Any, Any], metric: Metric) -> str:
    """`91.30 (90.10 to 92.40)`"""
    mean, low, high = (float(row[name]) for name in VALUE)
    return with_interval(mean, low, high, digits=metric.digits)


def mean_text(values: "pd.Series[float]", metric: Metric) -> str:
    """The mean of values as people read them, one a unit, with its interval."""
    mean, low, high = _interval_of(values.to_numpy(float), metric) if len(values) else [np.nan] * 3
    return with_interval(mean, low, high, digits=metric.digits)


def accuracy_interval(reached: Measured) -> Interval:
    """Of the accuracy, a fraction."""
    right = reached.right()
    if right is not None:
        return bounded_interval(spread_of_images(right))
    return bounded_interval(spread_of_paths(reached.by_unit("accuracy").to_numpy() / 100))


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


@dataclass(frozen=True)
class Standing:
    """How arms of one cell stand to the best of them, in points; `docs/statistics.md` has the method.

    `best` has the highest mean. `close` are those, beside it, that can't be told from the best arm; `as_good` those
    that are as good within the smallest difference that matters, the best itself where that is sure too.
    """

    best: str
    close: tuple[str, ...]
    as_good: tuple[str, ...]
    at_most: Mapping[str, float]  # how far an arm lies below the best arm, at most; NaN where nothing can be said


def standing(trials: pd.DataFrame, arms: Collection[str] | None = None) -> Standing:
    """Of these arms, or of all, by the units and students that all of them have."""
    every = measured(trials)
    own = {arm: each for arm, each in every.items() if arms is None or arm in arms}
    names = list(own)
    best = max(names, key=lambda arm: own[arm].by_unit().mean())
    common = own[names[0]]
    for each in own.values():
        common = common.beside(each)[0]
    paired = [own[arm].beside(common)[0] for arm in names]
    if common.units < 2:
        return Standing(best, (), (), dict.fromkeys(names, np.nan))
    right = [each.judged() for each in paired]
    images = all(each is not None for each in right)
    values = np.stack(right if images else [each.by_unit().to_numpy() / 100 for each in paired])  # type: ignore[arg-type]
    found, matters = best_arms(values, images=images), smallest_effect(trials)
    close = tuple(arm for arm, may in zip(names, found.may_be_best, strict=True) if may and arm != best)
    within = found.within((matters or 0.0) / 100)
    as_good = tuple(arm for arm, each in zip(names, within, strict=True) if each) if matters else ()
    return Standing(best, close, as_good, dict(zip(names, 100 * found.at_most, strict=True)))


def to_ship(trials: pd.DataFrame, table: pd.DataFrame) -> tuple[Standing, "pd.Series[Any]"]:
    """How the arms of a table's rows stand, and the row to take: the cheapest that is as good as the best, or the best.

    Where no smallest difference that matters is given, no arm is as good as another.
    """
    stand = standing(trials, table["arm"].tolist())
    good = table[table["arm"].isin([stand.best, *stand.as_good])]
    if stand.as_good:
        return stand, good.sort_values("path_seconds").iloc[0]
    return stand, good[good["arm"] == stand.best].iloc[0]


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
    rows, metric = table.to_dict("records"), metric_of(trials)
    return pd.DataFrame(
        {
            **_cell_column(table),
            "comparison": [f"{row['arm']} - {row['reference']}" for row in rows],
            "of": [f"{row['units']} {row['unit']}s" for row in rows],
            f"difference, {metric.unit} (95 % CI)": [
                with_interval(row["difference"], row["low"], row["high"], "+", metric.digits) for row in rows
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
    spare = [name for name in reversed(SPARE) if name in table]
    return table[[*(name for name in table.columns if name not in SPARE), *spare]]


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
    rows, metric = [], metric_of(trials)
    for arm in sorted(done["arm"].unique(), key=lambda arm: arm_order(trials, arm)):
        tried = done[done["arm"] == arm].groupby("configuration")["value"]
        ranked = list(tried.mean().sort_values(ascending=not metric.higher).index)
        for place in sorted({0, 1, 2, len(ranked) - 1} & set(range(len(ranked)))):
            chosen = hyperparameters_of(str(ranked[place]))
            rows.append(
                (arm, f"{place + 1} of {len(ranked)}", chosen, mean_text(tried.get_group(ranked[place]), metric))
            )
    return pd.DataFrame(rows, columns=["arm", "rank", "configuration", f"val. {heading(metric)}"])


def studies_table(studies: Mapping[str, pd.DataFrame], value: str = "value") -> pd.DataFrame:
    """One row an arm, one column a study: `value` (what it goes by), `accuracy`, `over_kd` or `over_labels`, with its
    interval.
    """
    tables = {name: arms_table(trials) for name, trials in studies.items() if len(chosen_students(trials))}
    low, high = ("low", "high") if value == "accuracy" else (f"{value}_low", f"{value}_high")
    sign = "+" if value.startswith("over_") else ""
    every = pd.concat(studies.values(), ignore_index=True)
    arms = sorted({arm for table in tables.values() for arm in table["arm"]}, key=lambda arm: arm_order(every, arm))
    columns: dict[str, list[str]] = {"arm": arms}
    for name, trials in studies.items():
        rows = {row["arm"]: row for row in tables[name].to_dict("records")} if name in tables else {}
        metric = ACCURACY if value == "accuracy" else metric_of(trials)
        what = split_of(trials) + ("" if metric == ACCURACY else f", {label(metric)}")
        columns[f"{name} ({what})"] = [
            with_interval(rows[arm][value], rows[arm][low], rows[arm][high], sign, metric.digits)
            if arm in rows
            else "-"
            for arm in arms
        ]
    return pd.DataFrame(columns)


def accuracies_by_block(trials: pd.DataFrame) -> pd.DataFrame:
    """What every arm reaches by study and cell, in what the study goes by."""
    return studies_table(blocks_of(trials))


def gains_by_block(trials: pd.DataFrame) -> pd.DataFrame:
    """What every arm has over kd, by study and cell."""
    return studies_table(blocks_of(trials), "over_kd")


def cost_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Seconds and FLOPs of a student's path, alone and shared, beside its accuracy."""
    if not len(chosen_students(trials)):
        raise Missing("No student has ended yet.")
    rows, metric = arms_table(trials).to_dict("records"), metric_of(trials)
    return pd.DataFrame(
        {
            "arm": [row["arm"] for row in rows],
            f"{split_of(trials)} {heading(metric)}": [value_cell(row, metric) for row in rows],
            "seconds alone": [_number(row["path_seconds"], ".1f") for row in rows],
            "seconds shared": [_number(row["shared_seconds"], ".2f") for row in rows],
            "FLOPs alone": [_number(row["path_flops"], ".3g") for row in rows],
            "FLOPs shared": [_number(row["shared_flops"], ".3g") for row in rows],
        }
    )


def test_table(trials: pd.DataFrame) -> pd.DataFrame:
    """What the confirm phase measured beside accuracy, with intervals over paths or students, in percent."""
    final = confirmed(trials)
    there = [name for name in TEST_METRICS if name in final and final[name].notna().any()]
    if not there:
        raise Missing("Calibration, agreement, AUC and F1 are of the confirm phase; this study has none yet.")
    rows = []
    for cell, part in by_cell(trials).items():
        for arm, reached in measured(part).items():
            row = {"cell": cell, "arm": arm}
            row |= {TEST_METRICS[name]: percents(reached.by_unit(name).dropna()) for name in there}
            if "test_auc" in there and reached.rows["test_auc_low"].notna().any():
                means = 100 * reached.rows[["test_auc", "test_auc_low", "test_auc_high"]].mean()
                row["AUC (%), its interval over images"] = with_interval(*means)
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.drop(columns=[] if _cell_column(table) else ["cell"])


def percents(fractions: "pd.Series[float]") -> str:
    """The mean of fractions, one a unit, in percent with its interval."""
    if not len(fractions):
        return "-"
    estimate = bounded_interval(spread_of_paths(fractions.to_numpy(float)))
    mean, low, high = (100 * float(each) for each in (estimate.mean, estimate.low, estimate.high))
    return with_interval(mean, low, high)


def _number(value: float, form: str) -> str:
    return "-" if np.isnan(value) else f"{value:{form}}"


def heading(metric: Metric) -> str:
    """Of a column: `accuracy %`, `loss`."""
    return f"{metric.title}{' %' if metric.fraction else ''}"


def with_interval(mean: float, low: float, high: float, sign: str = "", digits: int = 2) -> str:
    """`86.00 (84.75 to 87.25)`: no number without its interval; a dash where there is no number."""
    if np.isnan(mean):
        return "-"
    mean, low, high = (without_minus_zero(each, digits) for each in (mean, low, high))
    form = f"{sign}.{digits}f"
    return f"{mean:{form}} " + ("(no interval)" if np.isnan(low) else f"({low:{form}} to {high:{form}})")


def _cell_column(table: pd.DataFrame) -> dict[str, list[str]]:
    """The cells of a table for people, where it has several."""
    return {"cell": table["cell"].tolist()} if table["cell"].nunique() > 1 else {}


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
        "paths" if len(table) and table["unit"].iloc[0] == "path" else "seeds",
        f"{short} accuracy %",
        "over kd",
        f"teacher, {short} %",
        f"assistants, {short} %",
        "path seconds",
    ]
    metric = metric_of(table)
    if metric != ACCURACY:
        header.insert(6, f"{short} {heading(metric)}")
    rows = [
        [
            row["arm"],
            row["paper"],
            str(row["configurations"]),
            str(row["students"]),
            row["best configuration"],
            str(row["units"]) + (f" x {row['seeds'] // row['units']}" if row["seeds"] > row["units"] else ""),
            with_interval(row["accuracy"], row["low"], row["high"]),
            with_interval(row["over_kd"], row["over_kd_low"], row["over_kd_high"], "+", metric.digits),
            _teacher(row, split),
            row[f"assistants_{column}"] or "-",
            f"{row['path_seconds']:.1f}",
        ]
        for row in table.to_dict("records")
    ]
    if metric != ACCURACY:
        for cells, row in zip(rows, table.to_dict("records"), strict=True):
            cells.insert(6, value_cell(row, metric))
    if cell := _cell_column(table).get("cell"):
        first = [name if name != before else "" for name, before in zip(cell, ["", *cell], strict=False)]
        return [["cell", *header], *([name, *row] for name, row in zip(first, rows, strict=True))]
    return [header, *rows]
