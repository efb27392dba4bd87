"""Where a run's time went: an observer that notes when stages train, and the account made of it."""

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from takd.study.folder import StudyFolder
from takd.study.search.graph import Node, StageGraph, Work
from takd.study.search.workers import Use, Worker, Workers

TOO_MUCH = 1 / 3  # of the slots' time unused while stages were ready: said from here on,
WORTH_SAYING = 10.0  # and where it is so many seconds of the whole cluster
FEW = 4  # workers that the line at the end names one by one
TABLE, FIGURE = "report/profile.csv", "report/profile.png"


class Profile:
    """Times are seconds since the run began."""

    def __init__(self, slots: int, began: float) -> None:
        self.slots, self.began = slots, began
        self.workers, self.use = Workers({}), Use()  # of the run, once it is over
        self.starts: dict[str, tuple[float, Work]] = {}
        self.stages: list[dict[str, Any]] = []

    def stage_started(self, node: Node) -> None:
        self.starts[node.stage.key] = (self._now(), node.work)

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None: ...

    def stage_ended(self, node: Node) -> None:
        if node.description is None or node.stage.key not in self.starts:
            return
        outcome, (start, work), now = node.description["outcome"], self.starts.pop(node.stage.key), self._now()
        if work == "derive":  # what its artifact says is of its training, wherever that was
            outcome = outcome | {"epochs": [], "lanes": 1, "soft_targets_seconds": now - start}
        self.stages.append(
            {
                "role": node.stage.role,
                "worker": f"{outcome['host']} {outcome['process']}",
                "start": start,
                "end": now,
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
        first, last = float(stages["start"].min()), float(stages["end"].max())
        if self.workers.first is not None and self.workers.last is not None:
            first, last = min(first, self.workers.first - self.began), max(last, self.workers.last - self.began)
        held = (stages["end"] - stages["start"]) * stages["cpus"] / stages["lanes"]
        account = {
            **work.sum(),
            "around the training": float((held - work.sum(axis=1)).sum()),
            **self.workers.untold,
            "start of Ray and workers": self.slots * first,
            "end of the run": self.slots * (whole - last),
        }
        rest = whole * self.slots - sum(account.values())
        account["stages ready, no worker yet"] = min(rest, self.slots * self.use.unused)
        account["nothing to train"] = rest - account["stages ready, no worker yet"]
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
        console.print(self._table_of_workers())
        folder.write(TABLE, account.rename("slot_seconds").to_csv(index_label="what").encode())
        folder.write(FIGURE, image(draw_profile(pd.DataFrame(self.stages), account), "png"))
        console.print(f"profile  {folder.place(FIGURE)}")

    def _table_of_workers(self) -> Table:
        table = Table(title="what each worker did", title_justify="left", box=None)
        for column in ("worker", "stages", "busy seconds", "% of its time"):
            table.add_column(column, justify="right")
        for number, worker in enumerate(self.workers.trained, start=1):
            table.add_row(str(number), str(worker.stages), f"{worker.busy_seconds:.1f}", f"{_busy(worker):.0f}")
        return table


def print_use(workers: Workers, use: Use, console: Console) -> None:
    """How many workers trained and how busy they and the slots were; a line more where slots were left unused."""
    if not (trained := workers.trained) or not use.seconds:
        return
    stages, busy = [each.stages for each in trained], [round(_busy(each)) for each in trained]
    many = "1 worker" if len(trained) == 1 else f"{len(trained)} workers"
    line = f"{many} trained {_listed(stages)} stages, busy {_listed(busy)} % of the time"
    console.print(f"{line}; the slots trained {100 * use.busy / use.seconds:.0f} % of the time from the first stage on")
    if use.unused > max(TOO_MUCH * use.seconds, WORTH_SAYING):
        console.print(
            f"warning: {100 * use.unused / use.seconds:.0f} % of the slots' time was unused while stages were ready; "
            "`takd run --profile` says what each worker did",
            style="yellow",
        )


def _busy(worker: Worker) -> float:
    """Percent of its time."""
    return 100 * worker.busy_seconds / max(worker.lived_seconds, 1e-9)


def _listed(numbers: Sequence[int]) -> str:
    """A few numbers one by one, many as a range."""
    if len(numbers) > FEW:
        return f"{min(numbers)} to {max(numbers)}"
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
