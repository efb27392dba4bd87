"""Spaces: what may be varied, and the one line that says what is wrong with one."""

from typing import Any

import optuna
import pytest
from conftest import TINY, tiny_space

from takd.search_spaces import DatasetFingerprint, InputError, load_space, parse_arm, presets, some, space_from
from takd.search_spaces.yaml_text import read_yaml, write_yaml

MNIST = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})


def test_five_lines_are_a_space():
    space = space_from(
        {"dataset": "mnist", "teacher": "mlp-1200", "assistants": ["mlp-64"], "student": "mlp-8", "trials": 9}, "mine"
    )
    assert [arm.name for arm in space.all_arms] == ["labels", "kd", "takd:mlp-64"]


@pytest.mark.parametrize("preset", presets())
def test_every_preset_loads(preset: str):
    assert load_space(preset).budget >= 30


def test_a_stored_trial_repeats_its_paths():
    space, study = tiny_space(), optuna.create_study()
    for arm in space.all_arms:
        study.enqueue_trial({"arm": arm.name})
        proposed = space.paths(space.suggest(study.ask()), MNIST, [0, 1])
        stored = space.paths(space.suggest(study.trials[-1]), MNIST, [0, 1])
        assert proposed == stored


def test_every_field_of_a_recipe_can_be_varied():
    space = tiny_space(
        student__recipe={
            "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "epochs": {"low": 2, "high": 9},
            "optimizer": {"choices": ["adam", "adamw"]},
        }
    )
    study = optuna.create_study()
    [path] = space.paths(space.suggest(study.ask()), MNIST, [0])
    recipe = path.student.recipe
    assert 1e-4 <= recipe.learning_rate <= 1e-2
    assert 2 <= recipe.epochs <= 9
    assert recipe.optimizer in ("adam", "adamw")


def test_a_recipe_may_have_a_list_of_milestones():
    space = tiny_space(student__recipe={"schedule": "step", "milestones": [0.3, 0.6], "epochs": {"low": 2, "high": 9}})
    [path] = space.paths(space.suggest(optuna.create_study().ask()), MNIST, [0])
    assert path.student.recipe.milestones == (0.3, 0.6)
    assert space_from(space.model_dump(mode="json"), "again").identity() == space.identity()


def test_a_path_of_several_assistants_is_a_chain():
    space = tiny_space(assistants__models=["mlp-32", "mlp-16"], arms=["takd:mlp-32>mlp-16"])
    study = optuna.create_study()
    [path] = space.paths(space.suggest(study.ask()), MNIST, [0])
    assert str(path) == "mlp-64 > mlp-32 > mlp-16 > mlp-4"
    assert [stage.role for stage in path.stages] == ["teacher", "assistant", "assistant", "student"]


def proposed_path(**changes: Any) -> Any:
    space = tiny_space(**changes)
    [path] = space.paths(space.suggest(optuna.create_study().ask()), MNIST, [0])
    return path


def test_a_dense_path_learns_from_the_teacher_and_every_larger_assistant():
    path = proposed_path(assistants__models=["mlp-32", "mlp-16"], arms=["dense:mlp-32>mlp-16"])
    learns_from = {stage.model: [upstream.model for upstream in stage.upstream] for stage in path.stages}
    assert learns_from == {
        "mlp-64": [],
        "mlp-32": ["mlp-64"],
        "mlp-16": ["mlp-64", "mlp-32"],
        "mlp-4": ["mlp-64", "mlp-32", "mlp-16"],
    }


def test_an_ensemble_is_the_teachers_members_and_their_mean_is_the_teacher():
    space = tiny_space(teacher__members=3, arms=["kd", "ensemble", "ensemble:mlp-16"], loss={"drop_guides": 0.3})
    lone, ensemble, assisted = (
        space.path(arm, {"temperature": 2.0, "lambda": 0.5}, MNIST, 0) for arm in space.all_arms
    )
    assert [(stage.model, stage.member) for stage in ensemble.student.upstream] == [
        ("mlp-64", 0),
        ("mlp-64", 1),
        ("mlp-64", 2),
    ]
    assert lone.student.upstream[0].key == ensemble.student.upstream[0].key
    assert lone.student.loss.drop_guides == 0.3
    assert (ensemble.student.loss.guidance, ensemble.student.loss.drop_guides) == ("ensemble", None)
    [assistant] = assisted.student.upstream
    assert assistant.upstream == ensemble.student.upstream
    assert assisted.student.loss == lone.student.loss
    assert str(assisted) == "(mlp-64 + mlp-64 + mlp-64) > mlp-16 > mlp-4"


