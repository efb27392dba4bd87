"""The key of a stage: it changes with everything that alters the result, and with nothing else."""

import json

import pytest
from conftest import make_stage

from takd.search_spaces import DatasetFingerprint, Loss, Stage, key_of, stage

TEACHER = make_stage("mlp-64", role="teacher")
BASE = make_stage(upstream=(TEACHER,))
OTHER_DATA = DatasetFingerprint(name="mnist", digest="e", split_seed=0, sizes={"train": 50000})
OTHER_SPLIT = DatasetFingerprint(name="mnist", digest="d", split_seed=1, sizes={"train": 50000})

ALTERED = {
    "model": make_stage("mlp-5", upstream=(TEACHER,)),
    "seed": make_stage(upstream=(TEACHER,), seed=1),
    "temperature": make_stage(upstream=(TEACHER,), temperature=5.0),
    "lambda": make_stage(upstream=(TEACHER,), lambda_=0.6),
    "loss form": make_stage(upstream=(TEACHER,), loss=Loss(form="additive")),
    "KL reduction": make_stage(upstream=(TEACHER,), loss=Loss(kl_reduction="mean")),
    "upstream": make_stage(upstream=(make_stage("mlp-64", role="teacher", seed=1),)),
    "upstream's upstream": make_stage(upstream=(make_stage("mlp-64", role="assistant", upstream=(TEACHER,)),)),
    "dataset content": make_stage(upstream=(TEACHER,), dataset=OTHER_DATA),
    "dataset split": make_stage(upstream=(TEACHER,), dataset=OTHER_SPLIT),
    "labels only": make_stage(),
    "pretrained weights": make_stage(upstream=(TEACHER,), pretrained="0" * 64),
}
RECIPE = {
    "epochs": 3,
    "batch_size": 128,
    "optimizer": "adamw",
    "learning_rate": 0.5,
    "weight_decay": 0.1,
    "schedule": "constant",
    "label_smoothing": 0.1,
    "dropout": 0.1,
    "precision": "bfloat16",
    "examples": 300,
    "examples_seed": 1,
    "order_seed": 1,
    "evaluate_every": 2,
    "select": "best",
    "class_weights": "balanced",
    "head_epochs": 1,
    "freeze_norm": True,
}


@pytest.mark.parametrize("what", ALTERED)
def test_the_key_changes_with(what: str):
    assert ALTERED[what].key != BASE.key


@pytest.mark.parametrize("field", RECIPE)
def test_the_key_changes_with_the_recipes(field: str):
    assert make_stage(upstream=(TEACHER,), **{field: RECIPE[field]}).key != BASE.key


def test_no_field_of_a_recipe_is_forgotten():
    conditional = {"momentum", "milestones", "step_factor"}  # filled where the optimizer or schedule uses them
    conditional |= {"augment", "views", "finetune_from", "finetune_factor", "select_by"}
    assert set(RECIPE) | conditional == set(stage.Recipe.model_fields)


@pytest.mark.parametrize(
    ("used_by", "change"),
    [
        ({"optimizer": "sgd"}, {"momentum": 0.5}),
        ({"schedule": "step"}, {"milestones": [0.3]}),
        ({"schedule": "step"}, {"step_factor": 0.5}),
        ({}, {"augment": "crop-flip"}),
        ({"augment": "crop-flip"}, {"augment": "flip-rotate"}),
        ({"augment": "crop-flip"}, {"views": 3}),
        ({"select": "best"}, {"select_by": "auc"}),
        ({"head_epochs": 1}, {"finetune_from": "layer4"}),
        ({"head_epochs": 1}, {"finetune_factor": 0.5}),
    ],
)
def test_the_key_changes_with_what_only_some_recipes_use(used_by: dict, change: dict):
    assert make_stage(**used_by).key != make_stage(**used_by | change).key


def test_the_key_changes_with_the_revision_of_the_training_code(monkeypatch):
    before = make_stage().key
    monkeypatch.setattr(stage, "TRAINING_REVISION", 99)
    assert make_stage().key != before


def test_how_a_new_head_starts_is_in_the_keys_of_stages_with_pretrained_weights_alone(monkeypatch):
    keys = [make_stage(pretrained=each).key for each in (None, "0" * 64)]
    monkeypatch.setattr(stage, "NEW_HEAD", "another")
    again = [make_stage(pretrained=each).key for each in (None, "0" * 64)]
    assert [key == other for key, other in zip(keys, again, strict=True)] == [True, False]


def test_norms_that_are_not_frozen_are_one_key_however_that_is_said():
    assert {make_stage(freeze_norm=each).key for each in (None, False)} == {make_stage().key}


def test_weights_that_are_best_by_accuracy_are_one_key_however_that_is_said():
    assert {make_stage(select="best", select_by=each).key for each in (None, "accuracy")} == {
        make_stage(select="best").key
    }


def test_a_copy_with_another_value_has_a_key_of_its_own():
    stage = make_stage(seed=1)
    before = stage.key  # computed once
    assert stage.model_copy(update={"seed": 2}).key == make_stage(seed=2).key != before


def test_the_key_does_not_change_with_the_role():
    assert make_stage(role="teacher").key == make_stage(role="student").key


def test_stages_with_other_pretrained_weights_do_not_train_together():
    assert len({make_stage(pretrained=each).shape for each in (None, "0" * 64, "1" * 64)}) == 3


def test_how_several_upstreams_combine_counts_only_where_there_are_several():
    other = make_stage("mlp-32", role="assistant")
    one = [make_stage(upstream=(TEACHER,), loss=Loss(guidance=how)).key for how in ("separate", "ensemble")]
    two = [make_stage(upstream=(TEACHER, other), loss=Loss(guidance=how)).key for how in ("separate", "ensemble")]
    assert one[0] == one[1]
    assert two[0] != two[1]


@pytest.mark.parametrize(
    "change",
    [
        {"divergence": "decoupled"},
        {"divergence": "decoupled", "alpha": 2.0},
        {"divergence": "decoupled", "beta": 2.0},
        {"standardize": True},
    ],
)
def test_the_key_changes_with_the_losss(change: dict):
    keys = {
        make_stage(upstream=(TEACHER,), loss=Loss(**loss)).key for loss in ({}, {"divergence": "decoupled"}, change)
    }
    assert len(keys) == len({json.dumps(each) for each in ({}, {"divergence": "decoupled"}, change)})


def test_what_a_loss_leaves_out_is_not_in_the_key():
    said = Loss(divergence=None, standardize=False, drop_guides=None, alpha=None)
    assert make_stage(upstream=(TEACHER,), loss=said).key == BASE.key


def test_guides_that_are_dropped_count_only_where_there_are_several():
    other = make_stage("mlp-32", role="assistant")
    for upstream, same in (((TEACHER,), True), ((TEACHER, other), False)):
        plain, dropped = (make_stage(upstream=upstream, loss=Loss(drop_guides=each)) for each in (None, 0.5))
        assert (plain.key == dropped.key) is same


def test_the_key_is_the_same_from_python_and_from_json():
    assert Stage.model_validate(json.loads(BASE.model_dump_json())).key == BASE.key
    assert make_stage(upstream=(TEACHER,), temperature=4).key == BASE.key  # 4 and 4.0


def test_anyone_can_recompute_the_key_from_what_is_stored():
    assert key_of(json.loads(json.dumps(BASE.key_input()))) == BASE.key


def test_keys_are_stable_over_releases():
    """A change here orphans every artifact there is: bump TRAINING_REVISION knowingly instead."""
    assert BASE.key == "8f176c77a713a0669c4f94cc58767d99b35f54bfd94830fb38ae41af64ebbc83"
