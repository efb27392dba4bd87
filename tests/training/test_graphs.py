"""When steps are replayed as a graph, and when not. No GPU is here: the graphs are made up, and call the step itself.

That real ones leave the same weights is shown on a device by `benchmarks/gpu.py`, part `graphs`.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_stage
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from takd.search_spaces import Loss, Stage
from takd.trainables.datasets.dataset import load
from takd.trainables.training import graphs
from takd.trainables.training.graphs import Graph, Graphs, Places, in_place
from takd.trainables.training.loop import StageTraining

MNIST = load("mnist")
CPU = torch.device("cpu")


class MadeUp:
    """What a capture gives: nothing is done until it is replayed."""

    def __init__(self, act: Callable[[], Tensor], lanes: int) -> None:
        self.act, self.losses = act, torch.zeros(lanes)

    def replay(self) -> None:
        with torch.enable_grad():
            self.losses = self.losses.copy_(self.act())


def trained(stages: list[Stage], capture: Any, after: Callable[[StageTraining], None] | None = None) -> StageTraining:
    training = StageTraining(stages, MNIST, [[]] * len(stages))
    training.graphs = Graphs(CPU, stages[0].model, capture)
    training.graphs.refused = capture is None
    while not training.done:
        training.run_epoch()
        if after:
            after(training)
    return training


def capture(training_lanes: int = 2) -> Any:
    def made(act: Callable[[], Tensor], generators: Sequence[torch.Generator]) -> tuple[Graph, Tensor]:
        graph = MadeUp(act, training_lanes)
        return graph, graph.losses

    return made


def stages(**given: Any) -> list[Stage]:
    recipe = {"dataset": MNIST.fingerprint, "epochs": 30, "examples": 200, "batch_size": 64} | given
    return [make_stage("mlp-8", seed=seed, **recipe) for seed in range(2)]


def same(one: StageTraining, other: StageTraining) -> bool:
    return all(
        torch.equal(left[name], right[name])
        for lane in range(len(one.running))
        for left, right in [(one.taught.weights(lane), other.taught.weights(lane))]
        for name in left
    )


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_said", set())


@pytest.mark.parametrize("given", [{}, {"optimizer": "sgd"}, {"optimizer": "adamw", "weight_decay": 0.1}], ids=str)
def test_replayed_steps_leave_what_plain_steps_leave(given):
    of = stages(evaluate_every=30, **given)
    replayed, plain = trained(of, capture()), trained(of, None)
    assert replayed.graphs
    assert not replayed.graphs.refused
    # Three epochs of full batches at least, and the last ones, which are smaller.
    assert replayed.graphs.replays > 60
    assert same(replayed, plain)


def test_lanes_that_go_on_without_another_are_captured_anew():
    of = stages()

    def end_one(training: StageTraining) -> None:
        if training.epoch == 10:
            training.end(training.lanes[:1])
            assert training.graphs
            training.graphs.capture = capture(1)

    replayed, plain = trained(of, capture(), end_one), trained(of, None, end_one)
    assert replayed.graphs
    assert (replayed.graphs.captures, replayed.graphs.refused) == (4, False)  # two sizes of batches, twice
    assert same(replayed, plain)


def with_one_factor_for_ever(act: Callable[[], Tensor], generators: Sequence[torch.Generator]) -> tuple[Graph, Tensor]:
    """As if the learning rate had been a number on the host."""
    [factor] = [cell.cell_contents for cell in act.__closure__ or () if isinstance(cell.cell_contents, Graphs)]
    held = float(factor.factor)

    def fixed() -> Tensor:
        factor.factor.fill_(held)
        return act()

    graph = MadeUp(fixed, 2)
    return graph, graph.losses


def refusing(act: Callable[[], Tensor], generators: Sequence[torch.Generator]) -> tuple[Graph, Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (with_one_factor_for_ever, "replayed it is another step"),
        (refusing, "operation not permitted when stream is capturing"),
    ],
)
def test_what_is_no_right_graph_goes_the_plain_way_and_is_said_once(made, reason, caplog):
    of = stages(epochs=12)
    plain = trained(of, None)
    for _ in range(2):
        refused = trained(of, made)
        assert refused.graphs
        assert (refused.graphs.refused, refused.graphs.replays) == (True, 0)
        assert same(refused, plain)
    assert caplog.text.count(f"mlp-8: its steps are no CUDA graph ({reason}); they take longer") == 1


def test_a_step_that_reads_new_tensors_all_the_time_goes_the_plain_way(caplog):
    """On a CPU guides are drawn into new memory each epoch; on a GPU they keep their place."""
    teachers = tuple(make_stage("mlp-16", role="teacher", dataset=MNIST.fingerprint, seed=seed) for seed in range(2))
    of = stages(upstream=teachers, loss=Loss(drop_guides=0.4), batch_size=100)
    logits = [torch.randn(50_000, 10, generator=torch.Generator().manual_seed(seed)).numpy() for seed in range(2)]
    found = []
    for made in (capture(), None):
        training = StageTraining(of, MNIST, [[[each] for each in logits]] * 2)
        training.graphs = Graphs(CPU, "mlp-8", made)
        training.graphs.refused = made is None
        while not training.done:
            training.run_epoch()
        found.append(training)
    assert found[0].graphs
    assert found[0].graphs.refused
    assert "what a step reads changes too often" in caplog.text
    assert same(*found)


def test_what_decides_of_a_step_is_seen_wherever_it_is():
    [one] = stages(augment="crop-flip", views=2)[:1]
    training = StageTraining([one], MNIST, [[]])

    def reads() -> Places:
        training.looks_again()
        return training.reads()

    before = reads()
    assert reads().same(before)
    assert training.reads() is training.reads()
    training.inputs.show(1)
    viewed = reads()
    assert not viewed.same(before)
    training.inputs.show(0)  # as it was, but that the view's draws are kept
    assert not reads().same(viewed)
    training.inputs.show(1)
    before = reads()
    training.teaching.annealed = {"by": [0.5]}  # type: ignore[attr-defined]
    assert not reads().same(before)
    training.teaching.annealed = 0.5  # type: ignore[attr-defined]
    before = reads()
    training.teaching.annealed = 0.4  # type: ignore[attr-defined]
    assert not reads().same(before)
    before = reads()
    weight = next(training.taught.model.parameters())
    weight.data = weight.data.clone()
    assert not reads().same(before)
    of_average = torch.zeros(3)
    before = reads()
    training.taught.average = SimpleNamespace(averaged={"weight": of_average})  # type: ignore[attr-defined]
    assert not reads().same(before)
    assert any(each is of_average for each in training.changes())
    assert not any(each is training.inputs.images.images for each in training.changes())


def test_new_content_goes_where_the_old_was_on_a_gpu_alone():
    with FakeTensorMode():
        there, new = ({"a": torch.ones(3, device="cuda")} for _ in range(2))
        assert in_place(there, new) is there
        assert in_place(there, longer := {"a": torch.ones(4, device="cuda")}) is longer
        assert in_place(None, new) is new
        assert in_place(there, None) is None
    here, other = torch.ones(3), torch.ones(3)
    assert in_place(here, other) is other


def test_a_training_of_few_steps_is_not_worth_a_graph():
    short = trained(stages(epochs=4), capture())
    assert short.graphs
    assert (short.graphs.captures, short.graphs.refused) == (0, False)
