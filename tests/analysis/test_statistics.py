"""What the statistics promise: intervals that cover, few false alarms, and words that say no more than the numbers."""

import gc
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from takd.analysis.statistics import (
    ALPHA,
    cohens_d,
    compare_arms,
    hedges_g,
    holm,
    mean_interval,
    paired_p,
    seeds_needed,
    verdict,
)

STUDIES = 2000
ARMS = ("labels", "kd", "takd:mlp-200", "takd:mlp-64", "takd:mlp-16")
SHARED, OWN = 0.5, 0.15  # standard deviations in points: what seeds do to every arm alike, and to one alone
EFFECT = 0.5


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """statsmodels collects garbage at every correction: without what other tests left, that takes no time."""
    gc.freeze()
    yield
    gc.unfreeze()


def simulate(effects: Mapping[str, float], seeds: int = 5) -> dict[str, np.ndarray]:
    """By arm accuracies in percent `[studies, seeds]`: a seed moves all arms alike, and each one a little by itself."""
    random = np.random.default_rng(20)
    shared = random.normal(0, SHARED, (STUDIES, seeds))
    return {arm: 86 + effects.get(arm, 0.0) + shared + random.normal(0, OWN, (STUDIES, seeds)) for arm in ARMS}


def family(accuracy: Mapping[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """The paired differences `[studies, seeds]` of every comparison that `compare_arms` makes."""
    made = compare_arms({arm: pd.Series(values[0]) for arm, values in accuracy.items()})
    pairs = zip(made["arm"], made["reference"], strict=True)
    return {(arm, reference): accuracy[arm] - accuracy[reference] for arm, reference in pairs}


def found(differences: Mapping[tuple[str, str], np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """By comparison whether each study finds a difference."""
    corrected = np.apply_along_axis(holm, 0, np.stack([paired_p(each) for each in differences.values()]))
    return dict(zip(differences, corrected < ALPHA, strict=True))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds):
    accuracy = simulate({"takd:mlp-16": EFFECT}, seeds)
    mean = mean_interval(accuracy["kd"])
    difference = mean_interval(accuracy["takd:mlp-16"] - accuracy["kd"])
    assert 0.93 <= np.mean((mean.low <= 86) & (mean.high >= 86)) <= 0.97
    assert 0.93 <= np.mean((difference.low <= EFFECT) & (difference.high >= EFFECT)) <= 0.97


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_study_in_twenty_at_most_finds_what_is_not_there(seeds):
    alarms = np.any(list(found(family(simulate({}, seeds))).values()), axis=0)
    assert 0 < alarms.mean() <= 0.05


def test_a_planted_half_point_is_found():
    seen = found(family(simulate({"takd:mlp-16": EFFECT}, seeds=8)))
    assert seen["takd:mlp-16", "kd"].mean() > 0.9
    assert seen["takd:mlp-64", "kd"].mean() < 0.05


def test_a_study_says_what_the_arrays_say():
    """`compare_arms` on a study is the simulated road on one of its rows."""
    accuracy = simulate({"takd:mlp-16": EFFECT})
    differences = family(accuracy)
    seen = found(differences)
    for number in range(5):
        table = compare_arms({arm: pd.Series(values[number]) for arm, values in accuracy.items()})
        for row in table.to_dict("records"):
            pair = row["arm"], row["reference"]
            assert row["difference"] == pytest.approx(differences[pair][number].mean())
            assert (
                (row["p_holm"] < ALPHA)
                == seen[pair][number]
                == ("beats" in row["verdict"] or "loses" in row["verdict"])
            )


def test_they_agree_with_scipy_and_statsmodels():
    accuracy = simulate({})
    kd, takd = accuracy["kd"][0], accuracy["takd:mlp-64"][0]
    estimate = mean_interval(takd - kd)
    assert (estimate.low, estimate.high) == pytest.approx(DescrStatsW(takd - kd).tconfint_mean())
    assert paired_p(takd - kd) == pytest.approx(stats.ttest_rel(takd, kd).pvalue)
    assert holm([0.01, np.nan, 0.04, 0.03]) == pytest.approx(
        np.insert(multipletests([0.01, 0.04, 0.03], method="holm")[1], 1, np.nan), nan_ok=True
    )
    assert cohens_d([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert hedges_g([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(cohens_d([1.0, 2, 3, 4, 5]) * (1 - 3 / 15), rel=0.01)


def test_as_many_seeds_are_named_as_the_power_takes():
    needed = seeds_needed(0.2, comparisons=1)
    power = TTestPower().power(0.1 / 0.2, np.array([needed - 1, needed]), ALPHA)
    assert power[0] < 0.8 <= power[1]
    assert seeds_needed(0.2, comparisons=7) > needed
    assert seeds_needed(9.0, comparisons=7) is None


def test_seeds_pair_and_those_of_one_arm_alone_are_left_out():
    kd = pd.Series([80.0, 82.0, 90.0], index=[0, 1, 7])
    takd = pd.Series([82.1, 81.0, 83.0, 99.0], index=[1, 0, 2, 3])
    [row] = compare_arms({"kd": kd, "takd:mlp-16": takd}).to_dict("records")
    assert (row["seeds"], row["difference"]) == (2, pytest.approx(0.55))


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.2, 0.22, 0.19, 0.21, 0.23], "takd:a beats kd by 0.21 points, 95 % CI 0.19 to 0.23"),
        ([-0.2, -0.22, -0.19, -0.21, -0.23], "takd:a loses to kd by 0.21 points, 95 % CI 0.19 to 0.23"),
        ([0.1, -0.1, 0.05, -0.02, 0.01], "no difference found between takd:a and kd at 5 seeds (+0.01, 95 % CI -0"),
        ([0.1, -0.1, 0.05, -0.02, 0.01], "; 7 seeds would be needed to see a difference of 0.1 points"),
        ([90.0, -90.0, 0.0], "more than 1,000 seeds would be needed"),
        ([0.4], "takd:a against kd: +0.40 points at one seed: nothing can be said"),
        ([0.4, 0.4], "at 2 seeds whose differences are all the same: nothing can be said"),
        ([], "takd:a and kd have no seed in common: nothing can be said"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_was_found_and_no_more(differences, words):
    kd = pd.Series(np.zeros(len(differences)) + 80)
    table = compare_arms({"kd": kd, "takd:a": kd + pd.Series(differences, dtype=float)})
    assert words in table["verdict"][0]


def test_a_difference_that_the_correction_takes_away_is_called_luck():
    row = {"arm": "takd:a", "reference": "kd", "seeds": 5, "difference": 0.2, "low": 0.01, "high": 0.39, "p_holm": 0.09}
    assert verdict(row, 7) == (
        "takd:a is 0.20 points ahead of kd, 95 % CI 0.01 to 0.39, but that may be luck: "
        "7 comparisons were made (p = 0.09 after Holm's correction)"
    )


def test_labels_and_kd_are_compared_once():
    arms = {arm: pd.Series([80.0, 81.0]) for arm in ("labels", "kd", "takd:a")}
    pairs = compare_arms(arms)[["arm", "reference"]].to_numpy().tolist()
    assert pairs == [["takd:a", "kd"], ["kd", "labels"], ["takd:a", "labels"]]
