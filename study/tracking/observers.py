"""Observers look at a study and can't hurt it: the first error of one is said once, and it is left out."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from takd.study.search.graph import Node, StageGraph

log = logging.getLogger("takd")


class Observer(Protocol):
    """Told what happens, in the driver's thread: answers at once, and does slow work elsewhere."""

    def stage_started(self, node: Node) -> None: ...
    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None: ...
    def stage_ended(self, node: Node) -> None: ...
    def graph_changed(self, graph: StageGraph, trials_left: int) -> None: ...
    def close(self) -> None: ...


class Observers:
    """All observers of a run, called one after the other."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def stage_started(self, node: Node) -> None:
        self._tell(lambda observer: observer.stage_started(node))

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None:
        self._tell(lambda observer: observer.stage_reported(node, epochs))

    def stage_ended(self, node: Node) -> None:
        self._tell(lambda observer: observer.stage_ended(node))

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None:
        self._tell(lambda observer: observer.graph_changed(graph, trials_left))

    def close(self) -> None:
        self._tell(lambda observer: observer.close())

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for observer in list(self._observers):
            try:
                call(observer)
            except Exception as error:  # whatever it is, the study goes on
                self._observers.remove(observer)
                log.warning("%s stopped: %s; the study goes on without it", type(observer).__name__, error)
