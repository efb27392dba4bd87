"""Layers that stand still: what they give is computed once, and whoever trains above them comes to the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import make_stage, run
from image_folders import write_images
from torch import Tensor, nn

import takd
from takd.search_spaces import InputError, Kept, Space, Stage, frozen_for, frozen_of, space_from
from takd.search_spaces.stage import HEAD
from takd.study.checks import check_space, inside_of
from takd.study.data import import_files
from takd.study.folder import study_folder
from takd.study.plan import _run_in_every_step
from takd.trainables import derivation
from takd.trainables.datasets.built_in import OWN
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.derivation import derive_frozen
from takd.trainables.models.families import build, size_of
from takd.trainables.models.frozen import cut_in, find_cut, whole_epochs
from takd.trainables.models.learned import weights_of
from takd.trainables.models.pretrained import heads_of, read_weights, without_head
from takd.trainables.models.weights_files import Pretrained, packed, read_file
from takd.trainables.store.artifacts import WEIGHTS, ArtifactStore
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.lanes import Heads
from takd.trainables.training.loop import StageTraining, Trained

SHAPE = (3, 24, 24)
OURS = "resnet-8"
FIRST = {OURS: "layer2", "cnn": "7"}  # the first layer that trains after the head


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Dataset:
    """45 training images in three classes, 5 for validation, 9 for the test."""
    folder = write_images(tmp_path_factory.mktemp("still") / "trees", size=SHAPE[1:])
    return import_files(OWN, folder, "still", None, download=False)


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
    # Adam would make a step of a whole rate of a gradient that is rounding alone.
    recipe = {"examples": None, "batch_size": 11, "epochs": 3, "head_epochs": 1, "optimizer": "sgd"} | given
    recipe = {"learning_rate": 0.05} | recipe
    rest = recipe.setdefault("finetune_from", FIRST[model] if recipe["epochs"] > recipe["head_epochs"] else None)
    about = {"dataset": data.fingerprint, "pretrained": digests[model]}
    made = make_stage(model, **about, **recipe)
    return made.model_copy(update={"frozen": Kept(head=HEAD, rest=rest)}) if kept else made


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
    assert (one.soft_targets is None) == (other.soft_targets is None)
    if one.soft_targets is not None:
        torch.testing.assert_close(one.soft_targets, other.soft_targets, rtol=0, atol=100 * tolerance)
    assert one.selected.val_loss == pytest.approx(other.selected.val_loss, rel=1e-3)


RECIPES: dict[str, dict[str, Any]] = {
    "normalisation that trains above": {},
    "frozen normalisation": {"freeze_norm": True, "clip_norm": 0.5},
    "dropout above and in the head": {"model": "cnn"},
    "views": {"augment": "crop-flip", "views": 2, "examples": 21},
    "a view an epoch": {"augment": "crop-flip+color-jitter", "views": "per-epoch"},
    "mixed images": {"augment": "crop-flip+mixup", "views": 2, "examples": 21},
    "the average of the best": {"ema": 0.9, "select": "best", "accumulate": 2},
    "the head alone": {"head_epochs": 3},
    "a teacher": {"role": "teacher", "augment": "crop-flip", "views": 4, "select": "best"},
    "a teacher of a head alone": {"role": "teacher", "augment": "crop-flip", "views": 2, "head_epochs": 3},
    "half precision": {"precision": "bfloat16", "freeze_norm": True},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_is_kept_of_layers_that_stand_still_changes_no_result(data, store, digests, recipe):
    own, loop = (stage(data, digests, kept=kept, **recipe) for kept in (True, False))
    assert own.key == loop.key
    [one], [other] = (finished(start([each], data, store)) for each in (own, loop))
    alike(one, other, tolerance=2e-3 if "precision" in recipe else 2e-5)


def test_heads_that_train_as_lanes_are_those_that_train_alone_in_the_whole_network(data, store, digests):
    """With dropout before them, rates of their own, and soft targets; one ends early."""
    draw = np.random.Generator(np.random.PCG64(3))
    teacher = make_stage("mlp-4", dataset=data.fingerprint, role="teacher", examples=None, augment="crop-flip", views=2)
    logits = [draw.standard_normal((45, 3), np.float32) for _ in range(2)]
    given = {"model": "cnn", "head_epochs": 3, "augment": "crop-flip", "views": 2, "upstream": (teacher,)}

    def of(seed: int, kept: bool) -> Stage:
        more = {"seed": seed, "learning_rate": 0.02 * (seed + 1), "temperature": 1.0 + seed, "lambda_": 0.5}
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
@pytest.mark.parametrize("kept", [True, False])
def test_a_stage_goes_on_above_what_is_kept_from_a_checkpoint_of_either_way(data, store, digests, head_epochs, kept):
    """`kept` is how the checkpoint was made."""
    more = {"head_epochs": head_epochs, "augment": "crop-flip", "views": 2, "select": "best", "ema": 0.9}
    own, before = (stage(data, digests, kept=each, **more) for each in (True, kept))
    whole, stopped, again = (start([each], data, store) for each in (own, before, own))
    for _ in range(2):
        stopped.run_epoch()
    again.restore([Checkpoint.parse(stopped.checkpoint(stopped.lanes[0]))])
    alike(finished(whole)[0], finished(again)[0], tolerance=0.0 if kept else 2e-5)


def test_what_stands_still_is_whole_in_what_a_stage_leaves(data, store, digests):
    before = read_weights(store, digests[OURS]).tensors
    for head_epochs, trained in ((3, set()), (1, {"layer2", "layer3"})):
        [left] = finished(start([stage(data, digests, head_epochs=head_epochs)], data, store))
        assert left.weights.keys() == build(OURS, SHAPE, 3).state_dict().keys()
        changed = {name.split(".")[0] for name, each in before.items() if not torch.equal(left.weights[name], each)}
        assert changed == trained


def test_what_trains_is_counted_and_nothing_of_what_is_kept(data, digests):
    own = stage(data, digests, augment="crop-flip", views=2)
    whole, head_alone = 1 / 3 + 2, 2 * 64 * 3 / size_of(OURS, SHAPE, 3).flops
    assert stage(data, digests, kept=False, augment="crop-flip", views=2).recipe.whole_epochs == pytest.approx(whole)
    assert whole_epochs(own, SHAPE, 3, 1) == pytest.approx(head_alone, rel=0.1)
    above = whole_epochs(own, SHAPE, 3, 3) - whole_epochs(own, SHAPE, 3, 1)
    assert 0.2 < above / 2 < 0.8  # layers 2 and 3 of three
    of_head = own.model_copy(update={"frozen": Kept(head=HEAD)})
    assert whole_epochs(of_head, SHAPE, 3, 3) == pytest.approx(head_alone + 2, rel=0.1)


def study_of(files: dict[str, Path], cache_gb: float = 1.0, **of_student: Any) -> Space:
    """A teacher and students of whose network the head alone trains, or all from a layer on."""

    def role(model: str, **recipe: Any) -> dict[str, Any]:
        own = {"epochs": 2, "head_epochs": 1, "batch_size": 11, "optimizer": "sgd"} | recipe
        own |= {"augment": "crop-flip", "views": 2}
        return {"model": model, "pretrained": str(files[model]), "recipe": own}

    student = role("cnn", head_epochs=2, **of_student) | {"temperature": {"choices": [1, 4]}, "lambda": 0.5}
    content = {"dataset": "still", "teacher": role(OURS, finetune_from="layer3"), "student": student}
    content |= {"arms": ["labels", "kd"], "sampler": "grid", "seeds": 2, "confirm": {"seeds": 1}, "lanes": 4}
    return space_from(content | {"allow_any_size": True, "features": {"cache_gb": cache_gb}}, "still")


def files_of(folder: Path) -> dict[str, Path]:
    files = {}
    for model in FIRST:
        torch.manual_seed(2)
        files[model] = folder / f"{model}.safetensors"
        safetensors.torch.save_file(build(model, SHAPE, 3).state_dict(), files[model])
    return files


def test_a_study_computes_what_stands_still_once_and_finds_what_it_would_find(data, tmp_path, monkeypatch, ray_slots):
    files = files_of(tmp_path)
    passes: list[int] = []
    given_below = derivation.given_below
    monkeypatch.setattr(derivation, "given_below", lambda *given: passes.append(len(given[2])) or given_below(*given))
    found, accounts = {}, {}
    for cache_gb in (1.0, 0.0):
        root = tmp_path / f"runs{cache_gb}"
        ran = run(study_folder(str(root), "still"), study_of(files, cache_gb), profile=True)
        assert ran.result.finished
        accounts[cache_gb] = pd.read_csv(root / "still" / "report" / "profile.csv", index_col="what")["slot_seconds"]
        assert (accounts[cache_gb] > -0.01).all()
        trials = pd.read_parquet(root / "still" / "results" / "trials.parquet")
        found[cache_gb] = trials.drop_duplicates("stage_key").set_index("stage_key").sort_index()
    assert {"layers that stand still", "the test split"} - set(accounts[1.0].index) == set()
    assert {"layers that stand still", "the test split"} - set(accounts[0.0].index) == {"layers that stand still"}
    # Of each network the training images in two views, and the validation images: whoever needs them.
    assert sorted(passes) == [5, 5, 45, 45, 45, 45]
    kept, loop = found[1.0], found[0.0]
    assert list(kept.index) == list(loop.index)
    assert kept["val_loss"].to_numpy() == pytest.approx(loop["val_loss"].to_numpy(), rel=1e-3)
    assert kept["test_loss"].dropna().to_numpy() == pytest.approx(loop["test_loss"].dropna().to_numpy(), rel=1e-3)
    students = kept[kept["role"] == "student"]
    assert students["lanes"].max() == 4
    assert students["whole_epochs"].max() < 0.1 < kept["whole_epochs"].max() < 2
    kinds = [json.loads(file.read_text())["input"]["what"] for file in (tmp_path / "runs1.0").rglob("derived.json")]
    assert kinds.count("frozen") == 8  # of the teacher what enters its head in one view, its last layer in two
    has_its_head_alone(tmp_path / "runs1.0", students.index[0], files["cnn"])


def has_its_head_alone(root: Path, key: str, start: Path) -> None:
    """A student's artifact; whoever reads it has the whole network."""
    study = takd.open_study("still", root)
    kept, began = root / "artifacts" / key / WEIGHTS, safetensors.torch.load_file(start)
    own = safetensors.torch.load_file(kept)
    assert {name.rpartition(".")[0] for name in own} == set(heads_of(build("cnn", SHAPE, 3)))
    whole = weights_of(study.stages[key], study.folder.artifacts)
    assert whole.keys() == began.keys()
    assert all(torch.equal(each, began[name]) for name, each in whole.items() if name not in own)
    for name, each in study.model(key).state_dict().items():
        assert torch.equal(each, whole[name])
    given = read_file(kept, "student.checkpoint").tensors
    assert given.keys() == whole.keys()
    assert all(torch.equal(each, whole[name]) for name, each in given.items())
    elsewhere = root / "copy.safetensors"
    elsewhere.write_bytes(kept.read_bytes())
    with pytest.raises(InputError, match=r"checkpoint .*copy.safetensors: has those layers alone that a stage of takd"):
        read_file(elsewhere, "student.checkpoint")