def test_an_ensembles_members_may_be_different_models():
    path = proposed_path(teacher__members=["mlp-32", "mlp-48", "mlp-32"], arms=["ensemble"])
    assert [(stage.model, stage.member) for stage in path.student.upstream] == [
        ("mlp-32", 0),
        ("mlp-48", 0),
        ("mlp-32", 1),
    ]
    assert len({stage.key for stage in path.student.upstream}) == 3


def test_an_ensemble_that_is_trained_anew_shares_no_member_with_another_seeds():
    space = tiny_space(teacher__members=3, arms=["ensemble"], confirm={"seeds": 4, "reseed_path": True})
    chosen = space.suggest(optuna.create_study().ask())
    members = [stage.key for path in space.confirming_paths(chosen, MNIST) for stage in path.student.upstream]
    assert len(set(members)) == 12


@pytest.mark.parametrize("members", [1, 0, True, "mlp-8", ["mlp-8"], []])
def test_an_ensemble_of_one_is_none(members):
    with pytest.raises(InputError, match=r"teacher.members: .* is no ensemble; expected a number of at least 2"):
        tiny_space(teacher__members=members)


def test_an_arm_with_an_ensemble_needs_its_members():
    with pytest.raises(InputError, match=r"'ensemble' has an ensemble; say what it is made of in teacher.members"):
        tiny_space(arms=["ensemble"])


def test_the_teachers_size_may_be_searched():
    space = tiny_space(
        teacher__model={"choices": ["mlp-64", "mlp-128"]}, sampler="grid", trials=None, student__temperature=4
    )
    points = [point for point in space.grid() if point["arm"] == "kd"]
    assert {point["teacher.model"] for point in points} == {"mlp-64", "mlp-128"}
    assert all("teacher.model" not in point for point in space.grid() if point["arm"] == "labels")
    path = space.path(parse_arm("kd"), points[-1], MNIST, 0)
    assert path.student.upstream[0].model == points[-1]["teacher.model"]
    assert space.teacher.models == ("mlp-64", "mlp-128")


@pytest.mark.parametrize("model", [4, {"choices": ["mlp-8", 8]}])
def test_a_teacher_is_a_model_spec(model):
    with pytest.raises(InputError, match=r"teacher.model: model.* expected a model spec such as mlp-1200"):
        tiny_space(teacher__model=model)


@pytest.mark.parametrize(
    ("teacher", "student", "fits"),
    [
        ({"augment": "crop-flip", "views": 4}, {"augment": "crop-flip", "views": 4}, True),
        ({"augment": "crop-flip", "views": 4}, {"augment": "crop-flip", "views": 2}, True),
        ({"augment": "crop-flip"}, {}, True),
        ({}, {"augment": "crop-flip"}, False),
        ({"augment": "crop-flip", "views": 2}, {"augment": "crop-flip", "views": {"choices": [2, 3]}}, False),
        ({"augment": {"choices": ["crop-flip", "flip-rotate"]}}, {"augment": "crop-flip"}, False),
    ],
)
def test_a_student_sees_no_view_that_its_teacher_has_no_soft_targets_of(teacher, student, fits):
    given = {"teacher__recipe": teacher, "student__recipe": student, "arms": ["kd"]}
    if fits:
        assert tiny_space(**given)
        return
    with pytest.raises(
        InputError, match=r"student.recipe: augment is crop-flip with .* views, but what it learns from has"
    ):
        tiny_space(**given)


def test_a_loss_says_what_only_one_divergence_uses():
    with pytest.raises(InputError, match="alpha is only for divergence: decoupled"):
        tiny_space(loss={"alpha": 2.0})
    with pytest.raises(InputError, match="drop_guides is only for guidance: separate"):
        tiny_space(loss={"drop_guides": 0.2, "guidance": "ensemble"})


def test_label_smoothing_is_labels_with_smoothing():
    path = proposed_path(arms=["label_smoothing"], student__label_smoothing={"choices": [0.2]})
    assert path.student.recipe.label_smoothing == 0.2
    assert path.student.upstream == ()
    plain = proposed_path(arms=["labels"])
    assert "label_smoothing" not in plain.student.key_input()["recipe"]


