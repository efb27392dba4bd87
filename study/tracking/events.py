"""`events.jsonl`: a line of JSON for each change of state of a stage, for other tools to tail."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from takd.study.search.graph import Node, StageGraph

EVENTS = "events.jsonl"
LOOK_SECONDS = 0.2  # between two looks for stages that wait or became ready; starts and ends are told at once


class EventLog:
    """An observer that appends to the study's file. A line has `time` (UTC), `state`, and what stage it is about."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS
        self._file: TextIO | None = None
        self._states: dict[str, str] = {}
        self._next_look = 0.0
        self._latest: StageGraph | None = None

    def stage_started(self, node: Node) -> None:
        self._note(node)

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        """Epochs are no change of state."""

    def stage_ended(self, node: Node) -> None:
        self._note(node)

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None:
        self._latest = graph
        if (now := time.monotonic()) >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._look(graph)

    def _look(self, graph: StageGraph) -> None:
        for node in graph.nodes.values():
            self._note(node)

    def _open(self) -> TextIO:
        torn = self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n")
        file = self._path.open("a", encoding="utf-8", buffering=1)
        if torn:  # a killed writer's last line
            file.write("\n")
        return file

    def _note(self, node: Node) -> None:
        if self._states.get(node.stage.key) == node.state:
            return
        self._states[node.stage.key] = node.state
        stage = node.stage
        event: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "state": node.state,
            "stage_key": stage.key,
            "role": stage.role,
            "model": stage.model,
            "name": stage.name,
            "seed": stage.seed,
            "upstream": [each.key for each in stage.upstream],
        }
        if node.cached:
            event["cached"] = True
        if node.reason:
            event["reason"] = node.reason
        if node.description:
            outcome = node.description["outcome"]
            event |= {"val_accuracy": node.val_accuracy, "train_seconds": outcome["train_seconds"]}
        self._file = self._file or self._open()
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._latest:
            self._look(self._latest)
        if self._file:
            self._file.close()
