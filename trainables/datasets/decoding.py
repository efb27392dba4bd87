"""Encoded images of a data set, decoded on all cores a slice at a time; what is found on the way is kept.

Many images are decoded in processes, few in threads. Python's lock is free while Pillow decodes, but for a small image
most of the time goes into the Python around that. The processes are children of `subprocess` rather than of
`multiprocessing`, which would run the main script in them once more.
"""

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np

from takd.trainables.datasets.reading import (
    BROKEN,
    COLOURED,
    EXTREME_SIZE,
    OTHER_SIZE,
    Block,
    Encoded,
    Finding,
    Reading,
)
from takd.trainables.datasets.sources import Bytes

_MANY = 2_000  # images, from which on processes pay for their start
_BLOCK = 64  # images that one thread or process decodes at a time
_FEW = 8  # images that are decoded at once, by nobody else


class Decoders:
    """As many threads as there are cores; each decodes by itself, or has a process that does."""

    def __init__(self, images: int, cores: int | None = None) -> None:
        self.cores = cores or len(os.sched_getaffinity(0))
        self.threads = ThreadPoolExecutor(self.cores)
        self.processes = images >= _MANY
        self.idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def __enter__(self) -> Self:
        if self.processes:
            for _ in range(self.cores):
                self.idle.put(_process())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.threads.shutdown(cancel_futures=True)
        while not self.idle.empty():
            process = self.idle.get()
            process.kill()
            process.communicate()

    def read(self, blocks: Sequence[Block], out: Sequence[Bytes]) -> list[list[Finding]]:
        """Each block's findings, in order; its images are in `out`."""
        return list(self.threads.map(self._in_a_process if self.processes else Block.read, blocks, out))

    def _in_a_process(self, block: Block, out: Bytes) -> list[Finding]:
        process = self.idle.get()
        try:
            if process.poll() is not None:  # it ended when it was asked before
                process = _process()
            assert process.stdin is not None
            assert process.stdout is not None
            pickle.dump((block, out.shape), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            findings: list[Finding] = pickle.load(process.stdout)
            if process.stdout.readinto(out.reshape(-1).data) != out.size:  # type: ignore[attr-defined]
                raise EOFError
            return findings
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise RuntimeError(f"a process that decodes images ended with {process.wait()}; is there memory?") from None
        finally:
            self.idle.put(process)


def _process() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C is the parent's to handle
    )


def serve() -> None:
    """A process's side: blocks in, findings and pixels out, until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed meanwhile is no answer
    while True:
        try:
            block, shape = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pixels = np.zeros(shape, np.uint8)
        findings = block.read(pixels)
        try:
            pickle.dump(findings, answers, pickle.HIGHEST_PROTOCOL)
            answers.write(pixels.data)
            answers.flush()
        except BrokenPipeError:
            return


def decoded(encoded: Sequence[bytes], reading: Reading, many: int, cores: int) -> Bytes:
    """Uint8 [n, channels, height, width], by as many cores, of images that were found to be whole before.

    `many` is how many there are of which these are some: for those of a large set processes are started, once, and stay
    as long as this one.
    """
    images = np.zeros((len(encoded), *reading.image_shape), np.uint8)
    if len(encoded) <= _FEW:
        found = [Block(encoded, reading, True, False).read(images)]
    else:
        decoders = _decoders(many >= _MANY, cores)
        found = [
            each for _, each in _by_blocks(decoders, encoded, images, 2, lambda few: Block(few, reading, True, False))
        ]
    if broken := [why for findings in found for _, kind, why in findings if kind == BROKEN]:
        raise ValueError(f"an image that could be decoded when it was converted can't be now: {broken[0]}")
    return images


def _by_blocks(
    decoders: Decoders,
    encoded: Sequence[Encoded],
    images: Bytes,
    turns: int,
    block: Callable[[Sequence[Encoded]], Block],
) -> list[tuple[int, list[Finding]]]:
    """Decodes into `images`, in about so many blocks a core; where each block begins, and its findings."""
    step = max(1, min(_BLOCK, ceil(len(encoded) / (turns * decoders.cores))))
    starts = range(0, len(encoded), step)
    blocks = [block(encoded[each : each + step]) for each in starts]
    found = decoders.read(blocks, [images[each : each + step] for each in starts])
    return list(zip(starts, found, strict=True))


@lru_cache
def _decoders(processes: bool, cores: int) -> Decoders:
    return Decoders(_MANY if processes else 0, cores).__enter__()


@dataclass
class Survey:
    """What has been found in all images so far."""

    broken: list[tuple[str, int, str]] = field(default_factory=list)  # part, place in it, why
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # width and height, of others than expected
    extreme: list[tuple[str, int, tuple[int, int]]] = field(default_factory=list)
    conversions: Counter[str] = field(default_factory=Counter)
    coloured: bool = False  # and all were to be grey

    def add(self, part: str, place: int, kind: str, detail: Any) -> None:
        if kind == BROKEN:
            self.broken.append((part, place, detail))
        elif kind == OTHER_SIZE:
            self.sizes[detail] += 1
        elif kind == EXTREME_SIZE:
            self.extreme.append((part, place, detail))
        elif kind == COLOURED:
            self.coloured = True
        else:
            self.conversions[kind] += 1


@dataclass(frozen=True)
class EncodedImages:
    """The images of one part of a source; a slice of them is decoded when it is asked for."""

    part: str
    encoded: Sequence[Encoded]
    reading: Reading
    resized: bool
    automatic: bool
    survey: Survey
    decoders: Callable[[], Decoders]
    keeps: bool = False  # what the images are decoded from is asked for too

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.encoded), *self.reading.image_shape)

    def __getitem__(self, rows: slice) -> Bytes:
        """uint8 [n, channels, height, width]"""
        return self.with_encoded(rows)[0]

    def with_encoded(self, rows: slice) -> tuple[Bytes, list[bytes]]:
        """Those images, and what they are decoded from, where that is kept; empty where there is nothing to read."""
        start, stop, _ = rows.indices(len(self.encoded))
        encoded = self.encoded[start:stop]
        if self.keeps:
            encoded = [_content(each) for each in encoded]
        return self._decoded(start, encoded), [each if isinstance(each, bytes) else b"" for each in encoded]

    def _decoded(self, start: int, encoded: Sequence[Encoded]) -> Bytes:
        images, decoders = np.zeros((len(encoded), *self.reading.image_shape), np.uint8), self.decoders()
        look = bool(self.survey.sizes)

        def block(few: Sequence[Encoded]) -> Block:
            return Block(few, self.reading, self.resized, self.automatic, look)

        for first, findings in _by_blocks(decoders, encoded, images, 4, block):
            for number, kind, detail in findings:
                self.survey.add(self.part, start + first + number, kind, detail)
        return images


def _content(encoded: Encoded) -> Encoded:
    """What is in a file; one that can't be read stays what it is, and that is found when it is decoded."""
    try:
        return Path(encoded).read_bytes() if isinstance(encoded, str | Path) else encoded
    except OSError:
        return encoded
