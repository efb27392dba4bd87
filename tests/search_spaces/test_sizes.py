"""Sizes of assistants as numbers that the search chooses, and assistants with keys of their own."""

from typing import Any

import optuna
import pytest
from conftest import tiny_space

from takd.search_spaces import DatasetFingerprint, InputError, Space, load_space, parse_arm
from takd.search_spaces.sections import LOGITS
from takd.search_spaces.varied import Choices, Range, first_of

MNIST = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})
MLP: dict[str, Any] = {"family": "mlp", "size": {"low": 8, "high": 400, "log": True}}
SIZED = parse_arm("takd:mlp-*")


def sized(models: Any = MLP, arms: Any = ("kd", "takd:mlp-*"), **changes: Any) -> Space:
    return tiny_space(assistants={"models": models, "recipe": {"epochs": 2}}, arms=list(arms), **changes)


def suggested(space: Space, **told: Any) -> Any:
    study = optuna.create_study()
    study.enqueue_trial({"arm": "takd:mlp-*", **told})
    trial = study.ask()
    return space.suggest(trial), trial


def test_a_size_is_one_parameter_of_the_search_and_its_assistant_an_ordinary_stage():
    space = sized()
    assert space.varied(SIZED)["mlp-*.size"] == Range(low=8, high=400, log=True)
    assert "mlp-*.size" not in space.varied(parse_arm("kd"))
    choice, trial = suggested(space)
    assert isinstance(trial.distributions["mlp-*.size"], optuna.distributions.IntDistribution)
    size = choice.chosen["mlp-*.size"]
    paths = space.paths(choice, MNIST, [0, 1])
    assert [str(path) for path in paths] == [f"mlp-64 > mlp-{size} > mlp-4"] * 2
    by_name = tiny_space(assistants={"models": [f"mlp-{size}"], "recipe": {"epochs": 2}})
    chosen = {name: value for name, value in choice.chosen.items() if name != "mlp-*.size"}
    [named] = by_name.paths(choice.__class__(parse_arm(f"takd:mlp-{size}"), chosen), MNIST, [0])
    assert named.student.key == paths[0].student.key  # so studies with sizes and with names share what they train
    assert space.suggest(trial) == choice


@pytest.mark.parametrize("arm", ["takd:mlp-*>cnn-*", "dense:mlp-*>mlp-16", "takd:mlp-16>mlp-*"])
def test_a_searched_size_may_stand_anywhere_in_a_chain(arm: str):
    space = sized([MLP, "mlp-16", {"family": "cnn", "size": {"choices": [4, 8]}}], [arm])
    study = optuna.create_study()
    choice = space.suggest(study.ask())
    names = parse_arm(arm).assistants
    models = [stage.model for stage in space.paths(choice, MNIST, [0])[0].stages if stage.role == "assistant"]
    assert models == [name if name == "mlp-16" else f"{name[:-1]}{choice.chosen[f'{name}.size']}" for name in names]


def test_steps_and_choices_bound_how_many_sizes_there_are_and_make_a_grid():
    fixed: dict[str, Any] = {"sampler": "grid", "trials": None, "student__temperature": 4, "student__lambda": 0.7}
    for size in ({"low": 8, "high": 32, "step": 8}, {"choices": [8, 16, 24, 32]}):
        points = sized({"family": "mlp", "size": size}, **fixed).grid()
        assert sorted(point["mlp-*.size"] for point in points if "mlp-*.size" in point) == [8, 16, 24, 32]
    with pytest.raises(InputError, match=r"mlp-\*.size has no step; with sampler: grid a range needs one, or use choi"):
        sized(**fixed)


