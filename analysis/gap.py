"""The gap figure: accuracy over the size of teacher, student and transfer set, of several studies or of one's cells.

What differs between rows is a factor. One is a figure's axis, the others that vary are its panels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from takd.analysis.arms import VALUE, arms_table, value_cell
from takd.analysis.cost import STUDENT_COSTS, on_front, students_by_size
from takd.analysis.evidence.chosen import chosen_students
from takd.analysis.figures import INK, OTHERS, WIDTH, arm_colors, styled
from takd.analysis.metrics import label as metric_label
from takd.analysis.tables import (
    Missing,
    assistants_of,
    blocks_of,
    ends_in_anothers_head,
    images_learned_from,
    metric_of,
    parameters_of,
    remembered,
)
from takd.search_spaces.metrics import Metric

# By factor how it is called. What no other tells apart is a study's own.
FACTORS = {
    "student.model": "student",
    "teacher.model": "teacher",
    "examples": "size of the transfer set",
    "study": "study",
}
CLOSE = 0.09  # of the axis: names nearer to each other than that would cover each other
PANELS = 4  # side by side


def _over_label(metric: Metric) -> str:
    """`accuracy over kd (percentage points)`; of a loss what it is less."""
    unit = " (percentage points)" if metric.fraction else ""
    return f"{metric.title} {'over' if metric.higher else 'below that of'} kd{unit}"


@remembered
def rows_of(trials: pd.DataFrame) -> pd.DataFrame:
    """One row an arm of each study and cell: its `accuracy`, or what the study goes by, and its difference to kd, with
    intervals.

    Columns: those of FACTORS; `student.model size` and `teacher.model size` in parameters; `arm`, `split`; `accuracy`,
    `low`, `high` in percent; `over_kd`, `over_kd_low`, `over_kd_high` in points.
    """
    parts = [_rows_of_block(rows) for rows in blocks_of(_apart_by_teacher(trials)).values()]
    rows = pd.concat([pd.DataFrame(columns=COLUMNS), *(part for part in parts if len(part))], ignore_index=True)
    if not len(rows):
        raise Missing("No student has ended yet.")
    return rows


COLUMNS = [
    *FACTORS, "student.model size", "teacher.model size", "examples size", "arm", "split", "accuracy", "low", "high",
    "over_kd", "over_kd_low", "over_kd_high", "metric", "metric_title", "metric_higher", "metric_fraction",
]  # fmt: skip


def _rows_of_block(trials: pd.DataFrame) -> pd.DataFrame:
    chosen = chosen_students(trials)
    if not len(chosen):
        return pd.DataFrame()
    table = arms_table(trials)
    table[["accuracy", "low", "high"]] = table[VALUE]
    table["study"] = trials["study"].iloc[0]
    for role in ("teacher", "student"):
        lone = ~trials["arm"].str.startswith("ensemble")  # an ensemble's members are no one teacher
        found = trials[(trials["role"] == role) & trials["parameters"].notna() & lone]
        found = found.iloc[found["arm"].map(ends_in_anothers_head).argsort(kind="stable")]  # such are larger than it
        table[f"{role}.model"] = found["model"].iloc[0] if len(found) else None
        table[f"{role}.model size"] = float(found["parameters"].iloc[0]) if len(found) else np.nan
    table["examples"] = f"{images_learned_from(chosen):,}"
    table["examples size"] = float(images_learned_from(chosen))
    return table[[column for column in COLUMNS if column in table]]


def _apart_by_teacher(trials: pd.DataFrame) -> pd.DataFrame:
    """A study that searched its teacher as one study a teacher, each with the arms that have none.

    The confirm phase has one teacher an arm, so all are then looked at as the search measured them.
    """
    teacher = trials["configuration"].map(lambda configuration: parameters_of(configuration).get("teacher.model"))
    cells = trials["cell"].fillna("") if "cell" in trials else ""
    teacher = teacher.where(~pd.Series(cells, index=trials.index).str.contains("teacher.model="))  # a factor is apart
    if not teacher.notna().any():
        return trials
    searched, teacher = trials[trials["phase"] == "search"], teacher[trials["phase"] == "search"]
    parts = []
    for study, rows in searched.groupby("study", sort=False):
        own = teacher[rows.index]
        taught = rows["arm"].isin(rows.loc[own.notna(), "arm"].unique())
        for model in own.dropna().unique() if own.notna().any() else [None]:
            part = rows[(own == model) | ~taught] if model else rows
            parts.append(part.assign(study=f"{study} {model or ''}".strip()))
    return pd.concat(parts, ignore_index=True)


def varied_in(rows: pd.DataFrame) -> list[str]:
    """The factors that differ between rows; `study` is one only where the others don't tell its rows apart."""
    sizes = [name for name in FACTORS if name != "study" and rows[name].nunique() > 1]
    apart = not rows.duplicated([*sizes, "arm"]).any()
    return sizes if apart else [*sizes, "study"]


