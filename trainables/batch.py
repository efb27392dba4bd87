"""Stages that train side by side: from what the artifact store has of them to their artifacts there. Knows no Ray."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from takd.search_spaces import LeftName, Stage, What, frozen_for, frozen_of, learned_by, names_of
from takd.search_spaces.metrics import ACCURACY, Metric
from takd.search_spaces.registry import metric_named
from takd.trainables.datasets.dataset import Dataset, load_for
from takd.trainables.derivation import CPU, dataset_of, derive_frozen, frozen, publish_left
from takd.trainables.looks import looks
from takd.trainables.models.frozen import whole_epochs
from takd.trainables.models.learned import learned, weights_of
from takd.trainables.models.pretrained import read_weights
from takd.trainables.models.stage_models import head_weights
from takd.trainables.outcome import describe_outcome
from takd.trainables.store.artifacts import FIRST, SECOND, WEIGHTS, ArtifactStore, needed_files
from takd.trainables.store.derived import Array
from takd.trainables.store.storage import sha256
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.devices import (
    can_stream,
    device_of,
    fix_algorithms,
    keep_within,
    larger_part,
    let_go,
    no_room,
)
from takd.trainables.training.features import Frozen
from takd.trainables.training.lanes import EpochMetrics, Lane
from takd.trainables.training.loop import SOFT_TARGETS, StageTraining, Trained
from takd.trainables.training.teaching import ByView, Lessons
from takd.trainables.width import best_width, widest

# Artifacts and checkpoints of lanes are written side by side: on a disk each waits for a sync, in a bucket for a reply.
WRITERS = 8

log = logging.getLogger("takd")


class Team(Protocol):
    """Other processes that train what this one trains."""

    size: int  # with this one

    def begin(self, training: StageTraining, metric: str) -> None:
        """All go on from where this training stands."""

    def run_epoch(self, training: StageTraining) -> None:
        """All do."""


class StageBatch:
    """Stages of one shape on their way. Those whose artifacts are there end at once; the others go on from checkpoints.

    `origin` says of each stage, by key, who asked for it; its description keeps that. With `measure_width` as many are
    trained as go fastest, and `width` says how many. Of those left, the ones at another epoch than most are returned.
    With `whole` all train together or none. Their checkpoints have two places in turn, so that an interruption between
    the first and the last of them leaves one epoch that all have saved.
    `metric` is what the study goes by.

    `gpus` is what the worker was given, `device` what that comes to (`prepare`). Where the device has no room, half of
    the stages are returned, and the others go on from their checkpoints; of one alone, or of the whole of them, images
    are streamed from then on, and where there still is no room they end as `no memory`.

    `team` are the other ranks that train with this process, a stage at a time.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        store: ArtifactStore,
        threads: int,
        measure_width: bool,
        origin: Mapping[str, Mapping[str, str]],
        whole: bool = False,
        metric: Metric = ACCURACY,
        device: torch.device = CPU,
        gpus: float = 0.0,
        team: Team | None = None,
    ) -> None:
        self.team = team
        self.name, self.whole, self.metric = stages[0].name, whole, metric
        torch.set_num_threads(threads)
        self.device, self.gpus = device, gpus
        self.store, self.threads, self.measure_width, self.origin = store, threads, measure_width, origin
        self.width: int | None = None  # where it was measured
        self.streamed = False  # the device has no room for a stage beside all images
        self.ended: dict[str, tuple[str, str | None]] = {}  # by key, until it is told: how, and why
        self.place = SECOND  # of the last checkpoints
        self.training = self._start_or_go_on(stages)
        self.lanes: list[Lane] = list(self.training.lanes) if self.training else []  # whose end was not told
        self.told = self.checkpointed = self.epoch

    @property
    def done(self) -> bool:
        """Nothing is left to train: all ended, or were done when another worker died."""
        return self.training is None or self.training.done

    @property
    def epoch(self) -> int:
        return self.training.epoch if self.training else 0

    def _start_or_go_on(self, stages: Sequence[Stage]) -> StageTraining | None:
        for stage in stages:
            description = self.store.describe(stage.key)
            if description and needed_files(stage) <= set(description["files"]):
                self.ended[stage.key] = ("done", None)
        left = [stage for stage in stages if stage.key not in self.ended]
        if self.whole and left:
            left = list(stages)
            self.ended.clear()
        checkpoints = self._checkpoints_of(left)
        epochs = {key: len(each.epochs) if each else 0 for key, each in checkpoints.items()}
        if not epochs:
            return None
        [(epoch, _)] = Counter(epochs.values()).most_common(1)
        chosen = [stage for stage in left if epochs[stage.key] == epoch]
        if len(chosen) > 1:
            dataset = dataset_of(chosen[0], self.store)
            measured = best_width(chosen, dataset, self._new_training) if self.measure_width else None
            self.width = measured if self.measure_width else 1 if self.team else widest(chosen[0], dataset)
            chosen = chosen[: self.width]
        for stage in left:
            if stage not in chosen:
                self.ended[stage.key] = ("returned", None)
        return self._within_memory(chosen, checkpoints)

    def _checkpoints_of(self, stages: Sequence[Stage]) -> dict[str, Checkpoint | None]:
        """By key what each goes on from; of those that train all together from one epoch."""
        return self._of_all(stages) if self.whole else {stage.key: self._checkpoint_of(stage) for stage in stages}

    def _of_all(self, stages: Sequence[Stage]) -> dict[str, Checkpoint | None]:
        """The last checkpoints that all have, of one epoch."""
        chosen: dict[str, Checkpoint | None] = dict.fromkeys(stage.key for stage in stages)
        furthest = 0
        for place in (FIRST, SECOND):
            found = {stage.key: self._checkpoint_of(stage, place) for stage in stages}
            epochs = {len(each.epochs) if each else 0 for each in found.values()}
            if len(epochs) == 1 and (epoch := epochs.pop()) > furthest:
                chosen, furthest, self.place = found, epoch, place
        return chosen

    def _within_memory(
        self, stages: Sequence[Stage], checkpoints: Mapping[str, Checkpoint | None]
    ) -> StageTraining | None:
        """With as many of the stages as the device has room for; None where it has none for a single one."""
        while stages:
            with suppress(torch.OutOfMemoryError):
                return self._training_of(stages, checkpoints)
            stages = self._fewer(stages)
        return None

    def _training_of(self, stages: Sequence[Stage], checkpoints: Mapping[str, Checkpoint | None]) -> StageTraining:
        """From their checkpoints where they have any."""
        found = [each for stage in stages if (each := checkpoints[stage.key])]
        training = self._new_training(stages)
        if found:
            try:
                training.restore(found)
            except ValueError as error:
                log.warning("%s: %s; trained from its start", stages[0].name, error)
                del training  # first: two have no room
                training = self._new_training(stages)
        if self.team:
            self.team.begin(training, self.metric.name)
        return training

    def _fewer(self, stages: Sequence[Stage]) -> Sequence[Stage]:
        """Half of the stages, after the device had no room for all of them; the others are returned.

        Of one alone, or of the whole of them, images are streamed; then nothing is left to do without.
        """
        let_go(self.device)
        alone = len(stages) == 1 or self.whole
        if alone and can_stream(self.device) and not self.streamed:
            self.streamed = True
            log.info("%s: no room beside all images; they go to the device a batch at a time", self.name)
            return stages
        if alone:
            self.ended |= {stage.key: ("no memory", self._what_would_fit(stages)) for stage in stages}
            return []
        self.width = len(stages) // 2
        log.info("%s: no room for %d lanes; %d train", self.name, len(stages), self.width)
        self.ended |= {stage.key: ("returned", None) for stage in stages[self.width :]}
        return stages[: self.width]

    def _what_would_fit(self, stages: Sequence[Stage]) -> str:
        recipe, role, lanes = stages[0].recipe, stages[0].role, len(stages)
        ranks = self.team.size if self.team else 1
        fits = larger_part(role, self.gpus)
        if self.gpus >= 1 and stages[0].divisible:
            fits = [f"resources.{role}.gpu: {2 * ranks}"]  # each has half of a batch
        fits += [f"{role}.recipe.batch_size: {recipe.batch_size // 2}"] if recipe.batch_size > 1 else []
        fits = [f"lanes: {lanes // 2}"] if lanes > 1 else fits
        asked = f"{stages[0].model} with batch_size {recipe.batch_size}{f' in {lanes} lanes' if lanes > 1 else ''}"
        return no_room(asked, self.device, f"each of {ranks} ranks" if ranks > 1 else "a worker", self.gpus, fits)

    def _checkpoint_of(self, stage: Stage, place: int = FIRST) -> Checkpoint | None:
        content = self.store.load_checkpoint(stage.key, place)
        try:
            return Checkpoint.parse(content) if content is not None else None
        except ValueError as error:
            log.warning("%s: %s; trained from its start", stage.name, error)
            return None

    def _new_training(self, stages: Sequence[Stage]) -> StageTraining:
        kept = None if self.team else self._kept_below(stages[0])
        return new_training(stages, self.store, self.device, self.metric.name, self._frozen, kept, self.streamed)

    def _kept_below(self, stage: Stage) -> dict[LeftName, Array] | None:
        """What the layers that stand still give, by its names; it is derived here where it is gone."""
        if not (keys := {name: frozen_of(stage, name).key for name in frozen_for(stage)}):
            return None
        try:
            return {name: _of_frozen(self.store, key) for name, key in keys.items()}
        except (FileNotFoundError, ValueError) as error:
            log.info("%s: %s; it is derived again", stage.name, error)
            derive_frozen(stage, list(keys), self.store, self.device)
        return {name: _of_frozen(self.store, key) for name, key in keys.items()}

    @cached_property
    def _frozen(self) -> Callable[[str], Frozen]:
        """Models that run beside these stages, by the stage that they are of, as JSON: one each, whoever learns."""
        store, device = self.store, self.device  # not itself, which would hold the device until garbage is collected
        return lru_cache(lambda text: frozen(Stage.model_validate_json(text), store, device))

    def run_epoch(self) -> None:
        assert self.training
        with suppress(torch.OutOfMemoryError):
            if self.team:
                self.team.run_epoch(self.training)
            else:
                self.training.run_epoch()
            self._note_failures(self.training)
            self._publish(self.training.take_stopped())
            return
        self._go_on_with_fewer([lane.stage for lane in self.training.running])

    def _go_on_with_fewer(self, stages: Sequence[Stage]) -> None:
        """From the last checkpoints: what the device had no room for is half done."""
        self.training = None
        if fewer := self._fewer(stages):
            self.training = self._within_memory(fewer, self._checkpoints_of(fewer))
        goes_on = {lane.stage.key: lane for lane in self.training.lanes} if self.training else {}
        self.lanes = [goes_on.get(lane.stage.key, lane) for lane in self.lanes]
        self.checkpointed = self.epoch

    def _note_failures(self, training: StageTraining) -> None:
        for lane in training.lanes:
            if lane.failure:
                self.ended.setdefault(lane.stage.key, ("failed", lane.failure))

    def values(self) -> dict[str, float]:
        """Of the running stages that had a look at the validation split, the metric by key."""
        running = self.training.running if self.training else []
        return {lane.stage.key: value for lane in running if (value := lane.value(self.metric.name)) is not None}

    def values_before(self, every: int) -> dict[str, dict[int, float]]:
        """What the checkpoints that the running stages went on from say of each of so many epochs, by key."""
        running = [lane for lane in self.training.running if lane.epochs] if self.training else []
        return {lane.stage.key: looks([each.row() for each in lane.epochs], every, self.metric) for lane in running}

    def prune(self, keys: Collection[str]) -> None:
        assert self.training
        self.training.end([lane for lane in self.training.running if lane.stage.key in keys])
        self.ended |= dict.fromkeys(keys, ("pruned", None))

    def write_checkpoints(self) -> None:
        training = self.training
        assert training

        place = FIRST if not self.whole or self.place == SECOND else SECOND

        def save(lane: Lane) -> None:
            self.store.save_checkpoint(lane.stage.key, training.checkpoint(lane), place)

        _side_by_side(save, training.running)
        self.checkpointed, self.place = training.epoch, place

    def publish(self) -> None:
        """Writes the artifacts of the stages that came to the end, and drops their checkpoints."""
        self._publish(self.training.finish() if self.training else [])

    def _publish(self, left: Sequence[tuple[Lane, Trained]]) -> None:
        # What is described is so one after the other: what it is computed from is then kept for the next.
        outcomes = [self._outcome(*finished) for finished in left]

        def publish(number: int) -> None:
            self._publish_one(*left[number], outcomes[number])
            self.ended[left[number][0].stage.key] = ("done", None)

        _side_by_side(publish, range(len(left)))
        if self.checkpointed:
            places = (FIRST, SECOND) if self.whole else (FIRST,)
            _side_by_side(
                lambda each: self.store.drop_checkpoint(*each),
                [(lane.stage.key, place) for lane, _ in left for place in places],
            )

    def _outcome(self, lane: Lane, trained: Trained) -> dict[str, Any]:
        return describe_outcome(
            lane.stage,
            load_for(lane.stage.dataset, self.store),
            self.device,
            self.threads,
            self.origin[lane.stage.key],
            metrics={"validation": _measured(trained.selected)},
            selected_epoch=trained.selected.epoch,
            epochs=[each.row() for each in lane.epochs],
            train_seconds=sum(each.seconds for each in lane.epochs),
            soft_targets_seconds=trained.soft_targets_seconds,
            lanes=len(self.training.lanes) if self.training else 1,
            **self._costs(lane),
            **({"ranks": self.team.size} if self.team else {}),
        )

    def _publish_one(self, lane: Lane, trained: Trained, outcome: dict[str, Any]) -> None:
        stage, digest = lane.stage, lane.stage.pretrained
        weights = learned(trained.weights, digest, read_weights(self.store, digest) if digest else None)
        if trained.soft_targets is not None:  # first: who finds the artifact finds what is learned from it
            logits = dict(zip(stage.recipe.left_views, trained.soft_targets.numpy(), strict=True))
            publish_left(self.store, stage, sha256(weights), logits, trained.soft_targets_seconds, self.device)
        self.store.publish(stage.key, {"input": stage.key_input(), "outcome": outcome}, {WEIGHTS: weights})

    def _costs(self, lane: Lane) -> dict[str, float]:
        """Where layers stand still and what they give is kept: the epochs of all layers that would cost as much."""
        if lane.stage.frozen is None:
            return {}
        dataset = dataset_of(lane.stage, self.store)
        return {"whole_epochs": whole_epochs(lane.stage, dataset.image_shape, len(dataset.classes), len(lane.epochs))}

    def no_room(self, reason: str) -> None:
        """The storage is full: nothing of what is running can be kept."""
        for lane in self.lanes:
            self.ended.setdefault(lane.stage.key, ("no room", reason))

    def states(self) -> list[dict[str, Any]]:
        """The state of every stage whose end was not told, and its epochs since the last call.

        Of one that was pruned all its epochs: nothing else says what it reached.
        """
        epochs = {lane.stage.key: self._new_epochs(lane) for lane in self.lanes}
        told = self.ended | {key: ("running", None) for key in epochs if key not in self.ended}
        self.lanes = [lane for lane in self.lanes if lane.stage.key not in self.ended]
        self.ended, self.told = {}, max(self.told, self.epoch)  # it may have gone on from before what was told
        return [
            {"key": key, "state": state, "reason": reason, "epochs": epochs.get(key, [])}
            for key, (state, reason) in told.items()
        ]

    def _new_epochs(self, lane: Lane) -> list[dict[str, Any]]:
        told = 0 if self.ended.get(lane.stage.key, ("", ""))[0] == "pruned" else self.told
        return [each.row() for each in lane.epochs if each.epoch > told]


