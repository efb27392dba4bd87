"""What a study costs beside the training itself, and what the cached soft targets save.

    .venv/bin/python benchmarks/overhead.py [trial] [memory] [slots] [epoch] [teacher] [step] [head]

trial   seconds a stage costs beyond its training steps, over 100 tiny students on one CPU slot, beside the same for a
        plain Tune function trainable that imports torch (over 6 trials); and where those seconds go
memory  the resident set of the worker that trained those 100, from its 10th stage to its 100th
slots   the preset mnist-gap: CPU seconds in training as a part of all the CPU slots had, from Ray's start to the end
epoch   one epoch of mlp-784 with cached soft targets, beside one with the cnn teacher's forward pass in the loop
teacher one epoch of the cnn teacher, beside the same in torch's own layout and float32
step    a training step of resnet-8 on 32x32 RGB images, beside the same model in a bare PyTorch loop
head    a resnet18 whose head alone trains for 5 epochs, beside the same without cached features

About 8 minutes on 2 cores for all seven. The ratios are of one run, side by side; seconds depend on the machine.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import psutil
import ray
import torch
from ray import tune

from takd.search_spaces import Loss, Recipe, Space, Stage, load_space, space_from
from takd.study.checks import check_space
from takd.study.folder import study_folder
from takd.study.search.graph import Node, StageGraph
from takd.study.search.optimization import create_search
from takd.study.search.scheduling import PathSearcher, run_stages, start_ray
from takd.study.stopping import Stop
from takd.study.tracking.observers import Observer, Observers
from takd.study.tracking.wandb_runs import WandbTracker
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.datasets.splits import Split
from takd.trainables.models.dropout import Dropout
from takd.trainables.models.families import build
from takd.trainables.models.pretrained import without_head
from takd.trainables.models.weights_files import Pretrained
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.losses import soften
from takd.trainables.training.teaching import SoftTeaching

PARTS = ("trial", "memory", "slots", "epoch", "teacher", "step", "head")
TRIALS, PLAIN_TRIALS = 100, 6
LOOP_STEPS = 20  # of an epoch's 196, scaled: the teacher's forward pass takes a minute an epoch


class Clock:
    """An observer that notes when stages start and end, and the memory of the workers."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.nodes: list[Node] = []
        self.resident: list[int] = []

    def stage_started(self, node: Node) -> None:
        self.started[node.stage.key] = time.perf_counter()

    def stage_reported(self, node: Node, epochs: Sequence[dict[str, Any]]) -> None: ...

    def stage_ended(self, node: Node) -> None:
        self.ended[node.stage.key] = time.perf_counter()
        self.nodes.append(node)
        if node.description:
            self.resident.append(psutil.Process(node.description["outcome"]["process"]).memory_info().rss)

    def graph_changed(self, graph: StageGraph, trials_left: int) -> None: ...
    def close(self) -> None: ...


def outcome(node: Node) -> dict[str, Any]:
    assert node.description is not None, node.reason
    return node.description["outcome"]


def run(space: Space, slots: int, wandb: bool) -> tuple[Clock, float]:
    """Runs a space's stages in a new root; returns what the clock saw and the seconds it took once Ray had started."""
    ray.shutdown()
    with tempfile.TemporaryDirectory(prefix="takd-overhead-") as root:
        folder = study_folder(root, "overhead")
        dataset, _ = check_space(space, "benchmark")
        folder.prepare()
        search = create_search(folder, space, dataset.fingerprint)
        start_ray(slots)
        clock = Clock()
        watching: list[Observer] = [clock, *([WandbTracker(folder, space.all_arms, "offline")] if wandb else [])]
        observers = Observers(watching)
        run_stages(PathSearcher(search, StageGraph(folder.artifacts), root, observers, Stop()))
        seconds = time.perf_counter() - clock.began
        observers.close()
        return clock, seconds


def tiny_students() -> Space:
    return space_from(
        {
            "dataset": "mnist",
            "teacher": "mlp-16",
            "student": {"model": "mlp-4", "recipe": {"epochs": 2, "examples": 500}},
            "arms": ["labels"],
            "trials": TRIALS,
            "lanes": 1,  # a trial of Tune's a student
            "confirm": None,
        },
        "benchmark",
    )