def main_factor(trials: pd.DataFrame) -> str | None:
    """The axis of the figure that says most: the factor with most values; None where nothing varies."""
    rows = rows_of(trials)
    varied = varied_in(rows)
    return max(varied, key=lambda name: (name != "study", rows[name].nunique())) if varied else None


# Figures, each of the trials of several studies, or of one


def accuracy_by_student(trials: pd.DataFrame) -> Figure:
    """Every arm's accuracy, its student larger and larger."""
    return _accuracy_over(trials, "student.model")


def accuracy_by_teacher(trials: pd.DataFrame) -> Figure:
    """The paper's gap figure (Mirzadeh et al. 2020, figure 2): the student fixed, its teacher larger and larger."""
    return _accuracy_over(trials, "teacher.model")


def accuracy_by_examples(trials: pd.DataFrame) -> Figure:
    """Every arm's accuracy, the transfer set larger and larger."""
    return _accuracy_over(trials, "examples")


def accuracy_by_study(trials: pd.DataFrame) -> Figure:
    """Every arm's accuracy by study, where the sizes of models and transfer set don't tell studies apart."""
    return _accuracy_over(trials, "study")


def gain_by_factor(trials: pd.DataFrame) -> Figure:
    """What each assistant adds to kd, over the factor that has most values."""
    rows = rows_of(trials)
    varied, axis = varied_in(rows), main_factor(trials)
    if axis is None:
        raise Missing(_nothing_varies(rows, "student.model"))
    rows = rows[rows["arm"].map(lambda arm: bool(assistants_of(arm))) & rows["over_kd"].notna()]
    if not len(rows):
        raise Missing("No study has kd beside an arm with an assistant.")
    gains = rows.drop(columns=["accuracy", "low", "high"]).rename(
        columns={"over_kd": "accuracy", "over_kd_low": "low", "over_kd_high": "high"}
    )
    label = f"{_split(rows)} {_over_label(metric_of(rows))}"
    figure = over_factor(gains, axis, varied, arm_colors(trials), label)
    for axes in figure.axes:
        axes.axhline(0, color=OTHERS, lw=1, zorder=1)
    return figure


def students_front(trials: pd.DataFrame, latencies: Mapping[str, float]) -> Figure:
    """What students of several sizes reach over what they cost to run, with the Pareto front over all cells."""
    rows = _by_size(trials, latencies)
    panels = [cost for cost in STUDENT_COSTS if rows[cost].notna().any()]
    return _front(rows, panels, arm_colors(trials))


