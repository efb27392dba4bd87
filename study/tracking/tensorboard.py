"""TensorBoard event files, for groups that have it on their clusters: a run a stage, below the study's folder."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from takd.study.search.graph import Node, StageGraph

FOLDER = "tensorboard"
SHOW_SECONDS = 30.0  # a stage that trains longer shows its epochs this often


class TensorBoardLog:
    """An observer that writes a stage's epochs as scalars when it ends, or every so often; step = epoch."""

    def __init__(self, folder: Path) -> None:
        import tensorboardX  # noqa: F401  # fails here, not at the first stage

        self.folder = folder / FOLDER
        self._epochs: dict[str, list[dict[str, Any]]] = {}  # of stages in training, not written yet
        self._shown: dict[str, float] = {}

    def stage_started(self, node: Node) -> None:
        self._epochs.setdefault(node.stage.key, [])
        self._shown.setdefault(node.stage.key, time.monotonic())

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        key = node.stage.key
        self._epochs[key] += epochs
        if time.monotonic() - self._shown[key] > SHOW_SECONDS:
            self._shown[key] = time.monotonic()
            self._write(node, self._epochs[key])
            self._epochs[key] = []

    def stage_ended(self, node: Node) -> None:
        self._shown.pop(node.stage.key, None)
        if epochs := self._epochs.pop(node.stage.key, []):
            self._write(node, epochs)

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None:
        """Runs are about single stages."""

    def close(self) -> None:
        """Each run is whole already."""

    def _write(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        from tensorboardX import FileWriter
        from tensorboardX.summary import scalar

        stage = node.stage
        chain = "-".join([stage.role, stage.model, *(each.model for each in stage.upstream)])
        writer = FileWriter(str(self.folder / f"{chain.replace('/', '_')}-{stage.key[:8]}"))
        now, left = time.time(), sum(epoch.get("seconds") or 0.0 for epoch in epochs)
        for epoch in epochs:
            left -= epoch.get("seconds") or 0.0
            for name, value in epoch.items():
                if name != "epoch" and value is not None:
                    writer.add_summary(scalar(name, value), epoch["epoch"], now - left)
        writer.close()
