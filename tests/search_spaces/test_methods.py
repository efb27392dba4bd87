"""Methods in arms: what a name means, what a space may say of each, and which keys come of it."""

from typing import Any

import pytest
from conftest import tiny_space

from takd.search_spaces import Configuration, DatasetFingerprint, InputError, Space, Stage, first_of, parse_arm
from takd.search_spaces.method_rules import keys_of
from takd.search_spaces.methods import METHODS, RESERVED
from takd.trainables.training.methods.table import METHODS as FUNCTIONS

DATA = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})


def student(arm: str, space: Space | None = None, **changes: Any) -> Stage:
    """Of the arm, in a space that has it, with the first of all that is varied."""
    space = space or tiny_space(**({"arms": [arm]} | changes))
    found = next(each for each in space.all_arms if each.name == arm)
    chosen = {name: first_of(name, value) for name, value in space.varied(found).items()}
    [path] = space.paths(Configuration(found, chosen), DATA, [0])
    return path.student


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("kd:mlp-16", "takd:mlp-16"),
        ("kd:mlp-32>mlp-16", "takd:mlp-32>mlp-16"),
        ("dense/kd:mlp-16", "dense:mlp-16"),
        ("ensemble/kd", "ensemble"),
        ("ensemble/kd:mlp-16", "ensemble:mlp-16"),
    ],
)
def test_the_old_name_of_an_arm_is_another_name_of_it(name, old):
    given = {"assistants__models": ["mlp-32", "mlp-16"], "teacher__members": 2}
    assert student(name, **given).key == student(old, **given).key
    with pytest.raises(InputError, match=r"are two names of one arm; leave one of them out"):
        tiny_space(arms=[name, old], **given)


def test_decoupled_kd_is_one_stage_however_it_is_said():
    """As an arm of its own, as published; or as the divergence of kd, with the same values."""
    for arm, other in (("dkd", "kd"), ("dkd:mlp-16", "takd:mlp-16")):
        published = student(arm, methods={"dkd": {"weight": 0.7}})
        assert published.loss.model_dump(exclude_none=True) == {
            "form": "additive", "kl_reduction": "batchmean", "guidance": "separate", "divergence": "decoupled",
            "alpha": 1.0, "beta": 8.0, "warmup": 20 / 240,
        }  # fmt: skip
        as_loss = {"loss": {"divergence": "decoupled", "form": "additive", "warmup": 20 / 240}}
        # What teaches the assistant is the space's loss, which is another one in that space.
        if arm == "dkd":
            assert published.key == student(other, student__temperature=4, **as_loss).key
            convex = {"methods": {"dkd": {"weight": 0.7, "form": "convex", "warmup": None}}}
            plain = student(other, student__temperature=4, loss={"divergence": "decoupled"})
            assert student(arm, **convex).key == plain.key
        else:
            assert published.upstream[0].key == student("takd:mlp-16").upstream[0].key


def test_standardize_beside_kd_is_what_the_loss_says_of_it():
    assert student("kd+standardize").key == student("kd", loss={"standardize": True}).key
    assert student("dkd+standardize").loss.standardize


def test_a_method_is_in_the_key_with_all_that_it_weighs():
    base = student("rkd", methods={"rkd": {"weight": 1}})
    assert base.key_input()["terms"] == [{"method": "rkd", "weight": 1.0, "params": {"distance": 25.0, "angle": 50.0}}]
    assert base.temperature is base.lambda_ is base.loss is None
    others = [
        student("rkd", methods={"rkd": {"weight": 1} | other})
        for other in ({"weight": 2}, {"angle": 1}, {"warmup": 0.5})
    ]
    others += [student("rkd+kd", methods={"rkd": {"weight": 1}}), student("pkt"), student("kd")]
    assert len({each.key for each in (base, *others)}) == 7
    assert student("rkd+kd").key == student("kd+rkd").key
    assert student("pkt+rkd").key == student("rkd+pkt").key


def test_one_assistant_serves_the_arms_of_all_methods_and_is_taught_by_the_method_that_it_says():
    space = tiny_space(arms=["kd:mlp-16", "dkd:mlp-16", "rkd+kd:mlp-16", "crd:mlp-16"], coverage=1)
    assistants = [student(arm.name, space).upstream[0] for arm in space.all_arms]
    assert len({each.key for each in assistants}) == 1
    by_rkd = student("dkd:mlp-16", assistants__method="rkd").upstream[0]
    assert [term.weight for term in by_rkd.terms or ()] == [1.0]
    assert by_rkd.loss is None


def test_each_method_is_searched_by_parameters_of_its_own():
    space = tiny_space(
        arms=["kd", "dkd", "rkd+kd:mlp-16"],
        trials=6,
        coverage=2,
        methods={"rkd": {"angle": {"low": 1.0, "high": 50.0}}},
    )
    assert [sorted(space.varied(arm)) for arm in space.all_arms] == [
        ["temperature"], ["dkd.weight"], ["rkd.angle", "rkd.weight", "temperature"],
    ]  # fmt: skip
    found = space.varied(space.all_arms[1])["dkd.weight"]
    assert (found.low, found.high, found.log) == (0.1, 10.0, True)


