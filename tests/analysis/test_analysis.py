"""What the analysis says of a study: costs, choices, importance, words; and that every figure is made or missing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_space
from matplotlib.figure import Figure

from takd.analysis import figures
from takd.analysis.arms import (
    arms_table,
    budget_note,
    format_arms,
    published_table,
    standing,
    test_table,
    to_ship,
)
from takd.analysis.cost import pareto_front, student_costs
from takd.analysis.evidence.chosen import best_configurations, choose_setting, chosen_students, note
from takd.analysis.figures import BY_TRIALS, arm_colors, image
from takd.analysis.finding import QUESTIONS, answers, choice, finding, parameter_effect
from takd.analysis.importance import importance, omega_squared
from takd.analysis.methods import methods
from takd.analysis.tables import Missing, read_trials, split_of, students
from takd.analysis.teachers import NOT_JUDGED, not_judged, teacher_warnings, teaching, teaching_columns

test_table.__test__ = False  # a table of the test split

SEEDS = range(5)
ACCURACY = {"labels": 84.0, "label_smoothing": 84.4, "kd": 86.0, "takd:mlp-64": 85.99, "takd:mlp-16": 86.5}
SIZES = {"mlp-1200": 2_395_210, "mlp-64": 55_050, "mlp-16": 13_002, "mlp-8": 6_442}
TEACHERS = ("mlp-1200", "mlp-64")
SECONDS = {"mlp-1200": 60.0, "mlp-64": 6.0, "mlp-16": 3.0, "mlp-8": 1.0}


def made_up(phase: str = "search", teacher: str = "mlp-1200", study: str = "made-up") -> pd.DataFrame:
    """Every arm with one setting and five seeds, with known accuracies (ACCURACY, and noise of each arm alone)."""
    random = np.random.default_rng(3)
    rows = []
    for trial, (arm, mean) in enumerate(ACCURACY.items()):
        chain = [] if arm.startswith("label") else [teacher, *([arm.partition(":")[2]] if ":" in arm else [])]
        configuration = arm if not chain else f"{arm} temperature=4 lambda=0.7"
        for seed in SEEDS:
            accuracy = (mean + 0.3 * seed + random.normal(0, 0.03)) / 100
            rows += [
                _row(study, phase, trial, configuration, arm, seed, chain[:k], model, accuracy)
                for k, model in enumerate([*chain, "mlp-8"])
            ]
    return pd.DataFrame(rows)


def _row(
    study: str,
    phase: str,
    trial: int,
    configuration: str,
    arm: str,
    seed: int,
    chain: list[str],
    model: str,
    accuracy: float,
) -> dict[str, Any]:
    student = model == "mlp-8"
    row: dict[str, Any] = {
        "study": study, "phase": phase, "trial": trial, "configuration": configuration, "arm": arm, "path_seed": seed,
        "path": arm, "role": "student" if student else "assistant" if chain else "teacher", "model": model,
        "parameters": SIZES.get(model, 1_000_000), "flops_per_image": 2 * SIZES.get(model, 1_000_000),
        "temperature": 4.0 if chain else None, "lambda": 0.7 if chain else None, "examples": 2000, "epochs": 10,
        "stage_key": f"{study}-{phase}-{trial}-{seed}" if student else f"{study}-{model}", "status": "done",
        "val_accuracy": accuracy if student else 0.97, "test_accuracy": None,
        "val_images": 5000, "val_majority": 0.1064, "train_seconds": SECONDS.get(model, 30.0),
        "total_path_seconds": 1.0,
    }  # fmt: skip
    if phase == "confirm" and student:
        bins = [{"confidence": 0.6, "accuracy": 0.5, "count": 400}, {"confidence": 0.95, "accuracy": 0.9, "count": 600}]
        row |= {"test_accuracy": accuracy - 0.01, "test_ece": 0.06, "test_agreement": 0.9 if chain else None}
        row |= {"test_reliability": bins, "test_auc": None, "test_f1": None}
    if phase == "confirm" and not student:
        row["test_accuracy"] = {"mlp-1200": 0.984, "mlp-64": 0.976, "mlp-16": 0.945}.get(model)
    return row


def with_confirmation() -> pd.DataFrame:
    return pd.concat([made_up(), made_up("confirm")], ignore_index=True)


@pytest.fixture
def real(finished) -> pd.DataFrame:
    return read_trials(finished.folder.trials)


# Choice


def test_settings_within_one_standard_error_are_tied_and_the_lowest_temperature_then_lambda_wins():
    best = [84.0, 86.0]  # mean 85, standard error 1
    settings = {"kd temperature=16 lambda=0.7": best, "kd temperature=4 lambda=0.9": [84.0, 84.0]}
    assert choose_setting(settings) == "kd temperature=4 lambda=0.9"
    assert choose_setting(settings | {"kd temperature=4 lambda=0.3": [84.5, 84.5]}) == "kd temperature=4 lambda=0.3"
    assert choose_setting(settings | {"kd temperature=2 lambda=0.3": [83.9, 83.9]}) == "kd temperature=4 lambda=0.9"
    assert choose_setting({name: settings[name] for name in reversed(settings)}) == choose_setting(settings)


def test_with_one_seed_only_equal_means_are_tied_and_numbers_are_ordered_as_such():
    assert choose_setting({"kd temperature=10": [85.0], "kd temperature=9": [85.0]}) == "kd temperature=9"
    assert choose_setting({"kd temperature=10": [85.01], "kd temperature=9": [85.0]}) == "kd temperature=10"
    assert choose_setting({"labels": [85.0]}) == "labels"
    others = {f"kd learning_rate={rate} optimizer={name}": [85.0] for rate in (0.01, 0.001) for name in ("sgd", "adam")}
    assert choose_setting(others) == "kd learning_rate=0.001 optimizer=adam"


def test_neither_rounding_nor_seconds_decide_between_equal_settings():
    values = [84.1, 84.2, 84.3, 85.7]
    names = ["kd temperature=2 lambda=0.3", "kd temperature=1 lambda=0.9"]
    assert choose_setting(dict(zip(names, (values, values[::-1]), strict=True))) == names[1]
    trials = made_up()
    trials = pd.concat([trials, trials.assign(trial=9, configuration=trials["configuration"].str.replace("=4", "=2"))])
    trials["stage_key"] += "-" + trials["trial"].astype(str)
    trials.loc[trials["trial"] == 9, "total_path_seconds"] = 99.0
    assert best_configurations(trials)["kd"] == "kd temperature=2 lambda=0.7"


def test_every_cell_has_its_own_choice_and_its_own_rows_in_the_table_of_arms():
    small, large = (
        made_up(teacher=teacher).assign(cell=f"teacher.model={teacher}") for teacher in SIZES if teacher in TEACHERS
    )
    for rows in (small, large):
        names = rows["configuration"].str.split(" ", n=1)
        rows["configuration"] = [
            " ".join([name[0], cell, *name[1:]]) for name, cell in zip(names, rows["cell"], strict=True)
        ]
    both = pd.concat([small, large], ignore_index=True)
    assert len(students(both)) == 2 * len(students(small))  # also the students that both cells share
    table = arms_table(both)
    assert table.groupby("cell", sort=False)["arm"].nunique().to_dict() == {
        rows["cell"].iloc[0]: 5 for rows in (small, large)
    }
    assert note(both) == note(small)  # nothing of teachers that arms had chosen


# Cost


def test_a_student_alone_pays_for_its_whole_path_and_shared_for_its_part():
    trials = made_up()
    costs = student_costs(trials, students(trials)).groupby("arm")[["path_seconds", "shared_seconds"]].mean()
    assert costs.loc["labels"].tolist() == [1, 1]
    assert costs.loc["kd"].tolist() == pytest.approx([61, 1 + 60 / 15])  # 3 arms of 5 seeds learn from the teacher
    assert costs.loc["takd:mlp-16"].tolist() == pytest.approx([64, 1 + 60 / 15 + 3 / 5])


def test_flops_are_three_forward_passes_a_step_on_all_that_was_seen():
    trials = made_up()
    costs = student_costs(trials, students(trials)).groupby("arm")["path_flops"].mean()
    assert costs["labels"] == 3 * 2 * 6_442 * 2000 * 10
    trials["whole_epochs"] = trials["epochs"].where(trials["role"] == "student", trials["epochs"] - 2 / 3)
    shorter = student_costs(trials, students(trials)).groupby("arm")["path_flops"].mean()
    assert shorter["labels"] == costs["labels"]
    teacher = trials[trials["role"] == "teacher"].iloc[0]
    assert costs["kd"] - shorter["kd"] == pytest.approx(2 * teacher["flops_per_image"] * teacher["examples"])


def test_all_that_was_shared_adds_up_to_what_was_trained(real):
    costs = student_costs(real, students(real))
    assert costs["shared_seconds"].sum() == pytest.approx(real.drop_duplicates("stage_key")["train_seconds"].sum())
    assert costs["path_seconds"].to_numpy() == pytest.approx(costs["total_path_seconds"].to_numpy())


def test_a_path_with_a_stage_that_has_not_ended_has_no_cost():
    trials = made_up()
    trials.loc[trials["model"] == "mlp-16", "train_seconds"] = np.nan
    costs = student_costs(trials, students(trials)).groupby("arm")["path_seconds"].mean()
    assert np.isnan(costs["takd:mlp-16"])
    assert costs["takd:mlp-64"] == 67


def test_the_pareto_front_has_what_nothing_cheaper_beats():
    table = pd.DataFrame({"arm": list("abcd"), "path_seconds": [4.0, 1, 2, 3], "score": [90.0, 80, 85, 84]})
    assert pareto_front(table) == ["b", "c", "a"]


def test_no_arm_is_as_good_as_the_best_where_nobody_said_what_matters():
    stand = standing(made_up())
    assert (stand.best, stand.close, stand.as_good) == ("takd:mlp-16", (), ())
    stand = standing(made_up(), ["kd", "takd:mlp-64"])
    assert {stand.best, *stand.close} == {"kd", "takd:mlp-64"}
    assert stand.as_good == ()
    assert to_ship(made_up(), arms_table(made_up()).query("arm in ['kd', 'takd:mlp-64']"))[1]["arm"] == stand.best


def test_an_arm_is_as_good_as_the_best_where_it_can_lie_below_it_by_less_than_matters():
    trials = made_up().assign(smallest_effect=0.2)
    assert set(standing(trials, ["kd", "takd:mlp-64"]).as_good) == {"kd", "takd:mlp-64"}
    assert standing(trials).as_good == ("takd:mlp-16",)  # 0.5 above the others
    row = to_ship(trials, arms_table(trials).query("arm in ['kd', 'takd:mlp-64']"))[1]
    assert row["arm"] == "kd"  # the cheaper one
    one = trials.query("path_seed == 0")
    assert (standing(one).close, standing(one).as_good) == ((), ())  # one seed tells nothing


# The phase that numbers are of


def test_search_numbers_are_called_so_and_never_test_numbers():
    trials = made_up()
    assert split_of(trials) == "validation"
    assert "validation numbers of the search" in note(trials)
    assert "validation (not test)" in finding(trials)[0]
    assert "test" not in arms_table(trials)["split"].to_list()


def test_confirmed_students_take_the_place_of_the_searchs():
    trials = with_confirmation()
    assert split_of(trials) == "test"
    table = arms_table(trials).set_index("arm")
    assert table.loc["kd", "accuracy"] == pytest.approx(
        arms_table(made_up()).set_index("arm").loc["kd", "accuracy"] - 1
    )
    assert "test accuracy" in finding(trials)[0]
    assert len(chosen_students(trials)) == 5 * len(ACCURACY)
    assert len(students(trials)) == 5 * len(ACCURACY)  # the confirm phase's are none of the search's
    assert test_table(trials).columns.tolist() == [
        "arm",
        "expected calibration error (points)",
        "agreement with its teacher (%)",
    ]


def test_an_arm_that_was_not_confirmed_is_named():
    trials = with_confirmation().query("phase == 'search' or arm != 'kd'")
    assert "kd" not in arms_table(trials)["arm"].to_list()
    assert note(trials).endswith("Not confirmed yet, and so left out: kd.")


def test_unequal_budgets_are_reported_as_such(real):
    assert budget_note(made_up()) == "Equal search budget: 5 students for every arm."
    fewer = made_up().query("arm != 'kd' or path_seed > 1")
    assert budget_note(fewer).startswith("Unequal search budgets, in students: labels 5, label_smoothing 5, kd 3,")


# Those who teach


def of_role(trials: pd.DataFrame, role: str, **values: Any) -> pd.DataFrame:
    """The same study, with other values in the rows of a role."""
    return trials.assign(**{name: trials[name].mask(trials["role"] == role, value) for name, value in values.items()})


def test_what_a_teacher_and_assistants_reach_is_in_the_table_of_arms():
    table = arms_table(with_confirmation())
    arms = table.set_index("arm")
    assert arms.loc["kd", ["teacher", "teachers"]].tolist() == ["mlp-1200", 1]
    assert arms.loc["kd", ["teacher_val_accuracy", "teacher_test_accuracy"]].tolist() == pytest.approx([97, 98.4])
    assert arms.loc["takd:mlp-16", "assistants_test_accuracy"] == "94.50"
    header, *cells = ([row[0], *row[8:10]] for row in format_arms(table))
    assert header == ["arm", "teacher, test %", "assistants, test %"]
    assert ["labels", "-", "-"] in cells
    assert ["kd", "98.40", "-"] in cells
    assert ["takd:mlp-16", "98.40", "94.50"] in cells
    header, *cells = ([row[0], *row[8:10]] for row in format_arms(arms_table(made_up().query("arm == 'kd'"))))
    assert (header, cells) == (["arm", "teacher, val. %", "assistants, val. %"], [["kd", "97.00", "-"]])


def told(trials: pd.DataFrame, arm: str, split: str = "test") -> list[str]:
    """What the cells of an arm say of those who taught it, in order."""
    return [each.accuracy(split) for each in teaching(trials)[arm]]


def test_assistants_stand_in_the_order_of_the_path():
    arm, chain = "takd:mlp-64>mlp-16", ["mlp-1200", "mlp-64", "mlp-16"]
    rows = [
        _row("s", "confirm", 0, arm, arm, seed, chain[:place], model, 0.86)
        for seed in SEEDS
        for place, model in enumerate([*chain, "mlp-8"])
    ]
    columns = teaching_columns(teaching(pd.DataFrame(rows))[arm])
    assert columns["teacher_test_accuracy"] == pytest.approx(98.4)
    assert columns["assistants_test_accuracy"] == "97.60 > 94.50"


def test_of_several_teachers_the_mean_is_shown_and_of_how_many():
    trials = made_up("confirm")
    teachers = trials["role"] == "teacher"
    trials["stage_key"] = trials["stage_key"].mask(teachers, trials["stage_key"] + trials["path_seed"].astype(str))
    trials.loc[teachers, "test_accuracy"] = 0.98 + 0.001 * trials.loc[teachers, "path_seed"]
    assert told(trials, "kd") == ["98.20 (mean of 5)"]
    [warning] = teacher_warnings(of_role(trials, "teacher", val_accuracy=0.1))
    assert warning.startswith("Warning: the teachers mlp-1200 (mean of 5): at chance, ")


def test_what_is_not_measured_or_not_known_of_a_teacher_is_called_so_and_not_judged():
    old = of_role(with_confirmation(), "teacher", test_accuracy=None)
    assert told(old, "kd") == ["not measured"]
    unknown = of_role(old, "teacher", val_accuracy=None)
    assert told(unknown, "kd") == ["not known"]
    assert told(unknown, "takd:mlp-16") == ["not known", "94.50"]
    assert teacher_warnings(unknown) == []


def test_a_teacher_at_chance_is_a_warning_in_the_finding():
    bad = of_role(made_up(), "teacher", val_accuracy=0.0476)
    [warning] = finding(bad)[3:]
    assert warning == (
        "Warning: the teacher mlp-1200: below chance, 4.76 % of the 5,000 validation images (95 % CI 4.20 to 5.39), "
        "where the largest class alone is 10.64 %; below the arm labels, 4.76 % on validation against 84.59 %. It "
        "taught kd, takd:mlp-64, takd:mlp-16."
    )
    [without] = teacher_warnings(bad[bad["arm"] != "labels"])
    assert "below the arm labels" not in without


@pytest.mark.parametrize(("images", "warned"), [(5000, False), (100, True)])
def test_chance_is_told_from_skill_by_as_many_images_as_there_are(images, warned):
    trials = of_role(made_up(), "teacher", val_accuracy=0.56).query("arm == 'kd'")
    trials = trials.assign(val_images=images, val_majority=0.5)
    assert bool(teacher_warnings(trials)) == warned


def test_who_is_below_labels_alone_is_a_warning_by_the_split_that_the_arms_are_measured_on():
    warnings = teacher_warnings(of_role(with_confirmation(), "assistant", test_accuracy=0.8))
    said = "below the arm labels, 80.00 % on test against 83.59 %"
    assert warnings == [
        f"Warning: the assistant {model}: {said}. It taught takd:{model}." for model in ("mlp-64", "mlp-16")
    ]


def test_results_of_an_older_version_are_shown_and_say_what_was_not_judged():
    old = with_confirmation().drop(columns=["val_images", "val_majority"])
    assert told(old, "kd") == ["98.40"]
    assert (teacher_warnings(old), not_judged(old)) == ([], [NOT_JUDGED])
    assert not_judged(with_confirmation()) == not_judged(old.query("arm == 'labels'")) == []  # in which nobody taught


# Words


def test_the_finding_is_three_sentences_from_the_statistics():
    best, assistant, price = finding(made_up())
    assert "takd:mlp-16: 87.1" in best
    assert assistant.startswith(
        "Of the arms with an assistant, takd:mlp-16 has the highest mean. With this teacher and this assistant, "
        "takd:mlp-16 is better than kd by 0.5"
    )
    assert price == (
        "A student's whole path takes 64.0 s of training with takd:mlp-16, which has the highest mean of the arms with "
        "an assistant, and 61.0 s with kd (+5 %); it takes 5.60 s and 5.00 s when the students share what is trained "
        "once."
    )
    price = finding(made_up().query("arm != 'takd:mlp-16'").assign(smallest_effect=0.5))[2]
    assert "67.0 s of training with takd:mlp-64" in price


def test_what_does_not_help_is_said_as_it_is():
    worse = made_up()
    worse.loc[worse["arm"].str.startswith("takd") & (worse["role"] == "student"), "val_accuracy"] -= 0.02
    assert "is worse than kd" in finding(worse)[1]


def test_every_question_is_answered_or_called_open(real):
    for trials in (made_up(), with_confirmation(), real):
        told = dict(answers(trials))
        assert set(told) == set(QUESTIONS)
        assert all(told.values())
    assert "So it is more than a regulariser here." in dict(answers(made_up()))["Is distillation a regulariser here?"]
    assert "this study has no arm label_smoothing" in dict(answers(real))["Is distillation a regulariser here?"]
    assert "T was not varied" in dict(answers(made_up()))["What does temperature do?"]


def test_the_student_to_ship_is_the_cheapest_of_the_best():
    assert choice(made_up()).startswith("**takd:mlp-16**, 87.1")
    alike = made_up().query("arm != 'takd:mlp-16'").assign(smallest_effect=0.2)
    assert choice(alike).startswith("**kd**")
    unsaid = choice(alike.drop(columns="smallest_effect"))
    assert "can't be told from the best" in unsaid
    assert "Whether one of them is as good can be said where the space names a `smallest_effect`." in unsaid


# Importance


def test_a_parameter_that_decides_explains_all_and_one_that_does_not_explains_nothing():
    random = np.random.default_rng(0)
    cells = np.arange(200) % 4
    assert omega_squared(cells + random.normal(0, 0.01, 200), cells) > 0.99
    nothing = [omega_squared(random.normal(0, 1, 200), cells) for _ in range(200)]
    assert abs(np.mean(nothing)) < 0.01


def test_importance_is_told_beside_what_chance_explains():
    rows = [
        _row("s", "search", trial, f"kd temperature={t} lambda={lam}", "kd", 0, ["mlp-1200"], "mlp-8", 0.8 + 0.01 * t)
        for trial, (t, lam) in enumerate((t, lam) for t in (1, 2, 4) for lam in (0.1, 0.5, 0.7, 0.9))
    ]  # fmt: skip
    table = importance(pd.DataFrame(rows)).set_index("parameter")
    assert table.index[0] == "temperature"
    assert table.loc["temperature", "explained"] > table.loc["temperature", "chance"]
    assert table.loc["lambda", "explained"] < table.loc["lambda", "chance"]


# Figures


def empty() -> pd.DataFrame:
    return made_up().assign(status="unfinished", val_accuracy=np.nan, train_seconds=np.nan)


@pytest.mark.parametrize("make", BY_TRIALS.values(), ids=BY_TRIALS)
@pytest.mark.parametrize("trials", [made_up, with_confirmation], ids=["search", "confirmed"])
def test_a_figure_is_made_or_says_what_is_missing(make: Callable[..., Figure], trials: Callable[[], pd.DataFrame]):
    try:
        figure = make(trials())
    except Missing:
        return  # `test_of_nothing_there_is_no_figure` and the notebooks' tests look at the words
    assert b"<svg" in image(figure, "svg")
    for axes in figure.axes:
        assert axes.get_xlabel() or figure.get_supxlabel() or axes.get_ylabel() or not axes.has_data()


def test_of_nothing_there_is_no_figure():
    for make in BY_TRIALS.values():
        with pytest.raises(Missing, match=r"\.$"):
            make(empty())


def test_an_arm_has_one_colour_whatever_else_is_there():
    colors = arm_colors(made_up())
    assert len(set(colors.values())) == len(colors)
    fewer = arm_colors(made_up().query("arm in ['kd', 'takd:mlp-64']"))
    assert (fewer["kd"], fewer["takd:mlp-64"]) == (colors["kd"], colors["takd:mlp-64"])


def test_the_same_study_makes_the_same_figure(real):
    first, second = (image(figures.accuracy_by_assistant(real), "svg") for _ in range(2))
    assert first == second


def test_entropy_rises_with_temperature_to_that_of_a_guess():
    logits = np.random.default_rng(0).normal(0, 8, (500, 10)).astype(np.float32)
    line = figures.entropy_by_temperature({"mlp-1200": logits, "gone": None}).axes[0].lines[0]
    bits = np.asarray(line.get_ydata())
    assert (np.diff(bits) > 0).all()
    assert bits[-1] == pytest.approx(np.log2(10), abs=0.05)


def with_searched_teacher() -> pd.DataFrame:
    """One study whose teacher was searched: a configuration a teacher, and a confirm phase of one of them."""
    parts = [made_up(), made_up(teacher="mlp-200")]
    for part, model in zip(parts, ("mlp-1200", "mlp-200"), strict=True):
        part.loc[part["arm"].isin(["kd", "takd:mlp-64", "takd:mlp-16"]), "configuration"] += f" teacher.model={model}"
    parts[1]["stage_key"] += "-small"
    parts[1].loc[parts[1]["role"] == "student", "val_accuracy"] -= 0.01
    return pd.concat([*parts, made_up("confirm")], ignore_index=True)


def test_arms_that_chose_different_teachers_are_named():
    trials = with_searched_teacher().query("phase == 'search'")
    assert "Each arm chose a teacher" not in note(trials)  # every arm's best is of mlp-1200
    kd_of_the_small = (trials["arm"] == "kd") & (trials["configuration"].str.endswith("=mlp-200"))
    trials.loc[kd_of_the_small & (trials["role"] == "student"), "val_accuracy"] += 0.05
    assert (
        "Each arm chose a teacher too, and not the same one (kd from mlp-200, takd:mlp-64 from mlp-1200, takd:mlp-16 "
        "from mlp-1200): differences between these arms are partly those of their teachers."
    ) in note(trials)
    assert "Each arm chose a teacher" not in note(made_up())


def test_published_numbers_stand_beside_what_was_measured():
    table = published_table(with_confirmation(), {"labels": 70.0, "takd:mlp-16": 90.0, "takd:mlp-7": 1.0})
    assert table["arm"].tolist() == ["labels", "takd:mlp-16"]
    assert table["paper"].tolist() == ["NOKD", "TAKD"]
    assert table.columns[3] == "measured, test %"
    measured = chosen_students(with_confirmation()).groupby("arm")["accuracy"].mean()
    assert table["difference"].tolist() == [
        f"{measured[arm] - value:+.2f}" for arm, value in (("labels", 70), ("takd:mlp-16", 90))
    ]


def test_two_classes_show_the_auc_with_its_interval_over_images():
    trials = with_confirmation()
    rows = (trials["phase"] == "confirm") & (trials["role"] == "student")
    trials = trials.assign(test_auc_low=np.nan, test_auc_high=np.nan)
    trials.loc[rows, ["test_auc", "test_auc_low", "test_auc_high", "test_f1"]] = 0.9, 0.85, 0.95, 0.7
    table = test_table(trials)
    assert set(table["AUC (%), its interval over images"]) == {"90.00 (85.00 to 95.00)"}
    assert "F1 (%)" in table.columns


def with_methods() -> pd.DataFrame:
    """The same confirmed, with DKD in the place of one arm with an assistant and SimKD of the other."""
    trials = with_confirmation()
    for arm, other in (("takd:mlp-64", "dkd"), ("takd:mlp-16", "simkd")):
        trials.loc[trials["arm"] == arm, ["arm", "path"]] = other
        trials["configuration"] = trials["configuration"].str.replace(f"{arm} temperature=4 lambda=0.7", other)
    student, arms = trials["role"] == "student", trials["arm"]
    trials.loc[student & (arms == "dkd"), "lambda"] = 3.5  # its weight
    trials.loc[student & (arms == "simkd"), ["lambda", "temperature"]] = None
    trials.loc[student & (arms == "simkd"), "parameters"] = 9999
    return trials


def test_the_weight_of_dkd_is_no_lambda():
    trials = with_methods()
    assert parameter_effect(trials, "lambda", "lambda") is None  # of kd alone, which had one value
    first = (trials["arm"] == "kd") & (trials["path_seed"] == trials["path_seed"].min())
    effect = parameter_effect(trials.assign(**{"lambda": trials["lambda"].mask(first, 0.5)}), "lambda", "lambda")
    assert effect
    assert set(effect.chosen) == {"kd"}
    assert " % (" in effect.best


def test_arms_of_methods_are_named_once_below_the_figure_and_share_no_place():
    axes = figures.accuracy_by_assistant(with_methods()).axes[0]
    assert [each.get_text() for each in axes.get_xticklabels()] == ["dkd", "simkd"]
    assert "another method" in axes.get_title(loc="left")
    assert axes.get_xticklabels()[0].get_rotation() == 0
    many = pd.concat(
        [with_methods(), *(with_methods().query("arm == 'dkd'").assign(arm=f"dkd+{each}") for each in "abcdefgh")]
    )
    many["arm"] = many["arm"].str.replace("dkd+", "at+kd:mlp-16>mlp-")
    crowded = figures.accuracy_by_assistant(many).axes[0].get_xticklabels()
    assert {each.get_rotation() for each in crowded} == {35.0}


def test_an_assistant_below_the_figure_has_the_mean_of_those_that_taught_what_is_shown():
    trials = with_confirmation()
    own = (trials["model"] == "mlp-16") & (trials["phase"] == "confirm")
    trials.loc[own, ["stage_key", "val_accuracy"]] = ["one", 0.5]
    other = trials[own].assign(stage_key="other", val_accuracy=0.7)
    [label] = [
        each.get_text()
        for each in figures.accuracy_by_assistant(pd.concat([trials, other])).axes[0].get_xticklabels()
        if each.get_text().startswith("mlp-16")
    ]
    assert label.endswith("60.0 %")  # and not 97.0, of the search's


def test_where_students_learn_from_other_images_than_the_arm_labels_both_numbers_are_said():
    trials = with_confirmation()
    trials.loc[(trials["role"] == "student") & ~trials["arm"].str.startswith("label"), "examples"] = 500
    assert "of mlp-8 on 500 images (labels, label_smoothing: 2,000) is that of" in finding(trials)[0]
    assert "of mlp-8 on 2,000 images is that of" in finding(with_confirmation())[0]


def test_the_methods_paragraph_has_the_students_own_size_and_which_weights_were_searched():
    space = tiny_space(trials=10, arms=["labels", "kd", "dkd", "rkd", "simkd_linear"], methods={"rkd": {"weight": 1}})
    trials = with_methods()
    said = methods(
        space, trials.replace({"arm": {"simkd": "simkd_linear"}, "model": {"mlp-8": space.student.model}}), {}
    )
    assert f"The student was {space.student.model} (6,442 parameters)." in said
    assert "and nothing else. With these they have 9,999 parameters." in said
    assert "The weights of dkd were searched; those of rkd were fixed." in said