def plain_function(config: dict[str, Any]) -> dict[str, float]:
    """What a user writes first; trains nothing, so that all its time is overhead."""
    import torch

    torch.set_num_threads(1)
    return {"val_accuracy": 0.0}


def measure_trial_and_memory(wanted: set[str]) -> None:
    clock, seconds = run(tiny_students(), slots=1, wandb=False)
    nodes = sorted(clock.nodes, key=lambda node: clock.started[node.stage.key])
    training = sum(outcome(node)["train_seconds"] for node in nodes)
    starts, ends = [clock.started[n.stage.key] for n in nodes], [clock.ended[n.stage.key] for n in nodes]
    inside = sum(end - start for start, end in zip(starts, ends, strict=True)) - training
    between = sum(max(0.0, start - end) for start, end in zip(starts[1:], ends, strict=False))
    if "trial" in wanted:
        started = time.perf_counter()
        tune.Tuner(
            tune.with_resources(plain_function, {"cpu": 1}),
            tune_config=tune.TuneConfig(num_samples=PLAIN_TRIALS),
            run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(prefix="takd-plain-"), verbose=0),
        ).fit()
        plain = (time.perf_counter() - started) / PLAIN_TRIALS
        here = (seconds - training) / TRIALS
        print(f"trial: {TRIALS} tiny students, 1 slot: {seconds:.1f} s, of which {training:.1f} s of training")
        print(f"  overhead a trial      {here:6.3f} s   at most 0.25 wanted")
        print(f"  plain function        {plain:6.3f} s   {plain / here:.0f} times as much")
        print(f"  worker's start        {(starts[0] - clock.began) / TRIALS:6.3f} s   process, torch, first tensors")
        print(f"  around the training   {inside / TRIALS:6.3f} s   data, soft targets, artifact, messages")
        print(f"  between two stages    {between / TRIALS:6.3f} s   Tune, searcher, Optuna")
        print(
            f"  end of the run        {(clock.began + seconds - ends[-1]) / TRIALS:6.3f} s   Tune lets its workers go"
        )
    if "memory" in wanted:
        early, late = fmean(clock.resident[9:15]), fmean(clock.resident[-6:])
        print(
            f"memory: resident set {early / 2**20:.0f} MiB at stages 10-15, {late / 2**20:.0f} MiB at the last 6: "
            f"{100 * (late / early - 1):+.1f} %, within 5 wanted"
        )


def measure_slots() -> None:
    space, slots = load_space("mnist-gap"), 2
    clock, seconds = run(space, slots, wandb=True)
    nodes = sorted(clock.nodes, key=lambda node: clock.started[node.stage.key])
    held = sum(outcome(node)["train_seconds"] * outcome(node)["threads"] for node in nodes)
    first, last = clock.started[nodes[0].stage.key], max(clock.ended.values())
    students = [outcome(node)["train_seconds"] for node in nodes if node.stage.role == "student"]
    around = sum(
        ((clock.ended[n.stage.key] - clock.started[n.stage.key]) / outcome(n)["lanes"] - outcome(n)["train_seconds"])
        * outcome(n)["threads"]
        for n in nodes
    )
    whole = seconds * slots
    print(
        f"slots: mnist-gap, {len(students)} students of {fmean(students):.2f} s and {len(nodes) - len(students)} other "
        f"stages, {slots} slots: {seconds:.0f} s"
    )
    print(f"  in training steps     {100 * held / whole:5.1f} %   at least 80 wanted")
    print(f"  workers' start        {100 * (first - clock.began) * slots / whole:5.1f} %")
    print(f"  around the training   {100 * around / whole:5.1f} %   data, soft targets, artifacts, messages")
    print(f"  end of the run        {100 * (clock.began + seconds - last) * slots / whole:5.1f} %")
    print("  the rest is slots with nothing to train: while a teacher is left alone, and between two stages")


