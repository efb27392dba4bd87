"""What becomes of a study whose Optuna storage is damaged, locked by nobody, or away for a while."""

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from conftest import complete, proposals, tiny_space

from takd.search_spaces import DatasetFingerprint, InputError
from takd.study.cli import main
from takd.study.folder import StudyFolder, study_folder, without_password
from takd.study.search import storages
from takd.study.search.optimization import Search, create_search, open_search
from takd.study.search.storages import open_optuna
from takd.trainables.store.storage import PATIENCE, open_storage


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    made = study_folder(str(tmp_path), "tiny")
    made.prepare()
    return made


def start(folder: StudyFolder) -> Search:
    mnist = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})
    return create_search(folder, tiny_space(), mnist)


NO_CODE, NO_FIELDS = (b'{"op_code":%d,"worker_id":"w"}' % code for code in (99, 5))


@pytest.mark.parametrize(
    "damage",
    [b"\0" * 40, b'{"op_code":5,"worker', b"42", b"{}", b"\xff\xfe", NO_CODE, NO_FIELDS],
    ids=["nul", "half", "42", "{}", "bytes", "no such code", "no fields"],
)
@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "at the end"])
def test_a_damaged_line_of_the_journal_is_named_and_what_is_before_it_can_be_kept(folder, damage, last):
    search = start(folder)
    complete(search, search.ask())
    before = len(folder.journal.read_bytes().splitlines())
    complete(search, search.ask())
    lines = folder.journal.read_bytes().splitlines()
    at = len(lines) - 1 if last else before
    lines[at] = damage
    folder.journal.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(InputError) as caught:
        open_search(folder)
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{folder.journal}: line {at + 1} is damaged. Kept are all finished stages")
    command = line.partition("to go on with these: ")[2].partition(", and run")[0]
    subprocess.run(["sh", "-c", command], check=True)
    again = start(folder)
    kept = [trial for trial in again.proposed() if trial.state.is_finished()]
    assert len(kept) == 1
    assert len(again.reclaim()) + len(proposals(again)) == 5


def test_what_is_no_file_in_the_journals_place_is_one_line(folder):
    folder.journal.mkdir()
    with pytest.raises(InputError, match=r"optuna.journal: can't be read or written \(Is a directory\)"):
        open_search(folder)


@pytest.mark.parametrize("there", [False, True])
def test_a_lock_of_the_journal_that_nobody_holds_any_more_holds_nobody_up(folder, monkeypatch, there):
    lock = f"{folder.journal}.lock"
    os.symlink(folder.journal if there else "/nowhere/optuna.journal", lock)
    long_ago = time.time() - 60
    os.utime(lock, (long_ago, long_ago), follow_symlinks=False)
    started = time.monotonic()
    search = start(folder)
    assert time.monotonic() - started < 5
    if there:
        return
    os.symlink("/nowhere/optuna.journal", lock)  # just made: its holder may see the journal by another path
    monkeypatch.setattr(storages, "LOCK_SECONDS", 1.0)
    started = time.monotonic()
    search.ask()
    assert time.monotonic() - started >= 0.8
    assert not os.path.lexists(lock)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:p@ss@db.host/takd", "postgresql://me:***@db.host/takd"),
        ("postgresql://me:p%40ss@db.host:5432/takd", "postgresql://me:***@db.host:5432/takd"),
        ("postgresql://me:p/a?b#c@d@db.host/takd", "postgresql://me:***@db.host/takd"),
        ("postgresql://:p:a@db.host/takd", "postgresql://:***@db.host/takd"),
        ("postgresql:///takd?user=me&password=p@ss&host=/run", "postgresql:///takd?user=me&password=***&host=/run"),
        ("postgresql://me@db.host/takd", "postgresql://me@db.host/takd"),
        ("postgresql://db.host:5432/takd?host=/run", "postgresql://db.host:5432/takd?host=/run"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("nonsense", "nonsense"),
    ],
)
def test_no_part_of_a_password_is_shown(url, shown):
    assert without_password(url) == shown
    assert url == shown or url not in repr(StudyFolder("/runs", "tiny", url))


def test_a_password_that_a_url_can_not_hold_is_refused_in_one_line_without_it(tmp_path):
    for password in ("p@ss", "p@ss:word"):
        folder = study_folder(str(tmp_path), "tiny", f"postgresql://me:{password}@127.0.0.1:1/takd")
        with pytest.raises(
            InputError, match=r"postgresql://me:\*\*\*@127.0.0.1:1/takd: the password has an @"
        ) as caught:
            open_search(folder)
        assert "ss" not in str(caught.value).replace("password", "")


def test_a_bucket_that_is_away_is_one_line_for_who_looks_and_is_waited_for_by_who_trains(tmp_path, capsys, monkeypatch):
    """A study's process and its workers wait; here one thread does, until there is a server."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    root = f"s3://takd/runs?endpoint_override={place}&scheme=http&region=us-east-1"
    looking = threading.current_thread()
    monkeypatch.setattr(PATIENCE, "seconds", 60.0)
    monkeypatch.setattr(PATIENCE, "ended", lambda: threading.current_thread() is looking)
    found: list[object] = []

    def train() -> None:
        try:
            found.append(open_storage(root).names("artifacts"))
        except OSError as error:  # the server is there, and has no such bucket
            found.append(error)

    training = threading.Thread(target=train)
    training.start()
    assert main(["list", "--root", root, "--storage", f"sqlite:///{tmp_path}/studies.db"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith(f"takd: root {root}: doesn't answer for ")
    assert "Traceback" not in said
    assert training.is_alive()
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", place.split(":")[1]])
    try:
        training.join(60)
        assert len(found) == 1
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_of_processes_that_open_a_new_database_at_the_same_moment_all_find_its_tables(kind, tmp_path, request):
    url = request.getfixturevalue("database") if kind == "postgres" else f"sqlite:///{tmp_path}/studies.db"
    folder, together = study_folder(str(tmp_path), "mine", url), Barrier(6)

    def opened() -> int:
        together.wait()
        return len(open_optuna(folder).get_all_studies())

    with ThreadPoolExecutor(6) as pool:
        assert [each.result() for each in [pool.submit(opened) for _ in range(6)]] == [0] * 6
