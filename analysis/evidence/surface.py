"""What a search with sizes says of each of its configurations by all others: a response surface (Box and Wilson 1951).

A configuration has a few students, and the best of dozens owes much to their luck. So where the size of an assistant
was searched, which few configurations share, means are estimated from a surface: a constant, and for the size and every
other number that was varied a term and its square, by least squares. What a configuration lies above or below it counts
as far as that is more than the chance of its students (empirical Bayes: Efron and Morris 1973).
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, variance

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from takd.analysis.tables import assistant_size, parameters_of
from takd.search_spaces.arms import ANY_SIZE

Floats = NDArray[np.float64]

FREEDOM = 6  # degrees of freedom that must be left
FEWEST = 8  # configurations


def numbers_varied(configurations: Iterable[str], freedom: int) -> pd.DataFrame:
    """The numbers beside sizes that were varied, a column each, while enough degrees of freedom are left for them."""
    drawn = pd.DataFrame([parameters_of(each) for each in configurations])
    numbers = drawn.apply(pd.to_numeric, errors="coerce")
    kept = [
        name
        for name in numbers
        if not name.endswith(f"{ANY_SIZE}.size") and numbers[name].notna().all() and numbers[name].nunique() > 2
    ]
    return numbers[kept[: max(0, (freedom - FREEDOM) // 2)]]


def terms(values: Floats) -> list[Floats]:
    """A number and its square, or those of its logarithm where it is positive; each with a mean of 0."""
    values = np.log(values) if (values > 0).all() else values
    values = (values - values.mean()) / max(values.std(), 1e-12)
    return [values, values**2 - np.mean(values**2)]


def weights(scores: Mapping[str, Sequence[float]]) -> Floats | None:
    """`[configurations, configurations]`: what the mean of each counts in the estimate of each; by their own order.

    `scores` has those of the students of an arm's configurations, by their names. None where no size was searched, or
    in too few configurations.
    """
    sizes = [assistant_size(name) for name in scores]
    known = np.array([size for size in sizes if size is not None], float)
    if len(known) < max(len(sizes), FEWEST) or known.min() == known.max():
        return None
    others = numbers_varied(scores, len(sizes) - 3)
    columns = [each for name in others for each in terms(others[name].to_numpy(float))]
    design = np.stack([np.ones(len(sizes)), *terms(known), *columns], axis=1)
    fit = np.asarray(design @ np.linalg.pinv(design))
    means = np.array([fmean(values) for values in scores.values()])
    left = float(((means - fit @ means) ** 2).sum()) / max(1, len(sizes) - int(np.linalg.matrix_rank(design)))
    chance = [variance(values) / len(values) for values in scores.values() if len(values) > 1]
    # With one student each nobody knows how large chance is: then all that the surface leaves is taken for it.
    own = max(0.0, 1 - fmean(chance) / left) if chance and left > 0 else 0.0
    return fit + own * (np.eye(len(sizes)) - fit)
