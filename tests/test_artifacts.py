"""The artifact store: readers see all of an artifact or none, and nothing damaged is used."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from search_spaces import InputError
from trainables.artifacts import DESCRIPTION, SOFT_TARGETS, WEIGHTS, ArtifactStore, soft_targets_file

KEY = "a" * 64
LOGITS = np.arange(60, dtype=np.float32).reshape(20, 3)
FILES = {WEIGHTS: b"weights", SOFT_TARGETS: soft_targets_file(LOGITS)}


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    store = ArtifactStore(str(tmp_path))
    store.prepare()
    return store


def publish(store: ArtifactStore, files=FILES) -> None:
    store.publish(KEY, {"input": {"model": "mlp-8"}, "outcome": {}}, files)


def test_what_is_published_is_found(store):
    assert store.check(KEY) is None
    publish(store)
    description = store.check(KEY, (WEIGHTS, SOFT_TARGETS))
    assert description is not None
    assert description["input"] == {"model": "mlp-8"}
    assert sorted(os.listdir(store.folder / KEY)) == sorted([DESCRIPTION, WEIGHTS, SOFT_TARGETS])


def test_soft_targets_come_back_as_they_were_memory_mapped(store):
    publish(store)
    found = store.soft_targets(KEY)
    np.testing.assert_array_equal(found, LOGITS)
    assert not found.flags.writeable
    assert not found.flags.owndata


@pytest.mark.parametrize("file", [WEIGHTS, SOFT_TARGETS, DESCRIPTION])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_artifact_is_set_aside_with_a_warning_that_names_it(store, caplog, file, damage):
    publish(store)
    path = store.path(KEY, file)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "truncated" else b"x" + content[1:])
    assert store.check(KEY) is None
    assert KEY[:12] in caplog.text
    assert not (store.folder / KEY).exists()
    [aside] = [entry for entry in store.folder.iterdir() if entry.name.startswith(".set-aside-")]
    publish(store)  # trained again
    assert store.check(KEY) is not None
    assert aside.exists()


def test_an_artifact_under_anothers_key_is_not_believed(store):
    publish(store)
    (store.folder / KEY).rename(store.folder / ("b" * 64))
    assert store.check("b" * 64) is None


def test_a_student_that_becomes_an_assistant_gets_its_soft_targets(store, caplog):
    publish(store, {WEIGHTS: b"weights"})
    assert store.check(KEY, (WEIGHTS,)) is not None
    assert store.check(KEY, (WEIGHTS, SOFT_TARGETS)) is None
    publish(store)
    assert store.check(KEY, (WEIGHTS, SOFT_TARGETS)) is not None


def test_of_two_writers_the_first_wins_and_neither_fails(store):
    publish(store)
    before = store.path(KEY, DESCRIPTION).stat().st_ino
    publish(store)
    assert store.path(KEY, DESCRIPTION).stat().st_ino == before
    assert os.listdir(store.folder) == [KEY]


def _publish_often(root: str) -> None:
    store = ArtifactStore(root)
    for _ in range(30):
        publish(store)


def test_readers_see_all_of_an_artifact_or_none_while_two_write_it(store):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_publish_often, args=(store.root,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if (store.folder / KEY).exists():
            assert store.check(KEY, (WEIGHTS, SOFT_TARGETS)) is not None
            seen += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen > 0
    assert [entry for entry in os.listdir(store.folder) if entry.startswith(".tmp")] == []


def test_a_half_written_artifact_is_invisible(store):
    temporary = store.folder / ".tmp-killed"
    temporary.mkdir()
    (temporary / WEIGHTS).write_bytes(b"wei")
    assert store.check(KEY) is None
    publish(store)
    assert store.check(KEY) is not None


def test_the_description_has_the_digest_of_every_file(store):
    publish(store)
    description = json.loads(store.path(KEY, DESCRIPTION).read_text())
    assert set(description["files"]) == set(FILES)
    assert description["key"] == KEY


def test_a_root_that_cant_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"root .*file: can't be written \(Not a directory\); use --root"):
        ArtifactStore(str(tmp_path / "file")).prepare()


def test_no_object_store_yet():
    with pytest.raises(InputError, match="object stores are not supported yet; expected a folder"):
        ArtifactStore("s3://bucket/runs")


def test_the_store_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, trainables.artifacts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
