"""Figures of a study. One function a figure: each takes tables and returns a matplotlib figure, or raises Missing.

An arm has one colour everywhere. Bands and bars are 95 % intervals, over paths or students and over test images. Axes
name their units.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from takd.analysis.arms import REFERENCES, arms_table, comparisons
from takd.analysis.cost import pareto_front
from takd.analysis.evidence.chosen import chosen_students, unit_of
from takd.analysis.evidence.sizes import by_size
from takd.analysis.evidence.statistics import (
    ALPHA,
    Estimate,
    Interval,
    bounded_interval,
    mean_interval,
    spread_of_paths,
)
from takd.analysis.importance import importance
from takd.analysis.metrics import column_of, label
from takd.analysis.tables import (
    Missing,
    P,
    arm_order,
    assistants_of,
    by_lambda,
    confirmed,
    images_text,
    is_another_method,
    metric_of,
    of_assistant,
    remembering,
    sized_arms,
    split_of,
    students,
)
from takd.search_spaces.arms import ANY_SIZE
from takd.search_spaces.metrics import ACCURACY, Metric
from takd.search_spaces.stage import BINS

# Okabe and Ito's palette: tells apart also without full colour vision, on white and on black.
ASSISTED = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8F7A00")
FIXED = {"labels": "#7F7F7F", "label_smoothing": "#A6761D", "kd": "#2A86C8", "ensemble": "#7B3FA0"}
INK, FAINT, OTHERS = "#222222", "#88888840", "#A0A0A0"
WIDTH = 8.0  # inches
CHARACTERS = 84  # that fit below the axis of one panel
# The parts of a figure that the report turns light on a dark page.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "takd",  # the same figure, the same file
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A figure in the style of all, for which each table is made once."""
    return remembering()(matplotlib.rc_context(STYLE)(draw))


def arm_colors(trials: pd.DataFrame) -> dict[str, str]:
    """By arm its colour, in the paper's order; arms with assistants in the order of their size."""
    arms = sorted(trials["arm"].unique(), key=lambda arm: arm_order(trials, arm))
    others = [arm for arm in arms if arm not in FIXED]
    return FIXED | {arm: ASSISTED[place % len(ASSISTED)] for place, arm in enumerate(others)}


def _figure(height: float = 4.5, rows: int = 1, columns: int = 1, **shared: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **shared)


def image(figure: Figure, kind: str) -> bytes:
    """`png` (150 dpi, on white) or `svg` (on nothing)."""
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
            figure.draw_without_rendering()  # finds every place once, for all the forms that it is written in
            figure.set_layout_engine("none")
        # As `Figure.savefig`, which would draw it twice.
        if kind == "svg":
            patches = [figure.patch, *(axes.patch for axes in figure.axes)]
            alphas = [patch.get_alpha() for patch in patches]
            for patch in patches:
                patch.set_alpha(0)
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
            for patch, alpha in zip(patches, alphas, strict=True):
                patch.set_alpha(alpha)
        else:
            figure.set_dpi(150)
            FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _labels_apart(axes: Any, ends: Sequence[tuple[str, float, str]], gap: float = 0.055) -> None:
    """Direct labels at the right edge, moved apart where lines end close together: text, y and colour of each."""
    low, high = axes.get_ylim()
    place = -np.inf
    for text, y, color in sorted(ends, key=lambda end: end[1]):
        fraction = max((y - low) / (high - low), place + gap)
        place = fraction
        axes.annotate(
            text, (1, fraction), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points", va="center",
            color=color, fontsize=9, annotation_clip=False,
        )  # fmt: skip


def _students_of(trials: pd.DataFrame) -> pd.DataFrame:
    rows = chosen_students(trials)
    if not len(rows):
        raise Missing("No student has ended yet.")
    return rows


def _value_label(trials: pd.DataFrame) -> str:
    return f"student's {split_of(trials)} {label(metric_of(trials))}"


# Accuracy by size


