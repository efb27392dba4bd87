"""MNIST as shipped, its splits, its cache and torchvision's folder."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from takd.search_spaces import InputError
from takd.trainables.datasets import dataset as datasets
from takd.trainables.datasets import mnist
from takd.trainables.datasets.built_in import BUILT_IN
from takd.trainables.datasets.dataset import Dataset, import_dataset, load, transfer_set
from takd.trainables.datasets.mnist import MNIST, SHIPPED, open_mnist

NAMES = {"train": "train", "test": "t10k"}


def idx_files() -> dict[str, bytes]:
    """MNIST's four files, made from what ships."""
    files = {}
    for split, raw in MNIST.read().items():
        number = len(raw.labels)
        header = b"".join(size.to_bytes(4, "big") for size in (number, 28, 28))
        files[f"{NAMES[split]}-images-idx3-ubyte"] = b"\x00\x00\x08\x03" + header + raw.images.tobytes()
        files[f"{NAMES[split]}-labels-idx1-ubyte"] = (
            b"\x00\x00\x08\x01" + number.to_bytes(4, "big") + raw.labels.tobytes()
        )
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The four files as torchvision leaves them, without the folders above."""
    folder = tmp_path_factory.mktemp("files")
    for name, content in idx_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def converted(cache, own_cache, monkeypatch) -> Path:
    """MNIST's folder in a cache of the test's own, not loaded yet; links, so files are replaced and not written to."""
    with monkeypatch.context() as session:
        session.setenv("TAKD_CACHE", str(cache))
        shared = load("mnist").folder
    load.cache_clear()
    return Path(shutil.copytree(shared, own_cache / "datasets" / shared.name, copy_function=os.symlink))


def import_mnist(folder: Path) -> Dataset:
    return import_dataset("mnist", open_mnist(folder))


def torchvision_folder(folder: Path, files: Path) -> Path:
    return Path(shutil.copytree(files, folder, copy_function=os.symlink))


def rewrite(path: Path, content: bytes) -> None:
    """A new file in place of the old, which others have linked or mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_the_shipped_mnist_is_byte_for_byte_the_original(files):
    published = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    assert {name: hashlib.md5((files / name).read_bytes()).hexdigest() for name in os.listdir(files)} == published


def test_the_shipped_mnist_takes_at_most_12_megabytes():
    assert sum(file.stat().st_size for file in (SHIPPED / "mnist").iterdir()) <= 12_000_000


def test_images_and_labels_are_typed_and_split():
    mnist = load("mnist")
    for split, size in (("train", 50_000), ("validation", 10_000)):
        part = getattr(mnist, split)
        assert (part.images.dtype, part.images.shape) == (torch.uint8, (size, 1, 28, 28))
        assert (part.labels.dtype, part.labels.shape) == (torch.int64, (size,))
    assert len(mnist.test().labels) == 10_000
    assert mnist.sizes == {"train": 50_000, "validation": 10_000, "test": 10_000}


def test_train_and_validation_are_the_sources_training_images_each_once():
    mnist, raw = load("mnist"), MNIST.read()["train"]

    def rows(images):
        return sorted(hashlib.sha1(row).digest() for row in images)

    both = np.concatenate([mnist.train.images.numpy(), mnist.validation.images.numpy()])
    assert rows(both) == rows(raw.images)


def test_the_split_is_the_same_on_every_machine():
    both = (load("mnist").train, load("mnist").validation)
    digests = [hashlib.sha256(split.labels.numpy().tobytes()).hexdigest()[:16] for split in both]
    assert digests == ["862890e7b855d390", "e2d57a20e6fd9cc7"]


def test_train_and_validation_keep_the_sources_order():
    raw = MNIST.read()["train"]
    place = {hashlib.sha1(row).digest(): number for number, row in enumerate(raw.images)}
    for split in (load("mnist").train, load("mnist").validation):
        places = [place[hashlib.sha1(row).digest()] for row in split.images.numpy()]
        assert places == sorted(places)
        assert np.array_equal(raw.labels[places], split.labels.numpy())


def test_normalisation_makes_the_training_pixels_standard():
    mnist = load("mnist")
    [mean], [std] = mnist.normalization
    pixels = mnist.train.images.float() / 255
    assert mean == pytest.approx(pixels.mean().item(), rel=1e-4)
    assert std == pytest.approx(pixels.std().item(), rel=1e-4)


