"""Transfer learning: pretrained weights, their digest in the key, and a recipe in two parts. No network is needed."""

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from conftest import make_stage, run, tiny_space
from rich.console import Console
from torch import Tensor, nn

from takd.search_spaces import InputError, Recipe, Space, Stage, space_from
from takd.study.checks import check_space, keep_pretrained, with_weights
from takd.study.folder import study_folder
from takd.study.plan import print_plan
from takd.study.search.optimization import create_search, find_search
from takd.trainables.datasets.built_in import BUILT_IN, BuiltIn
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.datasets.sources import RawSplit, Source
from takd.trainables.models.families import build
from takd.trainables.models.pretrained import canonical_weights, read_weights, restore, start_from, without_head
from takd.trainables.models.transfer import Head, find_head, train_from
from takd.trainables.models.weights_files import Pretrained
from takd.trainables.store.artifacts import WEIGHTS, ArtifactStore
from takd.trainables.store.storage import sha256
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.inputs import evaluation_batch
from takd.trainables.training.loop import StageTraining, train
from takd.trainables.training.schedules import rate_factor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHAPE = (3, 32, 32)
RESNET18, MOBILENET = "torchvision/resnet18", "torchvision/mobilenet_v2"
OURS = "resnet-8"  # trains in a tenth of their time


def _generated() -> dict[str, RawSplit]:
    """Three classes of RGB noise 32x32, each brighter in one channel."""
    draw = np.random.Generator(np.random.PCG64(0))

    def split(number: int) -> RawSplit:
        labels = np.arange(number, dtype=np.uint8) % 3
        images = draw.integers(0, 160, (number, *SHAPE), dtype=np.uint8)
        images[np.arange(number), labels] += 60
        return RawSplit(images, labels)

    return {"train": split(45), "test": split(6)}


