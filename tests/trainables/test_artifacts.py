"""The artifact store: readers see all of an artifact or none, and nothing damaged is used.

One suite for a folder and for a bucket of a real S3 server on loopback.
"""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from takd.search_spaces import DatasetFingerprint, InputError, Recipe, Stage, soft_targets_of
from takd.trainables.store.artifacts import DESCRIPTION, SOFT_TARGETS, WEIGHTS, ArtifactStore
from takd.trainables.store.derived import DESCRIPTION as DERIVED_DESCRIPTION
from takd.trainables.store.derived import VALUES
from takd.trainables.store.storage import STALE_SECONDS, open_storage, sha256

OTHER = "b" * 64
DATA = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 20})
STAGE = Stage(role="teacher", dataset=DATA, model="mlp-8", recipe=Recipe(), seed=0)
KEY = STAGE.key
LOGITS = np.arange(60, dtype=np.float32).reshape(20, 3)


def soft_targets_file(logits: np.ndarray) -> bytes:
    """As artifacts had them inside, before what is derived had a place of its own: a column a view."""
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(view.reshape(-1)), view.shape[1]) for view in logits]
    table = pa.table(columns, names=[f"view_{number}" for number in range(len(columns))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


FILES = {WEIGHTS: b"weights", SOFT_TARGETS: soft_targets_file(LOGITS[None])}


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path) -> ArtifactStore:
    root = str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")
    store = ArtifactStore(root)
    store.prepare()
    return store


def publish(store: ArtifactStore, files=FILES) -> None:
    store.publish(KEY, {"input": {"model": "mlp-8"}, "outcome": {}}, files)


def place(store: ArtifactStore, name: str) -> str:
    """Where a file of the artifact is in the store's root."""
    if name == DESCRIPTION:
        return f"artifacts/{KEY}/{DESCRIPTION}"
    description = store.describe(KEY)
    assert description is not None
    return store.storage.place(f"artifacts/{KEY}", name, description["files"][name])


def test_what_is_published_is_found(store):
    assert store.check(KEY) is None
    publish(store)
    description = store.check(KEY, {WEIGHTS, SOFT_TARGETS})
    assert description is not None
    assert description["input"] == {"model": "mlp-8"}
    assert len(store.storage.names(f"artifacts/{KEY}")) == 3
    assert store.read(KEY, WEIGHTS) == b"weights"


def test_soft_targets_of_an_artifact_that_has_them_inside_are_read_from_there(store):
    """Studies of earlier versions: they are finished, and nothing is derived for them."""
    publish(store)
    description = store.check(KEY)
    assert store.lacking(STAGE, description, [None]) == []
    [found] = store.soft_targets(STAGE, [None])
    np.testing.assert_array_equal(found, LOGITS)
    assert not found.flags.writeable
    assert not found.flags.owndata
    assert store.storage.names("derived") == []


def derive(store: ArtifactStore, view: str | None = None, values: np.ndarray = LOGITS) -> str:
    """Soft targets of the artifact's weights; returns their key."""
    derived = soft_targets_of(STAGE, sha256(b"weights"), view)
    store.derived.publish(derived, STAGE.key, values, {"seconds": 0.1})
    return derived.key


def test_what_is_derived_comes_back_memory_mapped_by_view(store):
    publish(store, {WEIGHTS: b"weights"})
    description = store.check(KEY)
    assert store.lacking(STAGE, description, [None, "crop-flip 1"]) == [None, "crop-flip 1"]
    derive(store)
    assert store.lacking(STAGE, description, [None, "crop-flip 1"]) == ["crop-flip 1"]
    derive(store, "crop-flip 1", LOGITS + 1)
    plain, moved = store.soft_targets(STAGE, [None, "crop-flip 1"])
    np.testing.assert_array_equal(plain, LOGITS)
    np.testing.assert_array_equal(moved, LOGITS + 1)
    assert plain.dtype == np.float32
    assert not plain.flags.writeable
    assert not plain.flags.owndata


def test_what_is_derived_has_rows_of_any_shape(store):
    """As the maps of a layer have them."""
    maps = np.arange(120, dtype=np.float32).reshape(5, 2, 3, 4)
    np.testing.assert_array_equal(store.derived.read(derive(store, values=maps)), maps)


def test_other_weights_have_soft_targets_of_their_own():
    plain = soft_targets_of(STAGE, "c" * 64, None)
    assert (
        len({plain.key, soft_targets_of(STAGE, "d" * 64, None).key, plain.model_copy(update={"layer": "x"}).key}) == 3
    )


@pytest.mark.parametrize("file", [VALUES, DERIVED_DESCRIPTION])
@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_what_is_derived_and_damaged_is_derived_again(store, own_cache, caplog, file, damage):
    publish(store, {WEIGHTS: b"weights"})
    key = derive(store)
    path = f"derived/{key}/{file}"
    if file == VALUES:
        path = store.storage.place(f"derived/{key}", file, store.derived.describe(key)["files"][VALUES])
    content = store.storage.read(path)
    if damage == "gone":
        store.storage.delete(path)
    else:
        store.storage.replace(path, content[:-9] if damage == "truncated" else b"x" + content[1:])
    assert store.lacking(STAGE, store.check(KEY), [None]) == [None]
    if (file, damage) != (DERIVED_DESCRIPTION, "gone"):  # who writes it again replaces that
        assert key[:12] in caplog.text
    derive(store)
    np.testing.assert_array_equal(store.derived.read(key), LOGITS)


def test_what_is_derived_goes_a_day_after_its_weights(store, monkeypatch):
    publish(store, {WEIGHTS: b"weights"})
    kept = derive(store)
    other = soft_targets_of(STAGE, sha256(b"weights that were trained again since"), None)
    store.derived.publish(other, STAGE.key, LOGITS, {})
    store.prepare()
    assert set(store.storage.names("derived")) == {kept, other.key}  # its artifact may be about to come
    monkeypatch.setattr("takd.trainables.store.derived.STALE_SECONDS", -1.0)  # as if a day had passed
    store.prepare()
    assert store.storage.names("derived") == [kept]
    assert store.derived.check(kept)


@pytest.mark.parametrize("file", [WEIGHTS, SOFT_TARGETS, DESCRIPTION])
@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_artifact_is_set_aside_with_a_warning_that_names_it(store, caplog, file, damage):
    publish(store)
    path = place(store, file)
    content = store.storage.read(path)
    store.storage.replace(path, content[:-3] if damage == "truncated" else b"x" + content[1:])
    assert store.check(KEY) is None
    assert KEY[:12] in caplog.text
    assert DESCRIPTION not in store.storage.names(f"artifacts/{KEY}")
    [aside] = [name for name in store.storage.names("artifacts") if name.startswith(".set-aside-")]
    publish(store)  # trained again
    assert store.check(KEY) is not None
    assert aside in store.storage.names("artifacts")


@pytest.mark.parametrize("file", [WEIGHTS, SOFT_TARGETS])
def test_an_artifact_that_lacks_a_file_is_set_aside(store, caplog, file):
    publish(store)
    store.storage.delete(place(store, file))
    assert store.check(KEY) is None
    assert f"{file} has not the digest" in caplog.text


def test_a_damaged_file_is_not_read_even_where_nobody_checked_before(store, own_cache):
    publish(store)
    path = place(store, SOFT_TARGETS)
    store.storage.replace(path, b"x" + store.storage.read(path)[1:])
    with pytest.raises(ValueError, match="has not the digest"):
        store.soft_targets(STAGE, [None])


def test_without_its_description_an_artifact_is_not_there(store):
    publish(store)
    store.storage.delete(place(store, DESCRIPTION))
    assert store.check(KEY) is None
    publish(store)
    assert store.check(KEY, {WEIGHTS, SOFT_TARGETS}) is not None


def test_an_artifact_under_anothers_key_is_not_believed(store, caplog):
    publish(store)
    store.storage.replace(f"artifacts/{OTHER}/{DESCRIPTION}", store.storage.read(place(store, DESCRIPTION)))
    assert store.check(OTHER) is None
    assert OTHER[:12] in caplog.text


def test_of_two_writers_the_first_wins_and_neither_fails(store):
    publish(store)
    before = store.storage.read(place(store, DESCRIPTION))
    store.publish(KEY, {"input": {"model": "mlp-8"}, "outcome": {"second": True}}, FILES)
    assert store.storage.read(place(store, DESCRIPTION)) == before
    assert store.storage.names("artifacts") == [KEY]


def _publish_often(root: str, writer: int) -> None:
    """Each writer has weights of its own, as machines that round differently have."""
    store = ArtifactStore(root)
    for turn in range(15):
        publish(store, {**FILES, WEIGHTS: b"weights of %d" % writer})
        if writer == 0 and turn % 3 == 0:
            store.storage.delete(f"artifacts/{KEY}/{DESCRIPTION}")  # so that there is something to publish


def test_readers_see_all_of_an_artifact_or_none_while_two_write_it(store, caplog):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_publish_often, args=(store.root, number)) for number in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if store.check(KEY, {WEIGHTS, SOFT_TARGETS}) is not None:
            seen += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen > 0
    assert caplog.text == ""  # nothing half-written was ever taken for damaged
    assert [name for name in store.storage.names("artifacts") if name != KEY] == []