@pytest.mark.parametrize("smoothing", [0, 1, "x", {"choices": [0.1, 2]}])
def test_label_smoothing_is_between_0_and_1(smoothing):
    with pytest.raises(InputError, match=r"label_smoothing.* is between 0 and 1"):
        tiny_space(student__label_smoothing=smoothing)


def test_the_grid_is_every_combination_of_every_arm_and_no_more():
    space = tiny_space(sampler="grid", trials=None, student__lambda={"low": 0.1, "high": 0.9, "step": 0.4})
    points = space.grid()
    assert len(points) == 1 + 2 * 2 * 3  # labels has nothing to vary
    assert {point["lambda"] for point in points if "lambda" in point} == {0.1, 0.5, 0.9}
    assert points == space.guaranteed()


def test_equal_numbers_are_one_value():
    choices = tiny_space(student__temperature={"choices": [5, 1.0, 5.0, 1]}).student.temperature.choices
    assert [(value, type(value)) for value in choices] == [(5, int), (1, int)]
    assert len(tiny_space(student__recipe={"optimizer": {"choices": ["adam", "adam"]}}).grid()) == 1 + 2 + 2


def test_long_paths_are_guaranteed_first_because_others_wait_for_them():
    assert [trial["arm"] for trial in tiny_space().guaranteed()] == ["takd:mlp-16", "kd", "labels"] * 2


def test_numbers_written_as_powers_of_ten_are_numbers(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "{dataset: mnist, teacher: mlp-9, student: {model: mlp-8, recipe: {learning_rate: 3e-3}}, trials: 2}"
    )
    assert load_space(str(file)).student.recipe["learning_rate"] == 0.003


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+7", 7),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("1.", 1.0),
        ("~", None),
        ("TRUE", True),
        *((word, word) for word in ("yes", "no", "on", "Off", "y", "1_000", "1:30", "0b11", "2024-01-31", "=", "0o9")),
    ],
)
def test_plain_values_are_those_of_yaml_1_2_and_are_written_so_that_they_stay(text, value):
    assert repr(read_yaml(text)) == repr(value)
    assert repr(read_yaml(write_yaml({"value": value, "text": text}))) == repr({"value": value, "text": text})


def test_a_word_is_no_number_and_no_truth():
    with pytest.raises(InputError, match="trials is '1_000'; expected"):
        load_space("mnist-gap", ["trials=1_000"])
    with pytest.raises(InputError, match=r"confirm.reseed_path is 'yes'; expected"):
        load_space("mnist-gap", ["confirm.reseed_path=yes"])


def test_an_override_changes_one_place_though_an_anchor_shares_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "{dataset: mnist, teacher: {model: mlp-9, recipe: &same {epochs: 3}}, trials: 2, "
        "student: {model: mlp-8, recipe: *same}}"
    )
    space = load_space(str(file), ["teacher.recipe.epochs=7"])
    assert (space.teacher.recipe["epochs"], space.student.recipe["epochs"]) == (7, 3)


def test_overrides_reach_into_sections():
    space = load_space("mnist-gap", ["student.temperature=4", "trials=20", "teacher.recipe.epochs=1"])
    assert (space.student.temperature, space.trials, space.teacher.recipe["epochs"]) == (4, 20, 1)


def test_overrides_reach_into_what_is_given_in_a_short_form():
    given = {"dataset": "mnist", "teacher": "mlp-9", "assistants": ["mlp-7"], "student": "mlp-4", "trials": 3}
    overrides = [f"{role}.recipe.epochs=1" for role in ("teacher", "assistants", "student")]
    space = load_space({**given, "confirm": None}, [*overrides, "confirm.seeds=7", "asha.grace_epochs=2"])
    assert [part.recipe["epochs"] for part in (space.teacher, space.assistants, space.student)] == [1, 1, 1]
    assert (space.assistants.names, space.confirm.seeds, space.asha.grace_epochs) == (("mlp-7",), 7, 2)
    assert load_space(space, {"asha": None, "assistants.recipe.epochs": 3}).assistants.recipe["epochs"] == 3


@pytest.mark.parametrize("key", ["dataset.name", "sampler.seed", "student.model.name", "arms.kd.x"])
def test_an_override_into_what_is_no_section_is_told_so(key):
    with pytest.raises(InputError, match=f"--set {key}=1: {key.rpartition('.')[0]} is a value, not a section"):
        load_space("mnist-gap", [f"{key}=1"])


