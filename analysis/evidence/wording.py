"""What is said of a comparison: every wording, by the situation that it is for.

"As good as" is said of no one without `smallest_effect`, the difference that matters: not to have found a difference is
no finding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from takd.analysis.evidence.statistics import ALPHA
from takd.search_spaces.metrics import ACCURACY, Metric


@dataclass(frozen=True)
class Compared:
    """An arm against a reference, in percentage points of the metric, or as it is where that is no fraction; positive
    where the arm is better. With the 95 % interval; NaN where there is none.
    """

    arm: str
    reference: str
    unit: str  # `path`, or `student` where paths were not drawn anew
    units: int  # that both have
    difference: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan  # Holm's, over all comparisons of the study
    comparisons: int = 1
    matters: float | None = None  # the smallest difference that does
    metric: Metric = ACCURACY
    scope: str = ""  # what was the same in all units, `with this teacher`

    @property
    def sure(self) -> bool:
        return self.p < ALPHA

    @property
    def one_sided(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


class Wording(NamedTuple):
    where: str  # for people: the situation
    holds: Callable[[Compared], bool]
    text: str


# The first that holds is said; docs/report.md has these tables.
VERDICTS: Mapping[str, Wording] = {
    "nothing in common": Wording(
        "they share no path",
        lambda each: each.units == 0,
        "{arm} and {reference} have no {unit} in common, so nothing can be said of them",
    ),
    "one unit": Wording(
        "they share one",
        lambda each: each.units == 1,
        "{arm} is {size} {points} {above} {reference} on one {unit}; from one {unit} nothing can be said",
    ),
    "no spread": Wording(
        "no interval can be computed",
        lambda each: not each.low < each.high,
        "{arm} is {size} {points} {above} {reference} in each of {units} {unit}s; without any spread nothing can be "
        "said of chance",
    ),
    "better": Wording(
        "p < 0.05 after Holm's correction, the difference is positive",
        lambda each: each.sure and each.difference > 0,
        "{arm} is better than {reference} by {size} {points} ({interval})",
    ),
    "worse": Wording(
        "p < 0.05 after Holm's correction, the difference is negative",
        lambda each: each.sure and each.difference < 0,
        "{arm} is worse than {reference} by {size} {points} ({interval})",
    ),
    "luck": Wording(
        "its own interval leaves out 0, but not after Holm's correction",
        lambda each: each.one_sided,
        "{arm} is {size} {points} {above} {reference} ({interval}), but that may be luck: it is one of {comparisons} "
        "comparisons (p = {p:.2f} after Holm's correction)",
    ),
    "not told apart": Wording(
        "else",
        lambda each: True,
        "{arm} and {reference} can't be told apart ({difference} {points}, {interval}{better})",
    ),
}
MARGINS: Mapping[str, Wording] = {
    "no interval": Wording("there is no interval", lambda each: not each.low < each.high, ""),
    "more than matters": Wording(
        "better or worse, and the whole interval is beyond what matters",
        lambda each: each.sure and (each.low >= _margin(each) or each.high <= -_margin(each)),
        ", more than the {matters:g} that matter",
    ),
    "sure, but less than matters": Wording(
        "better or worse, and the whole interval is within what matters",
        lambda each: each.sure and _within(each),
        ", less than the {matters:g} that matter",
    ),
    "less than matters": Wording(
        "the whole interval is within what matters",
        lambda each: _within(each),
        ", so {arm} is as good as {reference}: less than the {matters:g} {points} that matter lie between them",
    ),
    "not worse": Wording(
        "the interval holds 0 and lies above minus what matters",
        lambda each: not each.one_sided and each.low > -_margin(each),
        ", so {arm} is not worse than {reference} by the {matters:g} that matter",
    ),
    "open": Wording("else", lambda each: True, ""),
}


def _margin(each: Compared) -> float:
    return each.matters or 0.0


def _within(each: Compared) -> bool:
    return each.low > -_margin(each) and each.high < _margin(each)


def verdict(each: Compared) -> str:
    """One comparison in one sentence, without its full stop."""
    said = _first(VERDICTS, each).text
    said += _first(MARGINS, each).text if each.matters is not None else ""
    digits = each.metric.digits
    sentence = said.format(
        arm=each.arm,
        reference=each.reference,
        unit=each.unit,
        units=each.units,
        size=f"{abs(each.difference):.{digits}f}",
        above="below" if (each.difference < 0) == each.metric.higher else "above",
        points=each.metric.unit,
        better="" if each.metric.higher else "; more is better",
        difference=f"{without_minus_zero(each.difference, digits):+.{digits}f}",
        interval=interval_text(each.low, each.high, digits),
        p=each.p,
        comparisons=each.comparisons,
        matters=each.matters or 0.0,
    )
    return f"{each.scope[0].upper()}{each.scope[1:]}, {sentence}" if each.scope else sentence


def _first(wordings: Mapping[str, Wording], each: Compared) -> Wording:
    return next(wording for wording in wordings.values() if wording.holds(each))


def interval_text(low: float, high: float, digits: int = 2) -> str:
    """`95 % CI 0.08 to 0.34`, in the direction of the words: of the size where that is sure, else with signs."""
    if low > 0:
        return f"95 % CI {low:.{digits}f} to {high:.{digits}f}"
    if high < 0:
        return f"95 % CI {-high:.{digits}f} to {-low:.{digits}f}"
    low, high = without_minus_zero(low, digits), without_minus_zero(high, digits)
    return f"95 % CI {low:+.{digits}f} to {high:+.{digits}f}"


def without_minus_zero(value: float, digits: int = 2) -> float:
    """What is printed with so many digits, and never as `-0.00`."""
    return 0.0 if abs(value) < 0.5 * 10**-digits else value
