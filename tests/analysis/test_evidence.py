"""Evidence from a study's own table: units, what intervals cover, families over cells, and how sure it is."""

import numpy as np
import pandas as pd
import pytest
from test_analysis import ACCURACY, _row, made_up, with_confirmation

from takd.analysis.arms import accuracy_table, arms_table, comparisons, format_arms, page_table, standing
from takd.analysis.effects import factor_effects
from takd.analysis.evidence.certainty import (
    choice_table,
    images_table,
    variance_table,
    what_would_help,
    won_table,
)
from takd.analysis.evidence.chosen import choose_setting, note, order_of_setting, scope, unit_of
from takd.analysis.evidence.ends import at_ends
from takd.analysis.evidence.measured import measured
from takd.analysis.evidence.statistics import choose, difference, spread_of_images, spread_of_paths
from takd.analysis.finding import QUESTIONS, answers, finding
from takd.analysis.over_cells import questions_over, verdicts_over
from takd.analysis.tables import Missing, remembering

PATHS, STUDENTS, IMAGES = 4, 3, 400
ANEW = "teacher, assistants, transfer set, order of examples"


def nested(cell: str = "", redrawn: str = ANEW, seed: int = 0, **given: object) -> pd.DataFrame:
    """A confirm phase of four paths of three students, each image right or wrong; before it the search of `made_up`."""
    random = np.random.default_rng(seed)
    images, rows = random.normal(0, 1.5, IMAGES), []
    for path in range(PATHS):
        of_path = random.normal(0, 0.1)
        for student in range(STUDENTS):
            for trial, (arm, mean) in enumerate(ACCURACY.items()):
                chain = [] if arm.startswith("label") else ["mlp-1200", *arm.split(":")[1:]]
                right = 2 + 0.15 * (mean - 85) + images + of_path + random.normal(0, 0.7, IMAGES) > 0
                configuration = f"{arm} temperature=4 lambda=0.7" if chain else arm
                for place, model in enumerate([*chain, "mlp-8"]):
                    row = _row(
                        "made-up",
                        "confirm",
                        trial,
                        configuration,
                        arm,
                        path + 100 * student,
                        chain[:place],
                        model,
                        0.85,
                    )
                    row |= {"replicate": path, "redrawn": redrawn, "test_images": IMAGES}
                    if model == "mlp-8":
                        row |= {"test_right": np.packbits(right).tobytes(), "test_accuracy": right.mean()}
                        row["stage_key"] += cell
                    rows.append(row)
    return pd.concat([made_up(), pd.DataFrame(rows)], ignore_index=True).assign(cell=cell, **given)


def test_the_unit_is_the_path_and_intervals_cover_paths_and_images():
    table = arms_table(nested()).set_index("arm")
    assert set(table["unit"]) == {"path"}
    assert set(table["covers"]) == {"paths, images"}
    assert (table["units"] == PATHS).all()
    assert (table["seeds"] == PATHS * STUDENTS).all()
    cells = {row[0]: row[5] for row in format_arms(arms_table(nested()))}
    assert cells["arm"] == "paths"
    assert cells["kd"] == "4 x 3"
    assert ((table["low"] >= 0) & (table["high"] <= 100)).all()


def test_the_table_of_a_page_has_every_column_also_where_units_are_paths():
    assert sorted(page_table(nested()).columns) == sorted(accuracy_table(nested()).columns)


def test_students_are_averaged_within_their_path_before_arms_are_paired():
    trials = nested()
    arms = measured(trials)
    right, other = arms["takd:mlp-16"].right(), arms["kd"].right()
    assert right is not None
    assert other is not None
    assert right.shape == (PATHS, IMAGES)
    expected = difference(spread_of_images(right - other))
    row = comparisons(trials).query("arm == 'takd:mlp-16' and reference == 'kd'").iloc[0]
    assert row["difference"] == pytest.approx(100 * expected.mean)
    assert (row["low"], row["p"]) == pytest.approx((100 * float(expected.low), float(expected.p)))


def test_a_student_that_one_arm_lacks_is_left_out_of_both():
    trials = nested()
    lacking = trials[~((trials["arm"] == "kd") & (trials["replicate"] == 1))]
    row = comparisons(lacking).query("arm == 'takd:mlp-16' and reference == 'kd'").iloc[0]
    assert row["units"] == PATHS - 1
    arms = {name: each.by_unit() for name, each in measured(lacking).items()}
    assert row["difference"] == pytest.approx((arms["takd:mlp-16"] - arms["kd"]).dropna().mean())