@pytest.fixture(scope="module")
def data(cache: Path) -> Iterator[Dataset]:
    BUILT_IN["generated"] = BuiltIn("ours", source=Source(_generated, ("r", "g", "b"), validation=12))
    yield load("generated")
    del BUILT_IN["generated"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for 1000 classes, as `.pth` files named as torchvision names its own, and those of a resnet-8."""
    folder = tmp_path_factory.mktemp("hub") / "checkpoints"
    folder.mkdir()
    torch.manual_seed(1)
    ours = build(OURS, SHAPE, 10)
    ours.train()(torch.randn(32, *SHAPE))  # its running means are those of images
    about = {"mean": str(list(IMAGENET[0])), "std": str(list(IMAGENET[1]))}
    safetensors.torch.save_file(ours.state_dict(), folder / f"{OURS}.safetensors", about)
    for name in ("resnet18", "mobilenet_v2"):
        torch.manual_seed(1)
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        torch.save(torchvision.models.get_model(name).state_dict(), folder / url.rpartition("/")[2])
    return folder


@pytest.fixture(scope="module")
def hub(files: Path) -> Iterator[Path]:
    """Torch hub's cache, with those two in it and no network around it."""
    previous = torch.hub.get_dir()
    torch.hub.set_dir(str(files.parent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        yield files
    torch.hub.set_dir(previous)


def weights_of(model: str, file: Path | str) -> Pretrained:
    content = canonical_weights(model, str(file), SHAPE, 3)
    store = ArtifactStore(str(Path(torch.hub.get_dir()).parent / "store"))
    return read_weights(store, store.keep_pretrained(content))


@pytest.fixture(scope="module")
def pretrained(hub: Path) -> dict[str, Pretrained]:
    found = {model: weights_of(model, "imagenet") for model in (RESNET18, MOBILENET)}
    return found | {OURS: weights_of(OURS, hub / f"{OURS}.safetensors")}


def stage(data: Dataset, model: str = OURS, **given: Any) -> Stage:
    recipe = {"examples": None, "batch_size": 16, "epochs": 4, "head_epochs": 2, "learning_rate": 0.01}
    return make_stage(model, dataset=data.fingerprint, pretrained="0" * 64, **(recipe | given))


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


def test_a_model_starts_from_its_weights_with_a_new_head_and_the_pixels_they_expect(data, pretrained):
    theirs = torchvision.models.resnet18().eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(pretrained[RESNET18].tensors, strict=False)
    ours = StageTraining([stage(data, RESNET18)], data, [[]], pretrained=pretrained[RESNET18])
    pixels = data.train.images[:4].float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in IMAGENET)
    features = theirs((pixels - mean) / std)
    logits = ours.taught.model.eval()(ours.inputs.images[torch.arange(4)])[0].t()
    torch.testing.assert_close(logits, ours.taught.model.layers.fc(features), rtol=1e-4, atol=1e-4)


def test_a_new_head_starts_small_and_from_the_stages_seed(data, pretrained):
    one, again, other = (
        StageTraining([stage(data, seed=seed)], data, [[]], pretrained=pretrained[OURS]).taught.model.layers.fc
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)
    assert one.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert not one.bias.any()
    scratch = make_stage(OURS, dataset=data.fingerprint, examples=None, batch_size=16)
    assert StageTraining([scratch], data, [[]]).taught.model.layers.fc.weight.std() > 0.05  # as its family has it


def test_grey_images_are_normalised_as_rgb_weights_expect():
    module = build("torchvision/mobilenet_v2", (1, 32, 32), 3).eval()
    whole, grey = build("torchvision/mobilenet_v2", (3, 32, 32), 3).eval(), torch.rand(2, 1, 32, 32)
    whole.load_state_dict(module.state_dict())
    start_from(Pretrained(without_head(module), Normalization(*IMAGENET)), module, Normalization((0.1,), (0.3,)))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in IMAGENET)
    torch.testing.assert_close(module((grey - 0.1) / 0.3), whole((grey - mean) / std), rtol=1e-4, atol=1e-4)


def test_the_same_weights_are_the_same_bytes_whatever_file_they_are_in(files, tmp_path, hub):
    [file] = files.glob("resnet18*")
    state = torch.load(file, weights_only=True)
    about = {"mean": str(list(IMAGENET[0])), "std": str(list(IMAGENET[1]))}
    safetensors.torch.save_file(dict(reversed(state.items())), tmp_path / "a.safetensors", about)
    torch.save(
        {"model": {name: each for name, each in state.items() if not name.startswith("fc.")}}, tmp_path / "b.pth"
    )
    contents = [canonical_weights(RESNET18, str(each), SHAPE, 3) for each in ("imagenet", tmp_path / "a.safetensors")]
    assert contents[0] == contents[1]
    own_pixels = [canonical_weights(RESNET18, str(each), SHAPE, 3) for each in (file, tmp_path / "b.pth")]
    assert own_pixels[0] == own_pixels[1]
    assert own_pixels[0] != contents[0]  # the normalisation is part of it
    assert weights_of(RESNET18, file).normalization is None


def test_what_can_not_be_fetched_says_what_to_put_where(hub):
    with pytest.raises(InputError) as caught:
        canonical_weights("torchvision/resnet34", "imagenet", SHAPE, 3)
    message = str(caught.value)
    assert "can't be fetched" in message
    assert (
        f"download https://download.pytorch.org/models/resnet34-b627a593.pth to {hub}/resnet34-b627a593.pth" in message
    )
    assert "\n" not in message


class _Malicious:
    def __reduce__(self) -> Any:
        return (len, ("this runs",))


def test_what_is_no_weights_file_is_one_line_that_names_it(files, tmp_path, capsys):
    torch.save({"a": 1}, tmp_path / "other.pth")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(_Malicious(), protocol=2))
    (tmp_path / "text.pth").write_text("hello")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", {"mean": "x", "std": "[1]"})
    lines = {
        "other.pth": "can't be read as weights (expected a state dict: tensors by name)",
        "text.pth": "can't be read as weights",
        "numbers.pth": "can't be read as weights",
        "code.pth": "can't be read as weights (it holds len; only tensors, numbers and text are read",
        "broken.safetensors": "can't be read as ",
        "odd.safetensors": "can't be read as weights (",
        "missing.pth": "no such file",
        "model.onnx": "expected imagenet, or a path to a .safetensors or .pth file",
    }
    for name, line in lines.items():
        with pytest.raises(InputError) as caught:
            canonical_weights(RESNET18, str(tmp_path / name), SHAPE, 3)
        assert str(caught.value).startswith(f"pretrained {tmp_path / name}: {line}")
        assert "\n" not in str(caught.value)
    assert "this runs" not in capsys.readouterr().out


