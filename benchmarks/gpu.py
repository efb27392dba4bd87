"""What holds on a GPU, and how fast it is there: each promise checked on the device, each speed beside a bare loop.

    .venv/bin/python benchmarks/gpu.py [--out docs/gpu.md] [--cifar cifar10-images.tar] [--parts NAME ...] [--small]

Prints as it goes, and writes a page of Markdown anew after each result, so that a run that is cut off loses little. At
most 8 minutes on one GPU. On a machine without one it runs in a small form, whose figures say nothing. It needs neither
Ray nor Optuna: `takd.search_spaces` and `takd.trainables` alone, and what they import. `--cifar` is an archive of
CIFAR-10 as image files, `train/CLASS/NUMBER.jpg` and `test/...`; without it images of 32 x 32 are random, and no
accuracy is measured on them. Exit code 1 where a promise did not hold.

A *bare loop* is what somebody who knows PyTorch writes for one model: all data on the device, channels-last, fused
optimizer, nothing read back inside an epoch; no checkpoints, no soft targets, nothing to choose.
"""

import argparse
import gc
import os
import platform
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as workers of a deterministic study have it

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from takd.search_spaces import Loss, Recipe, Stage, Term, learned_by
from takd.search_spaces.methods import METHODS, SOFTENED, compared_stages
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import Dataset, import_dataset, load
from takd.trainables.datasets.sources import RawSplit, Source
from takd.trainables.models.families import build
from takd.trainables.models.stage_models import head_weights
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.training.devices import device_of, fix_algorithms, keep_within, let_go, room_on, tf32
from takd.trainables.training.features import embedding_in, maps_in, stages_in
from takd.trainables.training.inputs import evaluation_batch, predict
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.optimizers import RULES
from takd.trainables.training.teaching import Lessons
from takd.trainables.width import best_width

CLASSES = 10
Kept = list[list[dict[str, Tensor]]]


class Page:
    """What was found, printed and written at once."""

    def __init__(self, out: Path | None, title: str) -> None:
        self.out, self.title = out, title
        self.checks: list[list[str]] = []
        self.tables: dict[str, list[list[str]]] = {}  # by heading: a head, then rows
        self.notes: list[str] = []
        self.wrong = 0

    def check(self, what: str, measured: str, holds: bool | None) -> None:
        """`holds` is None where it can't be told here."""
        self.wrong += holds is False
        said = {True: "yes", False: "**NO**", None: "not here"}[holds]
        self.checks.append([what, measured, said])
        self._say(f"[{said}] {what}: {measured}")

    def row(self, heading: str, head: Sequence[str], *cells: object) -> None:
        self.tables.setdefault(heading, [list(head)]).append([str(cell) for cell in cells])
        self._say(f"{heading} | {' | '.join(map(str, cells))}")

    def note(self, line: str) -> None:
        self.notes.append(line)
        self._say(line)

    def _say(self, line: str) -> None:
        print(line, flush=True)
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(self.text())

    def text(self) -> str:
        parts = [self.title]
        if self.checks:
            parts += ["## What holds", _table([["what", "measured", "holds"], *self.checks])]
        for heading, rows in self.tables.items():
            parts += [f"## {heading}", _table(rows)]
        if self.notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in self.notes)]
        return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *others])


