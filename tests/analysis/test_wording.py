"""What is said of a comparison: each situation has its words, and none says more than its numbers."""

# Sentences are whole here.
# ruff: noqa: E501

from pathlib import Path

import numpy as np
import pytest

from takd.analysis.evidence.wording import MARGINS, VERDICTS, Compared, interval_text, verdict

AT = {"arm": "takd:a", "reference": "kd", "unit": "path"}


def said(difference: float, low: float, high: float, p: float, **given: object) -> str:
    numbers = {"difference": difference, "low": low, "high": high, "p": p, "units": 5, "comparisons": 7}
    return verdict(Compared(**{**AT, **numbers, **given}))  # type: ignore[arg-type]


SURE, UNSURE = 0.01, 0.4


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((np.nan, np.nan, np.nan, np.nan, {"units": 0}), "takd:a and kd have no path in common, so nothing can be said of them"),
        ((0.4, np.nan, np.nan, np.nan, {"units": 1}), "takd:a is 0.40 points above kd on one path; from one path nothing can be said"),
        ((-0.4, np.nan, np.nan, np.nan, {}), "takd:a is 0.40 points below kd in each of 5 paths; without any spread nothing can be said of chance"),
        ((0.65, 0.39, 0.9, SURE, {}), "takd:a is better than kd by 0.65 points (95 % CI 0.39 to 0.90)"),
        ((-5.2, -7, -3.4, SURE, {}), "takd:a is worse than kd by 5.20 points (95 % CI 3.40 to 7.00)"),
        ((0.5, 0.1, 0.9, UNSURE, {}), "takd:a is 0.50 points above kd (95 % CI 0.10 to 0.90), but that may be luck: it is one of 7 comparisons (p = 0.40 after Holm's correction)"),
        ((-0.001, -0.004, 0.003, UNSURE, {}), "takd:a and kd can't be told apart (+0.00 points, 95 % CI +0.00 to +0.00)"),
        ((-6.31, -40, 27, UNSURE, {}), "takd:a and kd can't be told apart (-6.31 points, 95 % CI -40.00 to +27.00)"),
        ((0.65, 0.39, 0.9, SURE, {"scope": "with this teacher"}), "With this teacher, takd:a is better than kd by 0.65 points (95 % CI 0.39 to 0.90)"),
    ],
)  # fmt: skip
def test_each_situation_has_its_words(numbers, words):
    *given, changes = numbers
    assert said(*given, **changes) == words


@pytest.mark.parametrize(
    ("numbers", "added"),
    [
        ((0.65, 0.39, 0.9, SURE), ", more than the 0.3 that matter"),
        ((-0.65, -0.9, -0.39, SURE), ", more than the 0.3 that matter"),
        ((0.92, 0.33, 1.5, UNSURE), ""),  # it may be luck
        ((0.2, 0.15, 0.25, SURE), ", less than the 0.3 that matter"),
        ((-0.2, -0.25, -0.15, SURE), ", less than the 0.3 that matter"),
        ((0.3, 0.15, 0.45, SURE), ""),
        ((0.05, -0.1, 0.2, UNSURE), ", so takd:a is as good as kd: less than the 0.3 points that matter lie between them"),
        ((0.3, -0.1, 0.7, UNSURE), ", so takd:a is not worse than kd by the 0.3 that matter"),
        ((-0.1, -0.5, 0.3, UNSURE), ""),
        ((-6.31, -40, 27, UNSURE), ""),
        ((0.5, np.nan, np.nan, np.nan), ""),
    ],
)  # fmt: skip
def test_as_good_as_is_said_only_of_what_lies_within_the_margin_that_was_named(numbers, added):
    plain = said(*numbers)
    assert "as good" not in plain
    assert said(*numbers, matters=0.3) == plain + added


def test_an_interval_is_told_in_the_direction_of_the_words_and_never_as_minus_zero():
    assert interval_text(-0.9, -0.39) == "95 % CI 0.39 to 0.90"
    assert interval_text(-0.004, 0.2) == "95 % CI +0.00 to +0.20"


@pytest.mark.parametrize("wordings", [VERDICTS, MARGINS], ids=["verdicts", "margins"])
def test_the_page_has_every_wording(wordings):
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    rows = [f"| {each.where} | {each.text.lstrip(', ') or 'nothing'} |" for each in wordings.values()]
    assert "\n".join(rows) in page
