"""The arm `kd@ARM`: plain distillation that costs what another arm's path costs."""

import pandas as pd
import pytest
from conftest import tiny_space

from takd.analysis.cost import training_flops
from takd.analysis.tables import arm_order, paper_name
from takd.search_spaces import DatasetFingerprint, InputError, Path, Space, parse_arm
from takd.trainables.models.families import size_of

MNIST = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})
FLOPS = {f"mlp-{size}": size_of(f"mlp-{size}", (1, 28, 28), 10).flops for size in (64, 16, 8, 4)}


def costing(arm: str, **changes: object) -> Space:
    return tiny_space(arms=["kd", arm, f"kd@{arm}"], student__temperature=4, **changes).model_copy(
        update={"flops": FLOPS}
    )


def flops(path: Path) -> float:
    """As the table of arms counts them."""
    rows = [
        {
            "flops_per_image": FLOPS[stage.model],
            "examples": 0 if stage.given else stage.recipe.examples or 50000,
            "whole_epochs": stage.recipe.whole_epochs,
        }
        for stage in path.stages
    ]
    return float(training_flops(pd.DataFrame(rows)).sum())


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("takd:mlp-16", {}),
        ("takd:mlp-16>mlp-8", {"assistants__models": ["mlp-16", "mlp-8"]}),
        ("dense:mlp-16>mlp-8", {"assistants__models": ["mlp-16", "mlp-8"], "assistants__recipe": {"examples": None}}),
        ("ensemble", {"teacher__members": 3}),
        ("takd:mlp-16", {"student__pretrained": "imagenet", "student__recipe": {"head_epochs": 1, "epochs": 3}}),
        ("takd:mlp-16", {"assistants__temperature": {"choices": [2, 8]}}),
    ],
)
def test_kd_gets_the_epochs_that_a_path_costs_and_not_one_more(arm, changes):
    space = costing(arm, **changes)
    kd, same = (space.path(parse_arm(each), {}, MNIST, seed=0) for each in ("kd", f"kd@{arm}"))
    chosen = {"assistant.temperature": 2} if "assistants__temperature" in changes else {}
    wanted = flops(space.path(parse_arm(arm), chosen, MNIST, seed=0))
    an_epoch = 3 * FLOPS["mlp-4"] * 200
    assert wanted <= flops(same) < wanted + an_epoch
    assert same.student.recipe == kd.student.recipe.model_copy(update={"epochs": same.student.recipe.epochs})
    assert same.student.recipe.epochs > kd.student.recipe.epochs
    assert same.student.upstream == kd.student.upstream
    assert same.arm == f"kd@{arm}"


def test_an_assistant_that_exists_costs_nothing_and_takes_nothing_away():
    space = costing("takd:mlp-16", assistants={"models": [{"model": "mlp-16", "checkpoint": "a.pth"}]})
    kd, same = (space.path(parse_arm(each), {}, MNIST, seed=0) for each in ("kd", "kd@takd:mlp-16"))
    assert same.student == kd.student


def test_it_is_never_there_by_default_and_stands_after_kd_without_a_name_in_the_paper():
    assert not any(arm.costs_as for arm in tiny_space().all_arms)
    arms = ["takd:mlp-16", "kd@takd:mlp-16", "ensemble", "kd", "labels"]
    trials = pd.DataFrame({"model": ["mlp-16"], "parameters": [13002]})
    ordered = sorted(arms, key=lambda arm: arm_order(trials, arm))
    assert ordered == ["labels", "kd", "kd@takd:mlp-16", "ensemble", "takd:mlp-16"]
    assert paper_name("kd@takd:mlp-16") == "-"


@pytest.mark.parametrize(
    ("arms", "changes", "line"),
    [
        (["kd@kd"], {}, "'kd@kd' is no arm: 'kd' has no assistant or ensemble to pay for; valid: .*kd@ARM"),
        (["kd@kd@takd:mlp-16"], {}, "'kd@kd@takd:mlp-16' is no arm"),
        (["labels@takd:mlp-16"], {}, "'labels@takd:mlp-16' is no arm"),
        (["kd@takd:mlp-99"], {}, "arms: 'kd@takd:mlp-99' uses 'mlp-99'; assistants.models has: mlp-16"),
        (["kd@ensemble"], {}, "arms: 'kd@ensemble' has an ensemble; say what it is made of"),
        (
            ["kd@takd:mlp-16"],
            {"assistants__recipe": {"epochs": {"low": 2, "high": 9}}},
            "costs what assistants cost, and assistants.recipe.epochs is varied; fix it, or make it a factor",
        ),
    ],
)
def test_an_arm_whose_cost_is_nobodys_is_refused(arms, changes, line):
    with pytest.raises(InputError, match=line):
        tiny_space(arms=arms, **changes)


def test_before_a_study_has_started_its_cost_is_not_known():
    with pytest.raises(InputError, match="the FLOPs of mlp-64 are not known; they are filled in when a study starts"):
        tiny_space(arms=["kd@takd:mlp-16"]).path(parse_arm("kd@takd:mlp-16"), {"temperature": 4}, MNIST, seed=0)
