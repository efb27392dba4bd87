"""One model that several processes train: each rank takes its part of every batch, and all step by the same gradients.

What they leave is what one process leaves, within floating-point tolerance: the batches, their order, the masks of
dropout and the means of batch normalisation are those of the whole batch, whoever has which part of it.
"""

import os
import socket
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from takd.trainables.models.dropout import PartOfBatch
from takd.trainables.models.synchronised import Synchronised
from takd.trainables.training.lanes import LaneModel

JOIN_SECONDS = 120.0  # that ranks wait for each other when they begin
# That a rank waits for what another says within an epoch. One that is gone is noticed at once, by its connection or by
# whoever started it: this is for one that stands still.
WAIT_SECONDS = 600.0
_SIOCGIFADDR = 0x8915  # Linux: the address of a network interface


class Meeting:
    """Where the ranks of one training find each other: on the host of the first, at its address alone."""

    def __init__(self, host: str) -> None:
        listening = socket.create_server((host, 0))
        self.host, self.port = host, listening.getsockname()[1]
        # torch's own would listen at every address of the machine.
        self.store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=JOIN_SECONDS),
            master_listen_fd=listening.detach(),
        )


class Share(NamedTuple):
    """What a rank does of a batch."""

    examples: Tensor  # its indices
    counts: float  # for how much its mean loss counts in that of the batch, in sum 1 over all ranks
    gradient: float  # the same for its gradients, of which the mean over ranks is taken
    drawn: PartOfBatch | None  # None: it does the whole batch, as all others do


class Ranks:
    """This process as one of those that train a stage together: torch's default process group, one at a time."""

    def __init__(self, rank: int, size: int, meeting: Meeting | tuple[str, int], device: torch.device) -> None:
        """`meeting` is the first rank's own, or where that is. Waits for all; raises RuntimeError where one lacks."""
        self.rank, self.size, self.device = rank, size, device
        self.wrapped: tuple[list[bool], LaneModel, nn.parallel.DistributedDataParallel] | None = None
        wait = timedelta(seconds=JOIN_SECONDS)
        if isinstance(meeting, Meeting):
            store, where = meeting.store, (meeting.host, meeting.port)
        else:
            where = meeting
            store = dist.TCPStore(*where, is_master=False, timeout=wait)  # type: ignore[attr-defined]
        on_gpu = device.type == "cuda"
        if not on_gpu:
            _speak_at(*where)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=WAIT_SECONDS),
            device_id=device if on_gpu else None,
        )

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, batch: Tensor, stacked: bool) -> Share:
        """Of a batch, or of a part of one that goes through by itself; `stacked`: features have the batch last.

        Where it has fewer examples than there are ranks all do all of it.
        """
        if len(batch) < self.size:
            return Share(batch, 1 / self.size, 1.0, None)
        bounds = [len(batch) * rank // self.size for rank in (self.rank, self.rank + 1)]
        own = batch[slice(*bounds)]
        counts = len(own) / len(batch)
        return Share(own, counts, counts * self.size, PartOfBatch(bounds[0], len(own), len(batch), stacked))

    @contextmanager
    def doing(self, share: Share, model: LaneModel, last: bool) -> Iterator[nn.Module]:
        """The model that takes the images of a share, in a context of the forward and the backward pass.

        `last`: of those before a step, when ranks tell each other their gradients.
        """
        for each in model.dropouts:
            each.part = share.drawn
        parallel = self._parallel(model)
        with (
            Synchronised(len(share.examples) / share.drawn.whole) if share.drawn else nullcontext(),
            nullcontext() if last else parallel.no_sync(),
        ):
            yield parallel

    def _parallel(self, model: LaneModel) -> nn.parallel.DistributedDataParallel:
        """torch's, over what of the model trains now."""
        trains = [each.requires_grad for each in model.parameters()]
        if self.wrapped is None or self.wrapped[1] is not model or self.wrapped[0] != trains:
            self.wrapped = None  # its hooks, first
            self.wrapped = trains, model, self._wrap(model)
        return self.wrapped[2]

    def _wrap(self, model: LaneModel) -> nn.parallel.DistributedDataParallel:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nn.parallel.DistributedDataParallel(
                model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # all ranks compute the same
                find_unused_parameters=True,
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all ranks; the tensor itself."""
        dist.all_reduce(tensor)
        return tensor

    def own_part(self, number: int) -> slice:
        """Which of so many things this rank does, where each is done once; where there are fewer than ranks, all."""
        if number < self.size:
            return slice(0, number)
        return slice(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    def whole(self, part: Tensor, number: int) -> Tensor:
        """Of all ranks' parts `[..., n]`, each of its `own_part`, the whole `[..., number]`."""
        if number < self.size:
            return part
        sizes = [number * (rank + 1) // self.size - number * rank // self.size for rank in range(self.size)]
        most = max(sizes)
        padded = part.new_zeros(*part.shape[:-1], most)
        padded[..., : part.shape[-1]] = part
        each = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(each, padded)
        return torch.cat([found[..., :size] for found, size in zip(each, sizes, strict=True)], dim=-1)

    def leave(self) -> None:
        """The others, if they wait for this one, get an error."""
        self.wrapped = None
        if dist.is_initialized():
            dist.destroy_process_group()


def _speak_at(host: str, port: int) -> None:
    """gloo listens at the address by which this process reaches the first rank, and not at what its name stands for."""
    with socket.create_connection((host, port), timeout=JOIN_SECONDS) as connection:
        own = connection.getsockname()[0]
    if (interface := _interface_of(own)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _interface_of(address: str) -> str | None:
    """The network interface that has an address (IPv4); None where that is not to be found out."""
    if sys.platform != "linux":
        return None
    import fcntl  # which not every platform has

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                found = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None