@styled
def accuracy_by_assistant(trials: pd.DataFrame) -> Figure:
    """Student accuracy by assistant size, against the lines of `labels` and `kd`; dots are single students."""
    chosen, table, colors = _students_of(trials), arms_table(trials).set_index("arm"), arm_colors(trials)
    assisted = [arm for arm in table.index if arm not in FIXED]
    figure, axes = _figure(5)
    for place, arm in enumerate(assisted):
        row, own = table.loc[arm], chosen.loc[chosen["arm"] == arm, "value"]
        axes.plot([place - 0.16] * len(own), own, ".", color=colors[arm], alpha=0.6)
        _bar(axes, place, row, colors[arm])
    for arm in (arm for arm in table.index if arm in FIXED):
        row = table.loc[arm]
        axes.axhline(row["value"], color=colors[arm], linewidth=2)
        if not np.isnan(row["value_low"]):
            axes.axhspan(row["value_low"], row["value_high"], color=colors[arm], alpha=0.13, linewidth=0)
    names = [_assistant_label(trials, arm) for arm in assisted]
    crowded = sum(2 + max(map(len, name.split("\n"))) for name in names) > CHARACTERS
    axes.set_xticks(range(len(names)), names, **({"rotation": 35, "ha": "right"} if crowded else {}))
    axes.set_xlim(-0.6, max(len(assisted), 1) - 0.4)
    methods = any(map(is_another_method, assisted))
    about = "teacher assistant (its parameters, its own validation accuracy), larger to smaller"
    axes.set_xlabel("arm (its assistant's parameters and own validation accuracy)" if methods else about)
    axes.set_ylabel(_value_label(trials))
    axes.set_title(f"{_what(chosen)}: what an assistant{' or another method' * methods} changes")
    axes.grid(axis="x", visible=False)
    lowest = min(table["value"].min(), table["value_low"].min(), chosen["value"].quantile(0.05))
    highest = max(chosen["value"].quantile(0.99), table["value_high"].max(), table["value"].max())
    margin = 0.1 if metric_of(trials).fraction else max(0.02 * (highest - lowest), 1e-4)
    axes.set_ylim(lowest - margin, highest + margin)
    fixed, digits = {"labels": "labels alone", "kd": "kd, no assistant"}, metric_of(trials).digits
    means = {arm: table.loc[arm, "value"] for arm in table.index if arm in FIXED}
    ends = [(f"{fixed.get(arm, arm)}\n{mean:.{digits}f}", mean, colors[arm]) for arm, mean in means.items()]
    _labels_apart(axes, ends, gap=0.1)
    return figure


@styled
def accuracy_by_size(trials: pd.DataFrame) -> Figure:
    """The student's accuracy over the size of an assistant that the search chose; dots are configurations."""
    arms = sized_arms(trials)
    if not arms:
        raise Missing("No size of an assistant was searched; `assistants: {models: {family: mlp, size: ...}}` does.")
    found, metric = {arm: by_size(trials, arm) for arm in arms}, metric_of(trials)
    digits = metric.digits
    figure, grid = _figure(4.6, 1, len(arms), squeeze=False, sharey=True)
    for axes, (arm, sized) in zip(grid[0], found.items(), strict=True):
        color, dots = arm_colors(trials)[arm], sized.configurations
        axes.plot(dots["size"], dots["value"], ".", color=color, alpha=0.5, label="one configuration")
        for number, band in enumerate(sized.bands):
            ends = [band.smallest, max(band.largest, band.smallest * 1.02)]
            named = "mean of a range of sizes, 95 % interval" if number == 0 else None
            axes.fill_between(ends, band.low, band.high, color=color, alpha=0.18, linewidth=0)
            axes.plot(ends, [band.value] * 2, color=color, lw=2.5 if band.best else 1.5, label=named)
            axes.annotate(
                f"{band.value:.{digits}f}", (np.sqrt(ends[0] * ends[1]), band.high), xytext=(0, 3),
                textcoords="offset points", ha="center", fontsize=8, color=INK, weight="bold" if band.best else None,
            )  # fmt: skip
        if dots["size"].max() > 4 * dots["size"].min():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        low, high = (0.1, 1.0) if metric.higher else (0.0, 0.9)  # the worst lie far out
        low = min([float(dots["value"].quantile(low)), *(band.low for band in sized.bands)])
        high = max([float(dots["value"].quantile(high)), *(band.high for band in sized.bands)])
        margin = 0.3 if metric.fraction else 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)
        axes.set_title(arm, fontsize=10, color=color)
        axes.set_xlabel(f"size of {next(each for each in assistants_of(arm)[::-1] if each.endswith(ANY_SIZE))}")
    grid[0][0].set_ylabel(f"student's validation {metric.title} in the search{' (%)' if metric.fraction else ''}")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def _bar(axes: Any, x: float, row: Any, color: str, **given: Any) -> None:
    """A mean with its interval; the mean alone where there is none."""
    mean, low, high = row["value"], row["value_low"], row["value_high"]
    error = None if np.isnan(low) else [[mean - low], [high - mean]]
    axes.errorbar(x, mean, yerr=error, fmt="o", color=color, capsize=4, markersize=7, zorder=4, **given)


