"""A user's images as they are: in folders, archives, tables, Parquet and npz, of any size and mode."""

import csv
import io
import json
import logging
import re
import runpy
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_folders import CLASSES, write_images
from PIL import Image

from takd.search_spaces import InputError
from takd.study.data import import_files
from takd.study.export.exported import reading_of
from takd.study.export.predict import read_images
from takd.trainables.datasets.built_in import OWN
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.datasets.division import divided, divided_by_group
from takd.trainables.datasets.own_images import Wishes

SHARED = Path(__file__).parents[3] / "shared"
FOUND, PHOTOS = SHARED / "found" / "make_images.py", SHARED / "data" / "ants-bees" / "ants-bees.tar"
SPLIT = (0.7, 0.15, 0.15)


@pytest.fixture(autouse=True)
def lines(caplog) -> Callable[[], list[str]]:
    """What was said, as the command line says it."""
    caplog.set_level(logging.INFO, "takd")
    return lambda: [record.getMessage() for record in caplog.records]


def convert(place: Path, name: str | None = None, validation: int | None = None, **wishes: Any) -> Dataset:
    return import_files(OWN, place, name, validation, download=False, wishes=Wishes(**wishes))


def refused(line: str, place: Path, **wishes: Any) -> str:
    """The one line that says why."""
    with pytest.raises(InputError, match=line) as caught:
        convert(place, **wishes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The folders that people have


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Iterator[Path]:
    if not FOUND.is_file():
        pytest.skip("there is no ../shared/found/make_images.py, which makes the folders")
    folder, arguments = tmp_path_factory.mktemp("found"), sys.argv
    sys.argv = [str(FOUND), str(folder)]
    try:
        runpy.run_path(str(FOUND), run_name="__main__")
    finally:
        sys.argv = arguments
    return folder


def test_found_sizes_are_said_with_the_flag_and_brought_to_one(own_cache, found, lines):
    line = refused(r"^the images have 116 sizes: \d+x\d+ \(\d+\), .* and 111 more; .*; --size \d+, or", found / "sizes")
    assert "24 to 89 wide" in line
    assert lines() == []
    dataset = convert(found / "sizes", size=(32, 32))
    assert (dataset.image_shape, dataset.sizes) == ((3, 32, 32), {"train": 81, "validation": 9, "test": 27})


def test_found_modes_are_read_with_a_line_a_conversion(own_cache, found, lines):
    dataset = convert(found / "modes", size=(32, 32))
    said = [
        "1 image animated: the first frame is taken",
        "2 images with a palette, which became RGB",
        "1 image CMYK, which became RGB",
        "1 image grey with transparency, laid over white, which became RGB",
        "2 images with transparency, laid over white",
        "2 images of 16 bits a pixel, scaled to 8",
        "1 image of 1 bit a pixel, which became grey",
        "3 images grey, which became RGB",
    ]
    assert [line for line in lines() if "image" in line and "twice" not in line] == said
    images = dict(zip(names(dataset, "train"), dataset.train.images, strict=True)) | dict(
        zip(names(dataset, "validation"), dataset.validation.images, strict=True)
    )
    for name in ("train/a/sixteen.png", "train/a/sixteen.tif"):
        levels = images[name][0].flatten().long()
        assert (levels.min(), levels.max(), levels.unique().numel()) == (0, 255, 256)
    square = images["train/a/rgba.png"].permute(1, 2, 0)
    assert (square[8:24, 8:24] == square.new_tensor((255, 0, 0))).all()
    assert (square[:8] == 255).all()


def test_found_exif_what_tells_the_classes_on_train_does_on_turned_images(own_cache, found, lines):
    dataset = convert(found / "exif")
    assert "40 images turned upright, as the EXIF orientation says" in lines()
    means = torch.stack([dataset.train.images[dataset.train.labels == each].float().mean(dim=0) for each in (0, 1)])
    test = dataset.test()
    nearest = torch.cdist(test.images.float().flatten(1), means.flatten(1)).argmin(dim=1)
    assert torch.equal(nearest, test.labels)


def test_found_own_validation_is_the_validation_split(own_cache, found):
    dataset = convert(found / "own-val")
    assert dataset.sizes == {"train": 60, "validation": 15, "test": 18}
    assert dataset.examples("validation").part == "validation"
    assert set(names(dataset, "validation")) == {f"valid/{each}/v{number}.png" for each in "abc" for number in range(5)}
    assert len(dataset.train.labels) == 60
    assert convert(found / "own-val", validation=15).digest == dataset.digest
    with pytest.raises(InputError, match=r"--validation 6: .* has a validation split of its own, 15 images"):
        convert(found / "own-val", validation=6)


def test_found_no_split_is_divided_by_class_or_says_so(own_cache, found, lines):
    refused(r"has the classes a, b, c and no splits; --split 70/15/15 makes splits$", found / "no-split")
    dataset = convert(found / "no-split", split=SPLIT)
    assert dataset.class_counts == {"train": [14] * 3, "validation": [3] * 3, "test": [3] * 3}
    assert "skipped 1, in no class folder: stray.png" in lines()


def test_found_junk_is_skipped_and_counted(own_cache, found, lines):
    dataset = convert(found / "junk")
    assert (dataset.classes, dataset.sizes) == (("a", "b", "c"), {"train": 54, "validation": 6, "test": 18})
    [line] = lines()
    assert line.startswith(
        "skipped 7, no images by their names: labels.csv, train/.DS_Store, train/.ipynb_checkpoints/,"
    )


def test_found_broken_images_are_listed_at_once_or_left_out(own_cache, found, lines):
    line = refused(r"^4 images can't be read \(--skip-broken goes on without\): ", found / "broken")
    gone = {"train/a/000.png", "train/a/001.png", "train/b/000.png", "train/b/cut.jpg"}
    assert all(name in line for name in gone)
    assert "train/b/jpeg.png" not in line
    assert list(own_cache.rglob("*.arrow")) == []
    dataset = convert(found / "broken", skip_broken=True)
    assert dataset.sizes == {"train": 52, "validation": 6, "test": 18}
    [said] = lines()
    assert re.match(r"4 images that can't be read are left out: .*train/b/cut\.jpg \(image file is truncated", said)
    there = set(names(dataset, "train") + names(dataset, "validation"))
    assert "train/b/jpeg.png" in there
    assert not gone & there
    examples = dataset.examples("train")
    assert examples.part_size == 62
    files = sorted(str(file.relative_to(found / "broken")) for file in (found / "broken/train").glob("*/*"))
    assert tuple(files[row] for row in examples.rows) == examples.names


def test_found_a_rare_class_without_validation_is_a_warning(own_cache, found, lines):
    assert convert(found / "rare").class_counts["validation"] == [5, 5, 0]
    assert lines() == ["no validation image of c (4 in train); what is measured there says nothing of that"]


def test_found_extreme_images_are_converted_with_a_warning_that_names_them(own_cache, found, lines):
    assert convert(found / "extreme", size=(32, 32)).sizes["train"] == 57
    assert lines()[0] == "1 image grey, which became RGB"
    assert re.match(r"2 images .*extreme/train/a/dot\.png \(1x1\), .*extreme/train/a/wide\.png \(4000x3\)$", lines()[1])


@pytest.mark.parametrize(
    ("folder", "fit"), [("modes", "crop"), ("exif", "crop"), ("sizes", "pad"), ("sizes", "stretch")]
)
def test_what_is_predicted_of_is_read_as_the_test_split_was(own_cache, found, folder, fit):
    dataset = convert(found / folder, size=(24, 20), fit=fit)
    files = [found / folder / name for name in names(dataset, "test")]
    card = json.loads(json.dumps({"input": {"shape": ["batch", 3, 20, 24], "reading": dataset.reading.values()}}))
    assert np.array_equal(read_images(files, reading_of(card)), dataset.test().images)


@pytest.mark.skipif(not PHOTOS.is_file(), reason="there is no ../shared/data/ants-bees/ants-bees.tar")
def test_photographs_as_they_are_distributed(own_cache, lines):
    dataset = convert(PHOTOS, size=(224, 224))
    assert (dataset.name, dataset.classes, dataset.image_shape) == ("ants-bees", ("ants", "bees"), (3, 224, 224))
    assert dataset.sizes == {"train": 221, "validation": 24, "test": 153}
    said = "there is no test split: val is the test split, and 24 images of train are held out for validation"
    assert said in lines()


# Folders


def names(dataset: Dataset, split: str) -> list[str]:
    found = dataset.examples(split).names
    assert found is not None
    return list(found)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_train_and_val_alone_are_train_and_test(own_cache, trees, lines, name):
    expected = convert(trees)
    (trees / "test").rename(trees / name)
    found = convert(trees)
    assert (found.digest, found.sizes) == (expected.digest, expected.sizes)
    assert lines()[-1].startswith("there is no test split: val is the test split, and 5 images of train are held out")


def test_images_may_lie_deeper_than_their_class(own_cache, trees):
    expected = convert(trees)
    (trees / "train/ash/deeper").mkdir()
    (trees / "train/ash/19.png").rename(trees / "train/ash/deeper/19.png")
    assert convert(trees).digest == expected.digest


@pytest.mark.parametrize("suffix", [".PNG", ".Jpg", ".webp", ".BMP", ".tiff", ".GIF"])
def test_every_kind_of_file_is_an_image_in_any_case(own_cache, trees, suffix):
    file = trees / "test/ash/00.png"
    Image.open(file).save(file.with_name(f"00{suffix}"))
    file.unlink()
    assert convert(trees).sizes["test"] == 9


def test_a_class_without_a_test_image_is_a_warning(own_cache, trees, lines):
    shutil.rmtree(trees / "test/ash")
    assert convert(trees).class_counts["test"] == [0, 3, 2]
    assert lines() == ["no test image of ash (18 in train); what is measured there says nothing of that"]


def test_colours_that_are_found_late_make_all_rgb(own_cache, tmp_path, lines):
    folder = write_images(tmp_path / "trees", "L")
    Image.new("RGB", (8, 6), "red").save(folder / "test/birch/01.png")
    dataset = convert(folder)
    assert dataset.image_shape == (3, 6, 8)
    assert lines() == ["58 images grey, which became RGB"]


def test_colours_may_be_asked_for(own_cache, made, lines):
    grey = convert(made, color="grey")
    assert (grey.image_shape, grey.reading.color) == ((1, 6, 8), "grey")
    assert lines() == ["59 images in colour, which became grey"]
    expected = Image.open(made / names(grey, "test")[0]).convert("L")
    assert np.array_equal(grey.test().images[0, 0], expected)


def test_a_divided_folder_is_divided_the_same_each_time(own_cache, made):
    first, again = (convert(made / "train", name, split=SPLIT) for name in ("one", "two"))
    assert (first.digest, first.file_digests) == (again.digest, again.file_digests)
    places = [dataset_rows for split in ("train", "validation", "test") for dataset_rows in first.examples(split).rows]
    assert sorted(places) == list(range(50))
    assert first.examples("test").part == "all"
    assert convert(made / "train", "three", split=(0.8, 0.1, 0.1)).digest != first.digest


def test_splits_of_its_own_are_not_divided(made):
    refused(r"--split: .* has splits of its own: test, train$", made, split=SPLIT)
    with pytest.raises(InputError, match="--validation: --split says already"):
        convert(made / "train", validation=3, split=SPLIT)


def archived(folder: Path, suffix: str) -> Path:
    file = folder.with_name(f"{folder.name}{suffix}")
    if suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for each in sorted(folder.rglob("*")):
                archive.write(each, each.relative_to(folder.parent))
    else:
        with tarfile.open(file, f"w:{suffix.rpartition('.')[2]}" if suffix != ".tar" else "w") as archive:
            archive.add(folder, ".")
    return file


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_an_archive_is_the_folder_in_it(own_cache, trees, suffix):
    expected = convert(trees)
    found = convert(archived(trees, suffix))
    assert (found.name, found.digest) == ("trees", expected.digest)
    assert names(found, "test") == names(expected, "test")


def test_a_damaged_archive_is_one_line(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    refused(r"a\.zip: can't be unpacked \(", tmp_path / "a.zip")


def test_all_that_cant_be_read_is_refused(own_cache, trees):
    for file in trees.glob("train/ash/*.png"):
        file.write_bytes(b"")
    refused(r"trees: no training image is of class ash", trees, skip_broken=True)


def test_where_an_example_comes_from_is_kept(own_cache, made):
    dataset = convert(made)
    train_rows, held = dataset.examples("train"), dataset.examples("validation")
    assert (train_rows.part, held.part, train_rows.part_size) == ("train", "train", 50)
    assert sorted([*train_rows.rows, *held.rows]) == list(range(50))
    files = sorted(str(file.relative_to(made)) for file in made.glob("train/*/*"))
    for examples, split in ((train_rows, dataset.train), (held, dataset.validation)):
        assert examples.names == tuple(files[row] for row in examples.rows)
        for name, image in zip(examples.names, split.images, strict=True):
            assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(made / name)))