def test_a_plan_takes_the_size_in_the_middle():
    assert first_of("mlp-*.size", Range(low=4, high=400, log=True)) == 40
    assert first_of("mlp-*.size", Range(low=8, high=40, step=8)) == 24
    assert first_of("mlp-*.size", Choices(choices=(8, 16, 64))) == 16
    assert first_of("epochs", Range(low=8, high=40, step=8)) == 8


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ({"family": "mlp"}, "family and size come together, such as {family: mlp, size: {low: 8, high: 400}}"),
        ({"size": {"low": 1, "high": 2}}, "expected one of model and family"),
        ({"model": "mlp-8", "family": "mlp"}, "expected one of model and family"),
        ({"family": "mlp", "size": 64}, "size is 64; expected a range such as {low: 8, high: 400}, or choices"),
        ({"family": "mlp", "size": {"low": 8.5, "high": 9}}, "size.low is 8.5; expected a whole number of at least 1"),
        ({"family": "mlp", "size": {"choices": [8, "a"]}}, "size.choices.1 is 'a'; expected a whole number"),
        ({"family": "mlp", "size": {"low": 1, "high": 8, "step": 2}}, "size.high is 8, which no number of steps of 2"),
        ({"family": "timm/x", "size": {"low": 1, "high": 8}}, "expected a family whose sizes are numbers, such as mlp"),
        (MLP | {"pretrained": "imagenet"}, "pretrained is for one model"),
        (MLP | {"recipe": {"epochs": 0}}, "assistants: models: mlp-*: recipe: epochs is 0"),
        (MLP | {"recipe": {"finetune_from": "fc"}}, "models: mlp-*: recipe: finetune_from is only for recipes with"),
        (MLP | {"lambda": 1.5}, "assistants.models: mlp-*.lambda: lambda is 1.5"),
        ([MLP, MLP], "models: mlp-* is there twice"),
    ],
)
def test_what_is_wrong_with_an_assistant_of_its_own_is_one_line(models: Any, line: str):
    with pytest.raises(InputError) as caught:
        sized(models)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_arm_that_costs_what_a_searched_size_costs_is_refused():
    with pytest.raises(InputError, match=r"the size of mlp-\* is searched; name one size"):
        sized(arms=["kd", "kd@takd:mlp-*"])


OWN: list[Any] = [
    "mlp-64",
    {"model": "mlp-32", "temperature": {"choices": [1, 2]}, "recipe": {"epochs": {"choices": [3, 5]}}},
    {"model": "mlp-16", "lambda": 0.2, "recipe": {"learning_rate": 0.5}},
]


def own(**changes: Any) -> Space:
    section = {"models": OWN, "temperature": 8, "recipe": {"epochs": 2, "learning_rate": {"low": 0.1, "high": 0.2}}}
    return tiny_space(assistants=section, arms=["takd:mlp-64>mlp-32>mlp-16"], **changes)


def test_an_assistant_with_keys_of_its_own_has_the_others_of_the_section():
    space = own()
    [arm] = space.all_arms
    told = {"assistant.learning_rate": 0.15, "mlp-32.temperature": 2, "mlp-32.epochs": 5}
    assert {name for name in space.varied(arm) if "." in name} == told.keys()
    chosen = told | {"temperature": 4.0, "lambda": 0.7}
    *_, first, second, third, _student = space.path(arm, chosen, MNIST, 0).stages
    assert [(each.model, each.recipe.epochs, each.recipe.learning_rate) for each in (first, second, third)] == [
        ("mlp-64", 2, 0.15),
        ("mlp-32", 5, 0.15),
        ("mlp-16", 2, 0.5),
    ]
    assert [(each.temperature, each.lambda_) for each in (first, second, third)] == [(8, 0.7), (2, 0.7), (8, 0.2)]
    assert Space.model_validate(space.model_dump(mode="json")) == space


def test_one_assistant_alone_may_start_from_other_weights():
    models = [{"model": "mlp-32", "pretrained": "random"}, {"model": "mlp-16", "pretrained": "b.pth"}, "mlp-8"]
    space = tiny_space(trials=10, assistants={"models": models, "pretrained": "a.pth"})
    assert [space.assistants.section(name).pretrained for name in space.assistants.names] == [None, "b.pth", "a.pth"]
    assert "b.pth" not in str(space.identity())  # weights count by what they are


def test_single_keys_of_one_assistant_can_be_replaced():
    given = own().model_dump(mode="json")
    changed = ["assistants.models.mlp-64.recipe.epochs=9", "assistants.models.2.lambda=0.3"]
    found = load_space(given, changed).assistants
    assert (found.section("mlp-64").recipe["epochs"], found.section("mlp-16").lambda_) == (9, 0.3)
    sizes = load_space(given | {"assistants": {"models": MLP}, "arms": []}, ["assistants.models.mlp-*.size.high=64"])
    assert sizes.assistants.size("mlp-*") == Range(low=8, high=64, log=True)
    with pytest.raises(InputError, match=r"assistants.models has no 'mlp-7'; valid: mlp-64, mlp-32, mlp-16, 0, 1, 2"):
        load_space(given, ["assistants.models.mlp-7.lambda=1"])


def test_an_assistant_that_exists_stands_beside_those_with_keys_of_their_own():
    space = tiny_space(assistants={"models": [{"name": "last", "logits": "a.npz"}, *OWN]}, trials=12)
    assert (space.assistants.names, space.assistants.trained) == (
        ("last", "mlp-64", "mlp-32", "mlp-16"),
        ("mlp-64", "mlp-32", "mlp-16"),
    )
    assert space.existing("assistant", "last").kind == LOGITS
