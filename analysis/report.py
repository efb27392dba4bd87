"""The report of a study as files: page, summary, tables, figures and executed notebooks. Needs the extra `report`."""

import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pandas as pd

from takd.analysis.arms import arms_table, budget_note, comparison_table, comparisons, cost_table, page_table
from takd.analysis.execution import NAMES, execute, outputs
from takd.analysis.files import read_results
from takd.analysis.finding import answers, choice, finding
from takd.analysis.page import page
from takd.analysis.show import markdown_table
from takd.analysis.tables import arms_note, chosen_students, note, unit_of

AT_ONCE = 2  # notebooks: each takes a core and 250 MB


def method(trials: pd.DataFrame) -> str:
    """How the numbers were judged."""
    unit = unit_of(trials)
    return (
        f"Means are over {unit}s. Intervals are of 95 % and cover {unit}s and test images, by the variance sum of "
        "crossed random effects; those of accuracies stay between 0 and 100 %. Differences are paired by "
        f"{unit}. Their p is of the same variance, corrected for all comparisons of the study by Holm's method. Effect "
        "sizes are Hedges' g of the paired differences. An arm is called as good as another where the interval of "
        "their difference lies within the space's `smallest_effect`, and as good as the best by Hsu's multiple "
        "comparisons with the best; where the space names no such effect nobody is. FLOPs are of training: three "
        "forward passes a step."
    )


def report_files(root: str, study: str) -> dict[str, bytes]:
    """By name the files of a study's report; raises InputError where it has no results, NotebookError from a cell."""
    trials = read_results(root, study).trials
    with ThreadPoolExecutor(AT_ONCE) as pool:
        executed = dict(zip(NAMES, pool.map(lambda name: execute(name, root, study), NAMES), strict=True))
    sections = {name: list(outputs(notebook)) for name, notebook in executed.items()}
    files = {f"{name}.ipynb": nbformat.writes(notebook).encode() for name, notebook in executed.items()}
    for shown in sections.values():
        for forms, figure in shown:
            files |= _figure_files(figure, forms) if figure else {}
    front = front_matter(trials)
    files["summary.md"] = summary(study, trials, front).encode()
    files["arms.csv"] = arms_table(trials).to_csv(index=False).encode()
    files["comparisons.csv"] = comparisons(trials).to_csv(index=False).encode()
    files["report.html"] = page(f"Study {study}", finding(trials), note(trials), front, sections).encode()
    return files


def _figure_files(name: str, forms: Mapping[str, str]) -> dict[str, bytes]:
    return {f"{name}.svg": forms["image/svg+xml"].encode(), f"{name}.png": base64.b64decode(forms["image/png"])}


def front_matter(trials: pd.DataFrame) -> str:
    """Arms, comparisons, budgets and the answers to the five questions, as Markdown."""
    if not len(chosen_students(trials)):
        return ""
    parts = [
        "# The arms",
        markdown_table(page_table(trials)),
        arms_note(trials),
        budget_note(trials),
        "# Is the difference real?",
        "\n".join(f"- {verdict}" for verdict in comparisons(trials)["verdict"])
        or "*Missing: there is one arm so far.*",
        method(trials),
        "# The questions",
        *(f"## {question}\n\n{answer}" for question, answer in answers(trials)),
    ]
    return "\n\n".join(parts)


def summary(study: str, trials: pd.DataFrame, front: str) -> str:
    """For a paper's appendix: the page's words and tables as Markdown."""
    said = " ".join(finding(trials))
    parts = [f"# Study {study}", said, note(trials), front.replace("# ", "## ")]
    if len(comparisons(trials)):
        parts += ["## Every comparison", markdown_table(comparison_table(trials))]
    if len(chosen_students(trials)):
        parts += ["## Cost", markdown_table(cost_table(trials)), choice(trials)]
    return "\n\n".join(parts) + "\n"