def front_table(trials: pd.DataFrame, latencies: Mapping[str, float]) -> pd.DataFrame:
    """The students on a front, the smallest first, and in which costs no other beats them."""
    rows = _by_size(trials, latencies).sort_values(["parameters", "score"], ascending=[True, False])
    fronts = {cost: rows[f"front_of_{cost}"] for cost in STUDENT_COSTS}
    rows = rows[np.logical_or.reduce(list(fronts.values()))]
    metric = metric_of(rows)
    return pd.DataFrame(
        {
            "student": rows["model"],
            "arm": rows["arm"],
            **({"cell": rows["cell"]} if rows["cell"].nunique() > rows["model"].nunique() else {}),
            _metric_label(rows): [value_cell(row, metric) for row in rows.to_dict("records")],
            "parameters": [f"{each:,.0f}" for each in rows["parameters"]],
            "FLOPs an image": [f"{each:,.0f}" for each in rows["flops_per_image"]],
            "ms an image": ["not measured" if np.isnan(each) else f"{each:.3g}" for each in rows["milliseconds"]],
            "no other beats it by": [
                ", ".join(COSTS[cost][0] for cost in STUDENT_COSTS if row[f"front_of_{cost}"])
                for row in rows.to_dict("records")
            ],
        }
    )


COSTS = {  # name and unit
    "parameters": ("parameters", "parameters"),
    "flops_per_image": ("FLOPs", "FLOPs of one image"),
    "milliseconds": ("latency", "ms of one image, one thread"),
}


def _by_size(trials: pd.DataFrame, latencies: Mapping[str, float]) -> pd.DataFrame:
    parts = [
        students_by_size(part, arms_table(part), latencies)
        for _, part in trials.groupby("study", sort=False)
        if len(chosen_students(part))
    ]
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["model"])
    if rows["model"].nunique() < 2:
        raise Missing("All students are of one size; `factors: {student.model: [...]}` compares several.")
    for cost in STUDENT_COSTS:  # of all studies together
        rows[f"front_of_{cost}"] = on_front(rows[cost].to_numpy(float), rows["score"].to_numpy(float))
    return rows


def _metric_label(rows: pd.DataFrame) -> str:
    return f"student's {_split(rows)} {metric_label(metric_of(rows))}"