def _what(chosen: pd.DataFrame) -> str:
    return f"Student {chosen['model'].iloc[0]} on {images_text(chosen)}"


def _assistant_label(trials: pd.DataFrame, arm: str) -> str:
    own = trials[(trials["role"] == "assistant") & (trials["status"] == "done")]
    own = own[of_assistant(own, arm)] if assistants_of(arm) else own[own["model"] == arm]
    searched = bool(assistants_of(arm)) and assistants_of(arm)[-1].endswith(ANY_SIZE)
    if searched:  # of many the one that was chosen
        own = own[own["configuration"].isin(chosen_students(trials)["configuration"])]
    if "phase" in own and (own["phase"] == (phase := chosen_students(trials)["phase"].iloc[0])).any():
        own = own[own["phase"] == phase]
    size, accuracy = own["parameters"].max(), own.drop_duplicates("stage_key")["val_accuracy"].mean()
    known = [str(model) for model in own["model"].unique()] if searched else []
    known += [] if pd.isna(size) else [f"{size / 1e3:,.0f} k"]
    known += [] if pd.isna(accuracy) else [f"{100 * accuracy:.1f} %"]
    about = f"\n{', '.join(known) or 'not known'}" if len(own) else ""
    kind, _, chain = arm.partition(":")
    name = chain.replace(">", ">\n")  # a line an assistant
    return f"{name if kind in ('takd', 'kd') else f'{kind} {name}'.strip()}{about}"


@styled
def differences(trials: pd.DataFrame) -> Figure:
    """Every arm against kd and labels, paired: the mean difference with its interval, hollow where not sure."""
    _students_of(trials)
    compared, colors = comparisons(trials).dropna(subset=["difference"]), arm_colors(trials)
    if not len(compared):
        raise Missing("No two arms have a seed in common yet.")
    panels = [reference for reference in REFERENCES if (compared["reference"] == reference).any()]
    figure, grid = _figure(1.4 + 0.42 * compared["reference"].value_counts().max(), 1, len(panels), squeeze=False)
    for axes, reference in zip(grid[0], panels, strict=True):
        rows = compared[compared["reference"] == reference].to_dict("records")
        axes.axvline(0, color=OTHERS, lw=1)
        for place, row in enumerate(rows[::-1]):
            error = (
                None if np.isnan(row["low"]) else [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
            )
            color = colors[row["arm"]]
            inside = color if row["p_holm"] < ALPHA else "none"
            axes.errorbar(
                row["difference"],
                place,
                xerr=error,
                fmt="o",
                capsize=4,
                markersize=7,
                color=color,
                markerfacecolor=inside,
            )
        axes.set_yticks(range(len(rows)), [row["arm"] for row in rows[::-1]])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"over {reference}")
    figure.supxlabel(
        f"{_difference_label(trials)}, paired by {'path' if unit_of(trials) == 'path' else 'seed'}\n"
        "bars: 95 % intervals; filled: p < 0.05 after Holm's correction", fontsize=10,
    )  # fmt: skip
    return figure