def test_a_plan_says_what_runs_in_every_step_and_why(data):
    files = {model: Path(model) for model in FIRST}
    space = study_of(files)
    inside = inside_of(space, data)
    assert inside == {OURS: {"below the head": (64,), "below layer3": (32, 12, 12)}, "cnn": {"below the head": (128,)}}
    assert _run_in_every_step(space.model_copy(update={"inside": inside}), data) == []
    assert _run_in_every_step(space, data) == [
        "teacher resnet-8: the layers below its head run in the loop, since the network can't be cut there",
        "teacher resnet-8: the layers below layer3 run in the loop, since the network can't be cut there",
        "student cnn: the layers below its head run in the loop, since the network can't be cut there",
    ]
    little = study_of(files, cache_gb=1e-6).model_copy(update={"inside": inside})
    assert _run_in_every_step(little, data)[0] == (
        "teacher resnet-8: the layers below its head run in the loop, since what they give takes more than "
        "features.cache_gb, 1e-06 GB"
    )


def test_dropout_that_keeps_weights_from_layers_is_refused(data, tmp_path):
    """Without it the layers of a cnn have other names: weights that were made with it would not reach all."""
    with pytest.raises(InputError, match=r"student.recipe.dropout is 0: then layers of cnn have other names"):
        check_space(study_of(files_of(tmp_path), dropout=0.0), "still")


