"""A user's own folder of images as a dataset: found by its name, also by other processes, or one line says why not."""

import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_stage
from image_folders import CLASSES, write_images
from PIL import Image

from takd.search_spaces import DatasetFingerprint, InputError
from takd.study.data import import_files
from takd.study.plan import estimate_seconds
from takd.trainables.datasets import conversion, division
from takd.trainables.datasets.built_in import BUILT_IN, OWN
from takd.trainables.datasets.dataset import Dataset, import_dataset, load, load_for
from takd.trainables.datasets.image_files import decode_image
from takd.trainables.datasets.sources import RawSplit, Source
from takd.trainables.training.loop import train


def convert(folder: Path, name: str | None = None, validation: int | None = None) -> Dataset:
    return import_files(OWN, folder, name, validation, download=False)


def in_another_process(code: str) -> str:
    """What it prints; the environment is this one's."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_images_and_labels_are_those_of_the_files(own_cache, tmp_path, mode, channels):
    folder = write_images(tmp_path / "trees", mode)
    dataset = convert(folder)
    assert (dataset.name, dataset.classes, dataset.image_shape) == ("trees", CLASSES, (channels, 6, 8))
    assert dataset.sizes == {"train": 45, "validation": 5, "test": 9}
    test = dataset.test()
    assert test.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    files = sorted((folder / "test").glob("*/*.png"))
    for image, file in zip(test.images, files, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).squeeze(), np.asarray(Image.open(file)))


def test_jpeg_files_are_images_too(own_cache, tmp_path):
    assert convert(write_images(tmp_path / "trees", suffix=".JPEG")).sizes["train"] == 45


def test_validation_is_a_tenth_of_each_class_or_the_number_asked_for(own_cache, made):
    assert convert(made).class_counts["validation"] == [2, 2, 1]
    asked = convert(made, validation=17)
    assert asked.class_counts["validation"] == [7, 7, 3]
    assert load("trees").sizes == asked.sizes


def test_another_process_finds_it_by_its_name(own_cache, made):
    dataset = convert(made, name="my-trees")
    code = (
        "from takd.trainables.datasets.dataset import load\n"
        "print(load('my-trees').digest, len(load('my-trees').test().labels))"
    )
    assert in_another_process(code) == f"{dataset.digest} 9"


def test_the_digest_is_the_contents_and_not_the_names(own_cache, made, tmp_path):
    moved = shutil.copytree(made, tmp_path / "elsewhere")
    for file in moved.glob("*/*/*"):
        file.rename(file.with_stem(f"x{file.stem}"))
    assert convert(moved).digest == convert(made).digest
    assert convert(write_images(tmp_path / "others", seed=1)).digest != convert(made).digest


def test_a_model_learns_from_it(own_cache, made):
    dataset = convert(made)
    stage = make_stage("mlp-16", dataset=dataset.fingerprint, examples=None, epochs=30, learning_rate=0.01)
    [trained] = train([stage], load_for(stage.dataset), [[]])
    assert trained.selected.val_accuracy > 0.7


def test_a_name_stands_for_what_was_converted_last(own_cache, made, tmp_path):
    first = convert(made)
    second = convert(write_images(tmp_path / "others", seed=1), name="trees")
    assert load("trees").digest == second.digest != first.digest
    assert first.folder.is_dir()


@pytest.mark.parametrize("name", [*BUILT_IN, OWN])
def test_a_built_in_name_is_taken(made, name):
    with pytest.raises(InputError, match=f"--name {name}: is built in"):
        convert(made, name)


def test_a_folder_whose_name_is_no_data_sets_is_told_to_give_one(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "my trees")
    with pytest.raises(InputError, match=r"--from .*my trees: the name my trees: .*; give another with --name"):
        convert(Path(folder))


@pytest.mark.parametrize("name", ["a b", "../a", "", ".a", "a.v2"])
def test_a_name_is_letters_and_digits(made, name):
    with pytest.raises(InputError, match=rf"--name {re.escape(name)}: a name has letters"):
        convert(made, name)


def test_an_unknown_name_is_told_what_is_there(own_cache, made):
    convert(made)
    with pytest.raises(InputError, match=r"'tree' does not exist; valid: mnist, cifar10, cifar100, mhist, trees; your"):
        load("tree")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mhist"])
def test_a_built_in_dataset_that_is_not_converted_says_the_command(own_cache, name):
    with pytest.raises(InputError, match=rf"dataset {name}: not converted yet .*run on every node: takd data {name} "):
        load(name)


def test_a_node_that_lacks_a_studys_dataset_says_the_command(own_cache, made):
    wanted = convert(made, validation=7).fingerprint
    shutil.rmtree(own_cache)
    load.cache_clear()
    command = "takd data images --from DIR --name trees --validation 7"
    with pytest.raises(
        InputError, match=rf"dataset trees: not in the cache .* of .*; run on this node, with the .*: {command}$"
    ):
        load_for(wanted)


@pytest.mark.parametrize("other", ["content", "validation"])
def test_a_node_with_another_dataset_of_that_name_is_refused(own_cache, made, tmp_path, other):
    wanted = convert(made).fingerprint
    convert(made, validation=9) if other == "validation" else convert(write_images(tmp_path / "trees", seed=1))
    line = (
        rf"has digest \w+ \(.*\), the study has digest {wanted.digest[:12]} \(45 train, 5 validation, 9 test\); run on"
    )
    with pytest.raises(InputError, match=line):
        load_for(wanted)


def test_mnist_needs_no_command(own_cache):
    mnist = load("mnist")
    wanted = DatasetFingerprint(name="mnist", digest=mnist.digest, split_seed=0, sizes=mnist.sizes)
    assert load_for(wanted) is mnist


@pytest.mark.parametrize("file", ["train.arrow", "validation.arrow", "dataset.json"])
def test_damage_says_the_command_that_mends_it(own_cache, made, file):
    dataset = convert(made)
    path = dataset.folder / file
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    load.cache_clear()
    with pytest.raises(
        InputError, match=r"dataset trees: its files .* are damaged \(.*\); run again: takd data images"
    ):
        load("trees")
    convert(made)
    assert path.read_bytes() == content
    assert load("trees").sizes["train"] == 45


def test_an_image_that_is_in_train_and_test_is_a_warning(own_cache, trees, caplog):
    shutil.copy(trees / "train/ash/00.png", trees / "test/birch/00.png")
    convert(trees)
    assert re.search(r"the same image is there twice: .*test/birch/00\.png is .*train/ash/00\.png", caplog.text)


def resized(path: Path) -> None:
    Image.open(path).resize((8, 7)).save(path)


def emptied(folder: Path) -> None:
    for each in folder.iterdir():
        each.unlink()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda folder: shutil.rmtree(folder / "test"),
            r"--from .*trees: has no test split; --split 70/15/15 makes splits$",
        ),
        (lambda folder: shutil.rmtree(folder / "train"), r"--from .*trees: has no training split; it has test$"),
        (
            lambda folder: shutil.rmtree(folder / "train/ash"),
            r"trees/test/ash/00\.png: class ash is in no training image; those are of birch, cedar$",
        ),
        (
            lambda folder: [emptied(folder / split / "ash") for split in ("train", "test")],
            r"trees/train/ash: the class has no images; expected files that end in \.png",
        ),
        (
            lambda folder: [shutil.rmtree(each) for each in folder.glob("*/[bc]*")],
            r"--from .*trees: has 1 class, ash; expected 2 or more",
        ),
        (
            lambda folder: [shutil.rmtree(each) for each in folder.iterdir()],
            r"--from .*trees: has no classes; expected",
        ),
        (
            lambda folder: [(folder / each / "x").mkdir(parents=True) for each in ("val", "valid")],
            r"--from .*trees: has val and valid; expected one folder of validation images",
        ),
        (
            lambda folder: (folder / "test/ash/01.png").write_text("text"),
            r"1 image can't be read .*: .*trees/test/ash/01\.png \(is no PNG, JPEG, WebP, BMP, TIFF or GIF image\)$",
        ),
        (
            lambda folder: resized(folder / "test/ash/01.png"),
            r"the images have 2 sizes: 8x6 \(58\), 8x7 \(1\); 8 to 8 wide, 6 to 7 high; --size 6, or another, brings",
        ),
        (
            lambda folder: Image.new("F", (8, 6)).save(folder / "test/ash/01.tif"),
            r"test/ash/01\.tif \(its pixels are floating-point numbers; expected 8 or 16 bits\)",
        ),
        (
            lambda folder: Image.new("I", (8, 6), 70_000).save(folder / "test/ash/01.tif"),
            r"test/ash/01\.tif \(its pixels have 32 bits; expected 8 or 16\)",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line_that_names_it(own_cache, trees, damage, line):
    damage(trees)
    with pytest.raises(InputError, match=line) as caught:
        convert(trees)
    assert "\n" not in str(caught.value)
    assert list(own_cache.rglob("*.arrow")) == []


def test_any_damage_to_an_image_is_one_line_or_none(own_cache, made, tmp_path):
    """Random bytes changed in a PNG and a JPEG: decoded, or refused by name."""
    rng, file = np.random.default_rng(0), tmp_path / "a.png"
    for suffix in (".png", ".jpg"):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(whole := tmp_path / f"whole{suffix}")
        for _ in range(150):
            content = np.frombuffer(whole.read_bytes(), np.uint8).copy()
            content[rng.integers(0, len(content), 4)] = rng.integers(0, 256, 4)
            file.write_bytes(content[: rng.integers(1, len(content) + 1)].tobytes())
            with suppress(InputError):
                assert decode_image(file, "a.png").dtype == np.uint8


@pytest.mark.parametrize("validation", [48, 60])
def test_a_validation_split_that_leaves_a_class_nothing_is_refused(own_cache, made, validation):
    with pytest.raises(InputError, match=rf"validation is {validation}; at least 1 and at most 47 of the 50 images"):
        convert(made, validation=validation)


@pytest.mark.parametrize(
    ("numbers", "validation", "expected"),
    [
        ((20, 20, 10), 47, [19, 19, 9]),
        ((96, 2, 1, 1), None, [10, 0, 0, 0]),
        ((30, 30, 30), 10, [4, 3, 3]),
        ((5, 3, 1), 6, [4, 2, 0]),
        ((50, 0, 50), None, [5, 0, 5]),
    ],
)
def test_every_class_gives_its_share_and_keeps_one(numbers, validation, expected):
    labels = np.repeat(np.arange(len(numbers), dtype=np.uint8), numbers)
    source = Source(dict, tuple(map(str, range(len(numbers)))), validation=validation)
    held = division.held_out(labels, source)
    assert np.bincount(labels[held], minlength=len(numbers)).tolist() == expected
    assert len(set(held.tolist())) == len(held)


def test_what_is_converted_does_not_depend_on_how_much_is_read_at_once(own_cache, made, monkeypatch):
    whole = convert(made)
    files = {file.name: file.read_bytes() for file in whole.folder.iterdir()}
    shutil.rmtree(own_cache)
    monkeypatch.setattr(conversion, "_SLICE", 7 * 6 * 8 * 3)
    assert {file.name: file.read_bytes() for file in convert(made).folder.iterdir()} == files


def test_normalisation_is_numpys_by_channel(own_cache, made):
    dataset = convert(made)
    pixels = dataset.train.images.numpy().astype(np.float64).swapaxes(0, 1).reshape(3, -1) / 255
    assert dataset.normalization.mean == pytest.approx(pixels.mean(axis=1), rel=1e-12)
    assert dataset.normalization.std == pytest.approx(pixels.std(axis=1), rel=1e-12)


def test_more_classes_than_a_byte_counts(own_cache):
    labels = np.arange(900, dtype=np.uint16) % 300
    images = np.arange(900, dtype=np.uint8).reshape(900, 1, 1, 1)
    split = RawSplit(images, labels)
    source = Source(lambda: {"train": split, "test": split}, tuple(map(str, range(300))), validation=300)
    dataset = import_dataset("many", source)
    assert dataset.validation.labels.bincount().tolist() == [1] * 300
    assert torch.equal(dataset.test().labels, torch.arange(900) % 300)


@pytest.mark.skipif("TAKD_CIFAR10_IMAGES" not in os.environ, reason="TAKD_CIFAR10_IMAGES names no folder")
@pytest.mark.slow
def test_the_60000_images_of_cifar10_as_files(own_cache):
    dataset = convert(Path(os.environ["TAKD_CIFAR10_IMAGES"]), name="cifar10-files")
    assert dataset.class_counts == {"train": [4500] * 10, "validation": [500] * 10, "test": [1000] * 10}


def test_a_png_with_a_damaged_chunk_is_one_line(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(file, dpi=(72, 72))
    content = file.read_bytes()
    at = content.index(b"pHYs")
    chunk = b"pHYs\x00"  # of nine bytes one
    whole = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    file.write_bytes(content[: at - 4] + whole + content[at + 17 :])
    with pytest.raises(InputError, match=r"a.png: can't be decoded \(Truncated pHYs chunk\)"):
        decode_image(file, "a.png")


def test_a_channel_that_is_the_same_everywhere_stays_finite(own_cache, trees):
    for file in trees.rglob("*.png"):
        pixels = np.asarray(Image.open(file)).copy()
        pixels[..., 2] = 7
        Image.fromarray(pixels).save(file)
    dataset = convert(trees)
    assert dataset.normalization.std[2] == 1.0
    stage = make_stage("mlp-4", dataset=dataset.fingerprint, examples=None, epochs=1)
    [trained] = train([stage], dataset, [[]])
    assert all(torch.isfinite(each).all() for each in trained.weights.values())


def test_a_plan_of_a_recipe_that_diverges_is_a_plan(own_cache):
    mnist = load("mnist")
    stage = make_stage("mlp-4", dataset=mnist.fingerprint, learning_rate=1e30)
    assert 0 < estimate_seconds(stage, mnist) < 60
