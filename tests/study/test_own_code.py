"""Studies of a user's own code: from a file beside the space to tables, and what is refused."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, Call, Study, run

from takd.search_spaces import InputError, load_space
from takd.study.study import open_study
from takd.trainables.own_code import NO_CODE, use

NETS = """
import takd
import torch
from torch import nn

import analysis


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
    return analysis.WEIGHT * ((student - teacher) ** 2).mean(1)


@takd.augmentation("dim")
def dim(images, drawn):
    return (images * (1 - drawn[:, :, None, None] / 2)).to(images.dtype)


@takd.schedule("half")
def half(done, recipe):
    return 1.0 if done < 0.5 else 0.5


@takd.optimizer("plain-sgd", by_element=True)
def plain_sgd(weights, learning_rate, recipe):
    return torch.optim.SGD(weights, learning_rate)
"""

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
    "arms": ["labels", "kd"],
    "trials": 3,
    "coverage": 1,
    "confirm": {"seeds": 1},
}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    use(NO_CODE)


def write(folder: Path, nets: str = NETS, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "nets.py").write_text(nets)
    (folder / "analysis.py").write_text("WEIGHT = 0.01")
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE | changes))
    return folder / "space.yaml"


@pytest.fixture(scope="module")
def own(ray_slots: int, tmp_path_factory: pytest.TempPathFactory) -> Study:
    from takd.study.folder import study_folder

    root = tmp_path_factory.mktemp("own")
    return run(study_folder(str(root / "runs"), "own"), load_space(write(root / "here")))


def test_a_study_of_a_users_code_trains_and_is_measured(own):
    trials = open_study("own", own.folder.root).trials
    assert set(trials["status"]) == {"done"}
    assert set(trials["model"]) == {"small-4", "dense-4"}
    assert trials["test_accuracy"].notna().any()
    stages = open_study("own", own.folder.root).stages.values()
    assert {name for stage in stages for name in stage.code or {}} == {
        "model_family small",
        "model_family dense",
        "augmentation dim",
        "schedule half",
        "optimizer plain-sgd",
        "method square",
    }
