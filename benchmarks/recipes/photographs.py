"""A recipe of today on real photographs: the platform beside a bare PyTorch loop, with the same numbers.

    .venv/bin/python benchmarks/recipes/photographs.py --images ants-bees.tar --weights DIR
        [--size 96] [--seeds 3] [--epochs 6]
    .venv/bin/python benchmarks/recipes/photographs.py --images ants-bees.tar --sheet sheet.png

`--images` is a folder, or a tar of one, with `train/CLASS/` and `val/CLASS/`, of which `val` is the test split;
`takd data images` resizes them to `--size`. All layers of `tf_efficientnet_lite0` train from ImageNet's weights: AdamW
1e-3, decay 0.05 but of biases and normalisation, batch 32, one epoch of warm-up, cosine, gradients clipped at 1, the
moving average (0.9) of the weights, RandomResizedCrop with flips and ColorJitter; batch normalisation frozen. The loop
has torchvision's transforms, torch's optimizer, schedulers and AveragedModel, and what it draws is its own: accuracies
agree within noise. `--sheet` writes a picture of every augmentation on photographs instead.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from torchvision.utils import make_grid, save_image

from takd.search_spaces import ALTERING, MIXING, Recipe, Stage
from takd.study import cli
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.models.pretrained import canonical_weights
from takd.trainables.models.weights_files import Pretrained, unpacked
from takd.trainables.training.inputs import Pixels
from takd.trainables.training.loop import train

MODEL = "tf_efficientnet_lite0"
BATCH, RATE, DECAY, EMA, CLIP = 32, 1e-3, 0.05, 0.9, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TAKD_CACHE"] = scratch
        converting = ["--from", str(options.images), "--name", "photographs", "--size", str(options.size)]
        assert cli.main(["data", "images", *converting]) == 0
        dataset = load("photographs")
        if options.sheet:
            draw(dataset, options.sheet)
            return
        weights = str(options.weights / f"{MODEL}.safetensors") if options.weights else "imagenet"
        given = unpacked(canonical_weights(f"timm/{MODEL}", weights, dataset.image_shape, len(dataset.classes)))
        print(f"{dataset.sizes} images of {options.size}x{options.size}, {options.epochs} epochs")
        for name, of in (("bare loop", loop), ("platform", platform)):
            started = time.perf_counter()
            found = [of(dataset, given, options.epochs, seed) for seed in range(options.seeds)]
            seconds = (time.perf_counter() - started) / options.seeds
            print(f"{name:<10} test {spread(found)}  ({seconds:.0f} s a run)")


def loop(dataset: Dataset, given: Pretrained, epochs: int, seed: int) -> float:
    """As one writes it by hand."""
    torch.manual_seed(seed)
    network = timm.create_model(MODEL, num_classes=len(dataset.classes))
    network.load_state_dict(given.tensors, strict=False)
    nn.init.normal_(network.classifier.weight, std=0.01)
    nn.init.zeros_(network.classifier.bias)
    network.to(memory_format=torch.channels_last)
    for each in network.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.requires_grad_(False)
    weights = [each for each in network.parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in weights if each.dim() <= 1], "weight_decay": 0.0},
        {"params": [each for each in weights if each.dim() > 1]},
    ]
    optimizer = torch.optim.AdamW(groups, RATE, weight_decay=DECAY)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(EMA), use_buffers=True)
    images, labels = dataset.train.images, dataset.train.labels
    steps = -(-len(labels) // BATCH)
    rest = CosineAnnealingLR(optimizer, (epochs - 1) * steps)
    schedule = SequentialLR(optimizer, [LinearLR(optimizer, 0.01, total_iters=steps), rest], [steps])
    size = images.shape[-1]
    altered = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)])
    for _ in range(epochs):
        network.train()
        for each in network.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.eval()
        for batch in torch.randperm(len(labels)).split(BATCH):
            seen = normalised(torch.stack([altered(image) for image in images[batch]]))
            optimizer.zero_grad()
            F.cross_entropy(network(seen), labels[batch]).backward()
            nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
    test = dataset.test()
    return accuracy(average.module.eval(), normalised(test.images), test.labels)


def platform(dataset: Dataset, given: Pretrained, epochs: int, seed: int) -> float:
    recipe = Recipe.model_validate(
        {
            "epochs": epochs,
            "batch_size": BATCH,
            "optimizer": "adamw",
            "learning_rate": RATE,
            "weight_decay": DECAY,
            "decay_norm_and_bias": False,
            "warmup_epochs": 1,
            "clip_norm": CLIP,
            "ema": EMA,
            "augment": "random-resized-crop+color-jitter",
            "views": "per-epoch",
            "freeze_norm": True,
            "evaluate_every": epochs,
            "order_seed": seed,
        }
    )
    about: dict[str, Any] = {"dataset": dataset.fingerprint, "model": f"timm/{MODEL}", "pretrained": "0" * 64}
    stage = Stage(role="student", recipe=recipe, seed=seed, **about)
    [trained] = train([stage], dataset, [[]], pretrained=given)
    network = timm.create_model(MODEL, num_classes=len(dataset.classes))
    network.load_state_dict(trained.weights, strict=False)  # two buffers beside it say what pixels it takes
    test = dataset.test()
    return accuracy(network.eval(), normalised(test.images), test.labels)


def normalised(images: Tensor) -> Tensor:
    """As these weights expect them: mean and deviation 0.5."""
    return images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    logits = torch.cat([module(each) for each in inputs.split(50)])
    return (logits.argmax(dim=1) == labels).float().mean().item()


def spread(fractions: list[float]) -> str:
    """Mean and the lowest and highest of several fractions, in percent."""
    each = [100 * fraction for fraction in fractions]
    return f"{statistics.mean(each):.1f} % ({min(each):.1f} to {max(each):.1f})"


def draw(dataset: Dataset, file: Path, number: int = 6) -> None:
    """A row of photographs as they are, then two views of each kind: the same ones in every row."""
    pixels = Pixels(dataset.train.images, dataset, torch.device("cpu"), torch.contiguous_format)
    places = torch.linspace(0, len(pixels) - 1, number).long()
    names: list[str | None] = [None]
    names += [f"{kind} {view}" for kind in (*ALTERING, *MIXING) for view in (1, 2)]
    rows = []
    for name in names:
        shown = pixels.named(name, dataset.train.labels)
        rows.append((shown[places] - pixels.shift) / pixels.scale / 255)
        print(name or "as they are")
    save_image(make_grid(torch.cat(rows), nrow=number), file)


if __name__ == "__main__":
    main()
