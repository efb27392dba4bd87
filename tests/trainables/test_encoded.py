"""Images kept as the user's files have them: the data set that it would be as pixels, whoever reads it and how."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import make_stage
from image_folders import write_images
from PIL import Image
from torch import Tensor

from takd.search_spaces import InputError
from takd.study.data import import_files
from takd.trainables.datasets import conversion, decoding, splits
from takd.trainables.datasets import dataset as datasets
from takd.trainables.datasets.built_in import OWN
from takd.trainables.datasets.dataset import Dataset, load, load_for, taught_on
from takd.trainables.datasets.own_images import Wishes
from takd.trainables.datasets.splits import EncodedSplit, rows_of, some_of
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.derived import write_whole
from takd.trainables.training import streaming
from takd.trainables.training.loop import StageTraining, train
from takd.trainables.training.streaming import Stream

CPU = torch.device("cpu")
ROWS = torch.tensor([7, 3, 44, 3, *range(20, 30)])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of several sizes; among them a grey one, one that is turned, and a PNG with a palette."""
    folder = write_images(tmp_path_factory.mktemp("made") / "photos", suffix=".jpg", size=(24, 32))
    files = sorted((folder / "train").glob("*/*.jpg"))
    with Image.open(files[0]) as first:
        small = first.resize((20, 40))
        turned = Image.Exif()
        turned[0x0112] = 6
        small.save(files[1], exif=turned)
        small.convert("L").save(files[2])
        small.convert("P").save(files[3], "PNG")
    return folder