def test_every_method_that_a_space_may_name_has_its_function_with_these_parameters():
    own = {name for name in FUNCTIONS if FUNCTIONS[name].needs != "soft_targets" and name in METHODS}
    assert own == set(METHODS) - {"kd", "dkd"}  # which are soft targets
    for name in own:
        assert FUNCTIONS[name].needs == METHODS[name].needs
        assert FUNCTIONS[name].params == METHODS[name].params
        assert {*METHODS[name].params} <= {*keys_of(name)}
    assert not RESERVED & own


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"arms": ["dkdd"]}, "'dkdd' is no arm; valid: .*did you mean 'dkd'\\? docs/own-code.md says how to bring"),
        ({"arms": ["kd+dkd"]}, "kd and dkd stand in the same place of the loss; name one of them"),
        ({"arms": ["rkd+standardize"]}, "say kd\\+standardize or dkd\\+standardize"),
        ({"arms": ["dense/rkd"]}, "'dense/rkd' is no arm: dense/ has no assistant"),
        ({"arms": ["simkd+kd"]}, "simkd is all that its student learns by; name it alone"),
        ({"arms": ["dense/simkd:mlp-16"]}, "ends in the head of one model, and dense/ has several"),
        ({"assistants__method": "simkd"}, "a student of simkd ends in its teacher's head; assistants have their own"),
        ({"methods": {"simkd": {"weight": 2}}}, "simkd has no weight; valid: student_layers, teacher_layers"),
        ({"methods": {"simkd_linear": {"weight": 2}}}, "valid: nothing: it is all that its student learns by"),
        ({"arms": ["labels+kd"]}, "'labels\\+kd' is no arm; valid: "),
        ({"arms": ["rkd"], "methods": {"rkd": {"alpha": 1}}}, "rkd has no alpha, which is a parameter of dkd; valid: "),
        ({"methods": {"rdk": {}}}, "'rdk' is no method; did you mean 'rkd'\\? valid: kd, dkd, .*docs/own-code.md"),
        ({"methods": {"kd": {"weight": 1}}}, "kd: its temperature and lambda are those of student"),
        ({"methods": {"rkd": {"angle": -1}}}, "methods: rkd.angle is -1; expected a number of at least 0"),
        ({"methods": {"crd": {"tau": 0}}}, "crd.tau is 0; expected a number above 0"),
        ({"methods": {"crd": {"width": 1.5}}}, "crd.width is 1.5; expected a whole number"),
        ({"methods": {"rkd": {"weight": [1, 2]}}}, "to try each of these say rkd.weight: {choices: \\[1, 2\\]}"),
        ({"methods": {"dkd": {"form": "convex", "weight": 3}}}, "with form: convex it is in \\[0, 1\\]"),
        ({"methods": {"rkd": {"warmup": 2}}}, "rkd.warmup is 2; expected a part of the run, between 0 and 1"),
        ({"assistants__method": "rdk"}, "assistants.method: 'rdk' is no method; did you mean 'rkd'\\?"),
        ({"arms": ["ensemble/rkd"], "teacher__members": 2}, "an ensemble has no single embedding"),
        (
            {"arms": ["rkd"], "teacher": {"logits": "teacher.npz"}},
            "arms: 'rkd': .*of the teacher logits alone are given: give its checkpoint",
        ),
        ({"arms": ["rkd"], "student__recipe": {"accumulate": 2}}, "accumulate is 2, but the method rkd compares"),
        (
            {
                "arms": ["rkd"],
                "student__recipe": {"augment": "mixup", "views": 2},
                "teacher__recipe": {"augment": "mixup", "views": 2},
            },
            "augment is mixup, whose images have two labels",
        ),
    ],
)
def test_what_is_wrong_with_a_method_is_one_line_that_names_it(changes, line):
    with pytest.raises(InputError, match=line) as caught:
        tiny_space(**changes)
    assert "\n" not in str(caught.value)


def test_transfer_changes_the_students_that_somebody_teaches_and_nobody_else():
    """They learn from soft targets alone, lambda 1, on as many of the other images as `transfer` says."""
    other = DatasetFingerprint(name="other", digest="o", split_seed=0, sizes={"train": 700})
    space = tiny_space(arms=["labels", "kd:mlp-16", "rkd+kd"], trials=6, transfer={"dataset": "other"})
    space = space.model_copy(update={"transfer_data": other.model_dump_json()})
    taught, both, alone = (student(arm, space) for arm in ("kd:mlp-16", "rkd+kd", "labels"))
    assert (taught.transfer, taught.lambda_, taught.images) == (other, 1.0, 700)
    assert both.transfer == other
    assert alone.key == student("labels").key
    assert taught.upstream[0].key == student("takd:mlp-16").upstream[0].key
    assert "lambda" not in space.varied(space.all_arms[1])
    with pytest.raises(InputError, match=r"transfer uses no labels, and rkd has nothing else .*add kd: rkd\+kd"):
        tiny_space(arms=["rkd"], transfer={"dataset": "other"})


def test_float16_features_are_in_the_keys_of_those_alone_who_learn_from_them():
    half = {"features": {"dtype": "float16"}}
    assert student("rkd", **half).key != student("rkd").key
    assert student("rkd", **half).key_input()["features"] == "float16"
    for arm in ("kd", "dist", "dkd"):
        assert student(arm, **half).key == student(arm).key
    assert student("rkd", features={"dtype": "float32"}).key == student("rkd").key


def test_a_method_of_code_may_be_in_an_arm_and_without_code_may_not():
    assert parse_arm("mine+kd:mlp-16", any_method=True).methods == ("mine", "kd")
    assert student("mine", code=["nets.py"]).terms[0].model_dump(exclude_none=True) == {"method": "mine", "weight": 1.0}
    with pytest.raises(InputError, match="'mine' is no arm"):
        tiny_space(arms=["mine"])