def test_an_entry_of_an_earlier_version_says_how_to_know_its_examples(own_cache, made):
    dataset = convert(made)
    about = json.loads((dataset.folder / "dataset.json").read_text())
    (dataset.folder / "dataset.json").write_text(
        json.dumps({k: v for k, v in about.items() if k not in ("parts", "reading")})
    )
    (dataset.folder / "examples.parquet").unlink()
    load.cache_clear()
    earlier = load("trees")
    assert (earlier.digest, earlier.reading) == (dataset.digest, dataset.reading)
    with pytest.raises(InputError, match=r"where its images come from is not known .*; run again: takd data images"):
        earlier.examples("train")


def test_what_ships_is_converted_again_where_its_examples_are_not_known(own_cache):
    mnist = load("mnist")
    (mnist.folder / "examples.parquet").unlink()
    load.cache_clear()
    examples = load("mnist").examples("validation")
    assert (examples.part, examples.part_size, examples.names, len(examples.rows)) == ("train", 60_000, None, 10_000)


# Tables


@pytest.fixture
def listed(trees) -> list[dict[str, str]]:
    """A row an image of the training images, which lie in their folders; a group is three of a class."""
    files = sorted((trees / "train").glob("*/*.png"))
    return [
        {
            "image": str(file.relative_to(trees)),
            "label": file.parent.name,
            "group": f"{file.parent.name}-{int(file.stem) // 3}",
        }
        for file in files
    ]


