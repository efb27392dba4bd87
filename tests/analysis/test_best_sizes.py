"""Ranges of sizes that a search chose: which is best, and how sure that is."""

from collections.abc import Callable
from math import fsum
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_space

from takd.analysis.evidence.chosen import choose, choose_setting
from takd.analysis.evidence.sizes import Sized, best_sizes, by_size
from takd.analysis.evidence.statistics import how_often_chosen
from takd.analysis.evidence.surface import weights
from takd.analysis.figures import accuracy_by_size, image
from takd.analysis.finding import sizes
from takd.analysis.methods import methods
from takd.analysis.tables import Missing, arm_order, assistant_size, of_assistant, parameters_of

ARM = "takd:mlp-*"


def searched(accuracy: Callable[[int, float], float], number: int = 40, seed: int = 0, noise: float = 0.3):
    """Trials of a search: sizes from 8 to 400, a temperature that rises with the size, a student each."""
    random = np.random.default_rng(seed)
    rows = []
    for place, size in enumerate(np.geomspace(8, 400, number).astype(int)):
        temperature = float(np.exp(np.log(size) / 2 + random.normal(0, 0.7)))
        value = accuracy(int(size), temperature) + random.normal(0, noise)
        about = {"phase": "search", "status": "done", "arm": ARM, "cell": "", "assistant_size": int(size)}
        about["configuration"] = f"{ARM} temperature={temperature:.4g} mlp-*.size={size}"
        rows.append(
            about
            | {"role": "student", "model": "mlp-4", "stage_key": str(place), "val_accuracy": value / 100}
            | {"parameters": 100.0, "test_accuracy": np.nan, "path_seed": 0}
        )
        rows.append(
            about | {"role": "assistant", "model": f"mlp-{size}", "stage_key": f"a{place}", "parameters": 10.0 * size}
        )
    return pd.DataFrame(rows)


def hill(size: int, temperature: float) -> float:
    return 86 - np.log(size / 40) ** 2


def best_of(found: Sized) -> tuple[int, int]:
    [band] = [each for each in found.bands if each.best]
    return band.smallest, band.largest


def test_the_best_range_holds_the_best_size_and_others_are_told_from_it():
    found = by_size(searched(hill), ARM)
    low, high = best_of(found)
    assert low <= 40 <= high
    assert not found.bands[0].close
    assert not found.bands[-1].close
    assert sum(band.configurations for band in found.bands) == len(found.configurations) == 40
    said = best_sizes(searched(hill), ARM)
    assert f"those of {low} to {high} have the highest mean validation accuracy: 8" in said
    assert "with temperature held equal" in said
    assert "students are worse (p < 0.05 after Holm's correction)" in said
    assert said in sizes(searched(hill))


def test_what_was_drawn_with_a_size_is_held_equal():
    """Here the temperature alone matters, and it rose with the size: no size is better."""
    found = by_size(searched(lambda size, temperature: 80 + np.log(temperature)), ARM)
    raw = found.configurations.groupby(pd.qcut(found.configurations["size"], 5))["value"].mean()
    assert np.ptp(raw) > 1
    assert np.ptp([band.value for band in found.bands]) < 0.5
    assert all(band.close for band in found.bands)


def scores_of(trials: pd.DataFrame, students: int, noise: float) -> dict[str, list[float]]:
    """By configuration those of so many students, whose mean is that of the table."""
    random, rows = np.random.default_rng(1), trials[trials["role"] == "student"]
    found = {}
    for name, value in zip(rows["configuration"], 100 * rows["val_accuracy"], strict=True):
        off = random.normal(0, noise, students)
        found[str(name)] = (value + off - off.mean()).tolist()
    return found


def test_what_is_chosen_is_near_the_best_though_another_configuration_had_luck():
    """40 configurations on a slope, with the noise of 8 students; one at the far end has the best mean by luck."""
    noise = 0.8
    scores = scores_of(searched(lambda size, _: 86 - 0.4 * np.log(size), noise=noise / 8**0.5), 8, noise)
    lucky = list(scores)[-1]
    best = max(fsum(values) / 8 for values in scores.values())
    scores[lucky] = [value + best - fmean(scores[lucky]) + 0.5 for value in scores[lucky]]
    assert choose_setting(scores) == lucky
    assert assistant_size(choose(scores)) < 16  # type: ignore[operator]


