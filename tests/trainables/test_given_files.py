"""Models that exist, and what they say: read once into the form that a study keeps, or refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import make_stage
from image_folders import CLASSES, write_images
from torch import Tensor

from takd.search_spaces import Given, InputError, Recipe, Stage
from takd.search_spaces.sections import GivenAssistant
from takd.study.data import import_files
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.built_in import OWN
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.derivation import derive
from takd.trainables.models.families import build
from takd.trainables.models.given import canonical_given
from takd.trainables.models.pretrained import restore
from takd.trainables.store.artifacts import WEIGHTS, ArtifactStore
from takd.trainables.store.storage import sha256
from takd.trainables.training.inputs import Pixels

MODEL = "mlp-5"


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Dataset:
    """50 training images in three classes, 5 of them held out for validation, and 9 for the test; with names."""
    return import_files(OWN, write_images(tmp_path_factory.mktemp("given") / "given"), "given", None, download=False)


@pytest.fixture
def weights(trees: Dataset) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build(MODEL, trees.image_shape, 3).state_dict()


def checkpoint(file: Path, **changes: Any) -> GivenAssistant:
    return GivenAssistant.model_validate({"model": MODEL, "checkpoint": str(file), "normalize": "dataset"} | changes)


def logits_of(tensors: dict[str, Tensor], images: Tensor, model: str = MODEL) -> Tensor:
    """As the data set's pixels go in."""
    with torch.no_grad():
        return restore(build(model, tuple(images.shape[1:]), 3), tensors).eval()(images)


def kept(existing: GivenAssistant, dataset: Dataset) -> dict[str, Tensor]:
    return safetensors.torch.load(canonical_given(existing, MODEL, dataset))


def test_the_same_weights_are_the_same_bytes_whatever_file_they_come_from(trees, weights, tmp_path):
    torch.save({"model": {f"module.{name}": each for name, each in weights.items()}, "epoch": 3}, tmp_path / "a.pth")
    safetensors.torch.save_file(dict(reversed(weights.items())), tmp_path / "b.safetensors")
    one, other = (canonical_given(checkpoint(tmp_path / name), MODEL, trees) for name in ("a.pth", "b.safetensors"))
    assert one == other
    assert safetensors.torch.load(one).keys() == weights.keys()


@pytest.mark.parametrize("said_by", ["the space", "safetensors", "torch", "class_to_idx"])
def test_classes_in_another_order_are_brought_into_the_data_sets(trees, weights, tmp_path, said_by):
    names, file = ["cedar", "ash", "birch"], tmp_path / "a.pth"
    own = {
        "the space": {},
        "torch": {"classes": names},
        "class_to_idx": {"class_to_idx": {"cedar": 0, "ash": 1, "birch": 2}},
    }
    if said_by == "safetensors":
        file = tmp_path / "a.safetensors"
        safetensors.torch.save_file(weights, file, {"classes": '["cedar", "ash", "birch"]'})
    else:
        torch.save({"state_dict": weights} | own[said_by], file)
    found = kept(checkpoint(file, **({"classes": names} if said_by == "the space" else {})), trees)
    images = torch.randn(4, *trees.image_shape)
    order = [names.index(each) for each in CLASSES]
    torch.testing.assert_close(logits_of(found, images), logits_of(weights, images)[:, order])