@styled
def _front(rows: pd.DataFrame, panels: Sequence[str], colors: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, cost in zip(grid, panels, strict=True):
        there = rows[rows[cost].notna()]
        front = there[there[f"front_of_{cost}"]].sort_values([cost, "score"])
        axes.plot(front[cost], front["value"], color=OTHERS, lw=1.5, drawstyle="steps-post", zorder=1)
        for arm, own in there.groupby("arm", sort=False):
            errors = np.nan_to_num([own["value"] - own["value_low"], own["value_high"] - own["value"]])
            axes.errorbar(
                own[cost], own["value"], yerr=errors, fmt="o", color=colors[str(arm)], ms=4, capsize=2, lw=1, label=arm
            )
        for row in front.drop_duplicates("model", keep="last").to_dict("records"):
            axes.annotate(
                row["model"], (row[cost], row["value"]), xytext=(-5, 6), textcoords="offset points", ha="right",
                fontsize=8, color=INK,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.3)
        wide = there[cost].max() > 30 * there[cost].min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel(f"{COSTS[cost][1]}\n(log scale)", fontsize=9)
    figure.supylabel(_metric_label(rows), fontsize=10)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def _short(value: float) -> str:
    """`0.02`, `500`, `20 k`, `1.5 M`, `4 G`."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _accuracy_over(trials: pd.DataFrame, axis: str) -> Figure:
    rows = rows_of(trials)
    rows = rows[rows[axis].notna()]
    varied = varied_in(rows)
    if axis not in varied:
        raise Missing(_nothing_varies(rows, axis))
    return over_factor(rows, axis, varied, arm_colors(trials), _metric_label(rows))


def _nothing_varies(rows: pd.DataFrame, axis: str) -> str:
    if axis == "study":
        return "The sizes of models and transfer set tell these studies apart, so there is no figure by study."
    return (
        f"All of these results have one {FACTORS[axis]}. `takd report A B` puts studies into one figure, and a space's "
        "`factors` compares several in one study."
    )


def _split(rows: pd.DataFrame) -> str:
    return " or ".join(sorted(rows["split"].unique()))


@styled
def over_factor(rows: pd.DataFrame, axis: str, factors: Sequence[str], colors: dict[str, str], label: str) -> Figure:
    """A line an arm over one factor, a panel for each combination of the others.

    `rows` has a row an arm and combination: a column for each of `factors` with its value, `arm`, `accuracy`, `low` and
    `high`, the latter two NaN where there is no interval. Where a column `AXIS size` is there, values stand at its
    logarithm, else evenly in the order of the rows. `label` is what the numbers are, with their unit.
    """
    others = [name for name in factors if name != axis and rows[name].nunique() > 1]
    places = _places(rows, axis)
    panels: list[tuple[Any, pd.DataFrame]] = [*rows.groupby(others, sort=False)] if others else [((), rows)]
    panels.sort(key=lambda panel: [_order(rows, name, value) for name, value in zip(others, panel[0], strict=True)])
    columns = rows[others[-1]].nunique() if others else 1
    columns = min(columns, PANELS) if len(others) > 1 else min(len(panels), PANELS)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, 4.6 if lines == 1 else 1.2 + 2.5 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey="row")
    arms = [arm for arm in colors if arm in set(rows["arm"])]
    for axes, (values, own) in zip(grid.flat, panels, strict=False):
        for shift, arm in zip(_shifts(places, len(arms)), arms, strict=True):
            line = own[own["arm"] == arm]
            line = line.assign(x=line[axis].map(places) + shift).sort_values("x")
            if f"{axis} size" in rows:  # names alone have no order
                axes.plot(line["x"], line["accuracy"], color=colors[arm], lw=1.4)
            errors = np.nan_to_num([line["accuracy"] - line["low"], line["high"] - line["accuracy"]])
            axes.errorbar(
                line["x"], line["accuracy"], yerr=errors, fmt="o", color=colors[arm], ms=4, capsize=2, lw=1, label=arm
            )
        axes.set_xticks(list(places.values()), list(places), fontsize=8, rotation=30 if columns > 1 else 0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x", visible=False)
        if others:
            named = (f"{FACTORS.get(name, name)} {value}" for name, value in zip(others, values, strict=True))
            axes.set_title("\n".join(named), fontsize=9, color=INK)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    ordered = ", smaller to larger" if f"{axis} size" in rows else ""
    figure.supxlabel(f"{FACTORS.get(axis, axis)}{ordered}", fontsize=10)
    figure.supylabel(label, fontsize=10)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def _places(rows: pd.DataFrame, axis: str) -> dict[str, float]:
    """By value where it stands: at the logarithm of its size, or in turn where sizes are not known or too close."""
    if f"{axis} size" in rows:
        sizes = rows.groupby(axis)[f"{axis} size"].first().astype(float).sort_values()
        places = np.log(sizes.where(sizes > 0).to_numpy())
        apart = np.diff(places).min(initial=np.inf) / max(np.ptp(places), 1e-9)
        names = [str(name) for name in sizes.index]
        if np.isfinite(places).all() and apart > CLOSE:
            return dict(zip(names, map(float, places), strict=True))
    else:
        names = [str(name) for name in rows[axis].unique()]
    return {name: float(place) for place, name in enumerate(names)}


def _order(rows: pd.DataFrame, name: str, value: Any) -> tuple[float, int]:
    """Panels stand by size, else in the order of the rows."""
    of_value = rows[rows[name] == value]
    size = float(of_value[f"{name} size"].iloc[0]) if f"{name} size" in rows else 0.0
    return (size, int(of_value.index[0]))


def _shifts(places: dict[str, float], arms: int) -> Sequence[float]:
    """Arms beside each other at one place, so that no interval covers another; a lone one stands in its place."""
    if arms == 1:
        return [0.0]
    gaps = np.diff(sorted(places.values()))
    return [float(shift) for shift in np.linspace(-0.12, 0.12, arms) * (gaps.min() if len(gaps) else 1)]