def test_weights_of_another_architecture_are_one_line_with_the_first_that_do_not_fit(files):
    [file] = files.glob("resnet18*")
    with pytest.raises(InputError) as caught:
        canonical_weights("torchvision/resnet50", str(file), SHAPE, 3)
    assert str(caught.value).startswith(
        f"pretrained {file}: these are not the weights of torchvision/resnet50: layer1.0.conv1.weight is "
        "[64, 64, 3, 3], the model's [64, 64, 1, 1]; layer1.0.conv3.weight is missing; "
    )
    assert str(caught.value).endswith(" more")


def test_weights_below_a_root_are_whole_or_written_again(files, tmp_path):
    store, content = ArtifactStore(str(tmp_path)), b"weights"
    digest = store.keep_pretrained(content)
    place = tmp_path / "weights" / f"{digest}.safetensors"
    assert (digest, place.read_bytes()) == (sha256(content), content)
    place.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="has not the digest"):
        read_weights(store, digest)
    store.keep_pretrained(content)
    assert place.read_bytes() == content


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (RESNET18, ("fc",)),
        ("torchvision/mobilenet_v2", ("classifier.0", "classifier.1")),
        ("torchvision/mobilenet_v3_small", ("classifier.2", "classifier.3")),
        ("torchvision/convnext_tiny", ("classifier.2",)),
        ("torchvision/vit_b_32", ("heads.head",)),
        ("torchvision/squeezenet1_1", ("classifier.0", "classifier.1", "classifier.2", "classifier.3")),
        ("timm/resnetv2_50", ("head.fc", "head.flatten")),
        ("resnet-8", ("fc",)),
    ],
)
def test_the_head_is_the_last_layer_and_the_dropout_before_it(model, layers):
    head = find_head(build(model, (3, 64, 64), 3), torch.rand(2, 3, 64, 64))
    assert head.layers == layers
    assert head.whole


@pytest.mark.parametrize("model", [OURS, MOBILENET])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_head_on_cached_features_is_the_head_trained_in_the_whole_model(data, pretrained, model, precision):
    """mobilenet_v2 has dropout in its head. 33 images in batches of 16: a last one of 1 is joined."""
    given = stage(data, model, epochs=2, precision=precision)
    cached, plain = (StageTraining([given], data, [[]], pretrained=pretrained[model]) for _ in range(2))
    plain.taught.head = Head(plain.taught.head.layers, whole=False)
    for training in (cached, plain):
        while not training.done:
            training.run_epoch()
    assert (cached.inputs.features is not None, plain.inputs.features) == (True, None)
    weights, others = (each.finish()[0][1].weights for each in (cached, plain))
    assert same(weights, others, tolerance=1e-5 if precision == "float32" else 2e-3)
    assert [each.val_loss for each in cached.lanes[0].epochs] == pytest.approx(
        [each.val_loss for each in plain.lanes[0].epochs], rel=1e-4 if precision == "float32" else 1e-2
    )
    for name, tensor in pretrained[model].tensors.items():
        assert torch.equal(weights[name], tensor), name  # means of batch normalisation too


def test_after_the_head_the_layers_from_one_on_are_trained(data, pretrained):
    [trained] = train([stage(data, finetune_from="layer2")], data, [[]], pretrained=pretrained[OURS])
    before = pretrained[OURS].tensors
    changed = {name.split(".")[0] for name, each in before.items() if not torch.equal(trained.weights[name], each)}
    assert changed == {"layer2", "layer3"}
    means = [name for name in before if name.endswith("running_mean")]
    still = [name for name in means if torch.equal(trained.weights[name], before[name])]
    assert {name.split(".")[0] for name in still} == {"bn1", "layer1"}


@pytest.mark.parametrize("head_epochs", [1, None])
def test_frozen_normalisation_stays_as_it_was_while_all_else_is_trained(data, pretrained, head_epochs):
    given = stage(data, epochs=2, head_epochs=head_epochs, freeze_norm=True, batch_size=4, dropout=None)
    training = StageTraining([given], data, [[]], pretrained=pretrained[OURS])
    assert training.taught.smallest_batch == 1  # nothing is taken over a batch
    while not training.done:
        training.run_epoch()
    weights, before = training.finish()[0][1].weights, pretrained[OURS].tensors
    norms = {name.rpartition(".")[0] for name in before if name.endswith("running_mean")}
    kept = {name for name, each in before.items() if torch.equal(weights[name], each)}
    assert kept == {name for name in before if name.rpartition(".")[0] in norms}