@dataclass
class Bench:
    """What the parts share."""

    page: Page
    device: torch.device
    small: bool
    cifar_archive: Path | None
    folder: Path
    _made: dict[str, Dataset] = field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def size(self, on_gpu: int, small: int) -> int:
        return small if self.small else on_gpu

    def sync(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def timed(self, act: Callable[[], object]) -> float:
        self.sync()
        started = time.perf_counter()
        act()
        self.sync()
        return time.perf_counter() - started

    @property
    def mnist(self) -> Dataset:
        return load("mnist")

    def images_of(self, height: int, train: int) -> Dataset:
        """Random ones in colour, or CIFAR-10 where its archive is given."""
        name = f"random-{height}-{train}"
        if name not in self._made:
            self._made[name] = import_dataset(name, _random_source(height, train))
        return self._made[name]

    def images_for(self, name: str) -> Dataset:
        """Of a variant."""
        return self.images_of(32, self.size(50_000, 300)) if name == "torchvision" else self.mnist

    @property
    def cifar(self) -> Dataset:
        if self.cifar_archive is None:
            return self.images_of(32, self.size(50_000, 300))
        if "cifar" not in self._made:
            self._made["cifar"] = import_dataset("cifar10-files", _archived(self.cifar_archive))
        return self._made["cifar"]


def _random_source(height: int, train: int) -> Source:
    random = np.random.default_rng(0)

    def split(number: int) -> RawSplit:
        labels = np.arange(number, dtype=np.uint8) % CLASSES
        return RawSplit(random.integers(0, 256, (number, 3, height, height), dtype=np.uint8), labels)

    raw = {"train": split(train), "test": split(CLASSES)}
    return Source(read=lambda: raw, classes=tuple(map(str, range(CLASSES))))


def _archived(archive: Path) -> Source:
    files: dict[str, list[tuple[str, bytes]]] = {"train": [], "test": []}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) >= 3 and (content := tar.extractfile(member)):
                files[parts[-3]].append((parts[-2], content.read()))
    classes = tuple(sorted({name for name, _ in files["train"]}))

    def decode(file: tuple[str, bytes]) -> "np.ndarray[Any, Any]":
        with Image.open(BytesIO(file[1]), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    def split(part: str) -> RawSplit:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = np.stack([*pool.map(decode, files[part], chunksize=256)])
        return RawSplit(images, np.array([classes.index(name) for name, _ in files[part]], np.uint8))

    raw = {part: split(part) for part in files}
    return Source(read=lambda: raw, classes=classes)


def stage(dataset: Dataset, model: str, seed: int = 0, role: Any = "student", **given: Any) -> Stage:
    """On labels, or with `upstreams`, `loss`, `temperature` and `lambda_` taught by teachers with made-up logits.

    With `method` and `by` by a teacher of that model, whose embeddings or maps are made up too.
    """
    own: dict[str, Any] = {name: given.pop(name) for name in ("loss", "temperature", "lambda_") if name in given}
    number, method, by = given.pop("upstreams", 0), given.pop("method", None), given.pop("by", "mlp-1200")
    above = tuple(
        Stage(role="teacher", dataset=dataset.fingerprint, model=by, recipe=Recipe(), seed=each)
        for each in range(1 if method else number)
    )
    if method:
        own |= {"terms": (_term(method, dataset, model, by),)}
    elif above:
        own = {"temperature": 4.0, "lambda_": 0.7, "loss": Loss()} | own
    recipe = Recipe.model_validate(given)
    return Stage(role=role, dataset=dataset.fingerprint, model=model, recipe=recipe, seed=seed, upstream=above, **own)


def _term(method: str, dataset: Dataset, model: str, by: str) -> Term:
    params = {name: each.default for name, each in METHODS[method].params.items()}
    params |= {"negatives": 32.0, "width": 8.0} if method == "crd" else {}
    layers: dict[str, Any] = {}
    if METHODS[method].needs == "maps":
        ends = [stages_in(each, dataset.image_shape, len(dataset.classes)) for each in (model, by)]
        layers = dict(zip(("student_layers", "teacher_layers"), compared_stages(method, *ends), strict=True))
    return Term(method=method, params=params, **layers)


def _lessons(one: Stage, upstream: Stage, dataset: Dataset) -> Lessons:
    """Made up, of all that a stage learns: maps, which would take gigabytes, the same of all images."""
    about, images, random = (
        (dataset.image_shape, len(dataset.classes)),
        dataset.sizes["train"],
        np.random.default_rng(0),
    )
    found: dict[Any, Any] = {}
    for what, layer in learned_by(one):
        if what == "map":
            shape: tuple[int, ...] = maps_in(upstream.model, *about)[str(layer)]
            said = np.broadcast_to(random.normal(size=shape).astype(np.float32), (images, *shape))
        else:
            width = embedding_in(upstream.model, *about).features if what == "embedding" else about[1]
            said = random.normal(size=(images, width)).astype(np.float32)
        found[what, layer] = [said] * one.recipe.view_count
    return found


def training_of(stages: Sequence[Stage], dataset: Dataset, device: torch.device) -> StageTraining:
    if stages[0].terms:
        lessons = [[_lessons(each, above, dataset) for above in each.upstream] for each in stages]
        about, heads = (dataset.image_shape, len(dataset.classes)), None
        if (teacher := stages[0].head_of) is not None:
            heads = [head_weights(teacher.model, build(teacher.model, *about).state_dict(), *about)] * len(stages)
        return StageTraining(stages, dataset, lessons, device, heads=heads)
    shape = (dataset.sizes["train"], len(dataset.classes))
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    by_view = [logits] * stages[0].recipe.view_count
    return StageTraining(stages, dataset, [[by_view] * len(each.upstream) for each in stages], device)


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"


# --- what holds


def check_device(bench: Bench) -> None:
    """A worker without a GPU trains on the CPU, whatever it can see."""
    store = ArtifactStore(str(bench.folder / "root"))
    store.prepare()
    for gpus in (0.0, 0.25):
        one = stage(bench.mnist, "mlp-8", seed=int(100 * gpus), epochs=2, examples=500)
        batch = StageBatch([one], store, 1, False, {one.key: {}}, device=device_of(gpus), gpus=gpus)
        while not batch.done:
            batch.run_epoch()
        batch.publish()
        description = store.describe(one.key)
        assert description
        said = description["outcome"]["device"]
        wanted = torch.cuda.get_device_name() if gpus and bench.gpu else platform.machine()
        bench.page.check(f"a worker with gpu {gpus:g} trains on what it was given", said, said == wanted)


def check_reuse(bench: Bench) -> None:
    """What a worker held is free before it begins the next list."""
    if not bench.gpu:
        bench.page.check("a worker's next list finds the memory of the one before", "no GPU", None)
        return
    store = ArtifactStore(str(bench.folder / "root"))
    store.prepare()
    gc.collect()
    let_go(bench.device)
    before, after = torch.cuda.memory_allocated(), []
    held = 0
    for seed in range(3):
        some = [stage(bench.mnist, "cnn", seed=seed, role="teacher", epochs=1, examples=5000, batch_size=256)]
        batch = StageBatch(some, store, 4, False, {each.key: {} for each in some}, device=bench.device, gpus=1.0)
        while not batch.done:
            batch.run_epoch()
        held = max(held, torch.cuda.memory_allocated() - before)
        batch.publish()
        batch.states()
        del batch
        let_go(bench.device)
        after.append(torch.cuda.memory_allocated() - before)
    # What libraries keep for themselves is there after the first list already.
    more = after[2] - after[1]
    left = ", ".join(f"{each / 1e6:.1f}" for each in after)
    measured = f"{held / 1e6:.0f} MB while it trains; {left} MB after each of three"
    bench.page.check("a worker's next list finds the memory of the one before", measured, more < held / 100)


def check_finish(bench: Bench) -> None:
    """Soft targets bring no second copy of the data set to the device."""
    dataset = bench.images_of(32, bench.size(50_000, 300))
    training = training_of([stage(dataset, "plain-2", role="teacher", epochs=1, batch_size=256)], dataset, bench.device)
    training.run_epoch()
    images = dataset.train.images[:].nbytes
    if bench.gpu:
        # A batch's activations apart, which a smaller batch would not have: as much as the same model takes there.
        torch.cuda.reset_peak_memory_stats()
        _ = predict(training.taught.model, training.inputs.images)
        evaluating = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    [(_, trained)] = training.finish()
    assert trained.soft_targets is not None
    if not bench.gpu:
        bench.page.check("soft targets take no second copy of the images", "no GPU", None)
        return
    more = torch.cuda.max_memory_allocated() - evaluating
    measured = f"{more / 1e6:+.0f} MB beside evaluation; the images are {images / 1e6:.0f} MB"
    bench.page.check("soft targets take no second copy of the images", measured, more < images / 4)


def check_width(bench: Bench) -> None:
    """Lanes as many as a part of the GPU holds, and halved where they were too many."""
    if not bench.gpu:
        bench.page.check("lanes fit a worker's part of the memory", "no GPU", None)
        return
    total, held = torch.cuda.mem_get_info()[1], torch.cuda.memory_allocated()
    share = held + 2.5e9
    some = [stage(bench.mnist, "mlp-1200", seed=seed, epochs=1, examples=5000, upstreams=1) for seed in range(64)]
    try:
        keep_within(bench.device, share / total)
        width = best_width(some, bench.mnist, lambda few: training_of(few, bench.mnist, bench.device))
        there = room_on(bench.device)
        torch.cuda.reset_peak_memory_stats()
        training = training_of(some[: width or 64], bench.mnist, bench.device)
        training.run_epoch()
        peak = torch.cuda.max_memory_allocated()
        del training
        let_go(bench.device)
        lanes = f"{width} lanes of mlp-1200" if width != 1 else "one lane of mlp-1200"
        measured = f"{lanes}, {gigabytes(peak)} of {gigabytes(share)}; {gigabytes(there)} were left before"
        bench.page.check("lanes fit a worker's part of the memory", measured, peak < share)
        store = ArtifactStore(str(bench.folder / "root"))
        store.prepare()
        labels = [stage(bench.mnist, "mlp-1200", seed=seed, epochs=1, examples=2000) for seed in range(64)]
        keep_within(bench.device, (torch.cuda.memory_allocated() + 1.2e9) / total)
        batch = StageBatch(labels, store, 4, False, {each.key: {} for each in labels}, device=bench.device, gpus=0.5)
        while not batch.done:
            batch.run_epoch()
        batch.publish()
        ended = [how for how, _ in batch.ended.values()]
        counts = {how: ended.count(how) for how in sorted(set(ended))}
        del batch
        bench.page.check(
            "out of memory halves the lanes, and no stage fails",
            f"64 lanes in 1.2 GB: {counts}",
            set(counts) == {"done", "returned"},
        )
        keep_within(bench.device, (torch.cuda.memory_allocated() + 0.05e9) / total)
        one = labels[-1]
        batch = StageBatch([one], store, 4, False, {one.key: {}}, device=bench.device, gpus=0.25)
        if not batch.done:
            batch.run_epoch()
        how, why = batch.ended.get(one.key, ("running", None))
        bench.page.check("what has no room alone says what would fit", f"{how}: {why}", how == "no memory")
    finally:
        keep_within(bench.device, 1.0)


def check_float32(bench: Bench) -> None:
    """Logits of evaluation against float64 on the CPU; beside them those with TF32."""
    dataset = bench.images_of(32, bench.size(50_000, 300))
    model = "resnet-20" if not bench.small else "resnet-8"
    training = training_of(
        [stage(dataset, model, epochs=1, batch_size=256, examples=bench.size(5000, 100))], dataset, bench.device
    )
    training.run_epoch()
    few = training.inputs.pixels(dataset.validation.images[: bench.size(256, 10)])
    own = predict(training.taught.model, few)[0].cpu().double()
    exact = build(model, dataset.image_shape, CLASSES).double().eval()
    exact.load_state_dict({name: each.double().cpu() for name, each in training.taught.model.weights(0).items()})
    with torch.no_grad():
        wanted = exact(few[slice(None)].cpu().double().contiguous()).t()

        def error(logits: Tensor) -> float:
            return float((logits - wanted).norm() / wanted.norm())

        with tf32(True):
            short = training.taught.model(few[slice(None)])[0].cpu().double()
    measured = f"{error(own):.1e} of the logits' norm; {error(short):.1e} where TF32 is allowed"
    bench.page.check(f"evaluation is float32 ({model}, against float64 on the CPU)", measured, error(own) < 1e-5)


# What a step may be made of: every family, loss, augmentation, optimizer and precision; see the test that says so.
ON_VECTORS = [name for name, each in METHODS.items() if each.needs != "maps" and name not in SOFTENED]
ON_MAPS = ("fitnet", "at", "sp", "vid")
VARIANTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mlp, lanes, dropout": ("mlp-32", 3, {"dropout": 0.2, "upstreams": 1}),
    "rates by lane, adam": ("mlp-8", 2, {"rates": True, "weight_decay": 1e-4}),
    "rates by lane, adamw": ("mlp-8", 2, {"rates": True, "optimizer": "adamw", "weight_decay": 0.1}),
    "sgd, smoothing, weights": ("mlp-8", 2, {"optimizer": "sgd", "label_smoothing": 0.1, "class_weights": "balanced"}),
    "additive, mean": ("mlp-8", 2, {"upstreams": 1, "loss": Loss(form="additive", kl_reduction="mean")}),
    "decoupled": ("mlp-8", 2, {"upstreams": 1, "loss": Loss(divergence="decoupled", alpha=1.0, beta=8.0)}),
    "standardised": ("mlp-8", 2, {"upstreams": 1, "loss": Loss(standardize=True)}),
    "ensemble": ("mlp-8", 2, {"upstreams": 2, "loss": Loss(guidance="ensemble")}),
    "dropped guides": ("mlp-8", 2, {"upstreams": 2, "loss": Loss(drop_guides=0.3)}),
    "cnn, crop-flip": ("cnn", 1, {"augment": "crop-flip", "views": 2, "precision": "bfloat16"}),
    "plain, flip-rotate": ("plain-2", 1, {"augment": "flip-rotate", "views": 2, "optimizer": "sgd"}),
    "resnet, tf32": ("resnet-8", 1, {"precision": "tf32", "upstreams": 1, "schedule": "step"}),
    "torchvision": ("torchvision/mobilenet_v3_small", 1, {"optimizer": "sgd", "precision": "bfloat16"}),
    "crops, colours": ("cnn", 1, {"augment": "random-resized-crop+color-jitter", "views": 2}),
    "operations": ("cnn", 1, {"augment": "rand-augment+trivial-augment", "views": 2}),
    "mixup": ("mlp-8", 2, {"augment": "crop-flip+mixup", "views": 2}),
    "cutmix, averaged": ("cnn", 1, {"augment": "cutmix", "views": 2, "ema": 0.9}),
    "clipped, in parts": ("mlp-8", 2, {"clip_norm": 1.0, "accumulate": 2, "optimizer": "sgd", "nesterov": True}),
    **{name: ("mlp-8", 2, {"method": name, "by": "mlp-16"}) for name in ON_VECTORS},
    **{
        name: ("plain-2", 1, {"method": name, "by": "plain-4", "optimizer": "sgd"})
        for name in ("fitnet", "at", "sp", "vid")
    },
    "simkd": ("resnet-8", 1, {"method": "simkd", "by": "resnet-14"}),
    "wide": ("wrn-10-1", 1, {"optimizer": "sgd"}),
    "vgg": ("vgg-8", 1, {"optimizer": "sgd"}),
    "shuffled": ("shufflenet-v1", 1, {"optimizer": "sgd"}),
    **{name: ("mlp-8", 2, {"optimizer": name}) for name in RULES},
}
# Whose steps count on the host: no graph can be made of them.
ON_THE_HOST = set(RULES)