@pytest.fixture(scope="module")
def entries(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As pixels, and as it was; kept in several record batches, converted in processes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TAKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr(conversion, "_KEPT", 20)
        patched.setattr(decoding, "_MANY", 40)
        return converted(photos).folder, converted(photos, keep_encoded=True).folder


@pytest.fixture
def both(entries: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Dataset]:
    """Decoded in processes."""
    monkeypatch.setattr(decoding, "_MANY", 40)
    monkeypatch.setenv("TAKD_CACHE", str(entries[0].parents[1]))
    load.cache_clear()
    pixels, kept = (datasets._open("photos", folder) for folder in entries)
    return pixels, kept


def converted(folder: Path, **wishes: Any) -> Dataset:
    return import_files(OWN, folder, None, None, download=False, wishes=Wishes(**{"size": (16, 16)} | wishes))


def test_a_split_may_have_more_than_two_gigabytes_of_pixels():
    images, pixels = 2**31 // (3 * 512 * 512) + 1, 3 * 512 * 512
    column = pa.FixedSizeListArray.from_arrays(pa.array(splits._zeros(images * pixels)), pixels)
    sink = pa.MockOutputStream()
    write_whole(sink, pa.table({"image": column}))
    assert sink.size() > images * pixels > 2**31


def test_it_is_the_same_data_set_image_by_image_as_the_one_of_pixels(both):
    pixels, kept = both
    assert load("photos").folder == kept.folder != pixels.folder
    assert (kept.encoded or 0) > 0
    assert pixels.encoded is None
    for what in ("fingerprint", "normalization", "reading", "class_counts", "parts", "image_shape"):
        assert getattr(kept, what) == getattr(pixels, what), what
    for one, other in ((pixels.train, kept.train), (pixels.validation, kept.validation), (pixels.test(), kept.test())):
        assert isinstance(other.images, EncodedSplit)
        assert torch.equal(one.labels, other.labels)
        assert tuple(one.images.shape) == other.images.shape
        assert torch.equal(one.images[:], other.images[:])
    assert torch.equal(rows_of(pixels.train.images, ROWS), rows_of(kept.train.images, ROWS))
    files = [path for path in kept.folder.iterdir() if path.suffix == ".arrow"]
    assert sum(path.stat().st_size for path in files) < sum(kept.sizes.values()) * 3000  # JPEG files of 700 bytes each


def test_its_students_and_what_they_leave_are_the_same_to_the_last_bit(both, monkeypatch):
    """Also of a part of it, of images that are mixed, and of batches that go through in parts."""
    monkeypatch.setattr(splits, "COPIED", 0)  # no image is copied that is not needed
    monkeypatch.setattr(streaming, "AHEAD", 2)
    recipes: list[dict[str, Any]] = [
        {"model": "cnn", "examples": None, "batch_size": 7, "augment": "crop-flip", "views": 2},
        {"model": "mlp-8", "examples": 29, "batch_size": 16, "accumulate": 2, "augment": "mixup", "views": 2},
    ]
    for recipe in recipes:
        left = []
        for dataset in both:
            stage = make_stage(role="teacher", dataset=dataset.fingerprint, epochs=2, **recipe)
            left.append(train([stage], dataset, [[]])[0])
        pixels, kept = left
        assert all(torch.equal(weights, kept.weights[name]) for name, weights in pixels.weights.items())
        assert torch.equal(pixels.soft_targets, kept.soft_targets)
        assert pixels.selected.val_loss == kept.selected.val_loss


def test_images_of_both_data_sets_of_a_transfer_are_read_where_they_are(both, monkeypatch):
    monkeypatch.setattr(splits, "COPIED", 0)
    found = []
    for one in both:
        images = taught_on(one, both[1], with_own=True).train.images
        assert not isinstance(images, Tensor)
        found.append(torch.cat([images[ROWS + 20], images[slice(40, 50)], some_of(images, slice(80, 90))[:]]))
    assert torch.equal(*found)
    assert torch.equal(found[0][-10:], both[0].train.images[35:45])


def test_a_node_takes_it_from_the_root(both, monkeypatch, tmp_path):
    pixels, kept = both
    store = ArtifactStore(str(tmp_path / "runs"))
    store.keep_dataset(kept.fingerprint, kept.folder)
    assert store.has_dataset(pixels.fingerprint)
    monkeypatch.setenv("TAKD_CACHE", str(tmp_path / "cache"))
    load.cache_clear()
    fetched = load_for(pixels.fingerprint, store)
    assert fetched.encoded == kept.encoded
    assert torch.equal(fetched.train.images[:], pixels.train.images[:])


def test_what_is_expected_is_read_before_it_is_asked_for_and_all_else_when_it_is():
    """Whatever is asked for, and however late, a batch has its own images."""

    class Watched:
        shape, read = (100, 1, 2, 2), 0

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: Any) -> Tensor:
            self.read += 1
            return torch.arange(100)[index].view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    images = Watched()
    stream = Stream(images, CPU)
    batches = list(torch.randperm(100).split(10))
    stream.expect(batches)
    streaming._reader().submit(int).result()  # what was begun is done
    assert images.read == streaming.AHEAD
    for number, batch in enumerate(batches[:6]):
        assert stream.take(batch)[0][:, 0, 0, 0].tolist() == batch.tolist()
        assert stream.take(batch)[0][:, 0, 0, 0].tolist() == batch.tolist()  # once more, and not read again
        assert images.read <= streaming.AHEAD + number + 1
    partner = torch.randperm(100)
    own, others = stream.take(batches[9], partner)  # out of its turn
    assert others is not None
    assert (own[:, 0, 0, 0].tolist(), others[:, 0, 0, 0].tolist()) == (
        batches[9].tolist(),
        partner[batches[9]].tolist(),
    )
    stream.expect([slice(0, 4), slice(4, 8)], partner)
    assert [each[:, 0, 0, 0].tolist() for each in stream.take(slice(0, 4), partner)] == [
        [0, 1, 2, 3],
        partner[:4].tolist(),
    ]
    assert stream.take(slice(90, 93))[0][:, 0, 0, 0].tolist() == [90, 91, 92]