def measure_epoch() -> None:
    torch.set_num_threads(2)
    dataset = load("mnist")
    teacher = Stage(role="teacher", dataset=dataset.fingerprint, model="cnn", recipe=Recipe(), seed=0)
    student = Stage(
        role="student",
        dataset=dataset.fingerprint,
        model="mlp-784",
        recipe=Recipe(evaluate_every=10**9, epochs=10**6),
        seed=0,
        upstream=(teacher,),
        loss=Loss(),
        temperature=4.0,
        **{"lambda": 0.5},
    )
    logits = np.zeros((len(dataset.train.labels), 10), np.float32)
    cached = StageTraining([student], dataset, [[[logits]]])
    inputs, teaching = cached.inputs, cached.teaching
    assert isinstance(teaching, SoftTeaching)
    cached.run_epoch()
    with_cache = seconds_of(cached.run_epoch)
    order = torch.arange(len(inputs.labels)).split(cached.recipe.batch_size)
    print(f"epoch: mlp-784, {len(inputs.labels):,} images, 2 threads: {with_cache:.2f} s with cached soft targets")
    for words, memory_format in (("as torch has it", torch.contiguous_format), ("channels-last", torch.channels_last)):
        module = build("cnn", dataset.image_shape, 10).eval().to(memory_format=memory_format)

        def loop(module: torch.nn.Module = module, memory_format: torch.memory_format = memory_format) -> None:
            for batch in order[:LOOP_STEPS]:
                images = inputs.images[batch]
                with torch.no_grad():
                    upstream = module(images.contiguous(memory_format=memory_format))
                targets = soften(upstream[None], 4.0, Loss())
                teaching.probabilities[batch, 0] = targets.probabilities
                teaching.negative_entropy[batch, 0] = targets.negative_entropy
                cached.train_step(batch, factor=1.0)

        loop()
        in_loop = seconds_of(loop) * len(order) / LOOP_STEPS
        print(
            f"  the cnn teacher in the loop, {words:<15} {in_loop:5.1f} s, {in_loop / with_cache:.0f} times as long "
            f"(from {LOOP_STEPS} of {len(order)} steps)"
        )
    plain = seconds_of(lambda: plain_loop(cached)) * len(order) / LOOP_STEPS
    print(
        f"  the same from a DataLoader, as documented         {plain:5.1f} s, {plain / with_cache:.0f} times as long "
        f"(from {LOOP_STEPS} of {len(order)} steps)"
    )
    print("  at least 10 times wanted")


