"""The one Ray class: a Tune trial trains the stages in its config and publishes their artifacts."""

import logging
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import ray
import safetensors.torch
import torch
from ray import tune

from search_spaces import Stage
from trainables.artifacts import SOFT_TARGETS, WEIGHTS, ArtifactStore, needed_files, soft_targets_file
from trainables.datasets import load_for
from trainables.models import library_of, size_of
from trainables.pretrained import read_weights
from trainables.storage import FULL
from trainables.training import ByView, Checkpoint, Lane, StageTraining, Trained
from trainables.width import best_width, widest

# A step of Tune's goes on for about this long, so that short epochs don't each cost a message.
REPORT_SECONDS = 1.0
# Artifacts and checkpoints of lanes are written side by side: on a disk each waits for a sync, in a bucket for a reply.
WRITERS = 8
HALVING_SECONDS = 60.0

log = logging.getLogger("takd")


class StageTrainable(tune.Trainable):
    """Teacher, assistant and student differ in data, not in code.

    config: `stages` (a list of stages of one shape, as JSON), `root`, `cpu` and `gpu`, `origin` (who asked for each
    stage, by key; kept in its description), `measure_width` (train as many at once as go fastest), `halving` (the actor
    that ends weak students, or None) and `halving_epochs` (it is asked at multiples of these), `checkpoint_every`
    (`epochs` or `seconds`).

    Checkpoints are kept by stage key below the root, not by Tune: whoever trains the stage next, after a retry, on
    another machine or in another run of the study, goes on from there.

    A report has the state of every lane: `running`, or once how it ended: `done`, `failed`, `pruned`, `no room` (the
    storage is full), `returned` (not trained here: most of the list were at another epoch, or it was too long). `width`
    is how many lanes go fastest, where that was measured.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": config["cpu"], "GPU": config["gpu"]}])

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(config["cpu"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray hides what the trial was not given
        self.given = config
        self.store = ArtifactStore(config["root"])
        self.width: int | None = None  # where it was measured
        self.ended: dict[str, tuple[str, str | None]] = {}  # by key, until it is told: how, and why
        self.lanes: list[Lane] = []
        self.training = self._start_or_go_on([Stage.model_validate(stage) for stage in config["stages"]])
        if self.training:
            self.lanes = list(self.training.lanes)
            self.reported = self.checkpointed = self.training.epoch
            self.checkpointed_at = time.monotonic()

    def _start_or_go_on(self, stages: list[Stage]) -> StageTraining | None:
        """Training of those that are at the same epoch; None where all were done when another worker died."""
        for stage in stages:
            description = self.store.describe(stage.key)
            if description and needed_files(stage) <= set(description["files"]):
                self.ended[stage.key] = ("done", None)
        left = [stage for stage in stages if stage.key not in self.ended]
        checkpoints = {stage.key: self._checkpoint_of(stage) for stage in left}
        epochs = {key: len(each.epochs) if each else 0 for key, each in checkpoints.items()}
        if not epochs:
            return None
        [(epoch, _)] = Counter(epochs.values()).most_common(1)
        chosen = [stage for stage in left if epochs[stage.key] == epoch]
        if len(chosen) > 1:
            self.width = best_width(chosen, self._new_training) if self.given["measure_width"] else widest(chosen[0])
            chosen = chosen[: self.width]
        for stage in left:
            if stage not in chosen:
                self.ended[stage.key] = ("returned", None)
        training = self._new_training(chosen)
        found = [each for stage in chosen if (each := checkpoints[stage.key])]
        if not found:
            return training
        try:
            training.restore(found)
        except ValueError as error:
            log.warning("%s: %s; trained from its start", chosen[0].name, error)
            return self._new_training(chosen)
        return training

    def _checkpoint_of(self, stage: Stage) -> Checkpoint | None:
        content = self.store.load_checkpoint(stage.key)
        try:
            return Checkpoint.parse(content) if content is not None else None
        except ValueError as error:
            log.warning("%s: %s; trained from its start", stage.name, error)
            return None

    def _new_training(self, stages: Sequence[Stage]) -> StageTraining:
        upstream = [[_soft_targets(self.store, each.key) for each in stage.upstream] for stage in stages]
        digest = stages[0].pretrained
        pretrained = read_weights(self.store.storage, digest) if digest else None
        return StageTraining(stages, load_for(stages[0].dataset), upstream, self.device, pretrained)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            if self.training is not None:
                self._train_for_a_while(self.training)
                if self.training.done:
                    self._publish(self.training)
        except OSError as error:
            if error.errno not in FULL:
                raise
            for lane in self.lanes:
                self.ended.setdefault(lane.stage.key, ("no room", f"{self.store.root}: {error.strerror}"))
        return self._report()

    def _train_for_a_while(self, training: StageTraining) -> None:
        started = time.monotonic()
        while not training.done and time.monotonic() - started < REPORT_SECONDS:
            training.run_epoch()
            for lane in training.lanes:
                if lane.failure:
                    self.ended.setdefault(lane.stage.key, ("failed", lane.failure))
            self._end_the_weak(training)
            self._checkpoint_if_due(training)

    def _end_the_weak(self, training: StageTraining) -> None:
        halving, every = self.given["halving"], self.given["halving_epochs"]
        if halving is None or training.done or training.epoch % every:
            return
        accuracies = {lane.stage.key: lane.val_accuracy for lane in training.running if lane.val_accuracy is not None}
        try:
            weak = set(ray.get(halving.stop.remote(training.epoch, accuracies), timeout=HALVING_SECONDS))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            log.warning("halving doesn't answer (%s); the students go on", type(error).__name__)
            return
        training.end([lane for lane in training.running if lane.stage.key in weak])
        self.ended |= dict.fromkeys(weak, ("pruned", None))

    def _checkpoint_if_due(self, training: StageTraining) -> None:
        epochs, seconds = (self.given["checkpoint_every"].get(unit) for unit in ("epochs", "seconds"))
        if epochs is not None:
            due = training.epoch - self.checkpointed >= epochs
        else:
            due = time.monotonic() - self.checkpointed_at >= seconds
        if due and not training.done:
            self._checkpoint(training)

    def _checkpoint(self, training: StageTraining) -> None:
        def save(lane: Lane) -> None:
            self.store.save_checkpoint(lane.stage.key, training.checkpoint(lane))

        _side_by_side(save, training.running)
        self.checkpointed, self.checkpointed_at = training.epoch, time.monotonic()

    def cleanup(self) -> None:
        """Tune ends this worker: the study stops, or nothing is left to train."""
        training = self.training
        if training and not training.done and training.epoch > self.checkpointed:
            try:
                self._checkpoint(training)
            except OSError as error:
                log.warning("%s: no checkpoint of its last epochs: %s", training.lanes[0].stage.name, error)

    def _report(self) -> dict[str, Any]:
        """What a driver learns of every lane: its state, and the epochs since the last report."""
        epochs = {lane.stage.key: self._epochs(lane) for lane in self.lanes}
        told = self.ended | {key: ("running", None) for key in epochs if key not in self.ended}
        states = [
            {"key": key, "state": state, "reason": reason, "epochs": epochs.get(key, [])}
            for key, (state, reason) in told.items()
        ]
        self.lanes = [lane for lane in self.lanes if lane.stage.key not in self.ended]
        self.ended = {}
        self.reported = self.training.epoch if self.training else 0
        return {"stages": states, "width": self.width, "done": not self.lanes}

    def _epochs(self, lane: Lane) -> list[dict[str, Any]]:
        return [asdict(each) for each in lane.epochs if each.epoch > self.reported]

    def _publish(self, training: StageTraining) -> None:
        """The artifacts of the lanes that came to the end."""

        def publish(finished: tuple[Lane, Trained]) -> None:
            self._publish_one(*finished)
            self.ended[finished[0].stage.key] = ("done", None)

        _side_by_side(publish, training.finish())

    def _publish_one(self, lane: Lane, trained: Trained) -> None:
        stage, dataset = lane.stage, load_for(lane.stage.dataset)
        size = size_of(stage.model, dataset.image_shape, len(dataset.classes))
        outcome = {
            "name": stage.name,
            "role": stage.role,
            "metrics": {"validation": {"accuracy": trained.selected.val_accuracy, "loss": trained.selected.val_loss}},
            "selected_epoch": trained.selected.epoch,
            "epochs": [asdict(each) for each in lane.epochs],
            "train_seconds": sum(each.seconds for each in lane.epochs),
            "soft_targets_seconds": trained.soft_targets_seconds,
            "parameters": size.parameters,
            "flops_per_image": size.flops,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else platform.machine(),
            "threads": self.given["cpu"],
            "lanes": len(self.training.lanes) if self.training else 1,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__} | library_of(stage.model),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "origin": self.given["origin"][stage.key],
        }
        files = {WEIGHTS: safetensors.torch.save(trained.weights)}
        if trained.soft_targets is not None:
            files[SOFT_TARGETS] = soft_targets_file(trained.soft_targets.numpy())
        self.store.publish(stage.key, {"input": stage.key_input(), "outcome": outcome}, files)
        if self.checkpointed:
            self.store.drop_checkpoint(stage.key)


def _side_by_side(act: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Acts on all items; then raises the first error, if there was one."""
    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(act, item) for item in items]:
            done.result()


@lru_cache(maxsize=16)
def _soft_targets(store: ArtifactStore, key: str) -> ByView:
    return store.soft_targets(key)