# Temperature and lambda


@styled
def temperature_lambda_map(trials: pd.DataFrame) -> Figure:
    """What the search reached on validation by temperature and lambda; one panel an arm, one scale for all."""
    done, metric = _distilled(trials), metric_of(trials)
    arms = sorted(done["arm"].unique(), key=lambda arm: arm_order(trials, arm))
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    figure, grid = _figure(1.0 + 2.6 * rows, rows, columns, squeeze=False, sharex=True, sharey=True)
    ts, ls = _bins(done["temperature"]), _bins(done["lambda"])
    maps = {
        arm: done[done["arm"] == arm].assign(t=lambda row: ts(row["temperature"]), l=lambda row: ls(row["lambda"]))
        .pivot_table(index="l", columns="t", values="value", aggfunc="mean")
        .reindex(index=range(len(ls.names)), columns=range(len(ts.names)))
        for arm in arms
    }  # fmt: skip
    low = min(np.nanquantile(each.to_numpy(), 0.05) for each in maps.values())
    high = max(np.nanmax(each.to_numpy()) for each in maps.values())
    for axes, arm in zip(grid.flat, arms, strict=False):
        drawn = axes.imshow(maps[arm], origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high)
        for (lam, t), value in np.ndenumerate(maps[arm].to_numpy()):
            if np.isfinite(value):
                ink = "#FFFFFF" if value < (low + high) / 2 else "#111111"
                axes.text(
                    t, lam, f"{value:.{1 if metric.fraction else 3}f}", ha="center", va="center", fontsize=7, color=ink
                )
        axes.set_title(arm, color=arm_colors(trials)[arm], fontsize=10)
        axes.set_xticks(range(len(ts.names)), ts.names, fontsize=8, rotation=45 if max(map(len, ts.names)) > 3 else 0)
        axes.set_yticks(range(len(ls.names)), ls.names, fontsize=8)
        axes.grid(visible=False)
    for axes in list(grid.flat)[len(arms) :]:
        axes.axis("off")
    figure.supxlabel("temperature T")
    figure.supylabel("lambda, the weight of the soft targets")
    figure.colorbar(drawn, ax=grid, label=f"validation {label(metric)}", shrink=0.8)
    return figure


class _bins:  # noqa: N801  # called like the function it is
    """Puts values into cells: one a value where there are few, else a handful of equal counts."""

    MOST = 8

    def __init__(self, values: "pd.Series[float]") -> None:
        unique = np.unique(values)
        self.unique = unique if len(unique) <= self.MOST else None
        self.edges = np.unique(np.quantile(values, np.linspace(0, 1, 6)))
        self.names = (
            [f"{value:.3g}" for value in unique]
            if self.unique is not None
            else [f"{low:.2g}-{high:.2g}" for low, high in zip(self.edges, self.edges[1:], strict=False)]
        )

    def __call__(self, values: "pd.Series[float]") -> np.ndarray[Any, Any]:
        if self.unique is not None:
            return np.searchsorted(self.unique, values)
        return np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, len(self.names) - 1)


def _distilled(trials: pd.DataFrame) -> pd.DataFrame:
    done = by_lambda(students(trials)).dropna(subset=["temperature", "lambda"])
    if not len(done):
        raise Missing("No student that learns from soft targets has ended yet.")
    return done