def test_without_predictions_intervals_cover_paths_alone_and_it_is_said():
    old = nested().drop(columns="test_right")
    table = arms_table(old).set_index("arm")
    assert set(table["covers"]) == {"paths"}
    reached = measured(old)["kd"].by_unit().to_numpy() / 100
    assert table.loc["kd", "accuracy"] == pytest.approx(100 * float(spread_of_paths(reached).mean))
    assert "They take the test images as fixed" in note(old)
    assert "They take the test images as fixed" not in note(nested())


def test_every_sentence_says_with_this_teacher_where_it_was_not_drawn_anew():
    for trials in (with_confirmation(), nested(redrawn="assistants, order of examples")):
        sentences = comparisons(trials).query("arm == 'kd' and reference == 'labels'")["verdict"].tolist()
        assert all(each.startswith("With this teacher, ") for each in sentences)
    assert unit_of(with_confirmation()) == "student"
    assert scope(nested(), "kd", "labels") == ""
    assert scope(with_confirmation(), "label_smoothing", "labels") == "with this order of examples"


def test_holms_family_is_all_comparisons_of_all_cells():
    two = pd.concat([nested("student.model=a"), nested("student.model=b", seed=1)], ignore_index=True)
    one, both = comparisons(nested("student.model=a")), comparisons(two)
    assert len(both) == 2 * len(one)
    of_a = both[both["cell"] == "student.model=a"]
    assert of_a["p"].tolist() == pytest.approx(one["p"].tolist())
    assert (of_a["p_holm"] >= of_a["p"]).all()
    assert of_a["p_holm"].min() == pytest.approx(min(1.0, len(both) * both["p"].min()), rel=1e-6) or (
        both["p"].min() < of_a["p"].min()
    )
    assert of_a["verdict"].str.startswith("At student.model=a, ").all()
    first = finding(two)[0]
    assert first.startswith("The arms were searched, chosen and confirmed in each of 2 cells of the factors.")
    assert f"all {len(both)} comparisons" in first
    assert all(text for _, text in answers(two))


def test_many_cells_are_answered_by_a_table_a_question_with_a_row_a_cell():
    cells = {f"student.model=m{n} examples={n}": nested(f"student.model=m{n} examples={n}", seed=n) for n in range(4)}
    study = pd.concat(cells.values(), ignore_index=True)
    with remembering():
        _many_cells_are_answered(study, cells)


def _many_cells_are_answered(study: pd.DataFrame, cells: dict[str, pd.DataFrame]) -> None:
    asked = questions_over({"made-up": study}, cells)
    assert list(asked) == list(QUESTIONS)
    assert asked["What does temperature do?"] == "T was not varied."
    tables = [each for each in asked.values() if not isinstance(each, str)] + [verdicts_over({"made-up": study}, cells)]
    assert len(tables) == 5
    for table in tables:
        assert table["student"].tolist() == [f"m{n}" for n in range(4)]
        assert list(table.columns[:2]) == ["student", "examples"]
        assert (table != "-").all(axis=None)
    sure = comparisons(study).query("arm == 'takd:mlp-16' and reference == 'kd'")["p_holm"] < 0.05
    shown = asked["What does a teacher assistant change?"]["takd:mlp-16 over kd"]
    assert shown.str.endswith("*").tolist() == sure.tolist()
    asked = questions_over({"made-up": study, "other": study}, cells)
    assert list(asked["What does it cost?"].columns[:3]) == ["study", "student", "examples"]


def test_a_smallest_effect_that_was_changed_is_a_warning_in_the_finding():
    trials = nested(smallest_effect=0.5, smallest_effect_before=0.0)
    assert any(
        "smallest_effect is 0.5 now and was null when the confirm phase began" in each for each in finding(trials)
    )


def test_cells_that_were_added_when_numbers_were_known_are_a_warning_in_the_finding():
    cells = [nested(f"student.model={name}", seed=n, late_cell=n > 0) for n, name in enumerate("abc")]
    assert any("2 of 3 cells were added when the confirm phase" in each for each in finding(pd.concat(cells)))
    assert not any("were added" in each for each in finding(cells[0]))


def test_an_arm_whose_students_failed_is_named_with_its_reason():
    trials = nested()
    failed = trials[trials["arm"] == "takd:mlp-64"].assign(status="failed", error="no room")
    rest = trials[trials["arm"] != "takd:mlp-64"]
    said = finding(pd.concat([rest, failed], ignore_index=True))
    assert "takd:mlp-64 is left out: none of its students ended (no room)." in said