SEVERAL = """
dataset: mnist
teacher: mlp-32
assistants: [mlp-16, {model: mlp-12, recipe: {epochs: 2}}]
student: mlp-8
trials: 9
"""


def test_what_is_in_a_list_is_replaced_by_its_name_or_its_place(tmp_path):
    file = tmp_path / "several.yaml"
    file.write_text(SEVERAL)
    changed = load_space(str(file), ["assistants.models.mlp-16=mlp-20", "assistants.models.1.recipe.epochs=3"])
    assert changed.assistants.names == ("mlp-20", "mlp-12")
    assert changed.assistants.section("mlp-12").recipe["epochs"] == 3
    for key in ("assistants.models.mlp-99.recipe.epochs", "assistants.models.7", "assistants.models.-1"):
        with pytest.raises(InputError, match=r"assistants.models has no '.*'; valid: mlp-16, mlp-12, 0, 1"):
            load_space(str(file), [f"{key}=1"])


@pytest.mark.parametrize("text", ["- a", "3", "null", "", "[3]"])
def test_a_file_that_is_no_section_is_told_so_whatever_is_replaced_in_it(tmp_path, text):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    for overrides in ([], ["trials=3"], ["student.recipe.epochs=1"]):
        with pytest.raises(InputError, match=r"space\.yaml: a space is a mapping of keys to values"):
            load_space(str(file), overrides)