def test_without_a_layer_to_start_from_all_are_trained(data, pretrained):
    [trained] = train([stage(data)], data, [[]], pretrained=pretrained[OURS])
    before = pretrained[OURS].tensors
    assert not [name for name, each in before.items() if torch.equal(trained.weights[name], each)]


def test_the_second_parts_optimizer_remembers_nothing_of_the_first(data, pretrained):
    training = StageTraining([stage(data, epochs=2, head_epochs=1)], data, [[]], pretrained=pretrained[OURS])
    training.run_epoch()
    assert {name for name, state in training.taught.optimizer.state(0).items() if state} == {"fc.weight", "fc.bias"}
    training.run_epoch()
    assert {int(state["step"]) for state in training.taught.optimizer.state(0).values()} == {2}  # batches of 16 and 17


def test_what_is_before_a_part_of_a_layer_stands_still():
    module = build("torchvision/mobilenet_v2", SHAPE, 3)
    train_from(module, "features.17")
    trained = {name.split(".")[1] for name, each in module.named_parameters() if each.requires_grad}
    assert trained == {"17", "18", "1"}  # and the classifier
    assert [child.training for child in module.features] == [False] * 17 + [True] * 2


def test_the_schedule_runs_once_over_each_part():
    recipe = make_stage(
        epochs=6, head_epochs=2, finetune_factor=0.2, schedule="cosine", examples=None, pretrained="0" * 64
    ).recipe
    factors = [rate_factor(recipe, at) for at in (0, 1, 1.999999, 2, 4, 5.999999)]
    assert factors == pytest.approx([1, 0.5, 0, 0.2, 0.1, 0], abs=1e-5)


@pytest.mark.parametrize("recipe", [{"finetune_from": "layer3"}, {"optimizer": "sgd"}, {"freeze_norm": True}])
def test_a_stage_of_two_parts_that_goes_on_from_a_checkpoint_is_the_stage_that_was_never_stopped(
    data, pretrained, recipe
):
    """From one within the first part, one between the two, and one within the second."""

    def training() -> StageTraining:
        return StageTraining([stage(data, **recipe)], data, [[]], pretrained=pretrained[OURS])

    whole, checkpoints = training(), []
    while not whole.done:
        whole.run_epoch()
        checkpoints.append(whole.checkpoint(whole.lanes[0]))
    weights = whole.finish()[0][1].weights
    for content in checkpoints[:-1]:
        again = training()
        again.restore([Checkpoint.parse(content)])
        while not again.done:
            again.run_epoch()
        assert same(weights, again.finish()[0][1].weights)


def test_a_last_batch_of_one_joins_the_one_before_where_batches_are_normalised(data):
    def sizes(model: str) -> list[int]:
        given = make_stage(model, dataset=data.fingerprint, examples=None, batch_size=16)
        training = StageTraining([given], data, [[]])
        return [len(batch) for batch in training.inputs.batches(0, training.taught.smallest_batch)]

    assert sizes("resnet-8") == [16, 17]
    assert sizes("mlp-8") == [16, 16, 1]


def test_large_images_are_evaluated_a_few_at_a_time():
    shapes = (1, 28, 28), (3, 32, 32), (3, 96, 96), (3, 224, 224), (3, 1000, 1000)
    assert [evaluation_batch(shape) for shape in shapes] == [128, 128, 21, 4, 1]
    assert [evaluation_batch(shape, fully_connected=True) for shape in shapes] == [1000, 1000, 271, 49, 2]


def test_finished_weights_carry_the_pixels_they_expect(data, pretrained):
    [trained] = train([stage(data, epochs=2)], data, [[]], pretrained=pretrained[OURS])
    again = restore(build(OURS, SHAPE, 3), trained.weights).eval()
    pixels = StageTraining([stage(data)], data, [[]], pretrained=pretrained[OURS]).inputs.validation
    accuracy = (again(pixels[slice(None)]).argmax(dim=1) == data.validation.labels).float().mean()
    assert accuracy == pytest.approx(trained.selected.val_accuracy)
    with pytest.raises(RuntimeError, match="input_scale"):
        build(OURS, SHAPE, 3).load_state_dict(trained.weights)  # forgetting it is no silent mistake


