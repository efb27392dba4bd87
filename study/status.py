"""How far a study is, from its storage alone: also while another process runs it."""

import time
from collections import Counter
from datetime import datetime

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from takd.analysis.metrics import value_text
from takd.analysis.tables import hyperparameters_of, metric_of, students
from takd.search_spaces import ROLES
from takd.study.folder import StudyFolder
from takd.study.search.graph import Description
from takd.study.search.optimization import Search
from takd.study.study import Study
from takd.study.tracking.progress import clock, on_screen

FOLLOW_SECONDS = 2.0  # between two looks, at least
LOOKING_SHARE = 0.05  # of one core, at most, that looks may take from the study
RECENT = 50  # stages whose ends say how many train at once


def print_status(study: Study, console: Console) -> None:
    """Counts by role and state, best by arm, failures with their reasons."""
    trials = study.trials
    console.print(_status(study.search, trials, None))
    print_failures(trials, console)


def follow_status(folder: StudyFolder, console: Console) -> None:
    """The same, kept up to date until nothing is left to train; plain blocks where there is no terminal to redraw."""
    found: dict[str, Description] = {}
    with Live(console=console, auto_refresh=False) if on_screen(console) else _Blocks(console) as view:
        while True:
            started = time.monotonic()
            study = Study(folder, found=found)
            search, trials = study.search, study.trials
            view.update(_status(search, trials, seconds_left(search, trials, list(found.values()))), refresh=True)
            if not search.is_open:
                break
            time.sleep(max(FOLLOW_SECONDS, (time.monotonic() - started) / LOOKING_SHARE))
    print_failures(trials, console)


class _Blocks:
    """In a file or a pipe, what changed is printed below what was."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, ""

    def __enter__(self) -> "_Blocks":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, status: RenderableType, refresh: bool) -> None:
        with self.console.capture() as capture:
            self.console.print(status)
        if (text := capture.get()) != self.last:
            self.last = text
            self.console.print(text, end="")


def _status(search: Search, trials: pd.DataFrame, left: float | None) -> RenderableType:
    states = Counter(trial.state.name.lower() for trial in search.proposed())
    proposed = ", ".join(f"{number} {state}" for state, number in states.items()) or "none"
    lines = [
        f"study {search.study.study_name}: {search.asked} of {max(search.asked, search.space.budget)} trials started "
        f"({proposed})" + (f", about {clock(left)} left" if left else "")
    ]
    metric = metric_of(trials)
    found = best_by_arm(trials)
    width = max(map(len, found["arm"]), default=0)
    best = [
        f"best {row['arm']:<{width}}  {value_text(row['value'] / metric.times, metric)}  "
        f"{hyperparameters_of(row['configuration']).removeprefix('-')}".rstrip()
        for _, row in found.iterrows()
    ]
    return Group(*map(Text, lines), _counts(trials), *map(Text, [*_workers(trials), *best]))


def best_by_arm(trials: pd.DataFrame) -> pd.DataFrame:
    """By cell and arm, the best arm first, its best configuration, the mean validation `accuracy` in percent, and the
    mean `value` of what the search goes by, in percent where it is a fraction."""
    done = students(trials)
    means = done.groupby(["cell", "arm", "configuration"])[["accuracy", "value", "score"]].mean().reset_index()
    ordered = means.sort_values("score").groupby(["cell", "arm"]).tail(1)
    return ordered.sort_values(["cell", "score"], ascending=[True, False])


def _workers(trials: pd.DataFrame) -> list[str]:
    """How many workers trained this study's own stages, and which part of its time each did."""
    own = trials[(trials["status"] == "done") & ~trials["cached"].astype(bool)]
    stages = own.drop_duplicates("stage_key").dropna(subset=["process", "finished_at"])
    if stages.empty:
        return []
    batches = stages.groupby(["host", "process", "finished_at"])["train_seconds"].sum().reset_index()
    batches["began"] = batches["finished_at"] - pd.to_timedelta(batches["train_seconds"], unit="s")
    workers = batches.groupby(["host", "process"]).agg(
        busy=("train_seconds", "sum"), began=("began", "min"), ended=("finished_at", "max")
    )
    spans = (workers["ended"] - workers["began"]).dt.total_seconds()
    parts = (100 * workers["busy"] / spans.clip(lower=1e-9)).clip(upper=100)
    counts = stages.groupby(["host", "process"]).size()
    some_stages = f"{_range(counts)} {'stage' if counts.max() == 1 else 'stages'}"
    busy = _range(parts.round().astype(int))
    return [
        f"1 worker trained {some_stages}, {busy} % of the time from its first to its last"
        if len(workers) == 1
        else f"{len(workers)} workers trained {some_stages} each, {busy} % of the time from its first to its last"
    ]