def new_training(
    stages: Sequence[Stage],
    store: ArtifactStore,
    device: torch.device,
    metric: str,
    frozen: Callable[[str], Frozen] | None = None,
    kept: Mapping[LeftName, Array] | None = None,
    streamed: bool = False,
) -> StageTraining:
    """From their start, with what the store has of those they learn from; `frozen` are models that run beside them,
    `kept` is what their own layers give that stand still, and `streamed` says that images are not all on the device.
    """
    upstream = [[_left_by(each, stage, store, frozen) for each in stage.upstream] for stage in stages]
    digest = stages[0].pretrained
    pretrained = read_weights(store, digest) if digest else None
    dataset = dataset_of(stages[0], store)
    heads = [_head_of(stage, dataset, store) for stage in stages] if stages[0].head_of else None
    return StageTraining(stages, dataset, upstream, device, pretrained, metric, heads, kept, streamed)


def _head_of(stage: Stage, dataset: Dataset, store: ArtifactStore) -> Mapping[str, Tensor]:
    """Its teacher's, in which its model ends."""
    assert stage.head_of
    weights = weights_of(stage.head_of, store)
    return head_weights(stage.head_of.model, weights, dataset.image_shape, len(dataset.classes))


def _left_by(upstream: Stage, stage: Stage, store: ArtifactStore, frozen: Callable[[str], Frozen] | None) -> Lessons:
    """All that a stage learns from one of its upstream stages."""
    text = upstream.model_dump_json()
    found: dict[tuple[What, str | None], ByView | Frozen] = {}
    for each in learned_by(stage):
        if stage.in_loop and each != SOFT_TARGETS:
            assert frozen
            found[each] = frozen(text)
        else:
            found[each] = _left(store, text, tuple(names_of(stage, *each)))
    return found


def _measured(selected: EpochMetrics) -> dict[str, float | None]:
    """By metric, on the validation split."""
    more = {metric_named(name).kept: value for name, value in selected.scores.items()}
    return {"accuracy": selected.val_accuracy, "loss": selected.val_loss, **more}


def prepare(gpus: float, deterministic: bool) -> torch.device:
    """What a worker trains on that was given so many GPUs; once, before it computes anything."""
    if deterministic:
        fix_algorithms()
    device = device_of(gpus)
    keep_within(device, gpus)
    return device


def _side_by_side(act: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Acts on all items; then raises the first error, if there was one."""
    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(act, item) for item in items]:
            done.result()


@lru_cache(maxsize=256)
def _of_frozen(store: ArtifactStore, key: str) -> Array:
    """Memory-mapped: whoever trains on it here reads the same."""
    return store.derived.read(key)


@lru_cache(maxsize=16)
def _left(store: ArtifactStore, stage: str, names: tuple[LeftName, ...]) -> ByView:
    """By a stage, as JSON, by the numbers of the views that are in the names."""
    return store.left(Stage.model_validate_json(stage), names)