def test_the_test_split_is_opened_by_nothing_else(converted):
    (converted / "test.arrow").unlink()
    mnist = load("mnist")
    assert len(mnist.train.labels) + len(mnist.validation.labels) == 60_000
    assert not (converted / "test.arrow").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_test_split_is_one_line_that_says_what_to_do(converted, damage):
    path = converted / "test.arrow"
    if damage == "missing":
        path.unlink()
    else:
        rewrite(path, path.read_bytes()[:-100])
    with pytest.raises(
        InputError, match=r"the test split can't be read \(.*test\.arrow.*\); delete the folder"
    ) as caught:
        load("mnist").test()
    assert "\n" not in str(caught.value)


def test_a_later_load_converts_nothing(converted, monkeypatch):
    monkeypatch.setattr(mnist, "SHIPPED", Path("nowhere"))
    assert load("mnist").sizes["train"] == 50_000


def test_splits_are_mapped_without_a_warning_and_writing_does_not_reach_the_file(converted):
    before = hashlib.sha256((converted / "train.arrow").read_bytes()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("mnist").train.images.fill_(7)
    assert hashlib.sha256((converted / "train.arrow").read_bytes()).digest() == before


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train.arrow", "truncated"),
        ("train.arrow", "changed"),
        ("validation.arrow", "changed"),
        ("validation.arrow", "missing"),
        ("dataset.json", "truncated"),
        ("dataset.json", "missing"),
        ("dataset.json", "nonsense"),
    ],
)
def test_a_damaged_cache_is_converted_again_with_a_warning(converted, caplog, file, damage):
    path = converted / file
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncated": content[:-100],
        "changed": content[:middle] + bytes(byte ^ 1 for byte in content[middle : middle + 8]) + content[middle + 8 :],
        "nonsense": b"[]",
    }
    if damage == "missing":
        path.unlink()
    else:
        rewrite(path, damaged[damage])
    assert len(load("mnist").train.labels) == 50_000
    assert "is damaged" in caplog.text
    assert path.read_bytes() == content


# Loads it once more at each line that it is given.
LOADING = """
import sys
from takd.trainables.datasets import dataset
print("ready", flush=True)
for line in sys.stdin:
    dataset.load.cache_clear()
    data = dataset.load("mnist")
    print(len(data.train.labels), len(data.test().labels), flush=True)
"""


