"""How the size of an assistant moves what the student reaches, where the search chose it: bands of sizes, held apart.

A search draws temperature and lambda with the size, and TPE draws them better the longer it goes on; so the mean over a
band of sizes is also that of what was drawn with it. Here bands are compared with all else that was drawn held equal:
an analysis of covariance (Fisher 1932) of the configurations' mean validation values on the band, and on each other
number that was varied and its square.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from takd.analysis.evidence.statistics import ALPHA, Floats, holm
from takd.analysis.evidence.surface import numbers_varied, terms
from takd.analysis.tables import Missing, metric_of, students

BANDS = 5  # at most
FEWEST = 4  # configurations of a band


@dataclass(frozen=True)
class Band:
    """Sizes next to each other. Values are of what the search went by, with 95 % intervals over configurations."""

    smallest: int
    largest: int
    sizes: int  # that were tried
    configurations: int
    value: float
    low: float
    high: float
    best: bool  # it has the best mean
    p: float  # of the difference to the best band after Holm's correction; NaN of the best one

    @property
    def close(self) -> bool:
        """Whether it can't be told from the best."""
        return not self.p < ALPHA

    @property
    def text(self) -> str:
        return f"{self.smallest} to {self.largest}" if self.largest > self.smallest else str(self.smallest)


@dataclass(frozen=True)
class Sized:
    """What a search with sizes showed of one arm."""

    configurations: pd.DataFrame  # a row each: `size`, `value` (mean of its students), `students`
    bands: tuple[Band, ...]  # by size
    held_equal: tuple[str, ...]  # parameters that bands are compared at the same values of


def by_size(trials: pd.DataFrame, arm: str) -> Sized:
    """Of the students of the search of one cell; raises Missing where there are too few configurations."""
    done = students(trials)
    done = done[(done["arm"] == arm) & done["assistant_size"].notna()]
    found = (
        done.groupby("configuration", sort=False)
        .agg(size=("assistant_size", "first"), value=("value", "mean"), students=("value", "size"))
        .reset_index()
        .astype({"size": int})
        .sort_values("size", ignore_index=True)
    )
    if len(found) < 2 * FEWEST or found["size"].nunique() < 2:
        raise Missing(
            f"{arm} has {len(found)} configurations with {found['size'].nunique()} sizes; {2 * FEWEST} and two sizes "
            "are the fewest that a range of sizes can be told from another by."
        )
    band = _bands(found["size"].to_numpy())
    others = numbers_varied(found["configuration"], len(found) - int(band.max()) - 1)
    means, covariance, freedom = _adjusted(found["value"].to_numpy(float), band, others)
    metric = metric_of(trials)
    best = int(means.argmax() if metric.higher else means.argmin())
    half = special.stdtrit(freedom, 1 - ALPHA / 2) * np.sqrt(np.diag(covariance))
    p = _against(best, means, covariance, freedom)
    bands = []
    for number, (mean, width) in enumerate(zip(means, half, strict=True)):
        own = found.loc[band == number, "size"]
        low, high = (float(end) for end in np.clip([mean - width, mean + width], 0, 100 if metric.fraction else None))
        bands.append(
            Band(
                smallest=int(own.min()),
                largest=int(own.max()),
                sizes=own.nunique(),
                configurations=len(own),
                value=float(mean),
                low=low,
                high=high,
                best=number == best,
                p=float(p[number]),
            )
        )
    return Sized(found, tuple(bands), tuple(others.columns))


def _bands(sizes: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Of sizes in order, the number of each one's band: about equal counts, and one size is in one band."""
    number = max(2, min(BANDS, len(sizes) // FEWEST))
    values = np.unique(sizes)
    if len(values) <= number:
        return np.searchsorted(values, sizes)
    edges = np.unique(sizes[[round(len(sizes) * part / number) for part in range(1, number)]])
    return np.unique(np.searchsorted(edges, sizes, side="right"), return_inverse=True)[1]


def _adjusted(accuracy: Floats, band: "np.ndarray[tuple[int], np.dtype[np.int64]]", others: pd.DataFrame) -> tuple[
    Floats, Floats, int
]:  # fmt: skip
    """Means `[bands]` at the same values of all others, their covariance, and the degrees of freedom that are left."""
    columns = [(band == number).astype(float) for number in range(int(band.max()) + 1)]
    columns += [each for name in others for each in terms(others[name].to_numpy(float))]
    design = np.stack(columns, axis=1)
    fitted, _, rank, _ = np.linalg.lstsq(design, accuracy, rcond=None)
    freedom = len(accuracy) - int(rank)
    variance = float(((accuracy - design @ fitted) ** 2).sum()) / max(freedom, 1)
    covariance = variance * np.linalg.pinv(design.T @ design)
    bands = int(band.max()) + 1
    return fitted[:bands], covariance[:bands, :bands], freedom


def _against(best: int, means: Floats, covariance: Floats, freedom: int) -> Floats:
    """p of each band's difference to the best, after Holm's correction; NaN of the best itself."""
    error = np.sqrt(np.maximum(covariance[best, best] + np.diag(covariance) - 2 * covariance[best], 1e-18))
    p = 2 * special.stdtr(freedom, -np.abs(means - means[best]) / error)
    others = np.arange(len(means)) != best
    p[others], p[~others] = holm(p[others]), np.nan
    return np.asarray(p)


def best_sizes(trials: pd.DataFrame, arm: str) -> str:
    """The sentence on the best range of sizes; raises Missing as `by_size` does."""
    found, metric = by_size(trials, arm), metric_of(trials)
    digits = metric.digits
    close = [band for band in found.bands if band.close]
    [best] = [band for band in found.bands if band.best]
    sizes = found.configurations["size"]
    held = f", with {' and '.join(found.held_equal)} held equal" if found.held_equal else ""
    text = (
        f"Of {sizes.nunique()} sizes from {sizes.min()} to {sizes.max()} that the search tried for {arm}, those of "
        f"{best.text} have the {'highest' if metric.higher else 'lowest'} mean validation {metric.title}: "
        f"{best.value:.{digits}f}{' %' if metric.fraction else ''} (95 % CI {best.low:.{digits}f} to "
        f"{best.high:.{digits}f}, {best.configurations} configurations){held}."
    )
    if len(close) == len(found.bands):
        return f"{text} No range of sizes is shown to be worse, so any of these sizes may be the best."
    if len(close) > 1:
        text += (
            f" The best size lies within {close[0].smallest} to {close[-1].largest}, as far as can be told; outside,"
        )
    else:
        text += " Outside them,"
    return f"{text} students are worse (p < 0.05 after Holm's correction)."
