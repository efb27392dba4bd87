"""Teachers and assistants that exist: what a space may say of them, and what is in their keys."""

from typing import Any

import pytest
from conftest import tiny_space

from takd.search_spaces import DatasetFingerprint, Given, InputError, Recipe, Space, Stage, parse_arm

MNIST = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})
CHECKPOINT = {"model": "mlp-64", "checkpoint": "teacher.pth", "normalize": "dataset"}
LOGITS = {"logits": "teacher.npz"}
OWN = [{"model": "mlp-16", "checkpoint": "ta.pth", "normalize": "imagenet"}, {"name": "old", "logits": "old.npz"}]


def space(teacher: Any = "mlp-64", models: Any = ("mlp-16",), **changes: Any) -> Space:
    weights = {"teacher": {"mlp-64": "a" * 64, "logits": "b" * 64}, "assistant": {"mlp-16": "c" * 64, "old": "d" * 64}}
    return tiny_space(
        **{"teacher": teacher, "assistants": list(models), "weights": weights, "trials": 20, "coverage": 0} | changes
    )


def stages(space: Space, arm: str) -> list[Stage]:
    chosen = {name: next(iter(value.examples()))[1] for name, value in space.varied(parse_arm(arm)).items()}
    return list(space.path(parse_arm(arm), chosen, MNIST, 3, upstream_seed=7).stages)


def test_a_given_teacher_is_what_its_file_is_and_nothing_else():
    teacher, student = stages(space(CHECKPOINT), "kd")
    assert teacher.key_input() == {
        "training_revision": 2,
        "dataset": MNIST.model_dump(),
        "model": "mlp-64",
        "checkpoint": "a" * 64,
    }
    assert teacher.given is not None
    assert (teacher.given.file, teacher.name) == ("teacher.pth", "teacher mlp-64 given")
    assert student.upstream == (teacher,)
    elsewhere = CHECKPOINT | {"checkpoint": "/mnt/best.safetensors"}
    assert stages(space(elsewhere), "kd")[1].key == student.key
    assert space(elsewhere).identity() == space(CHECKPOINT).identity()


def test_given_logits_are_of_no_model():
    teacher, _ = stages(space(LOGITS), "kd")
    assert teacher.key_input() == {"training_revision": 2, "dataset": MNIST.model_dump(), "logits": "b" * 64}
    assert not teacher.has_weights
    assert stages(space({"logits": "moved/again.npz"}), "kd")[0].model == teacher.model == "logits"


def test_other_weights_are_another_teacher():
    keys = {
        Stage(role="teacher", dataset=MNIST, model=model, recipe=Recipe(), seed=0, given=given).key
        for model in ("mlp-8", "mlp-9")
        for given in (Given(file="a", checkpoint="a" * 64), Given(file="a", checkpoint="b" * 64))
    }
    assert len(keys) == 4


def test_a_chain_begins_at_the_last_assistant_that_exists():
    chain = space(models=["mlp-32", *OWN])
    assert [each.model for each in stages(chain, "takd:mlp-32>mlp-16>old")] == ["old", "mlp-4"]
    assert [each.model for each in stages(chain, "takd:mlp-16>mlp-32")] == ["mlp-16", "mlp-32", "mlp-4"]
    assert [each.model for each in stages(chain, "dense:mlp-32>mlp-16")] == ["mlp-64", "mlp-32", "mlp-16", "mlp-4"]
    assert [arm.name for arm in chain.all_arms][2:] == ["takd:mlp-32", "takd:mlp-16", "takd:old"]


def test_nothing_is_varied_of_what_is_not_trained():
    own = {"models": OWN, "temperature": {"choices": [2, 4]}, "recipe": {"epochs": {"choices": [1, 2]}}}
    given = space({"model": {"choices": ["mlp-64", "mlp-128"]}}, assistants=own)
    assert {name.partition(".")[0] for name in given.varied(parse_arm("takd:mlp-16"))} == {"temperature"}
    assert "teacher.model" in given.varied(parse_arm("kd"))


def test_a_given_model_knows_every_view_and_logits_know_one():
    views = {"augment": "crop-flip", "views": 2}
    assert space(CHECKPOINT, student__recipe=views, arms=["kd"])
    with pytest.raises(
        InputError, match=r"student\.recipe: augment is crop-flip with 2 views, but logits teacher\.npz "
    ):
        space(LOGITS, student__recipe=views, arms=["kd"])
    assert space(LOGITS, student__recipe=views, arms=["labels"])


@pytest.mark.parametrize(
    ("teacher", "line"),
    [
        ({}, "teacher: model is missing; expected a model spec such as mlp-1200, or logits: PATH"),
        ({"checkpoint": "a.pth"}, "teacher: model is missing"),
        (CHECKPOINT | LOGITS, "teacher: checkpoint and logits are both given"),
        (LOGITS | {"model": "mlp-64"}, "teacher: model is 'mlp-64' beside logits"),
        (LOGITS | {"normalize": "dataset"}, "teacher: normalize is only for a checkpoint"),
        ({"model": "mlp-64", "normalize": "dataset"}, "teacher: normalize is only for a checkpoint"),
        ({"model": "mlp-64", "classes": ["a"]}, "teacher: classes is only for a checkpoint or logits"),
        (CHECKPOINT | {"classes": ["a", "a"]}, "teacher: classes: each class is named once"),
        (CHECKPOINT | {"normalize": "imagnet"}, "teacher.normalize: 'imagnet' says nothing of pixels; valid: dataset"),
        (CHECKPOINT | {"normalize": {"mean": [0.5]}}, "teacher.normalize.std is missing"),
        (CHECKPOINT | {"normalize": {"mean": [0.5], "std": [0.0]}}, "std above 0"),
        (CHECKPOINT | {"recipe": {"epochs": 3}}, "teacher: recipe is for a teacher that is trained"),
        (CHECKPOINT | {"pretrained": "imagenet"}, "teacher: pretrained is for a teacher that is trained"),
        (CHECKPOINT | {"members": 3}, "teacher: members is for a teacher that is trained"),
        (CHECKPOINT | {"model": {"choices": ["mlp-64"]}}, "teacher: model has choices"),
    ],
)
def test_what_is_wrong_with_a_given_teacher_is_one_line(teacher: Any, line: str):
    with pytest.raises(InputError) as caught:
        space(teacher)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"checkpoint": None}, "expected checkpoint: PATH or logits: PATH"),
        ({"logits": "a.npz"}, "name is missing"),
        ({"checkpoint": "a.pth"}, "model is missing"),
        ({"name": "a>b", "logits": "a.npz"}, "name is 'a>b'"),
        ({"name": "mlp-32", "logits": "a.npz"}, "models: mlp-32 is there twice"),
        ({"name": "x", "model": "mlp-16", "checkpoint": "a.pth"}, "name is only for an assistant with logits"),
        (7, "assistants.models.1 is 7"),
    ],
)
def test_what_is_wrong_with_a_given_assistant_is_one_line(model: Any, line: str):
    with pytest.raises(InputError) as caught:
        space(models=["mlp-32", model])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_with_given_models_survives_its_own_json():
    given = space(CHECKPOINT | {"normalize": {"mean": [0.5], "std": [0.2]}}, models=OWN)
    assert Space.model_validate(given.model_dump(mode="json")) == given
