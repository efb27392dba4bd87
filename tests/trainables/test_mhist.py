"""MHIST's form: what is converted, and what is wrong with a folder in one line. The images are made up."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from histology import write_mhist
from PIL import Image

from takd.search_spaces import InputError
from takd.trainables.datasets.dataset import Dataset, import_dataset, load
from takd.trainables.datasets.mhist import IMAGE_SHAPE, LABEL, NAME, PARTITION, VOTES, open_mhist

ROW = {NAME: 0, LABEL: 1, VOTES: 2, PARTITION: 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return write_mhist(tmp_path_factory.mktemp("made") / "mhist", train=40, test=12, size=32)


@pytest.fixture
def mhist(made, tmp_path) -> Path:
    """A copy to do with as a test likes."""
    return Path(shutil.copytree(made, tmp_path / "mhist"))


def table(folder: Path) -> list[list[str]]:
    with (folder / "annotations.csv").open(newline="") as file:
        return list(csv.reader(file))


def write_table(folder: Path, rows: list[list[str]]) -> None:
    with (folder / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def convert(folder: Path) -> Dataset:
    return import_dataset("mhist", open_mhist(folder))


def image_of(folder: Path, row: int) -> Path:
    """The image that a row of the table names; the header is row 1."""
    return folder / "images" / table(folder)[row - 1][0]


def test_what_is_converted_is_what_the_files_say(own_cache, made):
    dataset = convert(made)
    assert (dataset.classes, dataset.image_shape) == (("HP", "SSA"), (3, 32, 32))
    assert dataset.sizes == {"train": 36, "validation": 4, "test": 12}
    rows = [row for row in table(made)[1:] if row[3] == "test"]
    test = dataset.test()
    assert test.labels.tolist() == [int(row[1] == "SSA") for row in rows]
    for image, row in zip(test.images, rows, strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(made / "images" / row[0])))
    file = pa.ipc.open_file(pa.memory_map(str(dataset.folder / "test.arrow"))).read_all()
    assert file["annotators_ssa"].to_pylist() == [int(row[2]) for row in rows]


def test_load_finds_it_afterwards(own_cache, made):
    digest = convert(made).digest
    load.cache_clear()
    assert load("mhist").digest == digest


def test_validation_has_each_class_in_its_share(own_cache, tmp_path):
    dataset = convert(write_mhist(tmp_path / "mhist", train=100, test=4, size=16))
    assert dataset.class_counts == {"train": [64, 26], "validation": [7, 3], "test": [3, 1]}


def test_train_and_validation_are_the_training_images_each_once(own_cache, made):
    dataset = convert(made)
    both = torch.cat([dataset.train.images, dataset.validation.images])
    files = [np.asarray(Image.open(made / "images" / row[0])).tobytes() for row in table(made)[1:] if row[3] == "train"]
    assert sorted(image.permute(1, 2, 0).numpy().tobytes() for image in both) == sorted(files)


def test_a_subset_and_another_size_are_warnings(made, caplog):
    open_mhist(made)
    assert "is 32x32 RGB; MHIST's images are 224x224 RGB" in caplog.text
    assert "has 40 train, 12 test; MHIST as published has 2175 train, 977 test" in caplog.text


def test_images_of_mhists_size_are_no_warning(tmp_path, caplog):
    open_mhist(write_mhist(tmp_path / "mhist", train=2, test=2))
    assert IMAGE_SHAPE == (3, 224, 224)
    assert "RGB" not in caplog.text


def test_a_label_that_is_not_the_annotators_majority_is_a_warning(mhist, caplog):
    rows = table(mhist)
    rows[5][1:3] = ["SSA", "2"]
    write_table(mhist, rows)
    open_mhist(mhist)
    assert "row 6" in caplog.text
    assert "label SSA, but 2 of 7 annotators selected SSA (1 such rows)" in caplog.text


def test_an_image_that_is_there_twice_under_two_names_is_a_warning(own_cache, mhist, caplog):
    shutil.copy(image_of(mhist, 3), image_of(mhist, 50))
    convert(mhist)
    [warning] = [record.getMessage() for record in caplog.records if "twice" in record.getMessage()]
    assert "row 3: " in warning
    assert "row 50: " in warning


@pytest.mark.parametrize(
    ("row", "column", "value", "line"),
    [
        (
            1,
            LABEL,
            "Label",
            r"annotations\.csv: has no column 'Majority Vote Label'; columns are 'Image Name', 'Label'",
        ),
        (4, LABEL, "hp", r"annotations\.csv row 4: 'Majority Vote Label' is 'hp'; expected HP or SSA"),
        (5, PARTITION, "val", r"annotations\.csv row 5: 'Partition' is 'val'; expected train or test"),
        (6, VOTES, "8", r"annotations\.csv row 6: 'Number of .*' is '8'; expected 0 to 7"),
        (7, NAME, "gone.png", r"annotations\.csv row 7: .*images/gone\.png: there is no such file"),
        (8, NAME, "../x.png", r"annotations\.csv row 8: 'Image Name' is '\.\./x\.png'; expected the name of a file"),
        (9, NAME, "MHIST_0000.png", r"annotations\.csv row 9: .*MHIST_0000\.png: is there twice; first in .* row 2$"),
    ],
)
def test_a_row_that_is_wrong_is_named_with_what_is_valid(mhist, row, column, value, line):
    rows = table(mhist)
    rows[row - 1][ROW[column]] = value
    write_table(mhist, rows)
    with pytest.raises(InputError, match=line):
        open_mhist(mhist)


def test_empty_rows_are_counted(mhist):
    rows = table(mhist)
    rows[5][ROW[LABEL]] = "hp"
    write_table(mhist, [*rows[:2], [], *rows[2:]])
    with pytest.raises(InputError, match=r"annotations\.csv row 7: 'Majority Vote Label' is 'hp'"):
        open_mhist(mhist)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), r"can't be decoded \(image file is truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "is no PNG or JPEG image"),
        (lambda path: path.write_bytes(b""), "is no PNG or JPEG image"),
        (lambda path: path.write_text("an image"), "is no PNG or JPEG image"),
        (lambda path: Image.open(path).convert("L").save(path), "is 32x32 grey; expected 32x32 RGB, as .* is"),
        (lambda path: Image.open(path).resize((30, 32)).save(path), "is 30x32 RGB; expected 32x32 RGB, as .* is"),
    ],
    ids=["truncated", "header alone", "empty", "text", "grey", "another size"],
)
def test_an_image_that_is_wrong_is_named_with_its_row(own_cache, mhist, damage, line):
    damage(image_of(mhist, 33))
    with pytest.raises(InputError, match=rf"annotations\.csv row 33: .*MHIST_0031\.png: {line}") as caught:
        convert(mhist)
    assert "\n" not in str(caught.value)
    assert list((own_cache / "datasets").iterdir()) == []


def test_grey_images_are_refused_where_the_first_is_grey_too(mhist):
    Image.open(image_of(mhist, 2)).convert("L").save(image_of(mhist, 2))
    with pytest.raises(InputError, match=r"row 2: .*: is 32x32 grey; expected 224x224 RGB"):
        open_mhist(mhist)


@pytest.mark.parametrize(
    ("kept", "line"),
    [
        (lambda row: row[3] != "test", "no row has 'Partition' test"),
        (lambda row: row[3] != "test" or row[1] != "SSA", "no row of partition test is SSA; expected both of HP, SSA"),
    ],
)
def test_a_partition_that_lacks_something_is_named(mhist, kept, line):
    header, *rows = table(mhist)
    write_table(mhist, [header, *filter(kept, rows)])
    with pytest.raises(InputError, match=line):
        open_mhist(mhist)


def test_a_folder_without_mhist_is_told_what_is_expected(tmp_path):
    with pytest.raises(InputError, match=r"--from .*: expected MHIST's annotations\.csv and images/\*\.png in it"):
        open_mhist(tmp_path)


def test_a_table_of_other_bytes_is_one_line(mhist):
    (mhist / "annotations.csv").write_bytes(b"\xff\xfe\x00I\x00m")
    with pytest.raises(InputError, match=r"annotations\.csv: can't be read as CSV \("):
        open_mhist(mhist)
