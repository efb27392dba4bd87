"""Where a run's time went: an observer that notes when stages train, and the account made of it."""

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from takd.study.folder import StudyFolder
from takd.study.search.graph import Node, StageGraph

TABLE, FIGURE = "report/profile.csv", "report/profile.png"


class Profile:
    """Times are seconds since the run began."""

    def __init__(self, slots: int, began: float) -> None:
        self.slots, self.began = slots, began
        self.starts: dict[str, float] = {}
        self.stages: list[dict[str, Any]] = []

    def stage_started(self, node: Node) -> None:
        self.starts[node.stage.key] = self._now()

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None: ...

    def stage_ended(self, node: Node) -> None:
        if node.description is None or node.stage.key not in self.starts:
            return
        outcome = node.description["outcome"]
        self.stages.append(
            {
                "role": node.stage.role,
                "worker": f"{outcome['host']} {outcome['process']}",
                "start": self.starts[node.stage.key],
                "end": self._now(),
                "cpus": outcome["threads"],
                "lanes": outcome["lanes"],
                "training": sum(each["seconds"] - each["val_seconds"] for each in outcome["epochs"]),
                "evaluation": sum(each["val_seconds"] for each in outcome["epochs"]),
                "soft targets": outcome["soft_targets_seconds"],
            }
        )

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None: ...
    def close(self) -> None: ...

    def _now(self) -> float:
        return time.monotonic() - self.began

    def account(self) -> "pd.Series[float]":
        """CPU-slot seconds by what they went to; they sum to the slots times the wall time."""
        whole, stages = self._now(), pd.DataFrame(self.stages)
        if stages.empty:
            return pd.Series({"no stage trained": whole * self.slots})
        work = stages[["training", "evaluation", "soft targets"]].mul(stages["cpus"], axis=0)
        held = (stages["end"] - stages["start"]) * stages["cpus"] / stages["lanes"]
        account = {
            **work.sum(),
            "around the training": float((held - work.sum(axis=1)).sum()),
            "start of Ray and workers": self.slots * float(stages["start"].min()),
            "end of the run": self.slots * (whole - float(stages["end"].max())),
        }
        account["nothing to train"] = whole * self.slots - sum(account.values())
        return pd.Series(account)

    def write(self, folder: StudyFolder, console: Console) -> None:
        """The account as a table, printed too, and when which worker trained as a picture."""
        from takd.analysis.figures import image  # SciPy and matplotlib: not in memory while stages train
        from takd.analysis.profile import draw_profile

        account = self.account()
        table = Table(title="where the time of the CPU slots went", title_justify="left", box=None)
        for column in ("", "slot seconds", "%"):
            table.add_column(column, justify="right" if column else "left")
        for what, seconds in account.items():
            table.add_row(str(what), f"{seconds:.1f}", f"{100 * seconds / account.sum():.1f}")
        console.print(table)
        folder.write(TABLE, account.rename("slot_seconds").to_csv(index_label="what").encode())
        folder.write(FIGURE, image(draw_profile(pd.DataFrame(self.stages), account), "png"))
        console.print(f"profile  {folder.place(FIGURE)}")
