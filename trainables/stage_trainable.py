"""The one Ray class: a Tune trial trains the stages in its config and publishes their artifacts."""

import logging
import os
import platform
import socket
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import safetensors.torch
import torch
from ray import tune

from search_spaces import Stage
from trainables.artifacts import SOFT_TARGETS, WEIGHTS, ArtifactStore, soft_targets_file
from trainables.datasets import load
from trainables.models import size_of
from trainables.storage import FULL
from trainables.training import Lane, Logits, StageTraining

# A step of Tune's goes on for about this long, so that short epochs don't each cost a message.
REPORT_SECONDS = 1.0

log = logging.getLogger("takd")


class StageTrainable(tune.Trainable):
    """Teacher, assistant and student differ in data, not in code.

    config: `stages` (a list of stages of one shape, as JSON), `root`, `cpu` and `gpu`, `origin` (who asked for each
    stage, by key; kept in its description), `report_epochs` (report at multiples of this many epochs; None: by time),
    `checkpoint_every` (`epochs` or `seconds`).

    Checkpoints are kept by stage key below the root, not by Tune: whoever trains the stage next, after a retry, on
    another machine or in another run of the study, goes on from there.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": config["cpu"], "GPU": config["gpu"]}])

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(config["cpu"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray hides what the trial was not given
        self.stages = [Stage.model_validate(stage) for stage in config["stages"]]
        self.store = ArtifactStore(config["root"])
        self.origin, self.report_epochs = config["origin"], config["report_epochs"]
        self.checkpoint_every = config["checkpoint_every"]
        self.training = self._start_or_go_on()
        self.reported = self.checkpointed = self.training.epoch
        self.checkpointed_at = time.monotonic()

    def _start_or_go_on(self) -> StageTraining:
        upstream = [[_soft_targets(self.store, each.key) for each in stage.upstream] for stage in self.stages]
        training = self._new_training(upstream)
        try:
            training.restore([self.store.load_checkpoint(stage.key) for stage in self.stages])
        except ValueError as error:
            log.warning("%s: %s; trained from its start", self.stages[0].name, error)
            return self._new_training(upstream)
        return training

    def _new_training(self, upstream: list[list[Logits]]) -> StageTraining:
        return StageTraining(self.stages, load(self.stages[0].dataset.name), upstream, self.device)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            self._train_for_a_while()
            if self.training.done:
                for lane in self.training.running:
                    self._publish(lane)
            return self._report("done" if self.training.done else "running")
        except OSError as error:
            if error.errno not in FULL:
                raise
            return self._report("no room", f"{self.store.root}: {error.strerror}")

    def _train_for_a_while(self) -> None:
        started = time.monotonic()
        while not self.training.done:
            self.training.run_epoch()
            self._checkpoint_if_due()
            if self.report_epochs is not None:
                if self.training.epoch % self.report_epochs == 0:
                    return
            elif time.monotonic() - started > REPORT_SECONDS:
                return

    def _checkpoint_if_due(self) -> None:
        epochs, seconds = self.checkpoint_every.get("epochs"), self.checkpoint_every.get("seconds")
        if epochs is not None:
            due = self.training.epoch - self.checkpointed >= epochs
        else:
            due = time.monotonic() - self.checkpointed_at >= seconds
        if due and not self.training.done:
            self._checkpoint()

    def _checkpoint(self) -> None:
        for lane in self.training.running:
            self.store.save_checkpoint(lane.stage.key, self.training.checkpoint(lane))
        self.checkpointed, self.checkpointed_at = self.training.epoch, time.monotonic()

    def cleanup(self) -> None:
        """Tune ends this worker: the study stops, or nothing is left to train."""
        if not self.training.done and self.training.epoch > self.checkpointed:
            try:
                self._checkpoint()
            except OSError as error:
                log.warning("%s: no checkpoint of its last epochs: %s", self.stages[0].name, error)

    def _report(self, state: str, reason: str | None = None) -> dict[str, Any]:
        states = [self._state(lane, state, reason) for lane in self.training.lanes]
        self.reported = self.training.epoch
        accuracies = [each["val_accuracy"] for each in states if each["val_accuracy"] is not None]
        best = max(accuracies, default=0.0)  # what ASHA compares
        return {"stages": states, "epoch": self.training.epoch, "val_accuracy": best, "done": state != "running"}

    def _state(self, lane: Lane, state: str, reason: str | None) -> dict[str, Any]:
        """What a driver learns of a lane: its state, and the epochs since the last report."""
        accuracies = [each.val_accuracy for each in lane.epochs if each.val_accuracy is not None]
        return {
            "key": lane.stage.key,
            "state": "failed" if lane.failure else state,
            "reason": lane.failure or reason,
            "val_accuracy": accuracies[-1] if accuracies else None,
            "epochs": [asdict(each) for each in lane.epochs if each.epoch > self.reported],
        }

    def _publish(self, lane: Lane) -> None:
        trained = self.training.finish(lane)
        stage, dataset = lane.stage, self.training.dataset
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
            "threads": torch.get_num_threads(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "origin": self.origin[stage.key],
        }
        files = {WEIGHTS: safetensors.torch.save(trained.weights)}
        if trained.soft_targets is not None:
            files[SOFT_TARGETS] = soft_targets_file(trained.soft_targets.numpy())
        self.store.publish(stage.key, {"input": stage.key_input(), "outcome": outcome}, files)
        if self.checkpointed:
            self.store.drop_checkpoint(stage.key)


@lru_cache(maxsize=16)
def _soft_targets(store: ArtifactStore, key: str) -> Logits:
    return store.soft_targets(key)
