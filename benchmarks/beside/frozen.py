"""Layers that stand still: a transfer study of takd's with what they give kept, beside three other ways.

    .venv/bin/python benchmarks/beside/frozen.py --images ants-bees.tar --weights DIR [--size 224] [--above head]

64 students lite0 learn from one lite2, each at a temperature and a lambda of its own: 3 epochs of the head, then 3 from
a layer on, or 6 of the head alone; 4 views. Everything has one thread, and no Ray. The ways:

    kept       takd: what is below is computed once a view; heads alone train as lanes
    in loop    takd with `features.cache_gb: 0`: what is below is in every step (some students are trained, and scaled)
    plain      the documentation's loop: a DataLoader, the student whole and its teacher in every step (from some steps)
    expert     a script that keeps what is below and the teacher's logits, too; its students one after another (some)

Seconds are those of one thread's processor, so that other work on the machine counts for less. `--images` and
`--weights` are those of `transfer.py`.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transfer import BATCH, EPOCHS, HEAD_EPOCHS, LITE0, LITE2, RATE, normalised, on_photographs, photographs, start_of

from takd.search_spaces import Configuration, Space, Stage, frozen_for, space_from
from takd.study.checks import keep_pretrained, with_weights
from takd.study.folder import study_folder
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import Dataset
from takd.trainables.derivation import derive
from takd.trainables.models.pretrained import canonical_weights
from takd.trainables.models.weights_files import unpacked
from takd.trainables.store.artifacts import ArtifactStore

HEAD, VIEWS, STEPS = "head", 4, 6


def main() -> None:
    parser = on_photographs(__doc__, size=224)
    parser.add_argument("--students", type=int, default=64)
    parser.add_argument("--trained", type=int, default=1, help="of these, where they are one like the other")
    parser.add_argument("--above", nargs="+", default=["blocks.5", "blocks.6", HEAD])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = photographs(options.images, options.size, Path(scratch))
        print(f"\n| trained | way | {options.students} students, seconds | of these once | a student | kept is |")
        print("|---|---|---:|---:|---:|---:|")
        for above in options.above:
            compare(Path(scratch) / above, options, dataset, above)


def compare(work: Path, options: Any, dataset: Dataset, above: str) -> None:
    kept, losses = by_takd(work, options, dataset, above, kept=True)
    loop, others = by_takd(work, options, dataset, above, kept=False)
    ways = {"kept": kept, "in loop": loop, "plain": plain(options, dataset, above)}
    ways["expert"] = expert(options, dataset, above)
    total = {name: once + options.students * each for name, (once, each) in ways.items()}
    for name, (once, each) in ways.items():
        cells = f"{total[name]:,.0f} | {once:,.1f} | {each:.2f} | {total[name] / total['kept']:.1f}x"
        print(f"| {above} | {name} | {cells} |", flush=True)
    apart = max(abs(one - other) for one, other in zip(losses, others, strict=False))
    print(f"| {above} | | kept and in loop, validation losses differ by {apart:.1e} at most | | | |", flush=True)


# takd


def by_takd(
    work: Path, options: Any, dataset: Dataset, above: str, kept: bool
) -> tuple[tuple[float, float], list[float]]:
    """Seconds once and a student, with the teacher's soft targets and without its training; validation losses."""
    folder = study_folder(str(work / ("kept" if kept else "loop")), "frozen")
    folder.prepare()
    space = with_weights(grid_of(options.weights, above, options.students, kept), dataset, "frozen", folder)
    keep_pretrained(space, "frozen", folder)
    points = [{name: value for name, value in each.items() if name != "arm"} for each in space.grid()]
    configurations = [Configuration(space.all_arms[0], point) for point in points]
    students = [path.student for each in configurations for path in space.paths(each, dataset.fingerprint, [0])]
    few = students if kept and above == HEAD else students[: options.trained]
    [teacher] = students[0].upstream
    derive(teacher, frozen_for(teacher), folder.artifacts, 1, {})
    train([teacher], folder.artifacts)
    described = folder.artifacts.describe(teacher.key)
    assert described
    below = timed(lambda: derive(few[0], frozen_for(few[0]), folder.artifacts, 1, {}))
    trained = timed(lambda: train(few, folder.artifacts))
    found = [folder.artifacts.describe(stage.key) for stage in few[: options.trained]]
    losses = [each["outcome"]["metrics"]["validation"]["loss"] for each in found if each]
    return (below + described["outcome"]["soft_targets_seconds"], trained / len(few)), losses


