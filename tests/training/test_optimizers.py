"""The optimizers: they step as torch's own do, to the bit, and leave its compiler alone."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import make_stage
from torch import nn

from takd.trainables.datasets.dataset import load
from takd.trainables.training.optimizers import RULES, ByRule, FusedAdam, FusedSGD

RATE, DECAY = 0.01, 0.1
CLASSES = ("RMSprop", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta")  # torch's own, in the order of RULES


def weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (3,), (2,))]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda own: FusedAdam(own, RATE, DECAY, decoupled=False),
            lambda own: torch.optim.Adam(own, RATE, weight_decay=DECAY, fused=True),
        ),
        (
            lambda own: FusedAdam(own, RATE, DECAY, decoupled=True),
            lambda own: torch.optim.AdamW(own, RATE, weight_decay=DECAY, fused=True),
        ),
        (
            lambda own: FusedSGD(own, RATE, DECAY, momentum=0.9),
            lambda own: torch.optim.SGD(own, RATE, weight_decay=DECAY, momentum=0.9, fused=True),
        ),
        (
            lambda own: FusedSGD(own, RATE, DECAY, momentum=0.0),
            lambda own: torch.optim.SGD(own, RATE, weight_decay=DECAY, fused=True),
        ),
        (
            lambda own: FusedSGD(own, RATE, DECAY, momentum=0.9, nesterov=True),
            lambda own: torch.optim.SGD(own, RATE, weight_decay=DECAY, momentum=0.9, nesterov=True, fused=True),
        ),
        *(
            (
                lambda own, rule=rule: ByRule(own, RATE, DECAY, rule),
                lambda own, name=name: getattr(torch.optim, name)(own, RATE, weight_decay=DECAY),
            )
            for name, rule in zip(CLASSES, RULES.values(), strict=True)
        ),
    ],
    ids=["adam", "adamw", "sgd with momentum", "sgd", "nesterov", *RULES],
)
def test_an_optimizer_steps_as_torchs_own(ours, theirs):
    """Five steps at changing rates, the last weight without a gradient."""
    sides: list[tuple[list[nn.Parameter], Any]] = [(own := weights(), make(own)) for make in (ours, theirs)]
    for step in range(5):
        for own, optimizer in sides:
            torch.manual_seed(step)
            for weight in own[:-1]:
                weight.grad = torch.randn_like(weight)
            optimizer.param_groups[0]["lr"] = RATE / (step + 1)
            optimizer.step()
    (one, mine), (other, torchs) = sides
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for a, b in zip(one[:-1], other[:-1], strict=True):  # torch's Adagrad has a state of the last one too
        assert mine.state[a].keys() == torchs.state[b].keys()  # which checkpoints have
        assert all(torch.equal(mine.state[a][name], torchs.state[b][name]) for name in mine.state[a])


def test_a_worker_of_fully_connected_models_leaves_torchs_compiler_alone():
    """It takes seconds to load. A process of its own: this one may have it."""
    script = """
import sys
from takd.search_spaces import Stage
from takd.trainables.datasets.dataset import load
from takd.trainables.models.families import size_of
from takd.trainables.training.loop import StageTraining
data = load("mnist")
training = StageTraining([Stage.model_validate_json(sys.argv[1])], data, [[]])
training.run_epoch()
training.finish()
size_of("mlp-8", data.image_shape, 10)
assert training.done and "torch._dynamo" not in sys.modules
"""
    stage = make_stage("mlp-8", dataset=load("mnist").fingerprint, epochs=1)
    command = [sys.executable, "-c", script, stage.model_dump_json()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
