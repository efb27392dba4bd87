"""Asynchronous successive halving among the students of a study (Li et al. 2020), lane by lane, as a Ray actor."""

from collections.abc import Mapping
from types import SimpleNamespace

import ray
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from takd.search_spaces.metrics import ACCURACY, Metric
from takd.trainables.looks import Looks


class Halving:
    """Says of each student at each rung whether it goes on. Stages that others learn from are never asked about.

    One for a whole study: workers ask it, because what it decides is about lanes, of which Tune knows nothing.
    """

    def __init__(self, grace_epochs: int, reduction_factor: int, metric: Metric = ACCURACY) -> None:
        self.scheduler = ASHAScheduler(
            time_attr="epoch",
            metric="value",
            mode="max" if metric.higher else "min",
            grace_period=grace_epochs,
            reduction_factor=reduction_factor,
            max_t=10**9,  # a student ends by its recipe
        )
        self.known: set[str] = set()
        self.stopped: set[str] = set()

    def stop(self, epoch: int, values: Mapping[str, float]) -> list[str]:
        """The keys of the students that end here, of those with these values of the metric on the validation split."""
        for key, value in values.items():
            if key not in self.stopped and self._decide(key, epoch, value) == TrialScheduler.STOP:
                self.stopped.add(key)
        return [key for key in values if key in self.stopped]

    def record(self, students: Mapping[str, Looks]) -> None:
        """What students had at which epochs before this process began, so that others are measured by that too."""
        for key, values in students.items():
            for epoch in sorted(values):
                self._decide(key, epoch, values[epoch])

    def _decide(self, key: str, epoch: int, value: float) -> str:
        student = SimpleNamespace(trial_id=key)  # all that the scheduler reads of a trial
        if key not in self.known:
            self.known.add(key)
            self.scheduler.on_trial_add(None, student)
        return self.scheduler.on_trial_result(None, student, {"epoch": epoch, "value": value})


def start_halving(grace_epochs: int, reduction_factor: int, metric: Metric = ACCURACY) -> "ray.actor.ActorHandle":
    """The actor, on this machine: it lives as long as the study's process."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    actor = ray.remote(Halving).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote(grace_epochs, reduction_factor, metric)