def write_table(file: Path, rows: list[dict[str, str]]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    with file.open("w", newline="", encoding="utf-8-sig") as sink:
        writer = csv.DictWriter(sink, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_names_the_images_and_keeps_groups_together(own_cache, trees, listed, suffix):
    dataset = convert(trees, table=write_table(trees / f"labels{suffix}", listed), split=SPLIT)
    assert dataset.classes == CLASSES
    by_name = {row["image"]: row for row in listed}
    groups = {split: {by_name[name]["group"] for name in names(dataset, split)} for split in dataset.sizes}
    assert (
        not groups["train"] & groups["validation"]
        | groups["train"] & groups["test"]
        | groups["validation"] & groups["test"]
    )
    assert 28 <= dataset.sizes["train"] <= 41
    assert all(sum(counts) >= 4 for counts in dataset.class_counts.values())
    for split in dataset.sizes:
        assert [listed[row]["image"] for row in dataset.examples(split).rows] == names(dataset, split)


def test_a_tables_splits_are_what_it_says(own_cache, trees, listed):
    rows = [row | {"split": ["train", "Val", "test"][number % 3]} for number, row in enumerate(listed)]
    rows = [{key: row[key] for key in ("image", "label", "split")} for row in rows]
    dataset = convert(trees, table=write_table(trees / "labels.csv", rows))
    for split, name in (("train", "train"), ("validation", "Val"), ("test", "test")):
        assert names(dataset, split) == [row["image"] for row in rows if row["split"] == name]


def test_validation_that_is_held_out_keeps_groups_together_too(own_cache, trees, listed):
    rows = [row | {"split": "test" if row["group"].endswith(("-0", "-1")) else "train"} for row in listed]
    dataset = convert(trees, table=write_table(trees / "labels.csv", rows), validation=9)
    by_name = {row["image"]: row["group"] for row in rows}
    groups = [{by_name[name] for name in names(dataset, split)} for split in ("train", "validation")]
    assert not groups[0] & groups[1]
    assert 6 <= dataset.sizes["validation"] <= 12
    assert dataset.sizes["test"] == 18


def test_a_table_is_found_beside_the_images_and_its_numbers_are_in_order(own_cache, trees, listed):
    rows = [row | {"label": str(9 + CLASSES.index(row["label"]))} for row in listed]
    write_table(trees / "labels.csv", rows)
    assert convert(trees, table=Path("labels.csv"), split=SPLIT).classes == ("9", "10", "11")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda rows: rows[3].update(image="gone.png"),
            r"labels\.csv row 5: .*trees/gone\.png: there is no such file$",
        ),
        (lambda rows: rows[3].update(image=""), r"labels\.csv row 5: 'image' is empty"),
        (lambda rows: rows[3].update(image=rows[1]["image"]), r"labels\.csv row 5: .* is there twice; first in row 3$"),
        (lambda rows: rows[3].update(label=""), r"labels\.csv row 5: 'label' is empty; expected the image's class"),
        (
            lambda rows: rows[1].update(label="yew"),
            r"labels\.csv row 3: 'label' is 'yew': class yew is in no training image; those are of ash, birch, cedar$",
        ),
        (
            lambda rows: rows[2].update(split="exam"),
            r"labels\.csv row 4: 'split' is 'exam'; expected train, validation \(or val\) or test$",
        ),
        (
            lambda rows: rows[2].update(group="p", split="train") or rows[4].update(group="p", split="test"),
            r"labels\.csv row 6: group 'p' is in test, and in row 4 in train; expected one split for a group$",
        ),
        (lambda rows: [row.pop("label") for row in rows], r"labels\.csv: has no column 'label'; columns are 'image'"),
        (
            lambda rows: [row.pop("split") for row in rows],
            r"labels\.csv has no column 'split'.*; --split 70/15/15 makes",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line_that_names_the_row(own_cache, trees, listed, change, line):
    rows = [row | {"group": "", "split": ["train", "test"][number % 2]} for number, row in enumerate(listed)]
    change(rows)
    refused(line, trees, table=write_table(trees / "labels.csv", rows))
    assert list(own_cache.rglob("*.arrow")) == []


def test_no_table_is_said(trees):
    refused(r"--table none\.csv: there is no such file", trees, table=Path("none.csv"))


def test_each_class_is_divided_by_its_shares():
    labels = np.repeat(np.arange(3, dtype=np.uint8), (20, 40, 1))
    found = divided(labels, SPLIT)
    assert [np.bincount(found[labels == each], minlength=3).tolist() for each in range(3)] == [
        [14, 3, 3],
        [28, 6, 6],
        [1, 0, 0],
    ]
    assert not np.array_equal(found[:14], np.zeros(14))  # not the first ones


def test_groups_are_divided_near_the_shares():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 120, 2000)
    labels = (groups % 4 + rng.integers(0, 2, 2000)).astype(np.uint8)
    found = divided_by_group(labels, groups, SPLIT)
    for group in np.unique(groups):
        assert len(np.unique(found[groups == group])) == 1
    shares = np.stack([np.bincount(found[labels == each], minlength=3) / (labels == each).sum() for each in range(5)])
    assert np.abs(shares - SPLIT).max() < 0.05


# Parquet files of the Hugging Face Hub


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def hub_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """The folder's images, as the Hub has them."""
    return [
        {"image": {"bytes": file.read_bytes(), "path": file.name}, "label": CLASSES.index(file.parent.name)}
        for file in sorted((folder / split).glob("*/*.png"))
    ]


def write_hub(file: Path, rows: list[dict[str, Any]], classes: tuple[str, ...] | None = CLASSES) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    table = pa.Table.from_pylist(rows)
    if classes:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=7)


