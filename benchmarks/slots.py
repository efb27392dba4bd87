"""How busy a study keeps its slots, whatever a stage takes: the real Tune, searcher, store and workers.

    .venv/bin/python benchmarks/slots.py [--slots 2 4 8] [--seconds 0.05 0.3 1 3 10] [--lanes 1 4] [--nodes 1 3]

A stage trains one tiny network for one epoch and then sleeps, so that two cores can play eight slots. Of a line, `busy`
is the seconds in which students trained or slept, over the slots' time from the first student's begin to the last one's
end; below it how many workers trained students, and which part of them the first and the last had. With `--nodes 3` the
slots are spread over a local cluster of three nodes. Workers start beside each other, and each takes some seconds of a
core for that: of two cores eight slots' workers need a quarter of a minute, which is in the figures. A line takes about
a minute and a half, all of them an hour and a half.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray.cluster_utils import Cluster

from takd.search_spaces import space_from
from takd.study.checks import check_space
from takd.study.folder import study_folder
from takd.study.search import scheduling
from takd.study.search.graph import Node, StageGraph
from takd.study.search.optimization import create_search
from takd.study.stopping import Stop
from takd.study.tracking.observers import Observers
from takd.trainables.stage_trainable import StageTrainable

WALL = 60  # seconds of stages a slot, about
FEWEST, MOST = 6, 100  # stages a slot


def sleeping(seconds: float) -> type[StageTrainable]:
    """Workers whose epochs take so much longer."""

    class Sleeping(StageTrainable):
        def setup(self, config: dict[str, Any]) -> None:
            from takd.trainables import batch

            class SleepingBatch(batch.StageBatch):
                def run_epoch(self) -> None:
                    super().run_epoch()
                    time.sleep(seconds)

            batch.StageBatch = SleepingBatch  # type: ignore[misc]
            super().setup(config)

    Sleeping.__name__ = Sleeping.__qualname__ = "StageTrainable"
    return Sleeping


class Ends:
    """An observer: when students began and ended, by the driver's clock."""

    def __init__(self) -> None:
        self.first, self.last = float("inf"), 0.0
        self.outcomes: list[dict[str, Any]] = []

    def stage_started(self, node: Node) -> None:
        self.first = min(self.first, time.monotonic())

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None: ...

    def stage_ended(self, node: Node) -> None:
        assert node.description is not None, node.reason
        self.last = time.monotonic()
        self.outcomes.append(node.description["outcome"])

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None: ...
    def close(self) -> None: ...


def measure(slots: int, seconds: float, lanes: int, nodes: int) -> None:
    number = slots * lanes * min(max(int(WALL / seconds), FEWEST), MOST)
    space = space_from(
        {
            "dataset": "mnist",
            "teacher": "mlp-16",
            "student": {"model": "mlp-4", "recipe": {"epochs": 1, "examples": 100}},
            "arms": ["labels"],
            "trials": 1,
            "coverage": 1,
            "seeds": number,
            "lanes": lanes,
            "confirm": None,
        },
        "benchmark",
    )
    cluster = start(slots, nodes)
    scheduling.StageTrainable = sleeping(seconds)  # type: ignore[attr-defined]
    try:
        with tempfile.TemporaryDirectory(prefix="takd-slots-") as root:
            folder, ends = study_folder(root, "slots"), Ends()
            dataset, _ = check_space(space, "benchmark")
            folder.prepare()
            search = create_search(folder, space, dataset.fingerprint)
            graph = StageGraph(folder.artifacts)
            scheduling.run_stages(scheduling.PathSearcher(search, graph, root, Observers([ends]), Stop()))
    finally:
        ray.shutdown()
        if cluster:
            cluster.shutdown()
    assert len(ends.outcomes) == number
    busy = sum(each["train_seconds"] + seconds / each["lanes"] for each in ends.outcomes)
    shares = sorted(Counter((each["host"], each["process"]) for each in ends.outcomes).values())
    wall = ends.last - ends.first
    print(
        f"{slots} slots on {nodes} {'node' if nodes == 1 else 'nodes'}, stages of {seconds:5.2f} s, {lanes} at once: "
        f"busy {busy / (slots * wall):.2f}   {len(shares)} workers, {100 * shares[0] / number:.0f} to "
        f"{100 * shares[-1] / number:.0f} % of {number} students each, {wall:.0f} s",
        flush=True,
    )


def start(slots: int, nodes: int) -> Cluster | None:
    """A Ray of one node, or of several beside a head that trains nothing."""
    if nodes == 1:
        scheduling.start_ray(slots)
        return None
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for number in range(nodes):
        cluster.add_node(num_cpus=slots // nodes + (number < slots % nodes))
    cluster.wait_for_nodes()
    scheduling.start_ray(None, cluster.address)
    return cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.05, 0.3, 1, 3, 10])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3])
    given = parser.parse_args()
    for nodes in given.nodes:
        for slots in given.slots:
            for seconds in given.seconds:
                for lanes in given.lanes:
                    measure(slots, seconds, lanes, nodes)


if __name__ == "__main__":
    main()
