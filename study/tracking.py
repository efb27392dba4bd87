"""W&B: one run a stage, written from the driver by a thread of its own, so that the study never waits for it."""

import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb

from study.graph import Node, StageGraph

Mode = Literal["online", "offline", "disabled"]
PROJECT = "takd"
CLOSE_SECONDS = 60.0

log = logging.getLogger("takd")


def wandb_mode(asked: Mode | None) -> Mode:
    """What was asked for, else what WANDB_MODE says, else online where a key is found."""
    of_environment: dict[str, Mode] = {
        "online": "online",
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
    }
    return asked or of_environment.get(os.environ.get("WANDB_MODE", "")) or ("online" if _finds_key() else "offline")


def _finds_key() -> bool:
    try:
        return wandb.login(prompt=False, verify=False)
    except Exception as error:  # whatever is wrong with the key, the study goes on
        log.warning("W&B: %s; runs are kept offline", str(error).splitlines()[0])
        return False


class WandbTracker:
    """Group = study, job type = role, config = the key's input, metrics by epoch.

    A run's id follows from study and stage key, so a stage that is trained again goes on in its run.
    """

    def __init__(self, study: str, folder: Path, mode: Literal["online", "offline"]) -> None:
        self.study, self.folder, self.mode = study, folder, mode
        self._runs: dict[str, Any] = {}
        self._work: queue.SimpleQueue[tuple[Callable[[Node, Any], None], Node, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="wandb", daemon=True)
        self._thread.start()

    def stage_started(self, node: Node) -> None:
        self._work.put((self._start, node, None))

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        self._work.put((self._log, node, list(epochs)))

    def stage_ended(self, node: Node) -> None:
        self._work.put((self._end, node, node.state))

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None:
        """Runs are about single stages."""

    def close(self) -> None:
        """Waits a while for what is not written yet."""
        self._work.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning(
                "W&B: not all runs were written after %.0f s; the study is complete without them", CLOSE_SECONDS
            )

    def _write(self) -> None:
        try:
            while (item := self._work.get()) is not None:
                act, node, content = item
                act(node, content)
            for run in self._runs.values():
                run.finish()
        except Exception as error:  # whatever it is, the study goes on
            log.warning("W&B stopped: %s; the study goes on without it", str(error).splitlines()[0])

    def _start(self, node: Node, _: Any) -> None:
        stage = node.stage
        if stage.key in self._runs:
            return  # started again after its worker died: it goes on in its run
        run = wandb.init(
            id=hashlib.sha256(f"{self.study}/{stage.key}".encode()).hexdigest()[:16],
            resume="allow" if self.mode == "online" else None,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self.study,
            job_type=stage.role,
            name=stage.name,
            config=stage.key_input() | {"stage_key": stage.key},
            dir=str(self.folder),
            mode=self.mode,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=True,
                x_disable_meta=True,
                disable_git=True,
                save_code=False,
                init_timeout=30,
            ),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        self._runs[stage.key] = run

    def _log(self, node: Node, epochs: list[dict[str, Any]]) -> None:
        for epoch in epochs:
            self._runs[node.stage.key].log({name: value for name, value in epoch.items() if value is not None})

    def _end(self, node: Node, state: str) -> None:
        run = self._runs.pop(node.stage.key)
        run.summary["status"] = state
        if node.reason:
            run.summary["error"] = node.reason
        if node.description:
            outcome = node.description["outcome"]
            run.summary["val_accuracy"] = node.val_accuracy
            run.summary.update({name: outcome[name] for name in ("train_seconds", "parameters", "selected_epoch")})
        run.finish(exit_code=1 if state == "failed" else 0)