def variant(name: str, dataset: Dataset, device: torch.device, **more: Any) -> StageTraining:
    """A training of that variant."""
    model, lanes, given = VARIANTS[name]
    recipe: dict[str, Any] = {"epochs": 2, "examples": 100, "batch_size": 32} | given | more
    rates = recipe.pop("rates", False)
    stages = [
        stage(dataset, model, seed=lane, **recipe | ({"learning_rate": 1e-3 * (1 + lane)} if rates else {}))
        for lane in range(lanes)
    ]
    return training_of(stages, dataset, device)


def begun(training: StageTraining) -> StageTraining:
    """In its second epoch's view, so that what augments is there."""
    training.epoch = 1
    training._begin_epoch()
    training.feed = training.inputs.feed(training.taught, 1)
    training.taught.train(1)
    return training


def check_syncs(bench: Bench) -> None:
    """No step waits for the device."""
    found = []
    for name in VARIANTS:
        training = begun(variant(name, bench.images_for(name), bench.device))
        batch = training.inputs.batches(1, 2)[0]
        try:
            if bench.gpu:
                torch.cuda.set_sync_debug_mode("error")
            for number in range(2):
                training.train_step(batch, 0.5, number)
        except RuntimeError as error:
            found.append(f"{name}: {str(error).splitlines()[0]}")
        finally:
            if bench.gpu:
                torch.cuda.set_sync_debug_mode("default")
    measured = (
        "; ".join(found) or f"{len(VARIANTS)} kinds of steps: every family, loss, method, augmentation and optimizer"
    )
    bench.page.check("a step waits for nothing", measured, not found if bench.gpu else None)