def test_two_processes_may_convert_at_once(converted):
    """Where nothing is in the cache, and where what is there is damaged."""
    both = [
        subprocess.Popen([sys.executable, "-c", LOADING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for damage in (lambda: shutil.rmtree(converted), lambda: (converted / "train.arrow").unlink()):
            damage()
            for process in both:
                process.stdin.write("again\n")
                process.stdin.flush()
            assert [process.stdout.readline() for process in both] == ["50000 10000\n"] * 2
            assert list(converted.parent.iterdir()) == [load("mnist").folder]
    finally:
        for process in both:
            process.communicate()


def test_of_two_conversions_the_first_stays_in_place_for_those_who_mapped_it(own_cache, monkeypatch):
    source = MNIST
    files = {}

    def read_while_another_process_converts():
        raw = source.read()
        folder = datasets._convert("mnist", source, lambda images: None).folder
        files.update({file: file.stat().st_ino for file in folder.iterdir()})
        return raw

    changed = replace(source, read=read_while_another_process_converts)
    monkeypatch.setitem(BUILT_IN, "mnist", replace(BUILT_IN["mnist"], source=changed))
    folder = load("mnist").folder
    assert len(files) == 5
    assert {file: file.stat().st_ino for file in folder.iterdir()} == files


def test_what_a_killed_conversion_left_is_swept_by_a_later_one(own_cache):
    old, new = (own_cache / "datasets" / f".tmp-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    load("mnist")
    assert (old.exists(), new.exists()) == (False, True)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, own_cache, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAKD_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cache .*file: can't be written \(Not a directory\); set TAKD_CACHE"):
        load("mnist")


def test_the_shipped_content_is_checked(own_cache, monkeypatch, tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "data")
    shutil.copy(tmp_path / "data/mnist/train.parquet", tmp_path / "data/mnist/test.parquet")
    monkeypatch.setattr(mnist, "SHIPPED", tmp_path / "data")
    with pytest.raises(InputError, match=r"dataset mnist: its content has digest \w+, expected \w+; install"):
        load("mnist")


def test_a_shipped_file_that_is_no_parquet_is_named(own_cache, monkeypatch, tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "data")
    (tmp_path / "data/mnist/train.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(mnist, "SHIPPED", tmp_path / "data")
    with pytest.raises(InputError, match=r"train\.parquet: can't be read as Parquet"):
        load("mnist")


def test_a_shipped_file_with_other_columns_is_told_which(own_cache, monkeypatch, tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "data")
    pq.write_table(pa.table({"image": [1]}), tmp_path / "data/mnist/test.parquet")
    monkeypatch.setattr(mnist, "SHIPPED", tmp_path / "data")
    with pytest.raises(InputError, match=r"test\.parquet: columns are image: int64; expected image: fixed_size_binary"):
        load("mnist")


def test_an_unknown_dataset_is_told_what_exists():
    with pytest.raises(InputError, match="dataset 'mnits' does not exist; valid: mnist, cifar10"):
        load("mnits")


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_torchvisions_folder_gives_the_shipped_dataset(own_cache, files, tmp_path, place):
    torchvision_folder(tmp_path / "mine" / place, files)
    imported = import_mnist(tmp_path / "mine")
    assert imported.digest == load("mnist").digest
    assert imported.folder == load("mnist").folder


def test_torchvisions_files_may_be_compressed(converted, files, tmp_path):
    for file in files.iterdir():
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), 1))
    assert import_mnist(tmp_path).sizes["train"] == 50_000


def test_a_folder_named_raw_beside_torchvisions_files_does_not_hide_them(converted, files, tmp_path):
    (torchvision_folder(tmp_path / "mine", files) / "raw").mkdir()
    assert import_mnist(tmp_path / "mine").sizes["train"] == 50_000


def test_an_import_mends_a_damaged_cache(converted, files, tmp_path):
    (converted / "train.arrow").unlink()
    assert len(import_mnist(torchvision_folder(tmp_path / "mine", files)).train.labels) == 50_000


def one_byte_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    rewrite(path, bytes(content))


def gzipped_with_damage(path: Path) -> None:
    content = gzip.compress(path.read_bytes(), 1)
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(content[:10] + b"\xff" * 50 + content[60:])


@pytest.mark.parametrize(
    ("file", "damage", "line"),
    [
        ("t10k-labels", Path.unlink, "t10k-labels-idx1-ubyte: missing; expected it, or t10k-labels-idx1-ubyte.gz"),
        (
            "train-labels",
            lambda path: rewrite(path, path.read_bytes()[:100]),
            r"train-labels-idx1-ubyte: 100 bytes with MD5 \w+; MNIST's has 60008 with MD5 a25bea7",
        ),
        (
            "t10k-labels",
            one_byte_changed,
            r"t10k-labels-idx1-ubyte: 10008 bytes with MD5 \w+; MNIST's has 10008 with MD5 2",
        ),
        (
            "t10k-labels",
            lambda path: path.rename(f"{path}.gz"),
            r"t10k-labels-idx1-ubyte\.gz: not a whole gzip file \(Not a gzipped",
        ),
        ("t10k-labels", gzipped_with_damage, r"t10k-labels-idx1-ubyte\.gz: not a whole gzip file \(Error -3"),
    ],
    ids=["missing", "truncated", "changed", "no gzip", "damaged gzip"],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(own_cache, files, tmp_path, file, damage, line):
    folder = torchvision_folder(tmp_path / "mine", files)
    damage(next(folder.glob(f"{file}*")))
    with pytest.raises(InputError, match=line) as caught:
        import_mnist(folder)
    assert "\n" not in str(caught.value)
    assert not own_cache.exists()


def test_a_folder_without_mnist_is_told_what_is_expected(tmp_path):
    with pytest.raises(
        InputError, match=r"--from .*none of MNIST's files here, in raw or in MNIST/raw; expected train"
    ):
        import_mnist(tmp_path)
    with pytest.raises(InputError, match="no such folder; expected train-images-idx3-ubyte, "):
        import_mnist(tmp_path / "nowhere")


def test_a_transfer_set_is_class_balanced_seeded_and_nested():
    labels = load("mnist").train.labels
    small, large = transfer_set(labels, 205, 0), transfer_set(labels, 2000, 0)
    assert sorted(labels[small].bincount().tolist()) == [20] * 5 + [21] * 5
    assert labels[large].bincount().tolist() == [200] * 10
    assert set(small.tolist()) <= set(large.tolist())
    assert torch.equal(large, large.sort().values)
    assert torch.equal(transfer_set(labels, 2000, 0), large)
    assert not torch.equal(transfer_set(labels, 2000, 1), large)


@pytest.mark.parametrize("examples", [0, 44_856])
def test_a_transfer_set_that_cannot_be_balanced_is_told_what_can(examples):
    labels = load("mnist").train.labels
    line = rf"recipe\.examples is {examples}; 1 to 44855 can be balanced over 10 classes \(class 5 has 4485\)"
    with pytest.raises(InputError, match=line):
        transfer_set(labels, examples, 0)
    assert labels[transfer_set(labels, 44_855, 0)].bincount().tolist() == [4486] * 5 + [4485] * 5


def test_the_cache_says_what_it_holds():
    about = json.loads((load("mnist").folder / "dataset.json").read_text())
    assert about["sizes"] == {"train": 50_000, "validation": 10_000, "test": 10_000}