@styled
def slices(trials: pd.DataFrame) -> Figure:
    """What the search reached by temperature and by lambda, over all that the other was; one line an arm."""
    done, colors, metric = _distilled(trials), arm_colors(trials), metric_of(trials)
    figure, (left, right) = _figure(4.2, 1, 2, sharey=True)
    arms = sorted(done["arm"].unique(), key=lambda arm: arm_order(trials, arm))
    for axes, name in ((left, "temperature"), (right, "lambda")):
        bins = _bins(done[name])
        for shift, arm in zip(np.linspace(-0.15, 0.15, len(arms)), arms, strict=True):
            rows = done[done["arm"] == arm]
            groups = rows.groupby(bins(rows[name]))["value"]
            cells = {cell: _interval(group / metric.times, metric) for cell, group in groups}
            x = np.array(list(cells), float) + shift
            means = np.array([metric.times * float(each.mean) for each in cells.values()])
            ends = np.array(
                [[metric.times * float(each.low), metric.times * float(each.high)] for each in cells.values()]
            ).T
            axes.errorbar(
                x,
                means,
                yerr=np.nan_to_num(np.abs(ends - means)),
                fmt="o-",
                color=colors[arm],
                label=arm,
                capsize=2,
                ms=4,
                lw=1.2,
            )
        axes.set_xticks(range(len(bins.names)), bins.names, rotation=45 if max(map(len, bins.names)) > 4 else 0)
        axes.set_xlabel({"temperature": "temperature T", "lambda": "lambda, the weight of the soft targets"}[name])
    left.set_ylabel(f"validation {label(metric)}")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper left", ncols=min(4, len(arms)), frameon=False, fontsize=9
    )
    return figure


