"""Studies of a user's own code: from a file beside the space to tables, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, Call, Study, make_stage, run

from takd.analysis.arms import accuracy_table, comparisons
from takd.analysis.tables import confirmed, metric_of, students
from takd.search_spaces import InputError, load_space, parse_arm
from takd.study.checks import check
from takd.study.code_checks import use_code, with_code
from takd.study.export.candidates import find_candidates
from takd.study.folder import study_folder
from takd.study.managing.studies import list_studies
from takd.study.status import best_by_arm
from takd.study.study import open_study
from takd.trainables.own_code import NO_CODE, use

NETS = """
import takd
import torch
from torch import nn

import BESIDE


@takd.model_family("small")
def small(size, image_shape, classes, dropout=0.0):
    channels, height, width = image_shape
    if not isinstance(size, int) or size > 99:
        raise ValueError("small-N has N channels, 99 at most")
    layers = nn.Conv2d(channels, size, 3, stride=4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(size * 49, classes))


@takd.model_family("dense")
def dense(size, image_shape, classes, dropout=0.0):
    channels, height, width = image_shape
    pixels = channels * height * width
    hidden = nn.Linear(pixels, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(size, classes))


@takd.method("square")
def square(student, teacher, labels, temperature):
    return BESIDE.WEIGHT * ((student - teacher) ** 2).mean(1)


@takd.augmentation("dim")
def dim(images, drawn):
    return (images * (1 - drawn[:, :, None, None] / 2)).to(images.dtype)


@takd.schedule("half")
def half(done, recipe):
    return 1.0 if done < 0.5 else 0.5


@takd.metric("brier", title="Brier score", higher=False, fraction=False)
def brier(logits, labels):
    right = nn.functional.one_hot(labels, logits.shape[1])
    return BESIDE.WEIGHT * (logits.softmax(1) - right).square().sum(1).mean()


@takd.optimizer("plain-sgd", by_element=True)
def plain_sgd(weights, learning_rate, recipe):
    return torch.optim.SGD(weights, learning_rate)
""".replace("BESIDE", "analysis")  # as ours is called

OWN = {"augment": "dim", "views": 2, "epochs": 2, "examples": 300}
SPACE: dict[str, Any] = {
    **TINY,
    "code": "nets.py",
    "teacher": {"model": "small-4", "recipe": {**OWN, "dropout": 0.1}},
    "assistants": ["dense-8"],
    "student": {
        "model": "dense-4",
        "temperature": 4,
        "lambda": {"choices": [0.5, 0.7]},
        "recipe": {**OWN, "schedule": "half", "optimizer": "plain-sgd", "learning_rate": 0.05},
    },
    "loss": {"divergence": "square"},
    "metric": "brier",
    "lanes": 4,
    "arms": ["labels", "kd"],
    "trials": 3,
    "coverage": 1,
    "confirm": {"seeds": 1},
}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    use(NO_CODE)


def write(folder: Path, nets: str = NETS, weight: float = 0.01, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "nets.py").write_text(nets)
    (folder / "analysis.py").write_text(f"WEIGHT = {weight}")
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE | changes))
    return folder / "space.yaml"


@pytest.fixture(scope="module")
def own(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("own")
    return run(study_folder(str(folder / "runs"), "own"), load_space(write(folder)))


def test_a_study_of_a_users_code_trains_and_its_tables_need_none_of_it(own):
    study = open_study("own", own.folder.root)
    trials = study.trials
    assert set(trials["status"]) == {"done"}
    assert set(trials["model"]) == {"small-4", "dense-4"}
    assert trials["test_accuracy"].notna().any()
    assert {name for stage in study.stages.values() for name in stage.code or {}} == {
        "model_family small",
        "model_family dense",
        "augmentation dim",
        "schedule half",
        "optimizer plain-sgd",
        "method square",
    }


def test_a_study_goes_by_a_metric_of_a_users_from_its_search_to_its_tables_list_and_export(own, takd: Call):
    study = open_study("own", own.folder.root)
    trials, search = study.trials, study.search
    done, final = students(trials), confirmed(trials)
    assert (done["val_brier"] < 0.02).all()  # the user's own weight is in it
    assert search.study.direction.name == "MINIMIZE"
    for trial in search.proposed():
        assert trial.value == pytest.approx(done.loc[done["trial"] == trial.number, "val_brier"].mean())
    assert (final["value"] == final["test_brier"]).all()
    [row] = comparisons(trials).to_dict("records")
    paired = final.pivot_table(index="path_seed", columns="arm", values="test_brier")
    assert row["difference"] == pytest.approx((paired["labels"] - paired["kd"]).mean())  # positive: kd has less of it
    assert "of Brier score" in row["verdict"]
    assert "test Brier score" in accuracy_table(trials).columns
    best = final.groupby("arm")["test_brier"].mean().idxmin()
    [listed] = list_studies(own.folder.root, None)
    assert (listed["best_arm"], listed["metric"]) == (best, "brier")
    assert listed["best"].endswith(" test Brier score")
    assert f"best {best_by_arm(trials).iloc[0]['arm']} " in takd("status", "own", "--root", own.folder.root).out
    [first, *_] = find_candidates(trials, "own", metric_of(trials), None, lambda keys: {})
    assert first.mean == pytest.approx(final.groupby("configuration")["val_brier"].mean().min())
    assert {"val_brier"} <= set(study.epochs.columns)


MODELS = """
import takd
from torch import nn