@pytest.mark.parametrize("entry", ["3", "[a]", "{model: [a]}", "null"])
def test_an_override_beside_what_is_no_model_is_one_line(tmp_path, entry):
    file = tmp_path / "space.yaml"
    file.write_text(SEVERAL.replace("mlp-16", entry))
    with pytest.raises(InputError, match="valid: mlp-12, 0, 1"):
        load_space(str(file), ["assistants.models.mlp-99.recipe.epochs=1"])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("student.temperatur=1", "student: unknown key 'temperatur'; did you mean 'temperature'? valid keys: "),
        ("student.recipe.epohs=3", "student.recipe: unknown key 'epohs'; did you mean 'epochs'?"),
        ("bogus=1", "unknown key 'bogus'; valid keys: description, dataset, teacher"),
        ("seeds=true", "seeds is true; expected a whole number"),
        ("student.recipe.epochs=many", "student.recipe: epochs is 'many'; expected a whole number"),
        ("student.temperature=0", "student: temperature is 0; a temperature is > 0"),
        ("student.temperature={low: -1, high: 3}", "student: temperature.low is -1; a temperature is > 0"),
        ("student.temperature={low: 5, high: 3}", "student.temperature: low is 5, high is 3; low is below high"),
        ("student.lambda=1.5", "student.lambda: lambda is 1.5; a lambda is in [0, 1] for the convex loss"),
        ("student.lambda={choices: [0.5, -1]}", "student.lambda.choices.1: lambda is -1; a lambda is in [0, 1]"),
        ("student.recipe.momentum=0.5", "student.recipe: momentum is only for optimizer: sgd"),
        ("student.recipe.learning_rate={low: -1, high: 1}", "learning_rate is -1; expected greater than 0"),
        ("student.recipe={schedule: step, milestones: [0.6, 0.3]}", "milestones is [0.6, 0.3]; expected rising"),
        ("student.recipe={schedule: step, milestones: [a]}", "student.recipe: milestones.0 is 'a'; expected a number"),
        ("student.recipe.epochs=[1, 2]", "epochs is [1, 2]; to try each of these say epochs: {choices: [1, 2]}"),
        (
            "student.temperature=[1, 2]",
            "student: temperature is [1, 2]; to try each of these say temperature: {choices: [1, 2]}",
        ),
        ("student.recipe.epochs={low: 2, high: 9, step: 0.5}", "epochs.step is 0.5; expected a whole number"),
        ("trials=500", "trials is 500; the grid has 142 combinations"),
        ("trials=0", "trials is 0; expected greater than or equal to 1"),
        ("sampler=tpe", "trials is missing; how many configurations to try"),
        ("arms=[labels, foo]", "'foo' is no arm; valid: labels, label_smoothing, kd, ensemble, takd:MODEL"),
        ("arms=[labels, 'takd:mlp-7']", "arms: 'takd:mlp-7' uses 'mlp-7'; assistants.models has: mlp-200"),
        ("loss.form=concave", "loss.form is 'concave'; expected 'convex' or 'additive'"),
        ("student.recipe.optimizer=[adam, sgd]", "to try each of these say optimizer: {choices: ['adam', 'sgd']}"),
        ("teacher.model=[mlp-8, mlp-9]", "to try each of these say model: {choices: ['mlp-8', 'mlp-9']}"),
        ("student.label_smoothing=[0.1]", "to try each of these say label_smoothing: {choices: [0.1]}"),
        ("teacher=", "teacher is null; expected a model such as mlp-8, or a section of keys and values"),
        ("student=[mlp-8]", "student is ['mlp-8']; expected a model such as mlp-8, or a section"),
        ("arms=kd", "arms is 'kd'; expected a list, such as ['kd']"),
        ("assistants=4", "assistants is 4; expected a list of models such as [mlp-64], or a section of keys and"),
        ("confirm=5", "confirm is 5; expected a section of keys and values such as {seeds: 5}, or null"),
        ("loss=additive", "loss is 'additive'; expected a section of keys and values such as {kl_reduction: mean}"),
        ("student.model=[mlp-8, mlp-9]", "to compare several say factors: {student.model: ['mlp-8', 'mlp-9']}"),
        ("student.recipe.lr=1", "student.recipe: unknown key 'lr'; did you mean 'learning_rate'?"),
        ("student.recipe.warmup=1", "student.recipe: unknown key 'warmup'; did you mean 'warmup_epochs'?"),
        ("student.recipe.smoothing=1", "student.recipe: unknown key 'smoothing'; did you mean 'label_smoothing'?"),
        ("student.temperature={choice: [1]}", "student.temperature: unknown key 'choice'; did you mean 'choices'?"),
        ("student.temperature={low: a, high: 2}", "student.temperature.low is 'a'; expected a number"),
        ("student.model=3", "student.model is 3; expected text"),
        ("allow_any_size=yes", "allow_any_size is 'yes'; expected true or false"),
        ("student.temperature={choices: []}", "student.temperature.choices is []; expected a list of at least 1"),
        (
            "student.recipe.rampup=3",
            "student.recipe: unknown key 'rampup'; valid keys: epochs, batch_size",
        ),
        ("resources.pupil.cpu=1", "resources: unknown key 'pupil'; valid keys: 'teacher', 'assistant' or 'student'"),
        ("resources.student.gpu=1.5", "resources.student.gpu: gpu is 1.5; expected a whole number of GPUs, or a part"),
        ("resources.student.gpu=0.33333", "gpu is 0.33333; a part of a GPU has at most 4 digits"),
    ],
)
def test_what_is_wrong_with_a_space_is_one_line_that_names_the_field(override: str, line: str):
    with pytest.raises(InputError) as caught:
        load_space("mnist-gap", [override])
    message = str(caught.value)
    assert message.startswith("space mnist-gap: ")
    assert line in message
    assert "\n" not in message


def test_a_budget_covers_every_arm():
    with pytest.raises(InputError, match="trials is 3; a coverage of 2 for 3 arms takes 6"):
        tiny_space(trials=3, coverage=2)


def test_the_arms_of_a_grid_take_turns():
    space = tiny_space(sampler="grid", trials=None)
    assert [point["arm"] for point in space.grid()] == ["takd:mlp-16", "kd", "labels", "takd:mlp-16", "kd"]


def test_a_lambda_above_one_is_fine_for_the_additive_loss():
    assert tiny_space(loss={"form": "additive"}, student__lambda=1.5).student.lambda_ == 1.5


def test_a_range_in_a_grid_needs_a_step():
    with pytest.raises(InputError, match="temperature has no step; with sampler: grid a range needs one"):
        tiny_space(sampler="grid", student__temperature={"low": 1.0, "high": 3.0})


@pytest.mark.parametrize("text", ["[1, 2", "a: b: c", "- x"])
def test_a_file_that_is_no_space_is_one_line_that_names_it(tmp_path, text: str):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"^space .*broken\.yaml: ") as caught:
        load_space(str(file))
    assert "\n" not in str(caught.value)


def test_an_unknown_space_is_told_the_presets():
    with pytest.raises(InputError, match=r"nowhere: no such file; presets: .*mnist-gap, mnist-methods, mnist-temp"):
        load_space("nowhere")


