"""Layers that stand still: what they give is computed once, and whoever trains above them comes to the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_stage

from takd.search_spaces import Kept, Stage, frozen_for, frozen_of
from takd.trainables.datasets.built_in import BUILT_IN, BuiltIn
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.datasets.sources import RawSplit, Source
from takd.trainables.derivation import derive_frozen
from takd.trainables.models.families import build
from takd.trainables.models.pretrained import read_weights, without_head
from takd.trainables.models.weights_files import Pretrained, packed
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.frozen import head_in
from takd.trainables.training.lanes import Heads
from takd.trainables.training.loop import StageTraining, Trained

SHAPE = (3, 24, 24)
OURS = "resnet-8"
FIRST = {OURS: "layer2", "cnn": "7"}  # the first layer that trains after the head


def _generated() -> dict[str, RawSplit]:
    draw = np.random.Generator(np.random.PCG64(0))

    def split(number: int) -> RawSplit:
        labels = np.arange(number, dtype=np.uint8) % 3
        images = draw.integers(0, 160, (number, *SHAPE), dtype=np.uint8)
        images[np.arange(number), labels] += 60
        return RawSplit(images, labels)

    return {"train": split(45), "test": split(6)}


@pytest.fixture(scope="module")
def data(cache: Path) -> Iterator[Dataset]:
    BUILT_IN["coloured"] = BuiltIn("ours", source=Source(_generated, ("r", "g", "b"), validation=12))
    yield load("coloured")
    del BUILT_IN["coloured"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("root")))


@pytest.fixture(scope="module")
def digests(store: ArtifactStore) -> dict[str, str]:
    """Of random weights, by model."""
    found = {}
    for model in FIRST:
        torch.manual_seed(1)
        module = build(model, SHAPE, 10)
        if model == OURS:
            module.train()(torch.randn(32, *SHAPE))  # its running means are those of images
        found[model] = store.keep_pretrained(packed(Pretrained(without_head(module), None)))
    return found


def stage(data: Dataset, digests: dict[str, str], model: str = OURS, kept: bool = True, **given: Any) -> Stage:
    recipe = {"examples": None, "batch_size": 16, "epochs": 3, "head_epochs": 1, "learning_rate": 0.01} | given
    rest = recipe.setdefault("finetune_from", FIRST[model] if recipe["epochs"] > recipe["head_epochs"] else None)
    about = {"dataset": data.fingerprint, "pretrained": digests[model]}
    made = make_stage(model, **about, **recipe)
    head = head_in(model, SHAPE, 3)[0].first
    return made.model_copy(update={"frozen": Kept(head=head, rest=rest)}) if kept else made


def start(stages: list[Stage], data: Dataset, store: ArtifactStore, upstream: Any = None) -> StageTraining:
    names = frozen_for(stages[0])
    derive_frozen(stages[0], names, store)
    kept = {name: store.derived.read(frozen_of(stages[0], name).key) for name in names}
    lessons = [upstream or []] * len(stages)
    pretrained = read_weights(store, stages[0].pretrained or "")
    return StageTraining(stages, data, lessons, pretrained=pretrained, kept=kept or None)


def finished(training: StageTraining) -> list[Trained]:
    while not training.done:
        training.run_epoch()
    return [each for _, each in training.finish()]


def alike(one: Trained, other: Trained, tolerance: float = 2e-5) -> None:
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.weights.items():
        torch.testing.assert_close(tensor, other.weights[name], rtol=0, atol=tolerance, msg=name)
    assert one.selected.val_loss == pytest.approx(other.selected.val_loss, rel=100 * tolerance)


RECIPES: dict[str, dict[str, Any]] = {
    "normalisation that trains above": {},
    "frozen normalisation": {"freeze_norm": True, "clip_norm": 0.5},
    "dropout above and in the head": {"model": "cnn"},
    "views": {"augment": "crop-flip", "views": 2, "examples": 21},
    "a view an epoch": {"augment": "crop-flip+color-jitter", "views": "per-epoch"},
    "mixed images": {"augment": "crop-flip+mixup", "views": 2, "examples": 21},
    "the average of the best": {"ema": 0.9, "select": "best", "accumulate": 2, "optimizer": "sgd"},
    "the head alone": {"head_epochs": 3},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_is_kept_of_layers_that_stand_still_changes_no_result(data, store, digests, recipe):
    own, loop = (stage(data, digests, kept=kept, **recipe) for kept in (True, False))
    assert own.key == loop.key
    [one], [other] = (finished(start([each], data, store)) for each in (own, loop))
    alike(one, other)


def test_heads_that_train_as_lanes_are_those_that_train_alone_in_the_whole_network(data, store, digests):
    """With dropout before them, rates of their own, and soft targets; one ends early."""
    draw = np.random.Generator(np.random.PCG64(3))
    teacher = make_stage("mlp-4", dataset=data.fingerprint, role="teacher", examples=None, augment="crop-flip", views=2)
    logits = [draw.standard_normal((33, 3), np.float32) for _ in range(2)]
    given = {"model": "cnn", "head_epochs": 3, "augment": "crop-flip", "views": 2, "upstream": (teacher,)}

    def of(seed: int, kept: bool) -> Stage:
        more = {"seed": seed, "learning_rate": 0.01 * (seed + 1), "temperature": 1.0 + seed, "lambda_": 0.5}
        return stage(data, digests, kept=kept, **given, **more)

    lanes = start([of(seed, True) for seed in range(3)], data, store, [logits])
    assert isinstance(lanes.taught.model, Heads)
    lanes.run_epoch()
    lanes.end([lanes.lanes[1]])
    own = finished(lanes)
    alone = [finished(start([of(seed, False)], data, store, [logits]))[0] for seed in (0, 2)]
    for one, other in zip(own, alone, strict=True):
        alike(one, other)


@pytest.mark.parametrize("head_epochs", [1, 3])
def test_a_stage_goes_on_from_a_checkpoint_above_what_is_kept(data, store, digests, head_epochs):
    own = stage(data, digests, head_epochs=head_epochs, augment="crop-flip", views=2, select="best", ema=0.9)
    whole, stopped, again = (start([own], data, store) for _ in range(3))
    for _ in range(2):
        stopped.run_epoch()
    again.restore([Checkpoint.parse(stopped.checkpoint(stopped.lanes[0]))])
    alike(finished(whole)[0], finished(again)[0], tolerance=0.0)


def test_what_stands_still_is_whole_in_what_a_stage_leaves(data, store, digests):
    before = read_weights(store, digests[OURS]).tensors
    for head_epochs, trained in ((3, set()), (1, {"layer2", "layer3"})):
        [left] = finished(start([stage(data, digests, head_epochs=head_epochs)], data, store))
        assert left.weights.keys() == build(OURS, SHAPE, 3).state_dict().keys()
        changed = {name.split(".")[0] for name, each in before.items() if not torch.equal(left.weights[name], each)}
        assert changed == trained