@takd.model_family("dense")
def dense(size, image_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, size), nn.ReLU(), nn.Linear(size, classes))
"""
SHARE = """
import takd


@takd.metric("share", fraction=False)
def share(logits, labels):
    return WEIGHT * (logits.argmax(1) == labels).double().mean()
"""


def test_a_metric_whose_code_changed_measures_finished_students_anew_and_trains_none(tmp_path):
    """It is in no key where it chooses no weights, and what another code measured is not taken for its own."""
    recipe = {"epochs": 1, "examples": 300}
    changes: dict[str, Any] = {"teacher": {"model": "mlp-8", "recipe": recipe}, "assistants": [], "loss": {}}
    changes |= {"student": {"model": "dense-2", "temperature": 2, "lambda": 0.5, "recipe": recipe}, "trials": 2}
    changes |= {"confirm": None, "metric": "share", "code": ["nets.py", "metrics.py"]}

    def values(name: str, weight: float) -> tuple[int, Any]:
        file = write(tmp_path / name, MODELS, **changes)
        file.with_name("metrics.py").write_text(SHARE.replace("WEIGHT", str(weight)))
        result = run(study_folder(str(tmp_path / "runs"), name), load_space(file)).result
        return result.trained, students(result.tables.trials.to_pandas()).set_index("stage_key")["val_share"]

    trained, before = values("one", 1.0)
    again, after = values("two", 3.0)
    assert trained > 0
    assert again == 0
    assert after.sort_index().to_numpy() == pytest.approx(3 * before.sort_index().to_numpy())


def test_fully_connected_students_of_a_users_trained_as_lanes(own):
    trials = own.result.tables.trials.to_pandas()
    searched = trials[(trials["role"] == "student") & (trials["phase"] == "search")]
    assert searched["lanes"].max() > 1
    assert set(trials[trials["role"] == "teacher"]["lanes"]) == {1}


def test_a_study_goes_on_with_the_same_code_wherever_it_is_and_not_with_another(own, tmp_path):
    def again(**changes: Any) -> Study:
        return run(own.folder, load_space(write(tmp_path / "elsewhere", **changes)))

    assert again(nets=NETS).result.trained == 0
    said = r"another space: the code of augmentation dim, .* and 2 more had the digest \w{12}, has \w{12}; use another"
    with pytest.raises(InputError, match=said):
        again(weight=0.02)


def test_models_of_a_users_code_are_made_with_it_and_not_without(own, tmp_path):
    key = next(key for key, stage in open_study("own", own.folder.root).stages.items() if stage.role == "student")
    file = write(tmp_path).with_name("nets.py")
    module = open_study("own", own.folder.root, code=file).model(key)
    assert module(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(InputError, match=r"study own: method 'square' is of code that is not given.* --code nets.py"):
        open_study("own", own.folder.root).model(key)
    write(tmp_path, weight=0.02)
    with pytest.raises(InputError, match=r"study own: .*nets.py:\d+: method 'square' has the digest .* has changed"):
        open_study("own", own.folder.root, code=file).model(key)


def test_nothing_of_a_root_is_run(own, takd: Call, monkeypatch):
    """Neither by the study's name nor by the space that it remembers."""
    monkeypatch.chdir(own.folder.root)
    called = takd("run", "own", "--root", own.folder.root)
    assert (called.code, called.out) == (2, "")
    assert "names code, and none is run that a study's folder names" in called.err
    space = open_study("own", own.folder.root).space
    assert space.code == ()
    with pytest.raises(InputError, match="is of code that is not given; give the space that names it"):
        run(own.folder, space)


def test_a_key_has_the_digests_of_the_code_that_its_stage_uses(tmp_path):
    def keys(**changes: Any) -> dict[str, str]:
        space = load_space(write(tmp_path, **changes))
        use_code(space, "space")
        found = with_code(space, "space")
        path = found.path(parse_arm("kd"), {"lambda": 0.5}, make_stage().dataset, seed=0)
        return {stage.role: stage.key for stage in path.stages}

    before = keys()
    assert keys() == before
    (tmp_path / "unrelated.py").write_text("x = 1")
    assert keys() == before
    after = keys(weight=0.5)
    assert {role for role in before if after[role] != before[role]} == {"teacher", "student"}


