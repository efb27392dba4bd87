"""The ranks beside a worker's own, which train a stage with it: Ray actors in other bundles of its placement group.

The worker says when each begins, runs an epoch and ends; what they compute together goes by torch's process group.
They live as long as the worker: Ray ends an actor with the one that started it, and with its placement group.
"""

import gc
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from takd.search_spaces import Stage
from takd.trainables.own_code import NO_CODE, use
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.shared_root import answer_sign
from takd.trainables.store.storage import AWAY_SECONDS, PATIENCE, first_line

if TYPE_CHECKING:
    import torch

    from takd.trainables.training.loop import StageTraining

LOOK_SECONDS = 1.0  # between two looks at whether the others still train
# That a worker has to notice by itself that another rank failed; gloo does at once. NCCL may wait for it for ever, and
# then the worker's process ends, which is noticed.
NOTICE_SECONDS = 10.0

log = logging.getLogger("takd")


class Rank:
    """One of the others. It does what the worker's own rank does, on what it was given itself, and decides nothing."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from takd.trainables.batch import prepare

        self.device = prepare(config["gpu"], deterministic=False)
        use(config.get("code", NO_CODE))
        PATIENCE.wait(AWAY_SECONDS)
        self.store, self.sign, self.threads = ArtifactStore(config["root"]), config["sign"], config["cpu"]
        self.training: StageTraining | None = None

    def introduction(self) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        return {"node": node, "host": socket.gethostname(), "root": answer_sign(self.store.root, self.sign, node)}

    def begin(self, stage: Mapping[str, Any], metric: str, checkpoint: bytes | None, streamed: bool) -> None:
        """As the worker did; `checkpoint` has where it stands, `streamed` whether images are not all on the device."""
        import torch

        from takd.trainables.batch import new_training
        from takd.trainables.training.checkpoint import Checkpoint

        self.end()
        torch.set_num_threads(self.threads)
        stages = [Stage.model_validate(stage)]
        self.training = new_training(stages, self.store, self.device, metric, streamed=streamed)
        if checkpoint is not None:
            self.training.restore([Checkpoint.parse(checkpoint)])

    def join(self, rank: int, size: int, where: tuple[str, int]) -> None:
        from takd.trainables.training.ranks import Ranks

        assert self.training
        self.training.join(Ranks(rank, size, where, self.device))

    def run_epoch(self) -> None:
        assert self.training
        try:
            self.training.run_epoch()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the connections, by whose end the others notice
            self.end()
            gc.collect()
            raise

    def end(self) -> None:
        from takd.trainables.training.devices import let_go

        if self.training is not None and self.training.ranks is not None:
            self.training.ranks.leave()
        self.training = None
        let_go(self.device)


class Team:
    """A worker's side of the other ranks."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is the worker's own: `ranks` of `cpu` CPUs and `gpu` GPUs each, its own among them."""
        self.config, self.size = config, config["ranks"]
        self.training: StageTraining | None = None
        self.others: list[Any] = []
        self._start()

    def _start(self) -> None:
        group = ray.util.get_current_placement_group()
        own = {name: self.config[name] for name in ("root", "sign", "cpu", "gpu")}
        own["code"] = self.config.get("code", NO_CODE)
        for rank in range(1, self.size):
            there = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank) if group else "DEFAULT"
            options = {"num_cpus": own["cpu"], "num_gpus": own["gpu"], "scheduling_strategy": there}
            self.others.append(ray.remote(Rank).options(**options).remote(own))

    def introductions(self) -> list[dict[str, Any]]:
        """On which node each of the others is, and what is wrong with the root there; once they have started."""
        return self._all("introduction")

    def begin(self, training: "StageTraining", metric: str) -> None:
        """All go on from where this training stands, together."""
        from takd.trainables.training.ranks import Meeting, Ranks

        if not self.others:
            self._start()
        [lane] = training.lanes
        checkpoint = ray.put(training.checkpoint(lane)) if training.epoch else None
        try:
            self._all("begin", lane.stage.model_dump(mode="json"), metric, checkpoint, training.inputs.streamed)
            meeting = Meeting(ray.util.get_node_ip_address())
            where = meeting.host, meeting.port
            joining = [each.join.remote(rank, self.size, where) for rank, each in enumerate(self.others, start=1)]
            with self._watched(joining):
                training.join(Ranks(0, self.size, meeting, training.inputs.device))
            ray.get(joining)
        except BaseException:
            self.abandon()
            raise
        self.training = training

    def _all(self, act: str, *given: Any) -> list[Any]:
        found: list[Any] = ray.get([getattr(each, act).remote(*given) for each in self.others])
        return found

    def run_epoch(self, training: "StageTraining") -> None:
        """All ranks do; raises what one of them raised, and RuntimeError where one is gone."""
        running = [each.run_epoch.remote() for each in self.others]
        try:
            with self._watched(running):
                training.run_epoch()
            ray.get(running)
        except Exception as error:
            cause = self._cause(running, error)
            self.abandon()
            if cause is error:
                raise
            raise cause from error

    def _cause(self, running: Sequence[Any], error: Exception) -> Exception:
        """What began it: of all ranks but one it is that they wait for nobody."""
        if isinstance(error, _memory_error()):
            return error
        ended, _ = ray.wait(running, num_returns=len(running), timeout=NOTICE_SECONDS)
        failures = {running.index(each) + 1: failure for each in ended if (failure := _failure(each)) is not None}
        for failure in failures.values():
            if isinstance(failure, _memory_error()):
                return failure
        for rank, failure in failures.items():
            if isinstance(failure, ray.exceptions.RayActorError):
                return RuntimeError(f"rank {rank} of {self.size} is gone: {first_line(failure)}")
        return error

    @contextmanager
    def _watched(self, running: Sequence[Any]) -> Iterator[None]:
        """This process ends where another rank failed and this one doesn't notice."""
        ended = threading.Event()
        watching = threading.Thread(target=_watch, args=(list(running), ended), daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()

    def end(self) -> None:
        """What was trained is done; the ranks wait for the next."""
        if self.training is not None and self.training.ranks is not None:
            ending = [each.end.remote() for each in self.others]
            self.training.ranks.leave()
            self.training = None
            ray.get(ending)

    def abandon(self) -> None:
        """The others end, whatever they do: some may wait for one that is gone."""
        others, self.others = self.others, []
        for each in others:
            with suppress(ray.exceptions.RayError):
                ray.kill(each)
        if self.training is not None and self.training.ranks is not None:
            self.training.ranks.leave()
        self.training = None


def _memory_error() -> "type[torch.OutOfMemoryError]":
    import torch

    return torch.OutOfMemoryError


def _failure(done: Any) -> Exception | None:
    try:
        ray.get(done)
    except Exception as error:
        return error
    return None


def _watch(left: list[Any], ended: threading.Event) -> None:
    while left and not ended.is_set():
        done, left = ray.wait(left, num_returns=1, timeout=LOOK_SECONDS)
        failures = [failure for each in done if (failure := _failure(each)) is not None]
        if failures and not ended.wait(NOTICE_SECONDS):
            log.error("another rank failed, and this one waits for it: %s", first_line(failures[0]))
            os.kill(os.getpid(), signal.SIGKILL)