def check_graphs(bench: Bench) -> None:
    """Replayed steps leave what plain steps leave, to the last digit, whatever a step is made of."""
    if not bench.gpu:
        bench.page.check("steps as CUDA graphs leave what plain steps leave", "no GPU", None)
        return
    apart, replayed, plain = 0.0, 0, []
    with deterministic():
        for name in VARIANTS:
            found = []
            for refused in (True, False):
                training = variant(name, bench.images_for(name), bench.device, epochs=6, examples=650)
                graphs = training.graphs
                assert graphs
                graphs.refused = refused
                while not training.done:
                    training.run_epoch()
                if not refused:
                    replayed += graphs.replays
                    if not graphs.replays:
                        plain.append(name)
                found.append([trained.weights for _, trained in training.finish()])
            far = _difference(*found)
            apart = max(apart, far)
            if far:
                bench.page.note(f"Steps as CUDA graphs: {name} differs by {far:.1e}.")
    measured = f"largest difference {apart:.1e} over {len(VARIANTS)} kinds of steps, {replayed:,} of them replayed"
    measured += f"; plain: {', '.join(plain)}" if plain else ""
    as_meant = set(plain) == ON_THE_HOST
    bench.page.check("steps as CUDA graphs leave what plain steps leave", measured, apart == 0 and as_meant)


