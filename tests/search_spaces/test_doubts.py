"""What can run and should be thought about is said in a sentence; nothing is refused for it."""

import pytest
from conftest import tiny_space

from takd.search_spaces import load_space, presets
from takd.search_spaces.doubts import doubts

SMOOTHED = {"label_smoothing": 0.1}


def test_whoever_smooths_the_labels_of_what_others_learn_from_is_told():
    [line] = doubts(tiny_space(teacher__recipe=SMOOTHED), 1000, 500)
    assert line.startswith("teacher.recipe.label_smoothing is 0.1: who learned from smoothed labels teaches less")
    [line] = doubts(tiny_space(assistants__recipe={"label_smoothing": {"choices": [None, 0.2]}}), 1000, 500)
    assert line.startswith("assistants.recipe.label_smoothing is 0.2")


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher__recipe": SMOOTHED, "arms": ["labels", "label_smoothing"]},  # nobody learns from it
        {"assistants__recipe": SMOOTHED, "arms": ["labels", "kd"]},
        {"student__recipe": SMOOTHED},
        {"teacher__recipe": {"label_smoothing": 0}},
    ],
)
def test_smoothing_that_no_student_learns_from_is_nobodys_concern(changes):
    assert doubts(tiny_space(**changes), 1000, 500) == []


def test_few_images_that_choose_are_told_where_something_is_chosen():
    [line] = doubts(tiny_space(), 220, 24)
    assert line == (
        "dataset mnist: configurations are chosen by 24 validation images, and each of them is 4.2 points of accuracy; "
        "hold more out when the data set is converted (--validation)"
    )
    assert doubts(tiny_space(), 220, 100) == []
    assert doubts(tiny_space(student__temperature=4, student__lambda=0.5), 220, 24) == []


def test_an_average_that_is_longer_than_its_run_is_told_with_one_that_is_not():
    recipe = {"epochs": 5, "batch_size": 100, "examples": 1000}  # 50 steps
    [line] = doubts(tiny_space(student__recipe=recipe | {"ema": 0.999}), 5000, 500)
    assert line == (
        "student.recipe.ema is 0.999, an average over some 1000 steps, and a run has 50: what is kept is near the "
        "first weights; 0.8 would be over a tenth of the run"
    )
    assert doubts(tiny_space(student__recipe=recipe | {"ema": 0.8}), 5000, 500) == []
    assert len(doubts(tiny_space(student__recipe=recipe | {"ema": {"choices": [0.8, 0.99]}}), 5000, 500)) == 1


@pytest.mark.parametrize("name", [name for name in presets() if name.endswith("-modern")])
def test_a_preset_of_today_leaves_no_doubt(name):
    space = load_space(name)
    assert doubts(space, 45_000 if name.startswith("cifar") else 250, 217) == []
    assert "label_smoothing" in space.arms