def measure_teacher() -> None:
    """The cnn teacher's training steps as the preset has them, beside torch's own layout and float32."""
    torch.set_num_threads(2)
    dataset = load("mnist")
    recipe = Recipe(precision="bfloat16", evaluate_every=10**9)
    stage = Stage(role="teacher", dataset=dataset.fingerprint, model="cnn", recipe=recipe, seed=0)
    training = StageTraining([stage], dataset, [[]])
    training.taught.train(0)
    batches = torch.arange(len(training.inputs.labels)).split(recipe.batch_size)
    layers = build("cnn", dataset.image_shape, 10).children()
    plain_layers = [torch.nn.Dropout(1 - each.keep) if isinstance(each, Dropout) else each for each in layers]
    module = torch.nn.Sequential(*plain_layers).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)

    def plain() -> None:
        for batch in batches[:LOOP_STEPS]:
            images = (training.inputs.images.images[batch].float() / 255 - 0.1307) / 0.3081
            loss = torch.nn.functional.cross_entropy(module(images), training.inputs.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def ours() -> None:
        for batch in batches[:LOOP_STEPS]:
            training.train_step(batch, factor=1.0)

    plain()
    ours()
    seconds = [min(seconds_of(each) for _ in range(2)) * len(batches) / LOOP_STEPS for each in (plain, ours)]
    print(
        f"teacher: an epoch of cnn, 2 threads: {seconds[0]:.0f} s plain (NCHW, float32), {seconds[1]:.0f} s here: "
        f"{seconds[0] / seconds[1]:.2f} times as fast, at least 2.2 wanted (from {LOOP_STEPS} of {len(batches)} steps)"
    )


def generated(shape: tuple[int, int, int], number: int) -> Dataset:
    """MNIST's name and labels, with noise for images, which no split of a disk has."""
    images = torch.randint(256, (number, *shape), dtype=torch.uint8)
    labels = torch.arange(number) % 10
    dataset = replace(load("mnist"), image_shape=shape, normalization=Normalization((0.5,) * 3, (0.25,) * 3))
    vars(dataset).update(train=Split(images, labels), validation=Split(images[:64], labels[:64]))
    return dataset


def measure_step() -> None:
    """The training steps of one resnet-8, with reading the batch, against what a user writes in 10 lines."""
    torch.set_num_threads(1)
    dataset, recipe = generated((3, 32, 32), 2560), Recipe(batch_size=128, evaluate_every=10**9, epochs=10**6)
    stage = Stage(role="student", dataset=dataset.fingerprint, model="resnet-8", recipe=recipe, seed=0)
    training = StageTraining([stage], dataset, [[]])
    training.taught.train(0)
    batches = torch.arange(2560).split(128)
    images = (dataset.train.images[:].float() / 255 - 0.5) / 0.25
    module = build("resnet-8", (3, 32, 32), 10).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)

    def plain() -> None:
        for batch in batches:
            loss = torch.nn.functional.cross_entropy(module(images[batch]), dataset.train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def ours() -> None:
        for batch in batches:
            training.train_step(batch, factor=1.0)

    plain()
    ours()
    rounds = [(seconds_of(plain), seconds_of(ours)) for _ in range(5)]
    bare, here = (1000 * min(each) / len(batches) for each in zip(*rounds, strict=True))
    print(
        f"step: resnet-8, batch 128, 1 thread: {here:.1f} ms here, {bare:.1f} ms in a bare loop: "
        f"{here / bare:.2f} times as long, at most 1.3 wanted"
    )


def measure_head() -> None:
    torch.set_num_threads(2)
    dataset = generated((3, 64, 64), 320)
    recipe = Recipe(batch_size=32, epochs=5, head_epochs=5)
    own: dict[str, Any] = {"dataset": dataset.fingerprint, "recipe": recipe, "pretrained": "0" * 64}
    stage = Stage(role="student", model="torchvision/resnet18", seed=0, **own)
    start = Pretrained(without_head(build(stage.model, (3, 64, 64), 10)), None)

    def train(cached: bool) -> float:
        training = StageTraining([stage], dataset, [[]], pretrained=start)
        if training.taught.head and not cached:
            training.taught.head = replace(training.taught.head, whole=False)

        def epochs() -> None:
            while not training.done:
                training.run_epoch()

        return seconds_of(epochs)

    train(True)
    whole, cached = train(False), train(True)
    print(
        f"head: resnet18, 320 images of 64x64, 5 epochs of the head alone: {cached:.2f} s with cached features, "
        f"{whole:.2f} s without: {whole / cached:.1f} times as long"
    )


def plain_loop(cached: StageTraining) -> None:
    """What a user writes first: torchvision's tensors by a DataLoader, the teacher's forward pass, KLDivLoss, Adam."""
    inputs = cached.inputs

    class Digits(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(inputs.labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return (inputs.images.images[index : index + 1][0].float() / 255 - 0.1307) / 0.3081, int(
                inputs.labels[index]
            )

    teacher, student = build("cnn", (1, 28, 28), 10).eval(), build("mlp-784", (1, 28, 28), 10)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    kl = torch.nn.KLDivLoss(reduction="batchmean")
    loader = torch.utils.data.DataLoader(Digits(), batch_size=256, shuffle=True)
    for _, (images, labels) in zip(range(LOOP_STEPS), loader, strict=False):
        with torch.no_grad():
            soft = (teacher(images) / 4).softmax(dim=1)
        logits = student(images)
        hard = torch.nn.functional.cross_entropy(logits, labels)
        loss = 0.5 * hard + 0.5 * 16 * kl((logits / 4).log_softmax(dim=1), soft)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def seconds_of(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parts = set(parser.parse_args().parts) or set(PARTS)
    if parts & {"trial", "memory"}:
        measure_trial_and_memory(parts)
    if "slots" in parts:
        measure_slots()
    ray.shutdown()
    if "epoch" in parts:
        measure_epoch()
    if "teacher" in parts:
        measure_teacher()
    if "step" in parts:
        measure_step()
    if "head" in parts:
        measure_head()


if __name__ == "__main__":
    main()
