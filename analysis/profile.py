"""The picture of where a run's time went."""

import pandas as pd
from matplotlib.figure import Figure

ROLE_COLORS = {"teacher": "#0072b2", "assistant": "#e69f00", "student": "#009e73"}


def draw_profile(stages: pd.DataFrame, account: "pd.Series[float]") -> Figure:
    """Above, what each worker trained when; below, what all slot seconds went to.

    stages: one row a stage with `role`, `worker`, `start` and `end` in seconds; account: slot seconds by what for.
    """
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[2, 1])
    workers = list(stages["worker"].unique()) if len(stages) else []
    for row, worker in enumerate(workers):
        own = stages[stages["worker"] == worker].drop_duplicates(["role", "start"])
        spans = list(zip(own["start"], own["end"] - own["start"], strict=True))
        colors = [ROLE_COLORS[role] for role in own["role"]]
        above.broken_barh(spans, (row - 0.4, 0.8), facecolors=colors, edgecolor="white", linewidth=0.3)
    for role, color in ROLE_COLORS.items():
        above.bar([0], [0], color=color, label=role)
    above.legend(ncols=3, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.18))
    above.set_yticks(range(len(workers)), [f"worker {number + 1}" for number in range(len(workers))])
    above.set_ylim(-0.6, max(len(workers), 1) - 0.4)
    above.set_xlabel("seconds since the run began")
    shares = 100 * account / account.sum()
    below.barh(list(shares.index)[::-1], list(shares)[::-1], color="#666666")
    for row, share in enumerate(list(shares)[::-1]):
        below.text(share + 0.5, row, f"{share:.1f} %", va="center", fontsize=8)
    below.set_xlim(0, 1.12 * shares.max())
    below.set_xlabel("% of the CPU slots' time")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure
