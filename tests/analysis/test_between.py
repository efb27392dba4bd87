"""The same arm in two studies, and how their spaces differ."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from takd.analysis.between import differences, same_arms, verdict, warnings

CHANCE = np.random.default_rng(0)


def made(accuracy: dict[str, list[float]], teacher: str = "mlp-64", phase: str = "confirm") -> pd.DataFrame:
    """The students of some arms, by their accuracies in percent in the order of seeds."""
    rows = [
        {
            "arm": arm,
            "configuration": arm,
            "path": f"{teacher} > mlp-4",
            "path_seed": seed,
            "stage_key": f"{arm} {seed} {teacher}",
            "role": "student",
            "status": "done",
            "phase": phase,
            "model": "mlp-4",
            "parameters": 1,
            "val_accuracy": value / 100,
            "test_accuracy": value / 100,
            "total_path_seconds": 1.0,
        }
        for arm, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


HARD = CHANCE.normal(80, 3, 8)  # seeds differ by more than studies
BETTER = HARD + 1 + CHANCE.normal(0, 0.1, 8)


def test_the_same_paths_are_paired_by_seed():
    [row] = same_arms(made({"kd": [*HARD]}), made({"kd": [*BETTER]})).to_dict("records")
    assert row["how"] == "paired, 8 seeds"
    assert row["p"] == pytest.approx(stats.ttest_rel(BETTER, HARD).pvalue)
    assert row["low"] < row["difference"] < row["high"]
    assert verdict(row) == "different"


def test_other_paths_are_held_against_each_other_by_welch():
    [row] = same_arms(made({"kd": [*HARD]}), made({"kd": [*BETTER]}, teacher="mlp-128")).to_dict("records")
    assert row["how"] == "Welch, 8 and 8 seeds"
    assert row["p"] == pytest.approx(stats.ttest_ind(BETTER, HARD, equal_var=False).pvalue)
    assert verdict(row) == "no difference shown"


def test_p_is_corrected_for_all_arms_and_one_seed_has_none():
    first = made({"labels": [*HARD], "kd": [*HARD], "takd:a": [80.0]})
    second = made({"labels": [*BETTER], "kd": [*BETTER], "takd:a": [81.0], "takd:b": [81.0]})
    rows = {row["arm"]: row for row in same_arms(first, second).to_dict("records")}
    assert list(rows) == ["labels", "kd", "takd:a"]
    assert rows["kd"]["p"] == pytest.approx(2 * stats.ttest_rel(BETTER, HARD).pvalue)
    assert verdict(rows["takd:a"]) == "one seed says nothing of chance"


def test_test_and_validation_are_not_compared():
    assert same_arms(made({"kd": [*HARD]}), made({"kd": [*BETTER]}, phase="search")).empty


def test_spaces_differ_data_set_first_and_then_the_student():
    one = {"trials": 3, "arms": ["kd"], "student": {"model": "a", "lambda": 0.5}, "dataset": "x", "description": "one"}
    two = {"trials": 4, "arms": ["kd"], "student": {"model": "b", "lambda": 0.5}, "dataset": "y", "description": "two"}
    table = differences({"A": one, "B": two, "C": None})
    assert table["key"].tolist() == ["dataset", "student.model", "trials"]
    assert table.iloc[0].tolist() == ["dataset", "x", "y", "-"]
    assert [line.split(":")[1].strip() for line in warnings(table)] == ["another data set", "another student"]
    assert differences({"A": one, "B": one}).empty