def grid_of(weights: Path | None, above: str, students: int, kept: bool) -> Space:
    """Every student has a T and a lambda of its own."""

    def role(model: str) -> dict[str, Any]:
        recipe = {"epochs": EPOCHS, "head_epochs": HEAD_EPOCHS, "finetune_from": above, "schedule": "constant"}
        if above == HEAD:
            recipe |= {"head_epochs": EPOCHS, "finetune_from": None}
        recipe |= {"batch_size": BATCH, "learning_rate": RATE, "freeze_norm": True}
        recipe |= {"augment": "crop-flip", "views": VIEWS}
        return {"model": model, "pretrained": start_of(weights, model), "recipe": recipe}

    side = max(1, round(students**0.5))
    temperatures = {"choices": [1.0 + number for number in range(side)]}
    lambdas = {"choices": [(number + 1) / (students // side + 1) for number in range(students // side)]}
    content = {
        "dataset": "photographs",
        "teacher": role(LITE2),
        "student": role(LITE0) | {"temperature": temperatures, "lambda": lambdas},
        "arms": ["kd"],
        "sampler": "grid",
        "confirm": None,
        "allow_any_size": True,
        "features": {"cache_gb": 8.0 if kept else 0.0},
    }
    return space_from(content, "frozen")


def train(stages: list[Stage], store: ArtifactStore) -> None:
    """As a worker does it: one list of stages after another, as many at once as train as lanes."""
    left = list(stages)
    while left:
        batch = StageBatch(left, store, 1, False, {stage.key: {} for stage in left})
        while not batch.done:
            batch.run_epoch()
        batch.publish()
        ended = {key for key, (state, _) in batch.ended.items() if state == "done"}
        left = [stage for stage in left if stage.key not in ended]


def timed(act: Callable[[], Any]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


# The other ways


def network(weights: Path | None, model: str, dataset: Dataset) -> Any:
    made = timm.create_model(model.partition("/")[2], num_classes=len(dataset.classes))
    given = canonical_weights(model, start_of(weights, model), dataset.image_shape, len(dataset.classes))
    made.load_state_dict(unpacked(given).tensors, strict=False)
    return made.eval().to(memory_format=torch.channels_last)


def tail_of(made: Any, above: str) -> list[nn.Module]:
    """The layers that train, in their order."""
    head = [made.global_pool, made.classifier]
    if above == HEAD:
        return [made.classifier]
    return [*made.blocks[int(above.partition(".")[2]) :], made.conv_head, made.bn2, *head]


def phases(dataset: Dataset, above: str) -> Iterator[tuple[str, int]]:
    """What trains, and in how many steps of a student's life."""
    steps = math.ceil(len(dataset.train.labels) / BATCH)
    if above == HEAD:
        yield HEAD, EPOCHS * steps
    else:
        yield HEAD, HEAD_EPOCHS * steps
        yield above, (EPOCHS - HEAD_EPOCHS) * steps


def distilled(logits: Tensor, soft: Tensor, labels: Tensor) -> Tensor:
    soft = (soft / 4).softmax(dim=1)
    divergence = F.kl_div((logits / 4).log_softmax(dim=1), soft, reduction="batchmean")
    return 0.5 * F.cross_entropy(logits, labels) + 0.5 * 16 * divergence


class Photographs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Augmented item by item, as the documentation has it."""

    def __init__(self, dataset: Dataset, number: int) -> None:
        size, self.number = dataset.image_shape[-1], number
        self.images, self.labels = dataset.train.images[:], dataset.train.labels
        self.augment = v2.Compose(
            [
                v2.RandomCrop(size, padding=size // 8),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.augment(self.images[index]), self.labels[index]


def plain(options: Any, dataset: Dataset, above: str) -> tuple[float, float]:
    student, teacher = (network(options.weights, model, dataset) for model in (LITE0, LITE2))
    images, seconds = Photographs(dataset, STEPS * BATCH), 0.0
    for trained, steps in phases(dataset, above):
        student.requires_grad_(False)
        for layer in tail_of(student, trained):
            layer.requires_grad_(True)
        optimizer = torch.optim.Adam([each for each in student.parameters() if each.requires_grad], RATE)

        def epoch(optimizer: torch.optim.Optimizer = optimizer) -> None:
            for batch, labels in DataLoader(images, batch_size=BATCH, shuffle=True):
                with torch.no_grad():
                    soft = teacher(batch)
                optimizer.zero_grad()
                distilled(student(batch), soft, labels).backward()
                optimizer.step()

        epoch()
        seconds += timed(epoch) / STEPS * steps
    return 0.0, seconds


@torch.no_grad()
def through(layers: list[Callable[[Tensor], Tensor]], images: Tensor) -> Tensor:
    found = []
    for batch in images.split(BATCH):
        for layer in layers:
            batch = layer(batch)
        found.append(batch)
    return torch.cat(found)


def expert(options: Any, dataset: Dataset, above: str) -> tuple[float, float]:
    """A student trains once through its life for a small part of its steps, and that is scaled."""
    student, teacher = (network(options.weights, model, dataset) for model in (LITE0, LITE2))
    images = normalised(dataset.train.images[:])
    below = [student.conv_stem, student.bn1, *student.blocks]
    last = [student.conv_head, student.bn2, student.global_pool]
    cut = 2 + int(above.partition(".")[2]) if above != HEAD else None
    kept: dict[str, Tensor] = {}
    labels = dataset.train.labels

    def once() -> None:
        for _ in range(VIEWS):  # as many augmented copies of the images
            kept["soft"] = through([teacher], images)
            entered = through(below[:cut], images)
            kept[above] = entered
            kept[HEAD] = through([*(below[cut:] if cut else []), *last], entered)

    seconds_once, seconds = timed(once), 0.0
    for trained, steps in phases(dataset, above):
        own = nn.Sequential(*map(copy.deepcopy, tail_of(student, trained)))
        optimizer = torch.optim.Adam(own.parameters(), RATE, fused=True)
        inputs = kept[HEAD] if trained == HEAD else kept[above]

        def few(own: nn.Module = own, optimizer: torch.optim.Optimizer = optimizer, inputs: Tensor = inputs) -> None:
            for batch in torch.randperm(len(labels))[: STEPS * BATCH].split(BATCH):
                optimizer.zero_grad()
                distilled(own(inputs[batch]), kept["soft"][batch], labels[batch]).backward()
                optimizer.step()

        few()
        seconds += timed(few) / STEPS * steps
    return seconds_once, seconds


if __name__ == "__main__":
    main()