# In a space and a study. A plain-2 on MNIST is a model whose weights a file can have, too.


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    torch.save(build("plain-2", (1, 28, 28), 26).state_dict(), tmp_path / "letters.pth")
    return tmp_path / "letters.pth"


def pretrained_space(file: Path, **changes: Any) -> Space:
    own = {"model": "plain-2", "pretrained": str(file), "recipe": {"epochs": 2, "examples": 200, "head_epochs": 1}}
    return tiny_space(
        **{"teacher": own, "assistants": [], "student__temperature": 4, "trials": 2, "coverage": 1, "seeds": 1}
        | changes
    )


# Few images for studies: soft targets are of all that there are.
FEW: dict[str, Any] = {
    "dataset": "generated",
    "teacher__recipe": {"examples": 30, "batch_size": 16},
    "student__recipe": {"examples": 30, "batch_size": 16},
}


@pytest.fixture
def start_file(tmp_path: Path) -> Path:
    """As `weights_file`, of images as `data` has them."""
    torch.manual_seed(5)
    torch.save(build("plain-2", SHAPE, 26).state_dict(), tmp_path / "letters.pth")
    return tmp_path / "letters.pth"


def teacher_of(space: Space, data: Dataset) -> Stage:
    path = space.path(space.all_arms[-1], {}, data.fingerprint, 0)
    return path.stages[0]


def test_the_weights_digest_is_in_the_key_and_their_path_is_not(weights_file, tmp_path):
    data, moved = load("mnist"), tmp_path / "moved.pth"
    shutil.copy(weights_file, moved)
    folder = study_folder(str(tmp_path / "runs"), "mine")
    here, there = (with_weights(pretrained_space(each), data, "space mine", folder) for each in (weights_file, moved))
    assert teacher_of(here, data).key == teacher_of(there, data).key
    assert here.identity() == there.identity()
    assert teacher_of(here, data).key_input()["pretrained"] == here.weights["teacher"]["plain-2"]
    torch.save(build("plain-2", (1, 28, 28), 26).state_dict(), moved)
    other = with_weights(pretrained_space(moved), data, "space mine", folder)
    assert teacher_of(other, data).key != teacher_of(here, data).key


@pytest.mark.parametrize(
    ("section", "line"),
    [
        (
            {"finetune_from": "layer9"},
            "teacher.recipe.finetune_from is 'layer9'; the layers of resnet-8 are conv1, bn1, ",
        ),
        ({"finetune_from": {"choices": ["layer2", "relu"]}}, "finetune_from.choices.1 is 'relu'"),
        (
            {"freeze_norm": {"choices": [True, False]}, "batch_size": 1},
            "teacher.recipe.batch_size is 1; resnet-8 normal",
        ),
        ({"batch_size": 1}, "teacher.recipe.batch_size is 1; resnet-8 normalises batches, of 2 at least"),
    ],
)
def test_a_recipe_that_the_model_can_not_have_is_refused_before_the_study_starts(weights_file, section, line):
    recipe = {"epochs": 3, "examples": 200, "head_epochs": 1} | section
    own = {"model": "resnet-8", "pretrained": str(weights_file), "recipe": recipe}
    with pytest.raises(InputError) as caught:
        check_space(pretrained_space(weights_file, teacher=own), "space mine")
    assert line in str(caught.value)
    assert str(caught.value).startswith("space mine: ")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"recipe": {"head_epochs": 2}}, "teacher: recipe.head_epochs is only for a role with pretrained"),
        (
            {"pretrained": "a.pth", "recipe": {"finetune_from": "fc"}},
            "finetune_from is only for recipes with head_epochs",
        ),
        ({"recipe": {"freeze_norm": True}}, "teacher: recipe.freeze_norm is only for a role with pretrained"),
        ({"pretrained": "a.pth", "recipe": {"freeze_norm": 1}}, "freeze_norm is 1; expected true or false"),
        ({"pretrained": "a.pth", "recipe": {"head_epochs": 11}}, "head_epochs is 11 of 10 epochs"),
    ],
)
def test_what_is_wrong_with_two_parts_is_one_line(section, line):
    with pytest.raises(InputError, match=line):
        space_from(
            {"dataset": "mnist", "teacher": {"model": "plain-2"} | section, "student": "mlp-8", "trials": 9}, "mine"
        )


