"""What a person sees while a study runs: a live table on a terminal, a plain line every so often elsewhere."""

import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from takd.analysis.metrics import value_text
from takd.search_spaces import ROLES, Role
from takd.search_spaces.metrics import ACCURACY, Metric
from takd.study.search.graph import Node, StageGraph

PLAIN_SECONDS = 15.0
SNAPSHOT_SECONDS = 0.2
REDRAW_SECONDS = 0.25
SHOWN_STATES = ("done", "cached", "running", "ready", "waiting", "failed", "pruned")


class Progress:
    """An observer that draws; the numbers are a snapshot taken in the driver's thread."""

    def __init__(self, study: str, seeds: int, slots: int, console: Console, metric: Metric = ACCURACY) -> None:
        self.metric = metric
        self.study, self.seeds, self.slots, self.console = study, seeds, slots, console
        self.started = time.monotonic()
        self.snapshot = Snapshot()
        self.next_snapshot = 0.0
        self.latest: tuple[StageGraph, int] | None = None
        self.epochs: dict[str, tuple[Node, int]] = {}
        self.stop = threading.Event()
        self.live: Live | None = None
        if on_screen(console):
            self.live = Live(get_renderable=self.picture, console=console, auto_refresh=False)
            self.live.start()
        self.thread = threading.Thread(
            target=self._redraw if self.live else self._print_lines, name="progress", daemon=True
        )
        self.thread.start()

    def stage_started(self, node: Node) -> None:
        self.epochs[node.stage.key] = (node, 0)

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        if epochs:
            self.epochs[node.stage.key] = (node, epochs[-1]["epoch"])

    def stage_ended(self, node: Node) -> None:
        self.epochs.pop(node.stage.key, None)

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None:
        self.latest = (graph, trials_left)
        if (now := time.monotonic()) >= self.next_snapshot:
            self.next_snapshot = now + SNAPSHOT_SECONDS
            self._look()

    def _look(self) -> None:
        if self.latest is None:
            return
        graph, trials_left = self.latest
        self.snapshot = Snapshot(
            counts={role: dict(states) for role, states in graph.counts.items()},
            best=dict(graph.best_by_arm),
            running=tuple(self.epochs.values()),
            seconds_left=seconds_left(graph, trials_left, self.seeds, self.slots),
        )

    def close(self) -> None:
        self._look()
        self.stop.set()
        self.thread.join()
        if self.live:
            self.live.stop()
        else:
            self.console.print(self._line())

    def _redraw(self) -> None:
        assert self.live
        size = self.console.size
        while not self.stop.wait(REDRAW_SECONDS):
            if size != (size := self.console.size):
                self.console.clear()  # a terminal that got narrower has folded what it showed
            self.live.refresh()

    def _print_lines(self) -> None:
        while not self.stop.wait(PLAIN_SECONDS):
            self.console.print(self._line())

    def _line(self) -> str:
        counts = self.snapshot.counts
        roles = [
            f"{role} {', '.join(f'{number} {state}' for state, number in counts[role].items() if number)}"
            for role in ROLES
            if any(counts.get(role, {}).values())
        ]
        best = next(iter(self._best_first()), None)
        found = f" | best {best[0]} {value_text(best[1], self.metric)}" if best else ""
        return f"[{self._elapsed()}] {' | '.join(roles) or 'starting'}{found}{self._remaining()}"

    def _best_first(self) -> list[tuple[str, float]]:
        return sorted(self.snapshot.best.items(), key=lambda item: item[1], reverse=self.metric.higher)

    def _elapsed(self) -> str:
        return clock(time.monotonic() - self.started)

    def _remaining(self) -> str:
        seconds = self.snapshot.seconds_left
        return f" | about {clock(seconds)} left" if seconds else ""

    def picture(self) -> RenderableType:
        """The table at this moment."""
        table = Table(title=f"study {self.study}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("role", *SHOWN_STATES):
            table.add_column(column, justify="left" if column == "role" else "right")
        for role in ROLES:
            counts = self.snapshot.counts.get(role, {})
            table.add_row(role, *(str(counts.get(state) or "·") for state in SHOWN_STATES))
        best = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for arm, value in self._best_first():
            best.add_row("best so far", arm, value_text(value, self.metric))
        running = [f"{node.stage.name}  {_doing(node, epoch)}" for node, epoch in self.snapshot.running]
        shown = [Text(line, no_wrap=True, overflow="ellipsis", style="dim") for line in running[:8]]
        footer = Text(f"elapsed {self._elapsed()}{self._remaining().replace(' | ', ', ')}")
        return Group(table, best, *shown, footer)


def _doing(node: Node, epoch: int) -> str:
    return "soft targets" if node.work == "derive" else f"epoch {epoch}/{node.stage.recipe.epochs}"


@dataclass(frozen=True)
class Snapshot:
    """Counts and estimates at one moment."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # by arm, the metric's mean on validation of a configuration
    running: tuple[tuple[Node, int], ...] = ()
    seconds_left: float | None = None


def seconds_left(graph: StageGraph, trials_left: int, seeds: int, slots: int) -> float | None:
    """What is left, at the cost that stages of that role and model had so far; None before any student has ended."""
    left, costs = Counter[tuple[Role, str]](), defaultdict[tuple[Role, str], list[float]](list)
    for node in graph.nodes.values():
        kind = (node.stage.role, node.stage.model)
        if node.description:
            costs[kind].append(node.description["outcome"]["train_seconds"])
        elif node.work == "train" and node.state in ("waiting", "ready", "running"):
            left[kind] += 1
    by_role = {role: [one for (of, _), found in costs.items() if of == role for one in found] for role in ROLES}
    if not by_role["student"]:
        return None
    student = fmean(by_role["student"])
    known = sum(number * fmean(costs.get(kind) or by_role[kind[0]] or [student]) for kind, number in left.items())
    return (known + trials_left * seeds * student) / slots


def text_console() -> Console:
    """What is printed is text, not markup; its lines are not folded, as they may be read by a program."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200  # of tables
    return Console(width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def on_screen(console: Console) -> bool:
    """Whether there is a terminal whose lines can be drawn again: no pipe, no file, no TERM=dumb, no log of a CI."""
    return console.is_terminal and not console.is_dumb_terminal


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