@styled
def entropy_by_temperature(logits: Mapping[str, np.ndarray[Any, Any] | None]) -> Figure:
    """How soft the soft targets are: their entropy in bits by temperature, of each model that others learn from.

    `logits` has by model's name `[images, classes]`, the teacher's first. Lines are medians over images; the band holds
    the middle half of the teacher's.
    """
    there = {name: each for name, each in logits.items() if each is not None}
    if not there:
        raise Missing("No artifact with soft targets was found below this root.")
    temperatures = np.geomspace(1, 64, 25)
    figure, axes = _figure()
    for place, (name, each) in enumerate(there.items()):
        sample = each[:: max(1, len(each) // 5000)]
        bits = np.stack([_entropy(sample / T) for T in temperatures])
        color = INK if place == 0 else ASSISTED[(place - 1) % len(ASSISTED)]
        middle = np.median(bits, axis=1)
        axes.plot(temperatures, middle, color=color, ls="-" if place else "--", label=name)
        if place == 0:
            axes.fill_between(temperatures, *np.quantile(bits, (0.25, 0.75), axis=1), color=FAINT, linewidth=0)
    most = float(np.log2(next(iter(there.values())).shape[1]))
    axes.axhline(most, color=OTHERS, lw=1, ls=":")
    axes.annotate(f"uniform: {most:.2f} bits", (1.05, most), va="bottom", fontsize=9, color=OTHERS)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axes.set_xlabel("temperature T (log scale)")
    axes.set_ylabel("entropy of the soft targets (bits)")
    axes.set_ylim(0, most * 1.1)
    axes.set_title("What temperature does to the targets")
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def _entropy(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """In bits, of softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.asarray(-(np.exp(logp) * logp).sum(axis=-1) / np.log(2))


@styled
def parameter_importance(trials: pd.DataFrame) -> Figure:
    """How much of the variance between configurations each parameter explains, beside what chance explains."""
    table = importance(trials)
    if not len(table):
        raise Missing("Too few configurations were tried to tell which parameter mattered.")
    figure, axes = _figure(1.2 + 0.5 * len(table))
    places = range(len(table))[::-1]
    axes.barh(places, 100 * table["chance"], height=0.7, color=OTHERS, alpha=0.35)
    axes.barh(places, 100 * table["explained"], height=0.35, color=FIXED["kd"])
    for place, row in zip(places, table.to_dict("records"), strict=True):
        right = 100 * max(row["explained"], row["chance"])
        axes.annotate(
            f"{100 * row['explained']:.0f} %", (right, place), xytext=(7, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(places, table["parameter"])
    axes.set_xlim(0, max(105.0, 100 * table["chance"].max() + 12))
    axes.set_xlabel(
        "explained variance of the configurations' mean validation "
        f"{metric_of(trials).title} (%)\n"
        "grey: what chance explains in 19 of 20 studies"
    )
    axes.grid(axis="y", visible=False)
    return figure


# Cost


@styled
def pareto(trials: pd.DataFrame) -> Figure:
    """Accuracy by the training seconds of the path, of one student alone and with shared stages divided."""
    _students_of(trials)
    table, colors = arms_table(trials), arm_colors(trials)
    figure, grid = _figure(4.6, 1, 2, sharey=True)
    kinds = {"path_seconds": "one student alone", "shared_seconds": "shared stages divided among their students"}
    for axes, (cost, title) in zip(grid, kinds.items(), strict=True):
        there = table.dropna(subset=[cost])
        if not len(there):
            raise Missing("No path has ended as a whole yet.")
        front = there.set_index("arm").loc[pareto_front(there, cost)]
        axes.plot(front[cost], front["value"], color=OTHERS, lw=1.5, drawstyle="steps-post")
        for row in there.to_dict("records"):
            _bar(axes, row[cost], row, colors[row["arm"]])
        axes.set_xscale("log")
        wide = there[cost].max() > 20 * there[cost].min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if wide else (1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=10)
    grid[0].set_ylabel(_value_label(trials))
    ends = [(row["arm"], row["value"], colors[row["arm"]]) for row in table.to_dict("records")]
    _labels_apart(grid[1], ends)
    figure.supxlabel("seconds of training a student's path took (log scale); grey steps: the Pareto front", fontsize=10)
    return figure


# Training and calibration


@styled
def training_curves(trials: pd.DataFrame, epochs: pd.DataFrame) -> Figure:
    """Validation accuracy and losses by epoch: mean and interval over each arm's chosen students."""
    chosen, colors = _students_of(trials), arm_colors(trials)
    rows = epochs.merge(chosen[["stage_key", "arm"]], on="stage_key")
    if not len(rows):
        raise Missing("No epoch of the chosen students is in results/epochs.parquet.")
    figure, grid = _figure(4.2, 1, 2)
    metric = metric_of(trials)
    if metric.name == "loss" or (column_of(metric).searched or "") not in rows:
        metric = ACCURACY
    for axes, column, scale, name in (
        (grid[0], f"val_{metric.name}", metric.times, f"validation {label(metric)}"),
        (grid[1], "val_loss", 1, "validation loss, cross-entropy (nats)"),
    ):
        measured = rows.dropna(subset=[column])
        for arm in sorted(measured["arm"].unique(), key=lambda arm: arm_order(trials, arm)):
            mean, low, high = _by_epoch(measured[measured["arm"] == arm], column)
            axes.plot(mean.index, scale * mean, color=colors[arm], lw=1.6, label=arm)
            axes.fill_between(mean.index, scale * low, scale * high, color=colors[arm], alpha=0.13, linewidth=0)
        later = scale * measured.loc[measured["epoch"] > measured["epoch"].max() * 0.15, column]
        if len(later) > 1 and later.min() < later.max():
            margin = 0.05 * (later.max() - later.min())
            axes.set_ylim(later.quantile(0.02) - margin, later.quantile(0.98) + margin)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def _interval(values: "pd.Series[float]", metric: Metric) -> Interval | Estimate:
    return bounded_interval(spread_of_paths(values)) if metric.fraction else mean_interval(values)


def _difference_label(trials: pd.DataFrame) -> str:
    """`difference in test accuracy (percentage points)`; of a loss what it is less."""
    metric = metric_of(trials)
    unit = " (percentage points)" if metric.fraction else ""
    what = "difference in" if metric.higher else "what is less of the"
    return f"{what} {split_of(trials)} {metric.title}{unit}"


def _by_epoch(rows: pd.DataFrame, column: str) -> tuple["pd.Series[float]", "pd.Series[float]", "pd.Series[float]"]:
    """Mean by epoch, with the ends of its interval."""
    bounded = column.endswith("accuracy")
    groups = rows.groupby("epoch")[column]
    estimates = {
        epoch: bounded_interval(spread_of_paths(group)) if bounded else mean_interval(group) for epoch, group in groups
    }
    parts = [
        pd.Series({epoch: float(getattr(each, part)) for epoch, each in estimates.items()})
        for part in ("mean", "low", "high")
    ]
    return parts[0], parts[1], parts[2]


@styled
def upstream_curves(trials: pd.DataFrame, epochs: pd.DataFrame) -> Figure:
    """Validation accuracy by epoch of the teacher and the assistants."""
    rows = epochs[(epochs["role"] != "student") & epochs["val_accuracy"].notna()]
    if not len(rows):
        raise Missing("No teacher or assistant has ended yet.")
    figure, axes = _figure(3.8)
    ends = []
    order = trials.dropna(subset=["parameters"]).groupby("model")["parameters"].max().sort_values(ascending=False)
    for place, model in enumerate(model for model in order.index if model in set(rows["model"])):
        color = INK if place == 0 else ASSISTED[(place - 1) % len(ASSISTED)]
        curve = 100 * rows[rows["model"] == model].groupby("epoch")["val_accuracy"].mean()
        axes.plot(curve.index, curve, "o-", ms=3, color=color)
        ends.append((str(model), float(curve.iloc[-1]), color))
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title("Teacher and assistants")
    _labels_apart(axes, ends)
    return figure


@styled
def reliability(trials: pd.DataFrame) -> Figure:
    """Accuracy by the confidence a student states, on the test split, pooled over the seeds of each arm."""
    final = confirmed(trials)
    if "test_reliability" not in final or not final["test_reliability"].notna().any():
        raise Missing("Calibration is measured on the test split, in the confirm phase; this study has none yet.")
    colors = arm_colors(trials)
    figure, axes = _figure(5)
    axes.plot([0, 100], [0, 100], color=OTHERS, lw=1, ls=":")
    for arm in sorted(final["arm"].unique(), key=lambda arm: arm_order(trials, arm)):
        own = final[(final["arm"] == arm) & final["test_reliability"].notna()]
        bins = _pooled([bin_ for student in own["test_reliability"] for bin_ in student])
        ece = (
            f", ECE {100 * own['test_ece'].mean():.1f} points"
            if "test_ece" in own and own["test_ece"].notna().any()
            else ""
        )
        axes.plot(100 * bins["confidence"], 100 * bins["accuracy"], "o-", ms=4, color=colors[arm], label=f"{arm}{ece}")
    axes.set_xlabel("stated confidence (%)")
    axes.set_ylabel("test accuracy at that confidence (%)")
    axes.set_title("Calibration: on the dotted line a student is as right as it says")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _pooled(bins: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """Bins of several students as one: weighted by their counts, those of few images left out."""
    table = pd.DataFrame([dict(each) for each in bins])
    table = table[table["count"] > 0]
    table["bin"] = np.minimum((table["confidence"] * BINS).astype(int), BINS - 1)
    weighted = table.assign(
        confidence=table["confidence"] * table["count"], accuracy=table["accuracy"] * table["count"]
    ).groupby("bin")[["confidence", "accuracy", "count"]].sum()  # fmt: skip
    weighted = weighted[weighted["count"] >= 20]
    return weighted[["confidence", "accuracy"]].div(weighted["count"], axis=0)


# Every figure that needs nothing but the trials, by the name of its file.
BY_TRIALS: dict[str, Callable[[pd.DataFrame], Figure]] = {
    each.__name__: each
    for each in (
        accuracy_by_assistant,
        accuracy_by_size,
        differences,
        temperature_lambda_map,
        slices,
        parameter_importance,
        pareto,
        reliability,
    )
}
