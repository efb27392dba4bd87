"""The one Ray class: a Tune trial trains the stages in its config and publishes their artifacts."""

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
from trainables.training import Lane, Logits, StageTraining

# A step of Tune's goes on for about this long, so that short epochs don't each cost a message.
REPORT_SECONDS = 1.0


class StageTrainable(tune.Trainable):
    """Teacher, assistant and student differ in data, not in code.

    config: `stages` (a list of stages of one shape, as JSON), `root`, `cpu` and `gpu`, `origin` (who asked for each
    stage, by key; kept in its description), `report_epochs` (report at multiples of this many epochs; None: by time).
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
        upstream = [[_soft_targets(self.store, each.key) for each in stage.upstream] for stage in self.stages]
        self.training = StageTraining(self.stages, load(self.stages[0].dataset.name), upstream, self.device)
        self.reported = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self._train_for_a_while()
        done = self.training.done
        if done:
            for lane in self.training.running:
                self._publish(lane)
        states = [self._state(lane, done) for lane in self.training.lanes]
        self.reported = self.training.epoch
        accuracies = [state["val_accuracy"] for state in states if state["val_accuracy"] is not None]
        best = max(accuracies, default=0.0)  # what ASHA compares
        return {"stages": states, "epoch": self.training.epoch, "val_accuracy": best, "done": done}

    def _train_for_a_while(self) -> None:
        started = time.perf_counter()
        while not self.training.done:
            self.training.run_epoch()
            if self.report_epochs is not None:
                if self.training.epoch % self.report_epochs == 0:
                    return
            elif time.perf_counter() - started > REPORT_SECONDS:
                return

    def _state(self, lane: Lane, done: bool) -> dict[str, Any]:
        """What a driver learns of a lane: its state, and the epochs since the last report."""
        state = "failed" if lane.failure else "done" if done else "running"
        accuracies = [each.val_accuracy for each in lane.epochs if each.val_accuracy is not None]
        return {
            "key": lane.stage.key,
            "state": state,
            "reason": lane.failure,
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


@lru_cache(maxsize=16)
def _soft_targets(store: ArtifactStore, key: str) -> Logits:
    if store.check(key, needed=(SOFT_TARGETS,)) is None:
        raise FileNotFoundError(f"the soft targets of stage {key[:12]} are not in {store.folder}")
    return store.soft_targets(key)