@contextmanager
def deterministic() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    fix_algorithms()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def check_deterministic(bench: Bench) -> None:
    """The same student twice, to the last digit."""
    heading, head = (
        "What `deterministic: true` costs",
        ["model", "default, s", "deterministic, s", "default twice the same"],
    )
    for model, lanes in (
        (("mlp-64", 8), ("cnn", 1), ("plain-2", 1), ("resnet-8", 1)) if not bench.small else (("mlp-64", 8),)
    ):
        dataset = bench.mnist if model in ("mlp-64", "cnn") else bench.images_of(32, bench.size(50_000, 300))
        stages = [
            stage(dataset, model, seed=seed, epochs=2, examples=bench.size(5000, 100), batch_size=128, upstreams=1)
            for seed in range(lanes)
        ]

        kept: Kept = []

        def train(some: Sequence[Stage] = stages, dataset: Dataset = dataset, into: Kept = kept) -> None:
            training = training_of(some, dataset, bench.device)
            while not training.done:
                training.run_epoch()
            into.append([trained.weights for _, trained in training.finish()])

        bench.timed(train)  # warms up
        kept.clear()
        default = [bench.timed(train) for _ in range(2)]
        try:
            with deterministic():
                fixed = [bench.timed(train) for _ in range(2)]
        except RuntimeError as error:
            bench.page.check(f"deterministic: the same {model} twice", str(error).splitlines()[0], False)
            continue
        same = [_difference(kept[at], kept[at + 1]) == 0 for at in (0, 2)]
        far = _difference(kept[2], kept[3])
        bench.page.check(f"deterministic: the same {model} twice", f"largest difference {far:.1e}", same[1])
        bench.page.row(heading, head, model, f"{min(default):.2f}", f"{min(fixed):.2f}", "yes" if same[0] else "no")