def test_a_model_of_a_library_may_be_in_an_arm():
    models = ["torchvision/resnet18", "timm/resnet10t.c3_in1k"]
    path = proposed_path(assistants__models=models, arms=[f"takd:{'>'.join(models)}"])
    assert str(path) == "mlp-64 > torchvision/resnet18 > timm/resnet10t.c3_in1k > mlp-4"


@pytest.mark.parametrize("name", ["", "kd2", "takd:", "takd:a>", "takd:a>a", "foo:a"])
def test_what_is_no_arm_is_refused(name: str):
    with pytest.raises(InputError, match="is no arm; valid: labels, label_smoothing, kd, ensemble, takd:MODEL"):
        parse_arm(name)


def test_a_space_survives_its_own_json():
    space = tiny_space()
    again: Any = space.model_dump(mode="json")
    assert space_from(again, "again") == space
    assert TINY["trials"] == 6  # the shared dict was not changed by any of this


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": {"choices": ["sgd", "adam"]}, "momentum": {"choices": [0.5, 0.9]}},
        {"optimizer": {"choices": ["adam", "sgd"]}, "momentum": 0.9},
        {"schedule": {"choices": ["cosine", "step"]}, "step_factor": 0.2},
        {"augment": {"choices": ["crop-flip", None]}, "views": {"choices": [2, 4]}},
    ],
)
def test_what_only_some_choices_use_is_left_out_of_the_others(recipe):
    space = tiny_space(sampler="grid", trials=None, arms=["labels"], student__recipe=recipe)
    paths = [space.path(parse_arm("labels"), point, MNIST, 0) for point in space.grid()]
    used = {"sgd": "momentum", "step": "step_factor", "crop-flip": "views"}
    for path in paths:
        made = path.student.recipe
        for owner, field in used.items():
            chosen = owner in (made.optimizer, made.schedule, made.augment)
            assert (getattr(made, field) is not None) is chosen


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"momentum": 0.9}, "student.recipe: momentum is only for optimizer: sgd"),
        ({"optimizer": {"choices": ["adam", "adamw"]}, "momentum": 0.9}, "momentum is only for optimizer: sgd"),
        ({"optimizer": {"choices": ["sgd", "adam"]}, "momentum": {"choices": [0.9, 2.0]}}, "momentum.choices.1"),
        ({"views": 4}, "views is only for a recipe with augment"),
        ({"epochs": {"low": 2, "high": 9}, "learning_rate": -1}, "learning_rate is -1"),
    ],
)
def test_a_combination_that_is_none_is_refused_when_the_space_is_read(recipe, words):
    with pytest.raises(InputError, match=words):
        tiny_space(student__recipe=recipe)


def test_epochs_that_are_fewer_than_the_heads_are_refused_when_the_space_is_read():
    recipe = {"epochs": {"choices": [20, 5]}, "head_epochs": {"choices": [3, 10]}}
    with pytest.raises(InputError, match=r"epochs.choices.1, head_epochs.choices.1: head_epochs is 10 of 5 epochs"):
        tiny_space(teacher__recipe=recipe, teacher__pretrained="imagenet")


def test_smoothing_is_varied_in_one_place():
    with pytest.raises(InputError, match="are both varied; fix one"):
        tiny_space(
            arms=["label_smoothing"],
            student__label_smoothing={"choices": [0.1, 0.2]},
            student__recipe={"label_smoothing": {"choices": [0.1, None]}},
        )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("student.recipe.order_seed=-1", "order_seed is -1"),
        ("student.recipe.examples_seed=-1", "examples_seed is -1"),
        ("description=!!int many", "--set description: not YAML of plain values: invalid literal for int"),
        ("student.temperature=.inf", "student.temperature is inf; expected one plain value$"),
        ("student.lambda={low: a, high: 1}", "student.lambda.low is 'a'; expected a number$"),
    ],
)
def test_values_that_are_none_are_one_line(override, words):
    with pytest.raises(InputError, match=words):
        load_space("mnist-gap", [override])


def test_a_list_that_is_too_long_for_a_sentence_says_how_many_are_left():
    names = [f"class-{number}" for number in range(2005)]
    assert some(names[:5]) == "class-0, class-1, class-2, class-3, class-4"
    assert some(names, 2) == "class-0, class-1 and 2,003 more"
    assert some(iter(names[:3]), 1, separator="; ") == "class-0 and 2 more"
    assert some([]) == ""