@pytest.fixture
def hub(made, tmp_path) -> Path:
    """Two shards of training images."""
    rows = hub_rows(made, "train")
    write_hub(tmp_path / "hub/data/train-00000-of-00002.parquet", rows[:30])
    write_hub(tmp_path / "hub/data/train-00001-of-00002.parquet", rows[30:])
    write_hub(tmp_path / "hub/data/test-00000-of-00001.parquet", hub_rows(made, "test"))
    return tmp_path / "hub"


def test_the_hubs_files_are_the_folder_that_they_were_made_of(own_cache, made, hub, monkeypatch):
    expected = convert(made)
    found = convert(hub)
    assert (found.digest, found.classes, found.sizes) == (expected.digest, CLASSES, expected.sizes)
    monkeypatch.setattr("takd.trainables.datasets.conversion._SLICE", 7 * 6 * 8 * 3)
    assert convert(hub, "slices").file_digests == found.file_digests


def test_one_file_may_be_divided_and_resized(own_cache, made, tmp_path):
    write_hub(tmp_path / "0000.parquet", hub_rows(made, "train"), classes=None)
    dataset = convert(tmp_path / "0000.parquet", name="one", split=SPLIT, size=(4, 4))
    assert (dataset.classes, dataset.image_shape) == (("0", "1", "2"), (3, 4, 4))
    assert dataset.sizes == {"train": 35, "validation": 8, "test": 7}