def _difference(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> float:
    return max(
        float((a[name].double() - b[name].double()).abs().max())
        for a, b in zip(one, other, strict=True)
        for name in a
        if a[name].numel()
    )


def check_same_student(bench: Bench) -> None:
    """A student of the CPU and one of the GPU."""
    for model, given, bound in (("mlp-32", {"epochs": 3}, 1e-3), ("resnet-8", {"epochs": 1, "optimizer": "sgd"}, 3e-3)):
        if bench.small and model != "mlp-32":
            continue
        one = stage(
            bench.mnist, model, examples=bench.size(5000, 500), batch_size=100, learning_rate=1e-3, upstreams=1, **given
        )
        found = []
        for device in (torch.device("cpu"), bench.device):
            training = training_of([one], bench.mnist, device)
            while not training.done:
                training.run_epoch()
            [(lane, trained)] = training.finish()
            found.append((trained.weights, lane.selected.val_accuracy or 0.0))
        far = _difference([found[0][0]], [found[1][0]])
        measured = f"weights differ by {far:.1e} at most, accuracy {found[0][1]:.4f} and {found[1][1]:.4f}"
        bench.page.check(
            f"the GPU's student is the CPU's ({model}, MNIST)", measured, far < bound if bench.gpu else None
        )


# --- how fast


class Bare:
    """A bare loop over labels: `epoch()` trains one; with `graph` full batches are replayed as a CUDA graph."""

    def __init__(
        self, model: str, dataset: Dataset, device: torch.device, batch: int, precision: str, graph: bool = False
    ) -> None:
        self.images, self.labels = dataset.train.images[:].to(device), dataset.train.labels.to(device)
        self.scale, self.shift = (each.to(device) for each in dataset.normalization.of_bytes())
        module = build(model, dataset.image_shape, len(dataset.classes)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module: nn.Module = module.train()
        self.fused = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
        self.device, self.batch, self.precision, self.wanted = device, batch, precision, graph
        self.graph: torch.cuda.CUDAGraph | None = None
        self.chosen = torch.arange(batch, device=device)

    def step(self, chosen: Tensor) -> None:
        with tf32(self.precision == "tf32"):
            pixels = self.images.index_select(0, chosen).float().mul_(self.scale).add_(self.shift)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = self.module(pixels)
            F.cross_entropy(logits.float(), self.labels.index_select(0, chosen)).backward()
            self.fused.step()
            self.fused.zero_grad(set_to_none=True)

    def epoch(self) -> None:
        if self.wanted and self.graph is None:
            self.graph = captured(lambda: self.step(self.chosen))
        for chosen in torch.randperm(len(self.images), device=self.device).split(self.batch):
            if self.graph is not None and len(chosen) == self.batch:
                self.chosen.copy_(chosen)
                self.graph.replay()
            else:
                self.step(chosen)


def captured(act: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """After a few times of warming up beside the main stream, as PyTorch's manual has it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            act()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        act()
    return graph


def _epochs(bench: Bench, heading: str, model: str, dataset: Dataset, batch: int, epochs: int) -> None:
    head = ["model", "precision", "takd", "takd without graphs", "bare loop", "bare loop as a graph", "images a second"]
    for precision in ("bfloat16", "tf32", "float32"):
        recipe: dict[str, Any] = {"epochs": 1000, "evaluate_every": 1000, "batch_size": batch, "precision": precision}
        one = stage(dataset, model, optimizer="sgd", learning_rate=0.01, weight_decay=5e-4, **recipe)
        cells = []
        for refused in (False, True) if bench.gpu else (True,):
            training = training_of([one], dataset, bench.device)
            if training.graphs is not None:
                training.graphs.refused = refused
            training.run_epoch()  # warms up
            cells.append(min(bench.timed(training.run_epoch) for _ in range(epochs)))
            del training
            let_go(bench.device)
        for graph in (False, True) if bench.gpu else (False,):
            bare = Bare(model, dataset, bench.device, batch, precision, graph)
            bare.epoch()
            cells.append(min(bench.timed(bare.epoch) for _ in range(epochs)))
            del bare
            let_go(bench.device)
        seconds = [f"{each:.3f}" for each in cells] if bench.gpu else ["-", *(f"{each:.3f}" for each in cells), "-"]
        rate = f"{len(dataset.train.labels) / cells[0]:,.0f}"
        bench.page.row(heading, head, model, precision, *seconds, rate)


def time_cifar(bench: Bench) -> None:
    """Epochs on images of CIFAR-10's size."""
    dataset = bench.cifar
    real = "CIFAR-10's images" if bench.cifar_archive else "random images of CIFAR-10's size"
    heading = f"Seconds of an epoch on {dataset.sizes['train']:,} {real}, batches of 128"
    for model in ("resnet-20", "plain-10") if not bench.small else ("plain-2",):
        _epochs(bench, heading, model, dataset, bench.size(128, 64), 1)


def time_resnet50(bench: Bench) -> None:
    """Epochs and evaluation at 224 x 224."""
    height, number = bench.size(224, 32), bench.size(2048, 40)
    dataset = bench.images_of(height, number)
    model = "torchvision/resnet50" if not bench.small else "torchvision/resnet18"
    batch = bench.size(128, 18)
    heading = (
        f"Seconds of an epoch on {dataset.sizes['train']:,} random images of {height} x {height}, batches of {batch}"
    )
    _epochs(bench, heading, model, dataset, batch, bench.size(2, 1))
    training = training_of([stage(dataset, model, epochs=1, batch_size=batch)], dataset, bench.device)
    pixels, lanes = training.inputs.images, training.taught.model
    at_once = {evaluation_batch(dataset.image_shape)}
    at_once |= {evaluation_batch(dataset.image_shape, room_on(bench.device))} if bench.gpu else set()
    lanes.eval()
    for size in sorted(at_once):

        @torch.no_grad()
        def evaluate(size: int = size) -> None:
            with tf32(False):
                for start in range(0, len(pixels), size):
                    lanes(pixels[slice(start, start + size)])

        evaluate()
        seconds = bench.timed(evaluate)
        rate = f"{len(pixels) / seconds:,.0f}"
        bench.page.row("Evaluation in float32", ["model", "images at once", "images a second"], model, size, rate)


def _lanes(bench: Bench, model: str, width: int, epochs: int) -> list[Stage]:
    return [
        stage(
            bench.mnist, model, seed=seed, epochs=epochs, evaluate_every=epochs, examples=bench.size(2000, 256),
            batch_size=256, learning_rate=3e-3, schedule="one-cycle", upstreams=1, temperature=1.0 + seed % 16,
        )
        for seed in range(width)
    ]  # fmt: skip


def time_lanes(bench: Bench) -> None:
    """Students of MNIST side by side: 2,000 images, taught by soft targets."""
    epochs = bench.size(20, 2)
    heading = f"Students of MNIST (2,000 images, {epochs} epochs, soft targets), by lanes"
    head = ["model", "lanes", "students a second", "without graphs", "seconds to begin, train, end", "memory"]
    for model in ("mlp-32", "mlp-784") if not bench.small else ("mlp-32",):
        for width in (1, 8, 64, 256, 1024) if not bench.small else (1, 4):
            if model == "mlp-784" and width > 256:
                continue
            stages = _lanes(bench, model, width, epochs)
            if width == 1:
                _run(bench, stages)  # warms up
            if bench.gpu:
                torch.cuda.reset_peak_memory_stats()
            spans = _run(bench, stages)
            memory = gigabytes(torch.cuda.max_memory_allocated()) if bench.gpu else "-"
            plain = f"{width / sum(_run(bench, stages, refused=True)):.1f}" if bench.gpu else "-"
            parts = ", ".join(f"{each:.2f}" for each in spans)
            bench.page.row(heading, head, model, width, f"{width / sum(spans):.1f}", plain, parts, memory)
        for graph in (False, True) if bench.gpu else (False,):
            seconds = _bare_student(bench, model, epochs, graph)
            name = "bare loop as a graph" if graph else "bare loop"
            bench.page.row(heading, head, model, name, f"{1 / seconds:.1f}", "", "", "")
        several = _lanes(bench, model, 64, epochs)
        chosen = best_width(several, bench.mnist, lambda few: training_of(few, bench.mnist, bench.device))
        bench.page.note(f"`lanes: auto` chose {chosen} lanes of {model} here.")


def _run(bench: Bench, stages: Sequence[Stage], refused: bool = False) -> tuple[float, float, float]:
    """Seconds to begin, to train and to end."""
    made: list[StageTraining] = []
    began = bench.timed(lambda: made.append(training_of(stages, bench.mnist, bench.device)))
    [training] = made
    if training.graphs is not None and refused:
        training.graphs.refused = True

    def train() -> None:
        while not training.done:
            training.run_epoch()

    return began, bench.timed(train), bench.timed(training.finish)


def _bare_student(bench: Bench, model: str, epochs: int, graph: bool) -> float:
    """Seconds of one student, taught as those in lanes are."""
    dataset, number, size = bench.mnist, bench.size(2000, 256), 256
    scale, shift = dataset.normalization.of_bytes()

    def train() -> None:
        images = dataset.train.images[:number].float().mul_(scale).add_(shift).to(bench.device)
        labels = dataset.train.labels[:number].to(bench.device)
        soft = torch.randn(number, CLASSES, device=bench.device).div_(4.0).softmax(dim=1)
        module = build(model, dataset.image_shape, CLASSES).to(bench.device)
        adam = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True, capturable=bench.gpu)
        held = torch.arange(size, device=bench.device)

        def step(chosen: Tensor) -> None:
            logits = module(images.index_select(0, chosen))
            kl = F.kl_div(F.log_softmax(logits / 4.0, dim=1), soft.index_select(0, chosen), reduction="batchmean")
            (0.3 * F.cross_entropy(logits, labels.index_select(0, chosen)) + 0.7 * 16 * kl).backward()
            adam.step()
            adam.zero_grad(set_to_none=True)

        replay = captured(lambda: step(held)).replay if graph else None
        for _ in range(epochs):
            for chosen in torch.randperm(number, device=bench.device).split(size):
                if replay is not None and len(chosen) == size:
                    held.copy_(chosen)
                    replay()
                else:
                    step(chosen)
        with torch.no_grad():
            validation = dataset.validation.images[:].to(bench.device).float().mul_(scale.to(bench.device))
            float((module(validation).argmax(dim=1) == dataset.validation.labels.to(bench.device)).float().mean())

    train()
    return min(bench.timed(train) for _ in range(2))


def time_steps(bench: Bench) -> None:
    """A step, plain and as a CUDA graph."""
    if not bench.gpu:
        bench.page.note("A step as a CUDA graph: no GPU.")
        return
    heading = "A step of 128 images, plain and as a CUDA graph"
    head = ["model", "lanes", "precision", "plain, ms", "as a graph, ms", "times as fast"]
    for model, lanes, precision in (
        ("mlp-32", 1, "float32"), ("mlp-32", 64, "float32"), ("mlp-32", 1024, "float32"), ("mlp-784", 64, "float32"),
        ("cnn", 1, "bfloat16"), ("resnet-8", 1, "bfloat16"), ("resnet-20", 1, "bfloat16"), ("plain-10", 1, "bfloat16"),
        ("torchvision/mobilenet_v3_small", 1, "bfloat16"),
    ):  # fmt: skip
        dataset = bench.mnist if model.startswith("mlp") or model == "cnn" else bench.images_of(32, 50_000)
        recipe = {"epochs": 100, "examples": 2000, "batch_size": 128, "upstreams": 1, "precision": precision}
        stages = [stage(dataset, model, seed=seed, **recipe) for seed in range(lanes)]
        training = training_of(stages, dataset, bench.device)
        training.taught.train(0)
        batch = torch.arange(128, device=bench.device)

        def steps(training: StageTraining = training, batch: Tensor = batch) -> None:
            for _ in range(50):
                training.train_step(batch, 1.0)

        steps()
        fast = 20 * bench.timed(steps)
        graphs = training.graphs
        assert graphs
        graphed, graphs.refused = bool(graphs.replays), True
        slow = 20 * bench.timed(steps)
        cells = f"{slow:.3f}", f"{fast:.3f}" if graphed else "none", f"{slow / fast:.1f}" if graphed else "-"
        bench.page.row(heading, head, model, lanes, precision, *cells)
        del training, graphs, steps
        let_go(bench.device)


def time_accuracy(bench: Bench) -> None:
    """A whole model on real images."""
    if bench.cifar_archive is None and not bench.small:
        bench.page.note("Accuracy on CIFAR-10 was not measured: `--cifar` was not given.")
        return
    epochs = bench.size(30, 1)
    recipe: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.2, "weight_decay": 5e-4, "schedule": "one-cycle"}
    recipe |= {"batch_size": bench.size(256, 64), "precision": "bfloat16", "augment": "crop-flip", "views": 12}
    model = "resnet-8" if bench.small else "resnet-20"
    one = stage(bench.cifar, model, epochs=epochs, evaluate_every=epochs, **recipe)
    made: list[StageTraining] = []

    def train() -> None:
        training = training_of([one], bench.cifar, bench.device)
        made.append(training)
        while not training.done:
            training.run_epoch()

    seconds = bench.timed(train)
    [lane] = made[0].lanes
    heading, head = "A whole training", ["model", "epochs", "seconds", "accuracy on validation images"]
    bench.page.row(heading, head, one.model, epochs, f"{seconds:.1f}", f"{100 * (lane.value('accuracy') or 0):.1f} %")


def time_tune(bench: Bench) -> None:
    """Beside plain Ray Tune."""
    there = find_spec("ray") is not None
    where = "see benchmarks/beside/plain_ray_tune.py" if there else "not measured: Ray is not installed here"
    bench.page.note(f"Plain Ray Tune on the same card: {where}.")


# By name, with seconds that it may take at most.
PARTS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "device": (check_device, 30),
    "reuse": (check_reuse, 30),
    "finish": (check_finish, 40),
    "width": (check_width, 60),
    "float32": (check_float32, 40),
    "syncs": (check_syncs, 60),
    "graphs": (check_graphs, 75),
    "deterministic": (check_deterministic, 60),
    "same-student": (check_same_student, 45),
    "lanes": (time_lanes, 75),
    "steps": (time_steps, 40),
    "cifar": (time_cifar, 110),
    "resnet50": (time_resnet50, 75),
    "accuracy": (time_accuracy, 60),
    "tune": (time_tune, 10),
}


