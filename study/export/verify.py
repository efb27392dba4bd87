"""Whether an export is what it says: every digest, every key, and the test accuracy of its files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from takd.search_spaces import InputError
from takd.search_spaces.stage import key_of
from takd.study.export.exported import (
    BYTECODE,
    CARD,
    CHECKSUMS,
    RUNS,
    checksums,
    normalization_of,
    probabilities,
    read_card,
)
from takd.study.export.onnx_file import needs_onnx
from takd.trainables.datasets.dataset import load
from takd.trainables.store.storage import sha256


def verify_export(folder: Path, console: Console) -> list[str]:
    """What is wrong with an exported folder, each with the file's name; prints what holds.

    Nothing in it is run before all digests are known to be right. Needs no study. Raises InputError where it is none.
    """
    needs_onnx("takd verify")
    card = read_card(folder)
    wrong = list(_wrong_digests(folder, card)) or list(_wrong_keys(card))
    if wrong:
        return wrong
    console.print(f"{len(card['files'])} files, {CARD} and {CHECKSUMS}: every digest is right")
    console.print(f"the path's {len(card['path'])} keys: each is that of its input")
    return list(_wrong_metrics(folder, card, console))


def _wrong_digests(folder: Path, card: Mapping[str, Any]) -> Iterator[str]:
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        yield f"{CHECKSUMS}: can't be read"
        return
    files = {path.name: path for path in folder.iterdir() if path.name not in (CHECKSUMS, BYTECODE)}
    missing = sorted({*listed, *card["files"]} - set(files))
    yield from (f"{name}: missing" for name in missing)
    yield from (f"{name}: not in {CHECKSUMS}" for name in sorted(set(files) - set(listed)))
    contents = {name: path.read_bytes() for name, path in files.items() if name in listed and path.is_file()}
    changed = [name for name, content in contents.items() if sha256(content) != listed[name]]
    yield from (f"{name}: its SHA-256 is not the one in {CHECKSUMS}" for name in sorted(changed))
    for name, about in card["files"].items():
        if name in contents and name not in changed and sha256(contents[name]) != about["sha256"]:
            yield f"{name}: its SHA-256 is not the one in {CARD}"
    if not (missing or changed) and checksums(contents) != (folder / CHECKSUMS).read_text():
        yield f"{CHECKSUMS}: more is in it than checksums"


def _wrong_keys(card: Mapping[str, Any]) -> Iterator[str]:
    for stage in card["path"]:
        if key_of(stage["key_input"]) != stage["key"]:
            yield f"{CARD}: the key of the {stage['role']} {stage['model']} is not that of its input"
    if card["path"][-1]["key"] != card["stage_key"]:
        yield f"{CARD}: stage_key is not the key of the path's student"


def _wrong_metrics(folder: Path, card: Mapping[str, Any], console: Console) -> Iterator[str]:
    dataset = load(card["data"]["name"])
    if dataset.digest != card["data"]["digest"]:
        raise InputError(f"dataset {dataset.name}: its digest is not the card's; it can't be measured on this one")
    test = dataset.test()
    for name in RUNS:
        if name not in card["files"]:
            continue
        found = probabilities(name, (folder / name).read_bytes(), test.images, normalization_of(card))
        correct, said = int((found.argmax(axis=1) == test.labels.numpy()).sum()), card["files"][name]["test_correct"]
        if correct != said:
            yield f"{name}: {correct} of {len(test.labels)} test images right; the card says {said}"
        else:
            console.print(f"{name}: {100 * correct / len(test.labels):.2f} % on test, as the card says")