def test_a_step_never_has_more_images_than_a_few_batches(both, monkeypatch):
    """The largest piece that is decoded at once, over training, evaluation and soft targets."""
    pieces = []
    decoded = splits.decoded
    monkeypatch.setattr(
        splits, "decoded", lambda some, *given, **named: (pieces.append(len(some)), decoded(some, *given, **named))[1]
    )
    monkeypatch.setattr("takd.trainables.training.inputs.EVALUATION_BATCH", {True: 9})
    stage = make_stage("mlp-4", role="teacher", dataset=both[1].fingerprint, examples=None, epochs=1, batch_size=8)
    training = StageTraining([stage], both[1], [[]])
    training.run_epoch()
    [(_, trained)] = training.finish()
    assert trained.soft_targets.shape == (1, 45, 3)
    assert sum(pieces) >= 45 + 5 + 45
    known = {each.images.about["probed"] for each in (both[1].train, both[1].validation)}  # by which it is as it was
    assert max(piece for piece in pieces if piece not in known) <= 9


def test_images_that_are_decoded_otherwise_than_they_were_are_refused(both):
    kept = both[1].train.images
    kept.about["decoded"] = "0" * 64
    with pytest.raises(InputError, match=r"train.arrow: Pillow .* decodes its images otherwise here than Pillow"):
        kept[slice(0, 1)]


def test_a_process_that_ended_is_replaced(both):
    kept = both[1].train.images
    whole = kept[:]
    decoders = decoding._decoders(True, torch.get_num_threads())
    assert decoders.processes
    process = decoders.idle.get()
    process.kill()
    process.wait()
    decoders.idle.put(process)
    assert torch.equal(kept[:], whole)


def test_what_has_no_encoded_images_or_several_sizes_is_refused_in_one_line(own_cache, photos, tmp_path):
    np.savez(tmp_path / "made.npz", train_images=np.zeros((4, 8, 8), np.uint8))
    for place, kind, wishes, line in (
        (tmp_path / "made.npz", OWN, {}, r"--keep-encoded: .*made.npz has pixels and no encoded images; leave it out"),
        (photos, OWN, {"size": None}, r"the images have 3 sizes: .*; --size \d+, or another, brings all to one"),
        (photos, "cifar10", {"size": None}, r"--keep-encoded: is for images only; cifar10 has its own"),
    ):
        with pytest.raises(InputError, match=line):
            import_files(kind, place, None, None, False, Wishes(**{"size": (16, 16), "keep_encoded": True} | wishes))
    assert not list(own_cache.rglob("*.arrow"))


def test_a_broken_image_is_found_before_anything_is_kept(own_cache, photos, tmp_path):
    copied = shutil.copytree(photos, tmp_path / "photos")
    (copied / "train" / "ash" / "09.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 image can't be read .*09.jpg"):
        converted(copied, keep_encoded=True)
    pixels = converted(copied, skip_broken=True)
    kept = converted(copied, skip_broken=True, keep_encoded=True)
    assert kept.fingerprint == pixels.fingerprint
    assert torch.equal(kept.train.images[:], pixels.train.images[:])


def test_a_split_that_is_larger_than_memory_is_written_and_mapped(tmp_path):
    """Nothing is set aside for pages that nobody writes to."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    path, size = tmp_path / "train.arrow", 2 * pages
    with path.open("wb") as file:
        file.truncate(size)  # which takes no room on the disk either
    mapped = splits._map(path)
    assert (len(mapped), mapped[size - 1]) == (size, 0)
    assert splits._zeros(size)[size - 1] == 0


def test_a_large_file_is_read_whole_once_and_again_when_it_changed(both, monkeypatch, tmp_path):
    taken = []
    digest = splits.hashlib.file_digest
    monkeypatch.setattr(splits.hashlib, "file_digest", lambda *given: (taken.append(1), digest(*given))[1])
    monkeypatch.setattr(splits, "LARGE", 100)
    folder = shutil.copytree(both[0].folder, tmp_path / "entry")
    for opened in (1, 2):
        assert len(datasets._open("photos", folder).train.labels) == 45
        assert len(taken) == 2, opened  # train and validation
    content = (folder / "train.arrow").read_bytes()
    (folder / "train.arrow").write_bytes(content[:-9] + b"123456789")
    with pytest.raises(ValueError, match=r"train.arrow is not what was written"):
        datasets._open("photos", folder)
