"""Trains a study's stages in the process of the test: what Tune does with workers, without starting any.

A worker's start costs several seconds of CPU, far more than the small studies that most tests look at. Those of
`test_studies`, `test_resume`, `test_apart`, `test_cluster` and `test_wheel` have real workers.
"""

import traceback
from typing import Any

import ray
import torch

from takd.study.search.scheduling import PathSearcher, _reason
from takd.trainables.stage_trainable import StageTrainable


class Here(StageTrainable):
    """A worker that is no actor. It stands for its own handle: `worker.assign.remote` is called at once."""

    class _Assign:
        def __init__(self, worker: "Here") -> None:
            self.worker = worker

        def remote(self, given: dict[str, Any]) -> None:
            StageTrainable.assign(self.worker, given)

    def __init__(self, config: dict[str, Any]) -> None:  # Tune's own would make folders
        self.setup(config)
        self.assign = Here._Assign(self)  # type: ignore[assignment, method-assign]

    def step(self) -> dict[str, Any]:
        if not self.introduced:
            self.introduced = True
            return self._introduction(ray.get_runtime_context().get_node_id(), self)
        return super().step()


def train_here(searcher: PathSearcher) -> None:
    """In the place of `takd.study.search.scheduling.run_stages`."""
    threads = torch.get_num_threads()
    workers: dict[str, Here] = {}
    started = 0
    try:
        while not (searcher.over and not workers):
            given = searcher.suggest(str(started))
            if isinstance(given, dict):
                workers[str(started)] = Here(given)
                started += 1
            for name in list(workers):
                if _ends(searcher, name, workers[name]):
                    del workers[name]
            if searcher.stop.requested or searcher.over:
                for worker in workers.values():
                    worker.cleanup()
                return
    finally:
        torch.set_num_threads(threads)
        searcher.shared_root.close()


def _ends(searcher: PathSearcher, name: str, worker: Here) -> bool:
    try:
        result = worker.step()
    except Exception:
        searcher.worker_failed(name, _reason(traceback.format_exc()))
        return True
    if searcher.report(name, result):
        worker.cleanup()
        return True
    return False