def test_a_plan_says_what_trains_alone(tmp_path, takd: Call):
    called = takd("plan", write(tmp_path))
    assert called.code == 0, called.err
    assert "small-4 trains alone: not all of its layers have a form for lanes" in called.out
    assert "dense-4 trains alone" not in called.out
    called = takd("run", write(tmp_path, NETS + "\n1 / 0\n"), "--wandb", "disabled")
    assert (called.code, called.out) == (2, "")
    assert called.err == f"takd: space {tmp_path}/space.yaml: nets.py:51: ZeroDivisionError: division by zero\n"


METRIC = "import takd\n@takd.metric('m')\ndef m(logits, labels):\n    return "
METHOD = "import takd\n@takd.method('square')\ndef square(student, teacher, labels, temperature):\n    return "


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": {"model": "small-100"}}, r"student: \S*nets.py:13: small-N has N channels, 99 at most"),
        (
            {"student": {"model": "smal-4"}},
            r"student: model 'smal-4' does not exist; .*did you mean 'small'\? docs/own",
        ),
        ({"loss": {"divergence": "sqare"}}, r"loss.divergence is 'sqare'; valid: decoupled, square; did you mean 'sq"),
        (
            {"teacher": {"model": "small-4", "recipe": {"augment": {"choices": ["dim", "dimm"]}}}},
            r"teacher.recipe.augment.choices.1 is 'dimm'; valid: crop-flip, flip-rotate, .*, trivial-augment, dim",
        ),
        ({"nets": METHOD + "student.sum() * float('nan')"}, r"nets.py:2: method 'square' gives nan at temperature 1"),
        ({"nets": METHOD + "student.detach().sum()"}, r"nets.py:2: method 'square' has no gradient of the student's"),
        (
            {"nets": METHOD + "(teacher.add_(1) - student).mean()"},
            r"nets.py:2: method 'square' changes what it is given",
        ),
        (
            {"nets": "from torch import rand\n" + METHOD + "student.mean() * rand(())"},
            r"nets.py:3: method 'square' gives \S+ and then \S+ of the same logits; it may draw no random numbers",
        ),
        ({"nets": METHOD + "student[:3].sum(1)"}, r"nets.py:2: method 'square' gives \[3\] of 8 images; expected one"),
        (
            {"nets": METHOD + "teacher.nothing"},
            r"nets.py:4: AttributeError: 'Tensor' object has no attribute 'nothing'",
        ),
        (
            {"metric": "brir"},
            r"metric is 'brir'; valid: accuracy, auc, f1, loss, brier; did you mean 'brier'\? docs/own",
        ),
        (
            {"nets": METRIC + "float('nan')", "metric": "m", "loss": {}},
            r"nets.py:2: metric 'm' gives nan of random answers to the",
        ),
        (
            {"nets": METRIC + "logits.mean(1)", "metric": "m", "loss": {}},
            r"nets.py:2: metric 'm' gives torch.float32 \[10000\] of",
        ),
        (
            {"nets": METRIC + "(logits.argmax(1) != labels).sum() / 1e4", "metric": "m", "loss": {}},
            r"say higher=False in the decor",
        ),
        (
            {"nets": METRIC + "7.5", "metric": "m", "loss": {}},
            r"nets.py:2: metric 'm' gives 7.5 of random answers; expected a frac",
        ),
        (
            {"nets": METRIC + "0.5", "metric": "m", "loss": {}},
            r"of right answers and of wrong ones: nothing can be chosen by it",
        ),
        ({"code": ["nets.py", "no.py"]}, r"code: \S*no.py does not exist; expected a Python file or a package's fold"),
        ({"code": 5}, r"code: 5; expected a file such as nets.py, a package's folder, or a list of them"),
        ({"codes": "nets.py"}, "unknown key 'codes'; did you mean 'code'"),
        ({"code": []}, r"divergence is 'square'; expected 'decoupled'; docs/own-code.md says how to bring one of your"),
    ],
)
def test_what_is_wrong_with_code_is_one_line_and_nothing_is_started(tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    recipe = {
        "metric": "accuracy",
        "teacher": {"model": "mlp-8"},
        "assistants": [],
        "student": {"model": "mlp-4"},
        "arms": ["labels", "kd"],
    }
    with pytest.raises(InputError, match=said) as caught:
        check(load_space(write(tmp_path, **recipe | changes)), "space", study_folder(str(tmp_path / "runs"), "x"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_what_a_users_code_raises_while_it_trains_has_its_line(ray_slots, tmp_path):
    nets = METHOD + "student.sum(1) if len(student) < 100 else teacher.nothing"
    recipe = {"model": "mlp-4", "recipe": {"epochs": 1, "examples": 200}}
    own = {"teacher": recipe, "student": recipe, "assistants": [], "arms": ["kd"], "trials": 1, "confirm": None}
    own["metric"] = "accuracy"
    space = load_space(write(tmp_path, nets, max_failures=0, **own))
    trials = run(study_folder(str(tmp_path / "runs"), "failing"), space).result.tables.trials.to_pandas()
    [reason] = trials["error"].dropna().unique()
    assert reason.endswith(f"{tmp_path}/nets.py:4: AttributeError: 'Tensor' object has no attribute 'nothing'")