@pytest.mark.parametrize("normalize", ["imagenet", {"mean": [0.4], "std": [0.3]}])
def test_a_model_gets_the_pixels_that_it_expects(trees, weights, tmp_path, normalize):
    torch.save(weights, tmp_path / "a.pth")
    found = kept(checkpoint(tmp_path / "a.pth", normalize=normalize), trees)
    images = trees.train.images[:8].float() / 255
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if normalize == "imagenet" else ((0.4,), (0.3,))
    expected = (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    pixels = Pixels(trees.train.images[:8], trees, torch.device("cpu"), torch.contiguous_format)
    torch.testing.assert_close(
        logits_of(found, pixels[slice(None)]), logits_of(weights, expected), rtol=1e-4, atol=1e-4
    )


def test_what_the_file_says_of_its_pixels_needs_no_other_word(trees, weights, tmp_path):
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file(weights, file, {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"})
    said = canonical_given(checkpoint(file, normalize=None), MODEL, trees)
    assert said == canonical_given(checkpoint(file, normalize={"mean": [0.5] * 3, "std": [0.5] * 3}), MODEL, trees)
    with pytest.raises(InputError, match=r"says mean 0\.5, 0\.5, 0\.5 and std 0\.5, 0\.5, 0\.5, normalize another"):
        kept(checkpoint(file, normalize="imagenet"), trees)


def head(weights: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    return weights | {"5.weight": torch.zeros(classes, 5), "5.bias": torch.zeros(classes)}


@pytest.mark.parametrize(
    ("damage", "changes", "line"),
    [
        (
            lambda it: it,
            {"normalize": None},
            "does not say by which mean and deviation its images were norm",
        ),
        (
            lambda it: head(it, 1000),
            {},
            r"is of 1,000 classes \(5\.weight is \[1000, 5\]\); dataset given has 3",
        ),
        (
            lambda it: it,
            {"classes": ["ash", "birch", "oak"]},
            "classes are ash, birch, oak; dataset given has ash",
        ),
        (lambda it: it, {"classes": ["ash", "birch"]}, "classes are ash, birch; dataset given has ash, birch, cedar"),
        (
            lambda it: it | {"1.weight": torch.zeros(5, 9)},
            {},
            r"not the weights of mlp-5 for images of 3x6x8: 1\.we",
        ),
        (lambda it: it | {"1.bias": torch.full((5,), torch.nan)}, {}, r"1\.bias has numbers that are not finite"),
        (
            lambda it: it,
            {"normalize": {"mean": [0.5] * 2, "std": [0.5] * 2}},
            "mean and std are of 2 channels; mlp-5",
        ),
    ],
)
def test_a_checkpoint_that_is_not_the_data_sets_is_one_line(trees, weights, tmp_path, damage, changes, line):
    torch.save(damage(weights), tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"^checkpoint .*a\.pth: .*{line}|^normalize: .*{line}") as caught:
        kept(checkpoint(tmp_path / "a.pth", **changes), trees)
    assert "\n" not in str(caught.value)


# Logits


def said(file: Path, named: Any = None, **arrays: Any) -> GivenAssistant:
    """A file of arrays, and the classes that the space names."""
    np.savez(file, **arrays)
    return GivenAssistant.model_validate({"name": "x", "logits": str(file), "classes": named})


def rows(number: int, classes: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(number, classes)).astype(np.float32)


def parts(existing: GivenAssistant, dataset: Dataset) -> dict[str, Any]:
    return safetensors.numpy.load(canonical_given(existing, "x", dataset))


def test_rows_are_those_of_the_source_before_validation_is_cut(trees, tmp_path):
    logits, test = rows(50), rows(9, seed=1)
    found = parts(said(tmp_path / "a.npz", logits=logits, test_logits=test), trees)
    assert {split: len(each) for split, each in found.items()} == {"train": 45, "validation": 5, "test": 9}
    for split in ("train", "validation"):
        np.testing.assert_array_equal(found[split], logits[trees.examples(split).rows])
    np.testing.assert_array_equal(found["test"], test)
    assert parts(said(tmp_path / "b.npz", logits=logits), trees).keys() == {"train", "validation"}


def test_the_rows_of_mnist_are_those_of_its_files(tmp_path):
    mnist, logits = load("mnist"), rows(60_000, 10)
    found = parts(said(tmp_path / "a.npz", logits=logits), mnist)
    np.testing.assert_array_equal(found["validation"], logits[mnist.examples("validation").rows])


def test_rows_with_names_may_be_in_any_order(trees, tmp_path):
    names = [*(trees.examples("test").names or ()), *reversed(trees.examples("train").names or ())]
    logits = rows(len(names))
    found = parts(said(tmp_path / "a.npz", logits=logits, names=np.array(names)), trees)
    assert found.keys() == {"train", "test"}  # of validation nothing is known
    np.testing.assert_array_equal(found["train"], logits[9:][::-1])
    np.testing.assert_array_equal(found["test"], logits[:9])


def test_classes_of_logits_are_brought_into_order(trees, tmp_path):
    names, logits = ["cedar", "ash", "birch"], rows(50)
    plain = parts(said(tmp_path / "a.npz", logits=logits), trees)["train"]
    for classes, own in ((names, {}), (None, {"classes": np.array(names)})):
        found = parts(said(tmp_path / "b.npz", classes, logits=logits, **own), trees)["train"]
        np.testing.assert_array_equal(found, plain[:, [1, 2, 0]])


def odd(row: int, value: float) -> Any:
    logits = np.zeros((50, 3))
    logits[row, 1] = value
    return logits


def names_of(trees: Dataset) -> list[str]:
    return [*(trees.examples("train").names or ()), *(trees.examples("validation").names or ())]


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        (
            lambda n: {"logits": rows(49)},
            r"logits has 49 rows; train of dataset given has 50 images \(those held",
        ),
        (lambda n: {"logits": rows(50, 4)}, r"logits is of 4 classes; dataset given has 3 \(ash, birch, cedar\)"),
        (
            lambda n: {"logits": odd(17, np.nan)},
            r"logits\[17\] is nan for class 1",
        ),
        (
            lambda n: {"logits": odd(1, 1e300)},
            r"logits\[1\] is 1e\+300 for",
        ),
        (
            lambda n: {"logits": rows(50), "test_logits": rows(8)},
            "test_logits has 8 rows; test of dataset given has 9",
        ),
        (lambda n: {"logits": rows(50), "validation_logits": rows(5)}, "validation_logits is of no part of given"),
        (lambda n: {"logits": np.zeros((50, 3), int)}, r"logits is int64 \[50, 3\]; expected numbers with a point"),
        (lambda n: {"scores": rows(50)}, "has no array named logits; it has scores"),
        (lambda n: {"logits": rows(49), "names": n}, "logits has 49 rows and 50 names"),
        (
            lambda n: {"logits": rows(50), "names": ["x.png", *n[1:]]},
            r"logits\[0\] is of 'x\.png', no image",
        ),
        (
            lambda n: {"logits": rows(51), "names": [*n, n[7]]},
            r"logits\[50\] is of '.*', as logits\[7\] is",
        ),
        (
            lambda n: {"logits": rows(49), "names": n[1:]},
            "1 of 45 train images have no row, 'train/.*' the f",
        ),
        (
            lambda n: {"logits": rows(48), "names": n[:-2]},
            "2 of 5 validation images have no row.*all of them or",
        ),
        (lambda n: {"logits": rows(50), "names": np.arange(50)}, r"names is int64 \[50\]; expected a list of text"),
        (
            lambda n: {"logits": rows(50), "classes": ["ash", "oak", "birch"]},
            "its classes are ash, oak, birch",
        ),
        (lambda n: {"logits": np.array([object()])}, r"can't be read as \.npz \(it holds objects; only numbers"),
    ],
)
def test_logits_that_are_not_the_data_sets_are_one_line_that_names_the_row(trees, tmp_path, arrays, line):
    given = {name: np.asarray(each) for name, each in arrays(names_of(trees)).items()}
    with pytest.raises(InputError, match=rf"^logits .*a\.npz: .*{line}") as caught:
        parts(said(tmp_path / "a.npz", **given), trees)
    assert "\n" not in str(caught.value)


def test_names_are_no_help_where_images_have_none(tmp_path):
    with pytest.raises(
        InputError, match="images of mnist have no names; give rows in the source's order, without names"
    ):
        parts(said(tmp_path / "a.npz", logits=rows(2, 10), names=np.array(["a", "b"])), load("mnist"))


def test_a_file_that_is_no_npz_is_one_line(trees, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nonsense")
    for name, line in (("a.npz", r"can't be read as \.npz"), ("b.npz", "no such file"), ("c.pt", r"to an \.npz file")):
        with pytest.raises(InputError, match=rf"logits .*{name}: .*{line}"):
            parts(GivenAssistant(name="x", logits=str(tmp_path / name)), trees)


# What is derived from them


def trained(store: ArtifactStore, *stages: Stage) -> None:
    batch = StageBatch(stages, store, 1, measure_width=False, origin={stage.key: {} for stage in stages})
    while not batch.done:
        batch.run_epoch()
    batch.publish()


def weights_of(store: ArtifactStore, stage: Stage) -> dict[str, Tensor]:
    return safetensors.torch.load(store.read(stage.key, WEIGHTS))


VIEWS = {"augment": "crop-flip", "views": 2, "epochs": 4, "examples": None}


def test_what_a_trained_teacher_teaches_its_file_teaches_bit_by_bit(trees, tmp_path):
    """As a checkpoint and as logits: the same soft targets, and so the same student, in every view."""
    first, second = ArtifactStore(str(tmp_path / "first")), ArtifactStore(str(tmp_path / "second"))
    teacher = make_stage(MODEL, role="teacher", dataset=trees.fingerprint, **VIEWS)
    trained(first, teacher)
    (tmp_path / "teacher.safetensors").write_bytes(first.read(teacher.key, WEIGHTS))
    content = canonical_given(checkpoint(tmp_path / "teacher.safetensors"), MODEL, trees)
    given = Given(file="teacher.safetensors", checkpoint=second.keep_pretrained(content))
    same = Stage(role="teacher", dataset=trees.fingerprint, model=MODEL, recipe=Recipe(), seed=0, given=given)
    derive(same, teacher.recipe.view_names, second, 1, {"study": "s"})
    for ours, theirs in zip(
        first.soft_targets(teacher, teacher.recipe.view_names),
        second.soft_targets(same, teacher.recipe.view_names),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    one, other = (make_stage("mlp-4", dataset=trees.fingerprint, upstream=(each,), **VIEWS) for each in (teacher, same))
    trained(first, one)
    trained(second, other)
    assert one.key != other.key
    assert all(torch.equal(each, weights_of(second, other)[name]) for name, each in weights_of(first, one).items())
    outcome, before = second.describe(same.key)["outcome"], first.describe(teacher.key)["outcome"]
    assert outcome["metrics"]["validation"]["accuracy"] == before["metrics"]["validation"]["accuracy"]
    assert (outcome["epochs"], outcome["train_seconds"], outcome["given"]["file"]) == ([], 0.0, "teacher.safetensors")


@pytest.mark.parametrize("known", [True, False])
def test_logits_teach_what_they_say_and_are_judged_where_they_say_something(trees, tmp_path, known):
    store, logits = ArtifactStore(str(tmp_path)), rows(50)
    names = trees.examples("train").names or ()
    own = {"logits": logits} if known else {"logits": logits[:45], "names": np.array(names)}
    content = canonical_given(said(tmp_path / "a.npz", **own), "x", trees)
    given = Given(file="a.npz", logits=store.keep_pretrained(content))
    stage = Stage(role="teacher", dataset=trees.fingerprint, model="logits", recipe=Recipe(), seed=0, given=given)
    derive(stage, [None], store, 1, {})
    [found] = store.soft_targets(stage, [None])
    np.testing.assert_array_equal(found, logits[trees.examples("train").rows] if known else logits[:45])
    outcome = store.describe(stage.key)["outcome"]
    expected = None
    if known:
        own_rows = logits[trees.examples("validation").rows]
        expected = pytest.approx((own_rows.argmax(axis=1) == trees.validation.labels.numpy()).mean())
    assert outcome["metrics"]["validation"]["accuracy"] == expected
    assert (outcome["parameters"], outcome["flops_per_image"]) == (None, None)


def test_a_student_that_is_needed_as_an_assistant_keeps_its_weights(trees, tmp_path):
    store = ArtifactStore(str(tmp_path))
    student = make_stage(MODEL, dataset=trees.fingerprint, examples=None)
    trained(store, student)
    before = store.storage.read(f"artifacts/{student.key}/stage.json")
    assistant = student.model_copy(update={"role": "assistant"})
    derive(assistant, [None], store, 1, {})
    assert store.storage.read(f"artifacts/{student.key}/stage.json") == before
    [found] = store.soft_targets(assistant, [None])
    pixels = Pixels(trees.train.images, trees, torch.device("cpu"), torch.contiguous_format)
    torch.testing.assert_close(
        torch.from_numpy(found.copy()), logits_of(weights_of(store, student), pixels[slice(None)])
    )
    [key] = store.storage.names("derived")
    assert store.derived.describe(key)["input"]["weights"] == sha256(store.read(student.key, WEIGHTS))
