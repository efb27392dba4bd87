"""Figures of a study. One function a figure; each takes tables and returns a matplotlib figure."""

from io import BytesIO
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from analysis.tables import arms_table, best_configurations, students
from search_spaces import parse_arm

# Okabe and Ito's palette: tells apart also without full colour vision. An arm has one colour everywhere.
COLORS = {"labels": "#555555", "kd": "#0072B2", "takd": "#D55E00", "others": "#BBBBBB"}


def accuracy_by_assistant(trials: pd.DataFrame) -> Figure:
    """Student accuracy by assistant size, against the lines of `labels` and `kd`.

    Bands and bars are one standard error over seeds; small dots are single students, those of the best setting dark.
    """
    table = arms_table(trials).set_index("arm")
    assistants = [arm for arm in table.index if parse_arm(arm).assistants]
    matplotlib.rcParams["svg.hashsalt"] = "takd"  # the same figure, the same file
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(assistants):
        _draw_students(axes, trials, arm, place)
        row = table.loc[arm]
        axes.errorbar(
            place,
            row["accuracy"],
            yerr=row["accuracy_se"],
            fmt="o",
            color=COLORS["takd"],
            capsize=5,
            markersize=8,
            zorder=4,
        )
    for arm in ("labels", "kd"):
        if arm in table.index:
            _draw_line(axes, table.loc[[arm]].iloc[0], arm)
    axes.set_xticks(range(len(assistants)), [_assistant_label(trials, arm) for arm in assistants])
    axes.set_xlim(-0.6, max(len(assistants), 1) - 0.4)
    student = students(trials).iloc[0]
    examples = f"{student['examples']:,} training images"
    axes.set_xlabel("teacher assistant (its parameters, its own validation accuracy), larger to smaller")
    axes.set_ylabel("student's validation accuracy (%)")
    axes.set_title(f"Student {student['model']} on {examples}: what an assistant changes", loc="left", pad=24)
    axes.annotate(
        "Large dots: mean of the arm's best setting, ± one standard error over seeds. "
        "Small dots: single students, those of other settings grey.",
        (0, 1), xycoords="axes fraction", xytext=(0, 8), textcoords="offset points", fontsize=8, color="#555555",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE", zorder=0)
    _focus(axes, trials, table)
    return figure


def _draw_students(axes: Any, trials: pd.DataFrame, arm: str, place: int) -> None:
    rows = students(trials)
    rows = rows[rows["arm"] == arm]
    chosen = rows["configuration"] == best_configurations(trials)[arm]
    for these, color, shift in ((~chosen, COLORS["others"], 0.16), (chosen, COLORS["takd"], -0.16)):
        axes.plot([place + shift] * these.sum(), rows.loc[these, "accuracy"], ".", color=color, alpha=0.7, zorder=3)


def _draw_line(axes: Any, row: "pd.Series[Any]", arm: str) -> None:
    mean, error = row["accuracy"], row["accuracy_se"]
    axes.axhline(mean, color=COLORS[arm], linewidth=2, zorder=2)
    axes.axhspan(mean - error, mean + error, color=COLORS[arm], alpha=0.15, linewidth=0, zorder=1)
    name = {"labels": "labels alone", "kd": "kd, no assistant"}[arm]
    axes.annotate(
        f"{name}\n{mean:.2f}", (1, mean), xycoords=("axes fraction", "data"), xytext=(6, 0), va="center",
        textcoords="offset points", color=COLORS[arm], fontweight="bold", zorder=5,
    )  # fmt: skip


def _assistant_label(trials: pd.DataFrame, arm: str) -> str:
    model = parse_arm(arm).assistants[-1]
    own = trials[(trials["model"] == model) & (trials["role"] == "assistant") & (trials["status"] == "done")]
    about = f"\n{own['parameters'].max() / 1e3:.0f} k, {100 * own['val_accuracy'].max():.1f} %" if len(own) else ""
    return f"{arm.partition(':')[2]}{about}"


def _focus(axes: Any, trials: pd.DataFrame, table: pd.DataFrame) -> None:
    """From just below the lowest mean, or the lowest tenth of the students, to above the best student."""
    accuracy = students(trials)["accuracy"]
    low = min((table["accuracy"] - table["accuracy_se"].fillna(0)).min(), accuracy.quantile(0.1))
    margin = 0.08 * (accuracy.max() - low) + 0.05
    axes.set_ylim(low - margin, accuracy.max() + margin)


def image(figure: Figure, kind: str) -> bytes:
    """`png` (150 dpi) or `svg`."""
    buffer = BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
