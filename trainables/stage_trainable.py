"""The one Ray class: a Tune trial trains the stages in its config and publishes their artifacts."""

import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from takd.search_spaces import InputError, Stage
from takd.search_spaces.registry import line_of
from takd.trainables.own_code import NO_CODE, use
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.store.shared_root import answer_sign
from takd.trainables.store.storage import AWAY_SECONDS, FULL, PATIENCE, first_line
from takd.trainables.team import Team

if TYPE_CHECKING:
    from takd.trainables.batch import StageBatch

# A step of Tune's goes on for about this long, so that short epochs don't each cost a message.
REPORT_SECONDS = 1.0
HALVING_SECONDS = 60.0
# A worker with nothing to train asks again after so long: first at once, then each time twice as long.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.01, 0.5

NOTHING: dict[str, Any] = {"stages": [], "width": None, "idle": True}  # what a worker reports that has no stages

log = logging.getLogger("takd")


class StageTrainable(tune.Trainable):
    """A worker: one trial of Tune's, which trains one list of stages after another while it lives.

    Teacher, assistant and student differ in data, not in code.

    config: `root`, `cpu`, `gpu`, `ranks` (as many processes with so much each train a stage together), `sign`, a file
    of the study's process in the root, and the user's `code`, which travels so to every node; with `deterministic` a
    GPU is so too. The lists come one at a time by `assign`, between two steps; each has `work` (`train`; or `derive`
    what is learned from stages whose weights exist, in their `views` by key; or `measure` finished ones on the test
    split), `stages` (of one shape where they train, as JSON), `origin` (who asked for each stage, by key; kept in its
    description), `measure_width` (train as many at once as go fastest), `halving` (the actor that ends weak students,
    or None) and `halving_epochs` (it is asked at multiples of these), `checkpoint_every` (`epochs` or `seconds`),
    `threads` (in place of as many as `cpu`, or None), `whole` (they train together or not at all) and `metric` (what
    the study goes by).

    Checkpoints are kept by stage key below the root, not by Tune: whoever trains the stage next, after a retry, on
    another machine or in another run of the study, goes on from there.

    A report has the state of every stage whose end was not told before: `running`, or how it ended: `done`, `failed`,
    `pruned`, `no room` (the storage is full), `no memory` (the device has no room for it alone), `returned` (not
    trained here: most of the list were at another epoch, or it was too long). `width` is how many lanes go fastest,
    where that was measured. `idle` says that the list is done. `measured` has what finished stages do on the test split
    (`Measured`), or a line that says why that can't be read.
    The first report has nothing but the worker's `node` and `host`, its own handle, `actor`, by which lists are
    assigned, what is wrong with the `root` there, or None, and as much of its `others`, the other ranks.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": config["cpu"], "GPU": config["gpu"]}] * config["ranks"], "PACK")

    def setup(self, config: dict[str, Any]) -> None:
        if config.get("deterministic"):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        self.team = Team(config) if config["ranks"] > 1 else None  # they load torch while this process does
        from takd.trainables.batch import prepare  # loads torch, which the study's process has not: at once

        self.gpus, self.device = config["gpu"], prepare(config["gpu"], bool(config.get("deterministic")))
        use(config.get("code", NO_CODE))
        PATIENCE.wait(AWAY_SECONDS)
        self.store, self.threads, self.sign = ArtifactStore(config["root"]), config["cpu"], config["sign"]
        self.batch: StageBatch | None = None
        self.given: dict[str, Any] = {}
        self.introduced, self.wait_seconds = False, 0.0

    def assign(self, given: dict[str, Any]) -> None:
        """The stages to train next. Nothing is begun: what a step raises reaches Tune, what this does would not."""
        self.given, self.batch = given, None

    def step(self) -> dict[str, Any]:
        try:
            return self._step()
        except Exception as error:
            if (line := line_of(error)) is None:
                raise
            raise RuntimeError(f"{line}: {type(error).__name__}: {first_line(error)}") from error

    def _step(self) -> dict[str, Any]:
        if not self.introduced:
            self.introduced = True
            context = ray.get_runtime_context()
            return self._introduction(context.get_node_id(), context.current_actor)
        if not self.given:
            return self._wait()
        if self.given["work"] == "derive":
            return self._derive()
        if self.given["work"] == "measure":
            return self._measure()
        if self.batch is None:
            self.batch = self._begin()
            if self.batch.ended:
                return self._report(self.batch)  # at once: other workers may train what is returned
        try:
            self._train_for_a_while(self.batch)
            if self.batch.done:
                self.batch.publish()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.batch.no_room(f"{self.store.root}: {error.strerror}")
        return self._report(self.batch)

    def _introduction(self, node: str, actor: Any) -> dict[str, Any]:
        wrong = answer_sign(self.store.root, self.sign, node)
        others = self.team.introductions() if self.team else []
        own = {"node": node, "actor": actor, "host": socket.gethostname(), "root": wrong}
        return NOTHING | own | {"others": others}

    def _report(self, batch: "StageBatch") -> dict[str, Any]:
        report = {"stages": batch.states(), "width": batch.width, "idle": not batch.lanes}
        if report["idle"]:
            self.given, self.batch = {}, None
            del batch
            self._let_go()
        return report

    def _let_go(self) -> None:
        """What the last list held of the device is free before the next one begins, here or in another worker."""
        if self.team:
            self.team.end()
        from takd.trainables.training.devices import let_go

        let_go(self.device)

    def _wait(self) -> dict[str, Any]:
        time.sleep(self.wait_seconds)
        self.wait_seconds = min(max(2 * self.wait_seconds, FIRST_WAIT_SECONDS), LONGEST_WAIT_SECONDS)
        return dict(NOTHING)  # Tune adds to what it gets

    def _begin(self) -> "StageBatch":
        from takd.trainables.batch import StageBatch

        given, self.wait_seconds = self.given, 0.0
        stages = [Stage.model_validate(stage) for stage in given["stages"]]
        self.checkpointed_at = time.monotonic()
        threads = given["threads"] or self.threads
        batch = StageBatch(
            stages,
            self.store,
            threads,
            given["measure_width"],
            given["origin"],
            given["whole"],
            given["metric"],
            self.device,
            self.gpus,
            self.team,
        )
        if given["halving"] is not None and (before := batch.values_before(given["halving_epochs"])):
            given["halving"].record.remote(before)
        return batch

    def _derive(self) -> dict[str, Any]:
        import torch

        from takd.trainables.derivation import derive
        from takd.trainables.training.devices import larger_part, no_room

        given, self.given, self.wait_seconds = self.given, {}, 0.0
        states: list[dict[str, Any]] = []
        for stage in map(Stage.model_validate, given["stages"]):
            state: dict[str, Any] = {"key": stage.key, "state": "done", "reason": None, "epochs": []}
            try:
                threads = given["threads"] or self.threads
                views, origin = given["views"][stage.key], given["origin"][stage.key]
                metric = given["metric"] if stage.role == "student" else None
                derive(stage, views, self.store, threads, origin, metric, self.device)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                state |= {"state": "no room", "reason": f"{self.store.root}: {error.strerror}"}
            except torch.OutOfMemoryError:  # with a single image
                fits = larger_part(stage.role, self.gpus)
                reason = no_room(f"{stage.model} beside one image", self.device, "a worker", self.gpus, fits)
                state |= {"state": "no memory", "reason": reason}
            states.append(state)
        self._let_go()
        return {"stages": states, "width": None, "idle": True}

    def _measure(self) -> dict[str, Any]:
        import torch

        from takd.trainables.measuring import measure_on_test
        from takd.trainables.training.devices import larger_part, no_room

        given, self.given, self.wait_seconds = self.given, {}, 0.0
        stages = [Stage.model_validate(stage) for stage in given["stages"]]
        measured: Any
        try:
            measured = measure_on_test(
                self.store, stages, given["metric"], given["threads"] or self.threads, self.device
            )
        except InputError as error:
            measured = str(error)
        except torch.OutOfMemoryError:  # with a single image
            models = ", ".join(dict.fromkeys(stage.model for stage in stages))
            fits = larger_part("student", self.gpus)
            measured = no_room(f"one of {models} beside one image", self.device, "a worker", self.gpus, fits)
        self._let_go()
        return {"stages": [], "width": None, "idle": True, "measured": measured}

    def _train_for_a_while(self, batch: "StageBatch") -> None:
        started = time.monotonic()
        while not batch.done and time.monotonic() - started < REPORT_SECONDS:
            batch.run_epoch()
            self._end_the_weak(batch)
            if not batch.done and self._checkpoint_is_due(batch):
                self._write_checkpoints(batch)

    def _end_the_weak(self, batch: "StageBatch") -> None:
        halving, every = self.given["halving"], self.given["halving_epochs"]
        if halving is None or batch.done or batch.epoch % every:
            return
        asked = halving.stop.remote(batch.epoch, batch.values())
        try:
            batch.prune(set(ray.get(asked, timeout=HALVING_SECONDS)))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            log.warning("halving doesn't answer (%s); the students go on", type(error).__name__)

    def _checkpoint_is_due(self, batch: "StageBatch") -> bool:
        epochs, seconds = (self.given["checkpoint_every"].get(unit) for unit in ("epochs", "seconds"))
        if epochs is not None:
            return bool(batch.epoch - batch.checkpointed >= epochs)
        return bool(time.monotonic() - self.checkpointed_at >= seconds)

    def _write_checkpoints(self, batch: "StageBatch") -> None:
        batch.write_checkpoints()
        self.checkpointed_at = time.monotonic()

    def cleanup(self) -> None:
        """Tune ends this worker: the study stops, or nothing is left to train."""
        batch = self.batch
        if batch and not batch.done and batch.epoch > batch.checkpointed:
            try:
                self._write_checkpoints(batch)
            except OSError as error:
                log.warning("%s: no checkpoint of its last epochs: %s", batch.name, error)
        if self.team:
            self.team.abandon()
