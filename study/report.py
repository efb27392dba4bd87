"""What a study shows when it ends: the table of arms and the figure, from the Parquet tables."""

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.figures import accuracy_by_assistant, image
from analysis.tables import SEARCH_NOTE, arms_table, format_arms, read_trials, students
from study.folder import FIGURE, StudyFolder


def write_figure(folder: StudyFolder) -> None:
    """The figure as PNG and SVG, where there is a student to draw."""
    trials = read_trials(folder.trials)
    if len(students(trials)):
        figure = accuracy_by_assistant(trials)
        for kind in ("png", "svg"):
            folder.write(f"{FIGURE}.{kind}", image(figure, kind))


def print_arms(folder: StudyFolder, console: Console) -> None:
    """The table of arms, what its numbers are, and where the rest is."""
    trials = read_trials(folder.trials)
    if not len(students(trials)):
        console.print(f"study {folder.name}: no student has ended yet")
        return
    header, *rows = format_arms(arms_table(trials))
    table = Table(title=f"study {folder.name}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in header:
        table.add_column(column, justify="left" if column in ("arm", "paper", "best setting") else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print("± is one standard error over seeds; over kd is paired by seed, in percentage points.")
    console.print(SEARCH_NOTE)
    console.print(f"figure   {folder.storage.uri(f'{folder.name}/{FIGURE}.png')}")
    console.print(f"results  {folder.trials}")


def print_failures(trials: pd.DataFrame, console: Console) -> int:
    """Each failed stage with its reason; returns how many there are."""
    failed = trials[trials["status"] == "failed"].drop_duplicates("stage_key")
    for _, row in failed.iterrows():
        line = f"failed   {row['role']} {row['model']} seed {row['seed']} of {row['configuration']}: {row['error']}"
        console.print(line)
    return len(failed)
