"""CIFAR-10 and CIFAR-100 from files of the archives' form.

The real archives can't be had here: these are made as Python 2 pickled them, with torchvision's table of MD5 sums
patched to theirs.
"""

import hashlib
import io
import os
import pickle
import pickletools
import struct
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from takd.search_spaces import InputError
from takd.study.data import import_files
from takd.trainables.datasets.dataset import Dataset, load

KNOWN = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def python2(value: object) -> bytes:
    """The opcodes with which Python 2's pickle, protocol 2, makes a value; without its memo, which changes nothing."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(each) for pair in value.items() for each in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, bytes):
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, np.ndarray):
        shape = b"".join(map(python2, value.shape))
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        return empty + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + python2(value.tobytes()) + b"tb"
    raise TypeError(type(value))


def pickled(value: object) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


def contents(name: str) -> dict[str, bytes]:
    """The files of an archive, with 10 images a batch."""
    rng = np.random.default_rng(0)
    known = KNOWN[name]
    files = {}
    for file, _ in [*known.train_list, *known.test_list]:
        entry = {
            b"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8),
            b"filenames": [b"a_%d.png" % each for each in range(10)],
            b"batch_label": b"a batch",
        }
        if name == "cifar10":
            entry[b"labels"] = [each % 10 for each in range(10)]
        else:
            entry |= {
                b"fine_labels": [each % 5 * 9 for each in range(10)],
                b"coarse_labels": list(range(10)),
            }
        files[file] = pickled(entry)
    classes = [b"class %d" % each for each in range(10 if name == "cifar10" else 100)]
    files[known.meta["filename"]] = pickled({known.meta["key"].encode(): classes, b"num_vis": 3072})
    return files


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def patch_sums(monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes], archive: bytes = b"") -> None:
    known = KNOWN[name]
    for table in ("train_list", "test_list"):
        monkeypatch.setattr(known, table, [[file, md5(files[file])] for file, _ in getattr(known, table)])
    monkeypatch.setattr(known, "meta", known.meta | {"md5": md5(files[known.meta["filename"]])})
    monkeypatch.setattr(known, "tgz_md5", md5(archive))


def archive_of(name: str, files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{KNOWN[name].base_folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def convert(name: str, folder: Path) -> Dataset:
    return import_files(name, folder, None, None, download=False)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("form", ["archive", "folder", "files"])
def test_images_labels_and_classes_are_those_of_the_batches(own_cache, tmp_path, monkeypatch, name, form):
    files, known = contents(name), KNOWN[name]
    archive = archive_of(name, files)
    patch_sums(monkeypatch, name, files, archive)
    write(tmp_path, {known.filename: archive} if form == "archive" else {})
    write(tmp_path / (known.base_folder if form == "folder" else ""), files if form != "archive" else {})
    dataset = convert(name, tmp_path)
    train = sum(1 for _ in known.train_list) * 10
    assert dataset.sizes == {"train": train - train // 10, "validation": train // 10, "test": 10}
    assert dataset.classes[:2] == ("class 0", "class 1")
    [(test, _)] = known.test_list
    entry = pickle.loads(files[test], encoding="bytes")
    assert dataset.test().images.flatten(1).tolist() == entry[b"data"].tolist()
    assert dataset.test().labels.tolist() == entry[b"labels" if name == "cifar10" else b"fine_labels"]
    assert load(name).digest == dataset.digest


def test_a_file_of_another_md5_is_named(own_cache, tmp_path, monkeypatch):
    files = contents("cifar10")
    patch_sums(monkeypatch, "cifar10", files)
    write(tmp_path, files | {"data_batch_3": files["data_batch_3"] + b" "})
    with pytest.raises(InputError, match=r"data_batch_3: \d+ bytes with MD5 \w+; the published file has \w+"):
        convert("cifar10", tmp_path)


def test_a_file_that_is_missing_is_named(own_cache, tmp_path, monkeypatch):
    files = contents("cifar10")
    patch_sums(monkeypatch, "cifar10", files)
    (write(tmp_path, files) / "test_batch").unlink()
    with pytest.raises(InputError, match=r"test_batch: can't be read \(No such file"):
        convert("cifar10", tmp_path)


def test_an_archive_of_another_md5_is_not_opened(own_cache, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"an archive")
    with pytest.raises(InputError, match=r"tar\.gz: 10 bytes with MD5 \w+; the published archive has c58f30108f718f92"):
        convert("cifar10", tmp_path)


def test_an_archive_that_lacks_a_file_is_one_line(own_cache, tmp_path, monkeypatch):
    files = contents("cifar100")
    archive = archive_of("cifar100", {"meta": files["meta"]})
    patch_sums(monkeypatch, "cifar100", files, archive)
    write(tmp_path, {"cifar-100-python.tar.gz": archive})
    with pytest.raises(InputError, match=r"tar\.gz: can't be read as an archive \(.*cifar-100-python/train"):
        convert("cifar100", tmp_path)


def test_a_folder_without_cifar_is_told_what_is_expected(tmp_path):
    with pytest.raises(InputError, match=r"has neither cifar-10-python\.tar\.gz nor cifar-10-batches-py; --download"):
        convert("cifar10", tmp_path)


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (pickle.dumps(Evil(), 2), "it asks for posix.system, which no batch does"),
        (pickle.dumps(print, 2), "it asks for __builtin__.print"),
        (pickle.dumps(np.zeros(3), 2), "it asks for numpy"),
        (b"\x80\x02cnumpy\ndtype\nU\x01OK\x00K\x01\x87R.", "it has an array of b'O'; expected bytes"),
        (pickled({b"data": np.zeros((2, 3), np.uint8)}).replace(b"K\x02K\x03t", b"K\x02K\x04t"), "is not whole"),
        (pickled({b"a": [1, 2, 3]})[:-3], "is no batch of CIFAR's"),
        (b"\x80\x02(lp0\n.", "is no batch of CIFAR's"),
        (b"nonsense", "is no batch of CIFAR's"),
        (b"", "is no batch of CIFAR's"),
    ],
)
def test_a_pickle_that_is_no_batch_runs_nothing(own_cache, tmp_path, monkeypatch, content, line):
    """As if its MD5 were the published one."""
    files = contents("cifar10") | {"data_batch_2": content}
    patch_sums(monkeypatch, "cifar10", files)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, files)
    with pytest.raises(
        InputError, match=f"data_batch_2: is no batch of CIFAR's .*{line.removeprefix('is no b')}|{line}"
    ):
        convert("cifar10", tmp_path)
    assert not (tmp_path / "evil").exists()


def test_the_test_files_are_python_2s():
    """NumPy and the standard library read them, and they have the opcodes of strings that Python 3 never writes."""
    content = contents("cifar10")["data_batch_1"]
    entry = pickle.loads(content, encoding="bytes")
    assert entry[b"data"].shape == (10, 3072)
    names = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    assert {"SHORT_BINSTRING", "BINSTRING", "GLOBAL", "REDUCE", "BUILD"} <= names
    assert {"BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "STACK_GLOBAL"} & names == set()


def test_a_download_that_fails_is_one_line(own_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=r"--download: http://127\.0\.0\.1:9/.* can't be had \(.*refused"):
        import_files("cifar10", tmp_path, None, None, download=True)


def test_a_download_is_fetched_checked_and_converted(own_cache, tmp_path, monkeypatch):
    files = contents("cifar10")
    archive = archive_of("cifar10", files)
    patch_sums(monkeypatch, "cifar10", files, archive)
    write(tmp_path / "served", {"cifar-10-python.tar.gz": archive})
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
        dataset = import_files("cifar10", tmp_path / "fetched", None, None, download=True)
        server.shutdown()
    assert dataset.sizes == {"train": 45, "validation": 5, "test": 10}