def test_where_the_size_does_nothing_the_choice_has_the_best_temperature():
    scores = scores_of(searched(lambda _, temperature: 86 - np.log(temperature / 6) ** 2, noise=0.3), 8, 0.8)
    assert 4 < float(parameters_of(choose(scores))["temperature"]) < 9


def test_what_no_surface_explains_is_chosen_for_itself_where_its_students_agree():
    scores = scores_of(searched(lambda size, _: 90.0 if size == 98 else 80.0, noise=0.01), 8, 0.05)
    assert assistant_size(choose(scores)) == 98


def test_few_configurations_are_chosen_from_as_of_any_arm():
    scores = scores_of(searched(hill, number=7), 8, 0.8)
    assert weights(scores) is None
    assert choose(scores) == choose_setting(scores)
    assert weights({f"kd temperature={number}": [80.0] for number in range(1, 20)}) is None


def test_how_often_a_choice_would_be_the_same_is_asked_of_the_same_rule():
    scores = scores_of(searched(hill), 4, 0.8)
    own = weights(scores)
    assert own is not None
    often = how_often_chosen(np.array(list(scores.values())), own)
    assert often.sum() == pytest.approx(1)
    assert often[list(scores).index(choose(scores))] > 0.2
    firm = how_often_chosen(np.array([[fmean(each)] * 4 for each in scores.values()]), own)
    assert firm[list(scores).index(choose(scores))] == 1


def test_where_sizes_do_nothing_few_searches_say_that_some_are_worse():
    wrong = [
        any(not band.close for band in by_size(searched(lambda *_: 80.0, seed=seed), ARM).bands) for seed in range(60)
    ]
    assert np.mean(wrong) < 0.2  # the best of five is looked for first: not every one of twenty can be right
    flat = searched(lambda *_: 80.0, seed=wrong.index(False))
    assert "any of these sizes may be the best" in best_sizes(flat, ARM)


def test_few_choices_are_a_range_each_and_few_configurations_say_nothing():
    trials = searched(hill).assign(
        assistant_size=lambda rows: rows["assistant_size"].map(lambda size: 8 * (1 + size // 200))
    )
    assert [(band.smallest, band.largest) for band in by_size(trials, ARM).bands] == [(8, 8), (16, 16), (24, 24)]
    with pytest.raises(Missing, match="has 7 configurations with 7 sizes; 8 and two sizes are the fewest"):
        by_size(searched(hill, number=7), ARM)


def test_the_figure_is_drawn_and_says_what_is_missing():
    assert b"<svg" in image(accuracy_by_size(searched(hill)), "svg")
    with pytest.raises(Missing, match="No size of an assistant was searched"):
        accuracy_by_size(searched(hill).drop(columns="assistant_size"))


def test_tables_know_an_assistant_whose_size_was_searched():
    trials = searched(hill)
    assert assistant_size("takd:mlp-* temperature=4 mlp-*.size=57") == 57
    assert assistant_size("takd:mlp-57 temperature=4") is None
    assert set(trials.loc[of_assistant(trials, ARM), "role"]) == {"assistant"}
    assert arm_order(trials, ARM) == (4, 1, -4000.0, ARM)


def test_the_methods_say_that_a_size_was_searched_and_how_one_assistant_was_trained():
    models = [
        {"family": "mlp", "size": {"low": 8, "high": 400, "log": True}},
        {"model": "cnn", "recipe": {"epochs": 3}},
    ]
    said = methods(tiny_space(assistants={"models": models}, arms=["kd", ARM], metric="auc"), searched(hill), {})
    assert "mlp-*, whose size was between 8 and 400 on a logarithmic scale, and cnn" in said
    assert "The assistant cnn was trained for 3 epochs" in said
    assert "each arm's best was chosen by mean validation AUC." in said
