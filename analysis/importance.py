"""Which parameter mattered in the search: a binned analysis of variance, without Optuna.

A parameter's values are put into up to BINS cells, and its importance is the part of the variance between
configurations that the cells explain: omega squared (Hays 1963), which is zero on average where a parameter does
nothing. Beside it stands what chance alone explains: the 95th percentile over shuffled configurations. Optuna's own
importance (fANOVA) is on its dashboard. A sampler that seeks good configurations (TPE) tries bad ones rarely, so these
numbers are of what was tried.
"""

from typing import Any

import numpy as np
import pandas as pd

from takd.analysis.tables import parameters_of, students

BINS = 5
SHUFFLES = 200
FEWEST_CONFIGURATIONS = 8

Floats = np.ndarray[Any, np.dtype[np.float64]]


def importance(trials: pd.DataFrame) -> pd.DataFrame:
    """One row a varied parameter, the most important first; `explained` and `chance` are fractions."""
    done = students(trials)
    means = done.groupby(["arm", "configuration"], sort=False)["value"].mean().reset_index()
    chosen = pd.DataFrame([{"arm": row["arm"]} | parameters_of(row["configuration"]) for _, row in means.iterrows()])
    rows = []
    for name in chosen.columns:
        there = chosen[name].notna()
        cells = _cells(chosen.loc[there, name])
        if there.sum() < FEWEST_CONFIGURATIONS or len(np.unique(cells)) < 2:
            continue
        reached = means.loc[there, "value"].to_numpy(float)
        random = np.random.default_rng(0)
        shuffled = np.array([omega_squared(random.permutation(reached), cells) for _ in range(SHUFFLES)])
        explained = max(0.0, omega_squared(reached, cells))
        rows.append((name, explained, float(np.quantile(shuffled, 0.95)), len(reached)))
    table = pd.DataFrame(rows, columns=["parameter", "explained", "chance", "configurations"])
    return table.sort_values("explained", ascending=False, ignore_index=True)


def _cells(values: "pd.Series[str]") -> np.ndarray[Any, np.dtype[np.int64]]:
    """One cell a value where there are few or they are no numbers, else BINS of about equal counts."""
    if values.nunique() <= BINS:
        return pd.factorize(values)[0]
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        return pd.factorize(values)[0]
    return np.asarray(pd.qcut(numbers, BINS, labels=False, duplicates="drop"))


def omega_squared(values: Floats, cells: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """The part of the variance that the cells explain, without what they explain by their number; at most 1."""
    _, cells = np.unique(cells, return_inverse=True)
    counts = np.bincount(cells)
    means = np.bincount(cells, values) / counts
    total = float(((values - values.mean()) ** 2).sum())
    between = float((counts * (means - values.mean()) ** 2).sum())
    freedom = len(values) - len(counts)
    if total <= 0 or freedom < 1:
        return 0.0
    error = (total - between) / freedom
    return (between - (len(counts) - 1) * error) / (total + error)