def test_the_description_has_the_digest_of_every_file(store):
    publish(store)
    description = json.loads(store.storage.read(place(store, DESCRIPTION)))
    assert set(description["files"]) == set(FILES)
    assert description["key"] == KEY


def test_a_checkpoint_is_replaced_read_and_dropped(store):
    assert store.load_checkpoint(KEY) is None
    store.save_checkpoint(KEY, b"epoch 1")
    store.save_checkpoint(KEY, b"epoch 2")
    assert store.load_checkpoint(KEY) == b"epoch 2"
    store.drop_checkpoint(KEY)
    store.drop_checkpoint(KEY)
    assert store.load_checkpoint(KEY) is None


@pytest.mark.parametrize(
    "damage", [lambda it: it[:-2], lambda it: it[:30], lambda it: b"\xff" + it[1:], lambda it: b""]
)
def test_a_damaged_checkpoint_is_never_read(store, caplog, damage):
    store.save_checkpoint(KEY, b"epoch 1")
    store.storage.replace(f"checkpoints/{KEY}", damage(store.storage.read(f"checkpoints/{KEY}")))
    assert store.load_checkpoint(KEY) is None
    assert KEY[:12] in caplog.text
    assert store.storage.names("checkpoints") == []


class Evil:
    """What a pickle can be: a program."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.write_text, (self.proof, "this ran")


def test_nothing_that_is_read_back_can_run_code(store, tmp_path, caplog):
    proof = tmp_path / "proof"
    planted = pickle.dumps(Evil(proof))
    pickle.loads(planted)
    assert proof.exists()  # the trap works
    proof.unlink()
    publish(store, {WEIGHTS: planted, SOFT_TARGETS: planted})  # with digests that are right
    store.save_checkpoint(KEY, planted)
    for read in (lambda: store.check(KEY), lambda: store.read(KEY, WEIGHTS), lambda: store.load_checkpoint(KEY)):
        read()
    with pytest.raises(pa.ArrowInvalid):
        store.soft_targets(STAGE, [None])
    store.storage.replace(place(store, DESCRIPTION), planted)
    assert store.check(KEY) is None
    assert not proof.exists()


def test_what_a_killed_writer_left_is_invisible_and_swept_away_after_a_day(tmp_path):
    store = ArtifactStore(str(tmp_path))
    store.prepare()
    for name in (".tmp-killed", ".tmp-writing"):
        (tmp_path / "artifacts" / name).mkdir(parents=True)
        (tmp_path / "artifacts" / name / WEIGHTS).write_bytes(b"wei")
    long_ago = (tmp_path / "artifacts").stat().st_mtime - STALE_SECONDS - 1
    os.utime(tmp_path / "artifacts" / ".tmp-killed", (long_ago, long_ago))
    assert store.check(KEY) is None
    store.prepare()
    assert store.storage.names("artifacts") == [".tmp-writing"]


def test_a_buckets_files_come_to_a_node_once(bucket, own_cache):
    store = ArtifactStore(bucket)
    publish(store)
    store.soft_targets(STAGE, [None])
    before = {file: file.stat().st_mtime_ns for file in own_cache.rglob("*") if file.is_file()}
    assert len(before) == 1
    store.soft_targets(STAGE, [None])
    assert {file: file.stat().st_mtime_ns for file in own_cache.rglob("*") if file.is_file()} == before


def test_a_root_that_cant_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"root .*file: can't be written \(File exists\); use --root"):
        ArtifactStore(str(tmp_path / "file")).prepare()


def test_a_bucket_that_cant_be_written_is_one_line(bucket):
    with pytest.raises(InputError, match=r"root s3://nowhere.*: can't be written \(.*\); use --root") as caught:
        ArtifactStore(bucket.replace("s3://takd", "s3://nowhere")).prepare()
    assert "\n" not in str(caught.value)


def test_a_root_of_an_unknown_kind_is_one_line():
    with pytest.raises(InputError, match=r"root ftp://here/there: .*; expected a folder, s3://\.\.\. or gs://"):
        open_storage("ftp://here/there")


def test_a_secret_in_a_root_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="has a secret in it") as caught:
        open_storage("s3://key:hush@bucket/runs")
    assert "hush" not in str(caught.value)


def test_the_store_needs_no_torch():
    code = "import sys, takd.trainables.store.artifacts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