def test_the_same_arm_never_lies_below_the_best_by_more_than_its_bound():
    stand = standing(nested(smallest_effect=50.0))
    assert set(stand.as_good) == set(ACCURACY)  # within fifty points everybody is
    assert all(bound >= 0 for bound in stand.at_most.values())


# How sure it is


def test_what_moves_the_numbers_and_what_would_help():
    table = variance_table(nested())
    assert list(table.columns) == ["of", "between paths", "between students of a path", "between test images"]
    assert "takd:mlp-16 - kd" in table["of"].to_list()
    said = what_would_help(nested(smallest_effect=2.0), "takd:mlp-16", "kd")
    row = comparisons(nested()).query("arm == 'takd:mlp-16' and reference == 'kd'").iloc[0]
    assert f"known to ±{(row['high'] - row['low']) / 2:.2f} points, by 4 paths of 3 students" in said
    assert "with 5 more paths" in said
    assert "a difference of 2 points" in said
    with pytest.raises(Missing):
        variance_table(made_up())


def test_how_firm_a_choice_is():
    rows = [
        _row("s", "search", trial, f"kd temperature={t} lambda=0.7", "kd", seed, ["mlp-1200"], "mlp-8", accuracy)
        for trial, (t, accuracies) in enumerate({1: (0.80, 0.81, 0.82), 4: (0.90, 0.91, 0.92)}.items())
        for seed, accuracy in enumerate(accuracies)
    ]
    [row] = choice_table(pd.DataFrame(rows)).to_dict("records")
    assert (row["chosen"], row["chosen again"]) == ("temperature=4 lambda=0.7", "100 %")
    with pytest.raises(Missing):
        choice_table(made_up())  # one configuration an arm


def test_by_paths_the_search_is_set_beside_the_mean_of_each_path():
    trials = nested()
    student = (trials["arm"] == "kd") & (trials["role"] == "student")
    for path, accuracies in enumerate([(0.80, 0.82, 0.84), (0.81, 0.83, 0.85), (0.79, 0.81, 0.83), (0.80, 0.82, 0.84)]):
        trials.loc[student & (trials["replicate"] == path) & (trials["phase"] == "confirm"), "val_accuracy"] = (
            accuracies
        )
    search = trials[student & (trials["phase"] == "search")]
    other = search.assign(configuration="kd temperature=1 lambda=0.7", val_accuracy=0.5)
    other["stage_key"] += "-1"
    trials.loc[search.index, "val_accuracy"] = 0.83
    rows = choice_table(pd.concat([trials, other], ignore_index=True)).set_index("arm")
    # Means by path are 82, 83, 81 and 82 %, which the search's 83 lies above by 1: 1, 0, 2 and 1.
    assert rows.loc["kd", "search minus fresh validation, points"].startswith("+1.00 (-0.30 to +2.30)")


def test_where_arms_differ_is_said_by_cells_in_words():
    cells = [f"teacher.model=mlp-1200 student.recipe.examples={examples}" for examples in (500, 2000)]
    said = finding(pd.concat([nested(cell, seed=seed) for seed, cell in enumerate(cells)], ignore_index=True))
    [line] = [each for each in said if each.startswith("kd is better than labels in ")]
    assert "of 2 cells (most by " in line
    assert "at teacher mlp-1200, examples " in line


def test_what_a_factor_does_to_a_gain_is_paired_by_path_and_corrected():
    """The cells have the same draws but for `kd`, one image of twenty of which is wrong at the second level."""
    first, second = nested("teacher.model=mlp-200"), nested("teacher.model=mlp-1200")
    worse = (second["arm"] == "kd") & (second["role"] == "student") & (second["phase"] == "confirm")
    for row in second.index[worse]:
        right = np.unpackbits(np.frombuffer(second.at[row, "test_right"], np.uint8), count=IMAGES)
        right[::20] = 0
        second.at[row, "test_right"] = np.packbits(right).tobytes()
        second.at[row, "test_accuracy"] = right.mean()
    trials = pd.concat([first, second], ignore_index=True)
    table = factor_effects(trials).set_index(["arm", "level"])
    alone = arms_table(trials).set_index(["cell", "arm"])["over_kd"]
    for arm in ("takd:mlp-64", "takd:mlp-16"):
        gains = [alone["teacher.model=mlp-200", arm], alone["teacher.model=mlp-1200", arm]]
        assert table.loc[arm, "gain"].to_list() == pytest.approx(gains)
        change = table.loc[(arm, "mlp-1200")]
        assert change["change"] == pytest.approx(gains[1] - gains[0])
        assert 0 < change["change_low"] < change["change_high"] < 10
        assert change["change_high"] - change["change_low"] < change["high"] - change["low"]  # paired: else it is wider
    [line] = [each for each in finding(trials) if each.startswith("What takd:mlp-16 adds to kd changes by +")]
    assert "from teacher mlp-200 to mlp-1200" in line
    with pytest.raises(Missing):
        factor_effects(nested("teacher.model=mlp-200"))