def test_broken_rows_are_all_named(own_cache, hub, made):
    rows = hub_rows(made, "test")
    rows[2]["image"]["bytes"] = None
    rows[5]["image"]["bytes"] = b"<html>"
    write_hub(hub / "data/test-00000-of-00001.parquet", rows)
    line = refused(r"^2 images can't be read", hub)
    assert re.search(r"test-00000-of-00001\.parquet row 2 \(has no bytes\); .*\.parquet row 5 \(is no PNG,", line)
    assert convert(hub, skip_broken=True).sizes["test"] == 7


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda rows: rows[4].update(label=3), r"test-\S+ row 4: 'label' is 3; expected 0 to 2, for a class of"),
        (lambda rows: rows[4].update(label=-1), r"test-\S+ row 4: 'label' is -1; expected 0 to 2"),
        (lambda rows: rows[4].update(label=None), r"test-\S+ row 4: 'label' is None; expected 0 to 2"),
        (lambda rows: [row.update(image="a") for row in rows], r"test-\S+: column 'image' is string; expected bytes"),
        (lambda rows: [row.pop("label") for row in rows], r"test-\S+: expected one column 'label', found 0; columns"),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_one_line(own_cache, hub, made, change, line):
    rows = hub_rows(made, "test")
    change(rows)
    write_hub(hub / "data/test-00000-of-00001.parquet", rows)
    refused(line, hub)