def _range(numbers: "pd.Series[int]") -> str:
    low, high = numbers.min(), numbers.max()
    return str(low) if low == high else f"{low} to {high}"


def _counts(trials: pd.DataFrame) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    states = ("done", "unfinished", "failed", "pruned")
    for column in ("role", *states):
        table.add_column(column, justify="left" if column == "role" else "right")
    stages = trials.drop_duplicates("stage_key")
    for role in ROLES:
        counts = stages[stages["role"] == role]["status"].value_counts()
        table.add_row(role, *(str(counts.get(state, 0)) for state in states))
    return table


def seconds_left(search: Search, trials: pd.DataFrame, found: list[Description]) -> float | None:
    """What is left, at the cost of stages of the same role and model, as many at once as of late.

    None before a student has ended.
    """
    stages = trials.drop_duplicates("stage_key")
    done = stages[stages["status"] == "done"]
    if "student" not in set(done["role"]):
        return None
    by_kind = done.groupby(["role", "model"])["train_seconds"].mean().to_dict()
    by_role = done.groupby("role")["train_seconds"].mean().to_dict()
    student = by_role["student"]
    open_stages = stages[stages["status"] == "unfinished"]
    left = sum(
        by_kind.get((role, model), by_role.get(role, student))
        for role, model in zip(open_stages["role"], open_stages["model"], strict=True)
    )
    return float(left + search.remaining * search.space.seeds * student) / at_once(found)


def at_once(found: list[Description]) -> float:
    """Seconds of training that a second of the last stages held: slots times lanes."""
    spans = sorted(
        (datetime.fromisoformat(each["outcome"]["finished_at"]).timestamp(), each["outcome"]["train_seconds"])
        for each in found
        if "finished_at" in each["outcome"]
    )[-RECENT:]
    if not spans:
        return 1.0
    span = spans[-1][0] - min(end - seconds for end, seconds in spans)
    return max(1.0, sum(seconds for _, seconds in spans) / max(span, 1.0))


def print_failures(trials: pd.DataFrame, console: Console) -> int:
    """Each failed stage with its reason; returns how many there are."""
    failed = trials[trials["status"] == "failed"].drop_duplicates("stage_key")
    for _, row in failed.iterrows():
        line = f"failed   {row['role']} {row['model']} seed {row['seed']} of {row['configuration']}: {row['error']}"
        console.print(line)
    return len(failed)


def pruned_students(trials: pd.DataFrame) -> str:
    """What the last line of a run says of the students that ASHA ended early; empty where there are none."""
    rows = trials[trials["status"] == "pruned"].drop_duplicates("stage_key")
    if rows.empty:
        return ""
    known = rows.dropna(subset=["epochs", "val_accuracy"])
    reached = (
        f" after {known['epochs'].sum():.0f} epochs in all, at {100 * known['val_accuracy'].mean():.2f} % on the mean"
        if len(known)
        else ""
    )
    return f", {len(rows)} student{'s' * (len(rows) > 1)} of the study ended early{reached}"