def test_a_choice_drawn_anew_is_made_by_the_rule_of_the_choice_itself():
    random = np.random.default_rng(0)
    for _ in range(300):
        accuracy = np.round(random.normal(90, 1, (4, 3)), 1)
        names = [f"kd temperature={t} lambda={lam}" for t in (1, 4) for lam in (0.3, 0.9)]
        assert sorted(names, key=order_of_setting) == names
        assert names[int(choose(accuracy))] == choose_setting(dict(zip(names, accuracy.tolist(), strict=True)))


def test_images_that_an_arm_won_and_lost_are_counted_and_named():
    trials = nested()
    arms = measured(trials)
    right, other = arms["takd:mlp-16"].bits(), arms["kd"].bits()
    assert right is not None
    assert other is not None
    [row] = images_table(trials).query("arm == 'takd:mlp-16'").to_dict("records")
    assert row["arm alone"] == f"{(right * (1 - other)).sum(axis=1).mean():,.1f}"
    assert row["images won"] == int((right.sum(axis=0) > other.sum(axis=0)).sum())
    keys = trials.loc[trials["test_right"].notna() & (trials["arm"] == "takd:mlp-16"), "stage_key"]
    predictions = pd.DataFrame({"name": None, "label": np.arange(IMAGES) % 10} | dict.fromkeys(keys, 3))
    won = won_table(trials, predictions)
    gained = right.mean(axis=0) - other.mean(axis=0)
    assert won["image"].iloc[0] == f"number {int(np.argmax(gained))}"


def tried(weights: str, accuracies: list[float], arm: str = "dkd", cell: str = "") -> pd.DataFrame:
    """The search of an arm, a configuration of four students a value of its weight."""
    frames = []
    for trial, (value, mean) in enumerate(zip(weights.split(), accuracies, strict=True)):
        name = f"{arm} {cell} dkd.weight={value} lambda=0" if cell else f"{arm} dkd.weight={value} lambda=0"
        rows = [
            _row("one", "search", trial, name, arm, seed, ["mlp-1200"], "mlp-8", mean + seed / 1e4) for seed in range(4)
        ]
        frames.append(pd.DataFrame(rows).assign(stage_key=[f"{arm}{cell}{trial}{seed}" for seed in range(4)]))
    return pd.concat(frames, ignore_index=True).assign(cell=cell)


def test_a_choice_at_the_end_of_what_was_searched_is_said():
    lowest = tried("0.3 1 3", [0.9, 0.8, 0.7])
    [sentence] = at_ends(lowest)
    assert sentence.endswith("a better value may lie beyond: dkd.weight=0.3, the lowest that dkd tried.")
    assert sentence in finding(lowest)
    both = pd.concat([lowest, tried("0.3 1 3", [0.7, 0.8, 0.9], "dkd:mlp-16")])
    assert at_ends(both)[0].endswith(
        "dkd.weight=0.3, the lowest that dkd tried; dkd.weight=3, the highest that dkd:mlp-16 tried."
    )
    assert at_ends(tried("0.3 1 3", [0.8, 0.9, 0.7])) == []


def test_of_two_values_each_is_an_end_and_of_equals_the_lowest_is_a_rule():
    assert at_ends(tried("0.3 1", [0.9, 0.8])) == []
    assert at_ends(tried("1 2 4", [0.89999, 0.9, 0.7])) == []  # the lowest was chosen of two that are as good
    nothing_beyond = tried("0.3 1 3", [0.9, 0.8, 0.7])
    renamed = nothing_beyond["configuration"].str.replace("dkd.weight=0.3", "temperature=1")
    renamed = renamed.str.replace("dkd.weight", "temperature")
    assert at_ends(nothing_beyond.assign(configuration=renamed)) == []


def test_the_value_of_a_factor_is_no_choice():
    cells = [tried("0.3 1 3", [0.8, 0.9, 0.7], cell=f"examples={size}") for size in (100, 200, 300)]
    assert at_ends(pd.concat(cells)) == []
