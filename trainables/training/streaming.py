"""Images that are no tensor where a model trains: read, and brought there, a few batches before they are asked for."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from takd.trainables.datasets.splits import SplitImages, rows_of

AHEAD = 3  # batches

Index = slice | Tensor


class _Wanted(NamedTuple):
    asked: Index  # as it will be asked for
    rows: Index  # the same, where the images are read
    partners: Tensor | None  # of each the one that it is mixed with, likewise


class _Read(NamedTuple):
    both: tuple[Tensor, Tensor | None]  # bytes of images, and of those that they are mixed with
    there: torch.cuda.Event | None  # when they are on the device, of a copy that nobody has waited for


class Stream:
    """Images by batches: what is expected is read in a thread, in its turn, and all else when it is asked for.

    To a GPU they are copied from pinned memory, beside what it computes. What a batch has does not depend on when it
    was read.
    """

    def __init__(self, images: SplitImages, device: torch.device) -> None:
        self.images, self.device = images, device
        self.expected: Iterator[_Wanted] = iter(())
        self.coming: deque[tuple[Index, Future[_Read]]] = deque()
        self.partner: Tensor | None = None  # of what is coming
        self.last: tuple[Index, Tensor | None, _Read] | None = None  # which a model in the loop asks for once more
        on_gpu = device.type == "cuda" and torch.cuda.is_available()
        self.copies = torch.cuda.Stream(device) if on_gpu else None

    def expect(self, indices: Iterable[Index], partner: Tensor | None = None) -> None:
        """These will be asked for, in this order, and nothing any more that was expected before.

        `partner` has for each image the one that it is mixed with.
        """
        while self.coming:
            self.coming.pop()[1].cancel()
        self.last, self.partner, wanted = None, partner, list(indices)
        tensors = [each for each in wanted if isinstance(each, Tensor)]
        rows = iter(torch.cat(tensors).cpu().split([*map(len, tensors)]) if tensors else ())  # of a GPU's at once
        others = None if partner is None else partner.cpu()

        def each(index: Index) -> _Wanted:
            own = index if isinstance(index, slice) else next(rows)
            return _Wanted(index, own, None if others is None else others[own])

        self.expected = map(each, wanted)
        for _ in range(AHEAD):
            self._begin()

    def take(self, index: Index, partner: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Bytes on the device `[batch, channels, height, width]`, and those of their partners."""
        if self.last is not None and _same(self.last[0], index) and partner is self.last[1]:
            return self.last[2].both
        if self.coming and _same(self.coming[0][0], index) and partner is self.partner:
            read = self.coming.popleft()[1].result()
            self._begin()
        else:
            own = index if isinstance(index, slice) else index.cpu()
            read = self._read(_Wanted(index, own, None if partner is None else partner[index].cpu()), None)
        read = self._arrived(read)
        self.last = index, partner, read
        return read.both

    def _arrived(self, read: _Read) -> _Read:
        """On the device, for what is computed from now on."""
        if read.there is None:
            pixels, others = read.both
            return _Read((pixels.to(self.device), None if others is None else others.to(self.device)), None)
        now = torch.cuda.current_stream(self.device)
        now.wait_event(read.there)
        for each in read.both:
            if each is not None:
                each.record_stream(now)
        return read

    def _begin(self) -> None:
        if (wanted := next(self.expected, None)) is not None:
            self.coming.append((wanted.asked, _reader().submit(self._read, wanted, self.copies)))

    def _read(self, wanted: _Wanted, copies: torch.cuda.Stream | None) -> _Read:
        """Where they are read, or with `copies` on the device."""
        pixels = rows_of(self.images, wanted.rows)
        others = None if wanted.partners is None else rows_of(self.images, wanted.partners)
        if copies is None:
            return _Read((pixels, others), None)
        with torch.cuda.stream(copies):
            others = None if others is None else self._copied(others)
            return _Read((self._copied(pixels), others), copies.record_event())

    def _copied(self, pixels: Tensor) -> Tensor:
        """To the GPU, for which nobody waits."""
        return pixels.pin_memory().to(self.device, non_blocking=True)


def _same(one: Index, other: Index) -> bool:
    """Whether two indices are one: by where they lie, since a GPU's numbers are not looked at. Both are in use."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.data_ptr() == other.data_ptr() and one.shape == other.shape
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


@lru_cache
def _reader() -> ThreadPoolExecutor:
    """One thread for all that this process streams: batches are read in their order."""
    return ThreadPoolExecutor(1, "takd-reader")