class Skip(nn.Module):
    """What the first layer gives is used again above the second; `own` says whether by a way of its own."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.own = own

    def forward(self, images: Tensor) -> Tensor:
        first = torch.relu(self.a(images.flatten(1)))
        second = torch.relu(self.b(first))
        return self.c(second + first if self.own else second)


@pytest.mark.parametrize(
    ("module", "first", "layer"),
    [
        (Skip(own=False), "c", "c"),
        (Skip(own=True), "b", "b"),
        (Skip(own=True), "c", "c"),
    ],
)
def test_a_network_is_cut_where_one_tensor_comes_from_below(module, first, layer):
    cut = find_cut(module, torch.randn(3, 1, 2, 2), first)
    if module.own and first == "b":
        assert cut is None  # what enters b goes around it too
    else:
        assert cut is not None
        assert cut.layer == layer


@pytest.mark.parametrize(
    ("model", "first", "shape"),
    [
        ("torchvision/mobilenet_v3_small", "features.9", (48, 2, 2)),
        ("timm/tf_efficientnet_lite0", "blocks.5.1", (192, 1, 1)),
        ("plain-4", "3", (16, 32, 32)),
    ],
)
def test_networks_of_all_libraries_are_cut(model, first, shape):
    cut = cut_in(model, (3, 32, 32), 3, first=first)
    assert cut is not None
    assert (cut.layer, cut.shape) == (first, shape)