def test_a_model_without_batch_normalisation_has_none_to_freeze(weights_file):
    recipe = {"epochs": 2, "examples": 200, "freeze_norm": True}
    own = {"model": "torchvision/squeezenet1_1", "pretrained": str(weights_file), "recipe": recipe}
    line = "space mine: teacher.recipe.freeze_norm is true; torchvision/squeezenet1_1 has no batch normalisation"
    with pytest.raises(InputError, match=line):
        check_space(pretrained_space(weights_file, teacher=own), "space mine")


def test_fully_connected_models_take_no_pretrained_weights(weights_file):
    own = {"model": "mlp-8", "pretrained": str(weights_file)}
    with pytest.raises(InputError, match="pretrained: the family of mlp-8 takes no pretrained weights"):
        check_space(pretrained_space(weights_file, teacher=own), "space mine")


def test_a_plan_knows_the_weights_and_writes_none(data, start_file, tmp_path):
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    folder = study_folder(str(tmp_path / "runs"), "mine")
    print_plan(pretrained_space(start_file, **FEW), "space mine", folder, console)
    assert "plain-2" in console.export_text()
    assert not (tmp_path / "runs").exists()


def test_a_plan_goes_on_without_the_file_as_a_run_does(data, start_file, tmp_path):
    folder, space = study_folder(str(tmp_path / "runs"), "mine"), pretrained_space(start_file, **FEW)
    folder.prepare()
    started = with_weights(space, data, "space mine", folder)
    keep_pretrained(started, "space mine", folder)
    create_search(folder, started, data.fingerprint)
    start_file.unlink()
    before = sorted((tmp_path / "runs").rglob("*"))
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    print_plan(space, "space mine", folder, console)
    assert "plain-2" in console.export_text()
    assert sorted((tmp_path / "runs").rglob("*")) == before


@pytest.mark.parametrize(
    ("recipe", "epochs"),
    [
        ({}, 6),
        ({"head_epochs": 3}, 3 + 1 / 3),
        ({"head_epochs": 3, "augment": "crop-flip"}, 3 + 3 / 3),
    ],
)
def test_a_head_epoch_costs_a_third_where_nothing_is_kept_of_the_last(recipe, epochs):
    assert Recipe.model_validate({"epochs": 6} | recipe).whole_epochs == pytest.approx(epochs)


@pytest.mark.slow
def test_a_study_keeps_its_weights_and_refuses_others(data, ray_slots, start_file, tmp_path):
    """The teacher starts from the file, which nobody needs afterwards; another one of that name is another study."""
    folder, space = study_folder(str(tmp_path / "runs"), "mine"), pretrained_space(start_file, **FEW)
    assert run(folder, space).result.finished
    search = find_search(folder)
    assert search is not None
    [kept] = (tmp_path / "runs" / "weights").iterdir()
    assert kept.stem == search.space.weights["teacher"]["plain-2"]
    key = teacher_of(search.space, data).key
    description = folder.artifacts.describe(key)
    assert description is not None
    assert description["input"]["pretrained"] == kept.stem
    start = safetensors.torch.load(kept.read_bytes())
    weights = safetensors.torch.load(folder.artifacts.read(key, WEIGHTS))
    assert torch.allclose(start["0.weight"], weights["0.weight"], atol=0.01)  # it went on from there
    start_file.unlink()
    assert run(folder, space.model_copy(update={"trials": 3})).result.finished
    torch.manual_seed(6)
    torch.save(build("plain-2", SHAPE, 26).state_dict(), start_file)
    with pytest.raises(InputError, match=r"another space: weights.teacher.plain-2 was \"\w{64}\", is \"\w{64}\""):
        run(folder, space)
    assert [*(tmp_path / "runs" / "weights").iterdir()] == [kept]


def test_weights_that_change_while_a_study_starts_are_one_line(weights_file, tmp_path):
    folder, space, data = study_folder(str(tmp_path / "runs"), "mine"), pretrained_space(weights_file), load("mnist")
    folder.prepare()
    checked = with_weights(space, data, "space mine", folder)
    torch.save(build("plain-2", (1, 28, 28), 26).state_dict(), weights_file)
    with pytest.raises(InputError, match=r"space mine: pretrained .*letters.pth: changed while the study started"):
        keep_pretrained(checked, "space mine", folder)
