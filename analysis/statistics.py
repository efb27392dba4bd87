"""What is real: means and seed-paired differences with their intervals, and what they let one say.

All of it is of SciPy and statsmodels, but for Holm's correction: statsmodels' frees memory first, for half a second
of each table. Accuracies and differences are in percent and percentage points; intervals are of
95 %; arrays are `[..., seeds]`, so that one study and a thousand simulated ones take the same road.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from statsmodels.stats.power import TTestPower

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
SMALLEST_EFFECT = 0.1  # percentage points: a smaller difference is of no interest on MNIST
MOST_SEEDS = 1000  # beyond them no one is told how many would be needed
REFERENCES = ("kd", "labels")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval (Student's t); the interval is NaN for fewer than two seeds."""

    mean: Floats
    low: Floats
    high: Floats


def mean_interval(values: ArrayLike) -> Estimate:
    """Of `[..., seeds]`, over seeds."""
    values = np.asarray(values, float)
    mean, n = values.mean(axis=-1), values.shape[-1]
    if n < 2:
        return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    half = stats.t.ppf(1 - ALPHA / 2, n - 1) * stats.sem(values, axis=-1)
    return Estimate(mean, mean - half, mean + half)


def fraction_interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction, which stays in [0, 1] and has a width also at 0 and 1."""
    interval = stats.binomtest(count, of).proportion_ci(CONFIDENCE, "wilson")
    return float(interval.low), float(interval.high)


def paired_p(differences: ArrayLike) -> Floats:
    """Two-sided p of the paired t-test over `[..., seeds]`; NaN for fewer than two, or where all are the same."""
    differences = np.asarray(differences, float)
    if differences.shape[-1] < 2:
        return np.full(differences.shape[:-1], np.nan)
    spread = np.ptp(differences, axis=-1) > 1e-9  # else the test divides by the noise of rounding
    with np.errstate(all="ignore"):
        p = stats.ttest_1samp(np.where(spread[..., None], differences, np.nan), 0.0, axis=-1).pvalue
    return np.asarray(p)


def cohens_d(differences: ArrayLike) -> Floats:
    """Mean difference in standard deviations of the differences, paired; NaN where they have none."""
    differences = np.asarray(differences, float)
    if differences.shape[-1] < 2:
        return np.full(differences.shape[:-1], np.nan)
    deviation = differences.std(axis=-1, ddof=1)
    with np.errstate(all="ignore"):
        return np.where(deviation > 1e-9, differences.mean(axis=-1) / deviation, np.nan)


def hedges_g(differences: ArrayLike) -> Floats:
    """Cohen's d without its bias at few seeds (Hedges 1981, the exact factor)."""
    freedom = np.asarray(differences).shape[-1] - 1
    if freedom < 2:
        return np.full(np.shape(differences)[:-1], np.nan)
    correction = np.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / np.sqrt(freedom / 2)
    return cohens_d(differences) * correction


def holm(p: ArrayLike) -> Floats:
    """Corrected for the whole family (Holm 1979); a NaN stays one and counts for nothing."""
    p = np.asarray(p, float)
    corrected, order = np.full_like(p, np.nan), np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN are last
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def seeds_needed(deviation: float, comparisons: int) -> int | None:
    """Seeds that show SMALLEST_EFFECT with a power of 0.8, where the paired differences have this standard deviation.

    At the level that is left when the family's is shared by all comparisons. None for more than MOST_SEEDS.
    """
    if not deviation > 1e-9:
        return None
    numbers = np.unique(np.geomspace(2, MOST_SEEDS, 200).astype(int))
    power = TTestPower().power(SMALLEST_EFFECT / deviation, numbers, ALPHA / comparisons)
    enough = numbers[np.asarray(power) >= POWER]
    if not len(enough):
        return None
    last_too_few = numbers[numbers < enough[0]].max(initial=1)
    between = np.arange(last_too_few + 1, enough[0] + 1)
    power = TTestPower().power(SMALLEST_EFFECT / deviation, between, ALPHA / comparisons)
    return int(between[np.asarray(power) >= POWER][0])


