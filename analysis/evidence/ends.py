"""Choices at the end of what was searched: a better one may lie beyond, and the arm be better than it looks."""

from collections.abc import Iterator

import pandas as pd

from takd.analysis.evidence.chosen import best_configurations
from takd.analysis.tables import arm_order, by_cell, parameters_of, students
from takd.search_spaces import some

FEWEST = 3  # values of a parameter that were tried; of two each is an end
NATURAL = {"lambda": (0.0, 1.0), "temperature": (1.0, float("inf"))}  # beyond which nobody would look


def at_ends(trials: pd.DataFrame) -> list[str]:
    """A sentence, where an arm's choice has the lowest or the highest value of a parameter that the arm tried.

    The configuration with the best mean has it too: that a lower temperature is chosen of several that are as good says
    nothing of those below it. With factors an arm is named where it holds in any of the cells.
    """
    found: dict[str, list[str]] = {}
    for cell, part in by_cell(trials).items():
        done = students(part)
        factors = parameters_of(f"- {cell}")
        chosen = best_configurations(part)
        for arm, rows in done.groupby("arm", sort=False):
            means = rows.groupby("configuration")["score"].mean()
            own = {str(name): parameters_of(str(name)) for name in means.index}
            for name, value, end in _ends(own, chosen[str(arm)], str(means.idxmax())):
                if name not in factors:
                    arms = found.setdefault(f"{name}={value}, the {end}", [])
                    arms += [] if str(arm) in arms else [str(arm)]
    if not found:
        return []
    where = "; ".join(
        f"{what} that {some(sorted(arms, key=lambda arm: arm_order(trials, arm)))} tried"
        for what, arms in found.items()
    )
    return [f"What was chosen lies at the end of what was searched, so a better value may lie beyond: {where}."]


def _ends(own: dict[str, dict[str, str]], chosen: str, best: str) -> Iterator[tuple[str, str, str]]:
    """Parameter, value, and at which end it is; `own` has the parameters of an arm's configurations by their names."""
    for name, value in own[chosen].items():
        if own[best].get(name) != value:
            continue
        try:
            tried = sorted({float(each[name]) for each in own.values() if name in each})
        except ValueError:
            continue  # words have no ends
        low, high = NATURAL.get(name, (-float("inf"), float("inf")))
        if len(tried) >= FEWEST and float(value) == tried[0] and tried[0] > low:
            yield name, value, "lowest"
        elif len(tried) >= FEWEST and float(value) == tried[-1] and tried[-1] < high:
            yield name, value, "highest"
