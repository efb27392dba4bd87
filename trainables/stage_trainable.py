"""The one Ray class: a Tune trial trains the stages in its config and publishes their artifacts."""

import logging
import time
from typing import Any

import ray
from ray import tune

from takd.search_spaces import Stage
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.storage import FULL

# A step of Tune's goes on for about this long, so that short epochs don't each cost a message.
REPORT_SECONDS = 1.0
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
        from takd.trainables.batch import StageBatch  # loads torch, which the study's own process does without

        self.given = config
        stages = [Stage.model_validate(stage) for stage in config["stages"]]
        self.batch = StageBatch(
            stages, ArtifactStore(config["root"]), config["cpu"], config["measure_width"], config["origin"]
        )
        self.checkpointed_at = time.monotonic()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        batch = self.batch
        try:
            self._train_for_a_while()
            if batch.done:
                batch.publish()
        except OSError as error:
            if error.errno not in FULL:
                raise
            batch.no_room(f"{batch.store.root}: {error.strerror}")
        return {"stages": batch.states(), "width": batch.width, "done": not batch.lanes}

    def _train_for_a_while(self) -> None:
        started = time.monotonic()
        while not self.batch.done and time.monotonic() - started < REPORT_SECONDS:
            self.batch.run_epoch()
            self._end_the_weak()
            if not self.batch.done and self._checkpoint_is_due():
                self._write_checkpoints()

    def _end_the_weak(self) -> None:
        halving, every = self.given["halving"], self.given["halving_epochs"]
        if halving is None or self.batch.done or self.batch.epoch % every:
            return
        asked = halving.stop.remote(self.batch.epoch, self.batch.accuracies())
        try:
            self.batch.prune(set(ray.get(asked, timeout=HALVING_SECONDS)))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            log.warning("halving doesn't answer (%s); the students go on", type(error).__name__)

    def _checkpoint_is_due(self) -> bool:
        epochs, seconds = (self.given["checkpoint_every"].get(unit) for unit in ("epochs", "seconds"))
        if epochs is not None:
            return bool(self.batch.epoch - self.batch.checkpointed >= epochs)
        return bool(time.monotonic() - self.checkpointed_at >= seconds)

    def _write_checkpoints(self) -> None:
        self.batch.write_checkpoints()
        self.checkpointed_at = time.monotonic()

    def cleanup(self) -> None:
        """Tune ends this worker: the study stops, or nothing is left to train."""
        if not self.batch.done and self.batch.epoch > self.batch.checkpointed:
            try:
                self._write_checkpoints()
            except OSError as error:
                log.warning("%s: no checkpoint of its last epochs: %s", self.batch.name, error)