def test_a_damaged_parquet_file_is_one_line(own_cache, hub):
    file = hub / "data/train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    refused(r"train-00001-of-00002\.parquet: can't be read as Parquet \(", hub)


# MedMNIST


def write_npz(file: Path, channels: int = 3, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, number in (("train", 30), ("val", 6), ("test", 9)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, 28, 28, 3)[: 3 + (channels > 1)], dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(number) % 3).astype(np.uint8)[:, None]
    arrays |= changes
    np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})
    return file


@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_of_medmnist_has_its_own_splits(own_cache, tmp_path, channels, monkeypatch):
    monkeypatch.setattr("takd.trainables.datasets.conversion._SLICE", 4 * 28 * 28 * channels)
    file = write_npz(tmp_path / "bloodmnist.npz", channels)
    dataset = convert(file)
    assert (dataset.name, dataset.classes, dataset.image_shape) == ("bloodmnist", ("0", "1", "2"), (channels, 28, 28))
    arrays = np.load(file)
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        images = {"train": dataset.train, "validation": dataset.validation}.get(split) or dataset.test()
        expected = arrays[f"{name}_images"].reshape(-1, 28, 28, channels).transpose(0, 3, 1, 2)
        assert np.array_equal(images.images, expected)
        assert images.labels.tolist() == arrays[f"{name}_labels"][:, 0].tolist()
    assert convert(file, name="small", size=(14, 14)).image_shape == (channels, 14, 14)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train_labels": np.zeros((30, 14), np.uint8)}, r"train_labels is uint8 of 30x14; expected one whole number"),
        ({"test_labels": np.zeros((8, 1), np.uint8)}, r"test_labels has 8 rows, of 9 images"),
        (
            {"test_labels": np.full((9, 1), 7, np.uint8)},
            r"test_images row 0: class 7 is in no training image; those are",
        ),
        ({"test_images": np.zeros((9, 28, 28), np.float32)}, r"test_images is float32 of 9x28x28; expected uint8"),
        (
            {"train_images": np.zeros((30, 28, 28, 28), np.uint8)},
            r"train_images is uint8 of 30x28x28x28; expected uint8",
        ),
        ({"train_labels": None}, r"has no train_images and train_labels; it has train_images, val_images"),
        ({"train_labels": np.array([{}] * 30)}, r"can't be read as an archive of MedMNIST \(Object arrays cannot"),
    ],
)
def test_what_is_wrong_with_an_npz_is_one_line(own_cache, tmp_path, changes, line):
    refused(line, write_npz(tmp_path / "a.npz", **changes))


def test_a_damaged_npz_is_one_line(tmp_path):
    file = write_npz(tmp_path / "a.npz")
    file.write_bytes(file.read_bytes()[:-30])
    refused(r"a\.npz: can't be read as an archive of MedMNIST", file)


def test_what_is_none_of_these_is_told_what_is(tmp_path):
    (tmp_path / "a.txt").touch()
    refused(r"--from .*a\.txt: expected a folder of images, an archive of one .* or an \.npz", tmp_path / "a.txt")
