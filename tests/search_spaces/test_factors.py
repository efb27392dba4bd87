"""Factors: what is compared and never optimised; every cell is a space of its own."""

from collections import Counter
from typing import Any

import optuna
import pytest
from conftest import tiny_space

from takd.search_spaces import DatasetFingerprint, InputError, space_from
from takd.search_spaces.factors import PLACES

MNIST = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})
GAP: dict[str, Any] = {"teacher.model": ["mlp-64", "mlp-128"], "student.model": ["mlp-4", "mlp-8"]}
NAMES = [
    f"teacher.model={teacher} student.model={student}"
    for teacher in GAP["teacher.model"]
    for student in GAP["student.model"]
]


def test_a_cell_is_the_space_with_its_values_in_it():
    space = tiny_space(factors=GAP)
    assert [cell.name for cell in space.cells] == NAMES
    for cell in space.cells:
        teacher, student = cell.values.values()
        assert cell.space == tiny_space(teacher__model=teacher, student__model=student)
    [whole] = tiny_space().cells
    assert (whole.name, whole.space) == ("", tiny_space())
    assert space_from(space.model_dump(mode="json"), "again") == space


def test_examples_are_those_of_every_role_that_is_trained():
    own = {"teacher__recipe": {"examples": 500}, "assistants__recipe": {"examples": 500}}
    space = tiny_space(**own, student__recipe={"examples": 500}, factors={"examples": [500, 700, None]})
    for cell, wanted in zip(space.cells, (500, 700, None), strict=True):
        found = cell.space
        assert {part.recipe["examples"] for part in (found.teacher, found.assistants, found.student)} == {wanted}
    given = tiny_space(
        teacher={"model": "mlp-64", "checkpoint": "t.pth"}, assistants=[], student__recipe={"examples": 500},
        factors={"examples": [500, 700]},
    )  # fmt: skip
    assert [cell.space.teacher.recipe for cell in given.cells] == [{}, {}]


def test_what_is_a_factor_need_not_stand_in_the_space_itself():
    space = space_from({"dataset": "mnist", "trials": 2, "factors": GAP}, "short")
    assert [cell.space.student.model for cell in space.cells] == ["mlp-4", "mlp-8"] * 2


@pytest.mark.parametrize(
    ("factors", "line"),
    [
        ({"teacher.modle": ["a"]}, "'teacher.modle' is no place that can be compared; did you mean 'teacher.model'?"),
        ({"dataset": ["a", "b"]}, "'dataset' is no place that can be compared; valid: examples, and what"),
        ({"student.temperature": [1, 4]}, "student.temperature is varied, and factors has student.temperature as well"),
        ({"examples": [200]}, "teacher.recipe.examples is 1000, and factors has examples: [200]"),
        ({"teacher.model": []}, "factors.teacher.model is empty; expected at least one value"),
        ({"teacher.model": "mlp-64"}, "factors.teacher.model is 'mlp-64'; expected a list of values"),
        ({"student.lambda": [0.7, 1, 1.0]}, "factors.student.lambda has 1.0 twice; each value is compared once"),
        ({"student.lambda": [0.7, [1]]}, "factors.student.lambda.1 is [1]; expected one plain value"),
        ({"teacher.model": ["mlp-65"]}, "teacher.model is 'mlp-64', and factors has teacher.model: ['mlp-65']"),
        ({"student.lambda": [0.7, 1.5]}, "factors: with student.lambda=1.5: student.lambda: lambda is 1.5"),
        ({"student.recipe.epochs": [3, 0]}, "factors: with student.recipe.epochs=0: student.recipe: epochs is 0"),
        (["teacher.model"], "factors is ['teacher.model']; expected places with lists"),
    ],
)
def test_a_factor_that_cannot_be_compared_is_one_line_that_names_it(factors: Any, line: str):
    with pytest.raises(InputError) as caught:
        tiny_space(factors=factors)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_in_every_cell_is_said_of_none():
    with pytest.raises(InputError, match="tiny: trials is 2; a coverage of 2 for 3 arms takes 6"):
        tiny_space(factors=GAP, trials=2)


def test_two_factors_never_set_one_place():
    own = {"teacher__recipe": {"examples": 200}, "assistants__recipe": {"examples": 200}}
    with pytest.raises(InputError, match=r"examples sets student\.recipe\.examples, which is a factor of its own"):
        tiny_space(**own, factors={"examples": [200], "student.recipe.examples": [200]})


def test_every_place_is_one_that_a_space_has():
    assert {"teacher.model", "student.model", "student.lambda", "assistants.temperature", "loss.form"} <= set(PLACES)
    assert not {"assistants.models", "teacher.checkpoint", "student.recipe"} & set(PLACES)


def test_budget_coverage_and_grid_count_for_each_cell_and_cells_take_turns():
    space, alone = tiny_space(factors=GAP, trials=8), tiny_space(trials=8)
    assert space.budget == len(space.queued()) == 4 * alone.budget
    assert len(space.guaranteed()) == 4 * len(alone.guaranteed())
    places = [tuple(trial[name] for name in GAP) for trial in space.queued()]
    assert set(places[:4]) == set(places[-4:]) == {tuple(cell.values.values()) for cell in space.cells}
    assert [trial.keys() for trial in space.queued()[-4:]] == [GAP.keys()] * 4  # free, but for their cell
    grid = tiny_space(factors=GAP, sampler="grid", trials=None, coverage=0)
    assert grid.budget == len(grid.queued()) == 4 * tiny_space(sampler="grid", trials=None, coverage=0).budget


def test_arms_and_seeds_of_a_cell_are_those_of_its_space_so_that_labels_are_trained_once():
    space, study = tiny_space(factors=GAP), optuna.create_study()
    keys: dict[str, set[str]] = {}
    for trial in space.queued():
        study.enqueue_trial(trial)
        choice = space.suggest(study.ask())
        cell = space.cell(choice.factors)
        paths = space.paths(choice, MNIST, [0, 1])
        assert paths == cell.space.paths(choice.__class__(choice.arm, choice.chosen), MNIST, [0, 1])
        assert space.suggest(study.trials[-1]) == choice
        if choice.arm.name == "labels":
            keys.setdefault(str(choice.factors["student.model"]), set()).update(path.student.key for path in paths)
    assert Counter(map(len, keys.values())) == {2: 2}  # two seeds of each student, in both cells of teachers


def test_confirming_paths_are_those_of_the_cell():
    space, study = tiny_space(factors=GAP, confirm={"seeds": 2}), optuna.create_study()
    study.enqueue_trial({"teacher.model": "mlp-128", "student.model": "mlp-8", "arm": "kd"})
    paths = space.confirming_paths(space.suggest(study.ask()), MNIST)
    assert {str(path) for path in paths} == {"mlp-128 > mlp-8"}
    assert len(paths) == 2


def test_the_same_is_what_does_not_depend_on_the_cell():
    identity = tiny_space(factors=GAP).identity()
    assert "model" not in identity["teacher"]
    assert identity["factors"] == [[name, tuple(values)] for name, values in GAP.items()]
    assert tiny_space().identity()["factors"] == {}