class OutOfTimeError(Exception):
    """A part took longer than it may."""


def _out_of_time(*_: object) -> None:
    raise OutOfTimeError


def run_part(name: str, bench: Bench) -> None:
    """What goes wrong in one part is said, and the next goes on."""
    part, limit = PARTS[name]
    started = time.perf_counter()
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, limit * (20 if bench.small else 1))  # a CPU may have others to serve
    try:
        part(bench)
    except OutOfTimeError:
        bench.page.note(f"`{name}` was cut off after {limit:g} seconds.")
    except Exception as error:
        traceback.print_exc()
        bench.page.check(f"`{name}` runs to its end", f"{type(error).__name__}: {str(error).splitlines()[:1]}", False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if bench.gpu:
            torch.cuda.set_sync_debug_mode("default")
        gc.collect()
        let_go(bench.device)
    print(f"-- {name}: {time.perf_counter() - started:.1f} s", flush=True)


def title(device: torch.device, small: bool) -> str:
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"no GPU ({platform.machine()}, {os.cpu_count()} cores)"
    )
    lines = [
        "# On a GPU",
        "Printed by `python benchmarks/gpu.py --out docs/gpu.md`: every promise about devices checked on a real one, "
        "and speeds beside a bare PyTorch loop on the same card in the same run.",
        f"{name}, torch {torch.__version__}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}.",
    ]
    if small:
        lines.append("**The small form: it shows that the program runs, and its figures say nothing.**")
    return "\n\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page, such as docs/gpu.md")
    parser.add_argument("--cifar", type=Path, help="an archive of CIFAR-10 as image files")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="as on a machine without a GPU")
    parser.add_argument("--seconds", type=float, default=480, help="no part begins after these")
    options = parser.parse_args(arguments)
    device = device_of(float(torch.cuda.is_available()))
    small = options.small or device.type == "cpu"
    page = Page(options.out, title(device, small))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="takd-gpu-") as folder:
        os.environ.setdefault("TAKD_CACHE", f"{folder}/cache")
        bench = Bench(page, device, small, options.cifar, Path(folder))
        for name in options.parts:
            if time.perf_counter() - started > options.seconds:
                page.note(f"`{name}` was left out: {options.seconds:g} seconds were over.")
            else:
                run_part(name, bench)
    if page.wrong:
        print(f"{page.wrong} did not hold", file=sys.stderr)
    return int(page.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