def compare_arms(accuracy: Mapping[str, "pd.Series[float]"]) -> pd.DataFrame:
    """Every arm against `kd` and `labels`, paired by seed; one row a comparison, one family for Holm's correction.

    `accuracy` has by arm the students' accuracies by seed. Columns: `arm`, `reference`, `seeds`, `difference`, `low`,
    `high`, `cohens_d`, `hedges_g`, `p`, `p_holm`, `verdict`.
    """
    pairs = [
        (arm, reference)
        for reference in REFERENCES
        for arm in accuracy
        if reference in accuracy and arm != reference and (arm, reference) != ("labels", "kd")
    ]
    rows = [
        {"arm": arm, "reference": reference} | _compare(accuracy[arm], accuracy[reference]) for arm, reference in pairs
    ]
    table = pd.DataFrame(rows, columns=COMPARISON)
    table["p_holm"] = holm(table["p"])
    table["verdict"] = [verdict(row, len(table)) for row in table.to_dict("records")]
    return table.drop(columns="deviation")


COMPARISON = [
    "arm", "reference", "seeds", "difference", "low", "high", "deviation", "cohens_d", "hedges_g", "p", "p_holm",
    "verdict",
]  # fmt: skip


def _compare(arm: "pd.Series[float]", reference: "pd.Series[float]") -> dict[str, Any]:
    differences = (arm - reference).dropna().to_numpy()
    if not len(differences):
        return {"seeds": 0}
    estimate = mean_interval(differences)
    return {
        "seeds": len(differences),
        "difference": float(estimate.mean),
        "low": float(estimate.low),
        "high": float(estimate.high),
        "deviation": float(differences.std(ddof=1)) if len(differences) > 1 else np.nan,
        "cohens_d": float(cohens_d(differences)),
        "hedges_g": float(hedges_g(differences)),
        "p": float(paired_p(differences)),
    }


def verdict(row: Mapping[Any, Any], comparisons: int) -> str:
    """One comparison in words; `row` is one of `compare_arms` with the differences' `deviation`."""
    arm, reference, seeds, p = row["arm"], row["reference"], row["seeds"], row["p_holm"]
    if not seeds:
        return f"{arm} and {reference} have no seed in common: nothing can be said"
    size = f"{abs(row['difference']):.2f} points"
    if np.isnan(p):
        why = "one seed" if seeds == 1 else f"{seeds} seeds whose differences are all the same"
        return f"{arm} against {reference}: {row['difference']:+.2f} points at {why}: nothing can be said"
    interval = f"95 % CI {signed_interval(row)}"
    better = row["difference"] > 0
    if p < ALPHA:
        return f"{arm} {'beats' if better else 'loses to'} {reference} by {size}, {interval}"
    if row["low"] > 0 or row["high"] < 0:
        place = "ahead of" if better else "behind"
        return (
            f"{arm} is {size} {place} {reference}, {interval}, but that may be luck: "
            f"{comparisons} comparisons were made (p = {p:.2f} after Holm's correction)"
        )
    needed = seeds_needed(row["deviation"], comparisons)
    enough = f"{needed} seeds would be needed" if needed else f"more than {MOST_SEEDS:,} seeds would be needed"
    if needed and needed <= seeds:
        enough = f"{needed} seeds are enough"
    return (
        f"no difference found between {arm} and {reference} at {seeds} seeds "
        f"({row['difference']:+.2f}, {interval}); {enough} to see a difference of {SMALLEST_EFFECT} points"
    )


def signed_interval(row: Mapping[Any, Any]) -> str:
    """`0.08 to 0.34`, in the direction of the words: of the difference's size where it is sure, else with signs."""
    low, high = row["low"], row["high"]
    if low > 0:
        return f"{low:.2f} to {high:.2f}"
    if high < 0:
        return f"{-high:.2f} to {-low:.2f}"
    return f"{low:+.2f} to {high:+.2f}"
