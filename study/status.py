"""How far a study is, from its storage alone: also while another process runs it."""

from collections import Counter

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.tables import students
from search_spaces import ROLES
from study.folder import StudyFolder
from study.optimization import open_search
from study.report import print_failures
from study.results import build_results


def print_status(folder: StudyFolder, console: Console) -> None:
    """Counts by role and state, best by arm, failures with their reasons."""
    search = open_search(folder)
    trials = build_results(folder, search)[0].to_pandas()
    states = Counter(trial.state.name.lower() for trial in search.proposed())
    console.print(
        f"study {folder.name}: {search.asked} of {search.space.budget} trials proposed "
        f"({', '.join(f'{number} {state}' for state, number in states.items()) or 'none'})",
    )
    console.print(_counts(trials))
    done = students(trials)
    if len(done):
        means = done.groupby(["arm", "configuration"])["accuracy"].mean().reset_index()
        for _, row in (
            means.sort_values("accuracy").groupby("arm").tail(1).sort_values("accuracy", ascending=False).iterrows()
        ):
            console.print(f"best {row['arm']:<16} {row['accuracy']:.2f} % validation  ({row['configuration']})")
    print_failures(trials, console)


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
