"""A recipe of today on real photographs: the platform beside a bare PyTorch loop, with the same numbers.

    .venv/bin/python benchmarks/recipes/photographs.py --images ants-bees.tar --weights DIR
        [--size 96] [--seeds 3] [--epochs 6]
    .venv/bin/python benchmarks/recipes/photographs.py --images ants-bees.tar --sheet sheet.png

`--images` is a folder, or a tar of one, with `train/CLASS/` and `val/CLASS/`, of which `val` is the test split;
`takd data images` resizes them to `--size`. All layers of `tf_efficientnet_lite0` train from ImageNet's weights: AdamW
1e-3, decay 0.05 but of biases and normalisation, batch 32, one epoch of warm-up, cosine, gradients clipped at 1, the
moving average (0.9) of the weights, RandomResizedCrop with flips and ColorJitter; batch normalisation frozen. The loop
has torchvision's transforms, torch's optimizer, schedulers and AveragedModel, and what it draws is its own. The
platform's first epoch sees the images as they are (view 0), so the loop is run so too, and a third time with the
platform's very images, order and first weights. Then the losses of the first steps are the same. Later ones need not
be: the fourth line's weights begin 1e-7 away from the third's, and end elsewhere. `--sheet` writes a picture of every
augmentation on photographs instead.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
from takd.trainables.training.loop import StageTraining

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
        ways = {
            "bare loop": own_views,
            "bare loop, first epoch plain": plain_first,
            "bare loop, the platform's batches": platforms_views,
            "the same, 1e-7 away": platforms_views_nearby,
            "platform": None,
        }
        said: dict[str, list[Run]] = {}
        for name, views in ways.items():
            started = time.perf_counter()
            runs = range(options.seeds)
            said[name] = [
                loop(dataset, given, options.epochs, seed, views)
                if views
                else platform(dataset, given, options.epochs, seed)
                for seed in runs
            ]
            seconds = (time.perf_counter() - started) / options.seeds
            right = [accuracy(run.logits, dataset.test().labels) for run in said[name]]
            print(f"{name:<34} test {spread(right)}  ({seconds:.0f} s a run)", flush=True)
        *_, copy, nearby, own = said.values()
        steps = -(-len(dataset.train.labels) // BATCH)
        for name, others in (("platform", own), ("1e-7 away", nearby)):
            apart = [
                max(abs(one - other) for one, other in zip(run.losses[part], beside.losses[part], strict=True))
                for part in (slice(0, steps), slice(steps, None))
                for run, beside in zip(copy, others, strict=True)
            ]
            first, later = max(apart[: len(copy)]), max(apart[len(copy) :])
            print(
                f"{name:<10} losses differ from the same batches by {first:.1g} in the first epoch, {later:.1g} later"
            )


class Run(NamedTuple):
    """What training left: logits of the test images `[n, classes]`, and the loss of each step."""

    logits: Tensor
    losses: list[float]


Batches = Iterator[tuple[Tensor, Tensor]]  # images uint8 and labels
Views = Callable[[Dataset, StageTraining, int], Batches]  # of an epoch


def own_views(dataset: Dataset, _: StageTraining, epoch: int) -> Batches:
    images, labels = dataset.train.images, dataset.train.labels
    crop = v2.RandomResizedCrop(images.shape[-1])
    altered = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)])
    for batch in torch.randperm(len(labels)).split(BATCH):
        yield torch.stack([altered(image) for image in images[batch]]), labels[batch]


def plain_first(dataset: Dataset, training: StageTraining, epoch: int) -> Batches:
    if epoch:
        yield from own_views(dataset, training, epoch)
        return
    for batch in torch.randperm(len(dataset.train.labels)).split(BATCH):
        yield dataset.train.images[batch], dataset.train.labels[batch]


def platforms_views(dataset: Dataset, training: StageTraining, epoch: int) -> Batches:
    pixels = Pixels(dataset.train.images, dataset, torch.device("cpu"), torch.contiguous_format)
    shown = pixels.named(training.recipe.view_names[epoch], dataset.train.labels)
    seen = shown[torch.arange(len(dataset.train.labels))]
    raw = ((seen - pixels.shift) / pixels.scale).round()
    for batch in training.inputs.batches(epoch, training.taught.smallest_batch):
        yield raw[batch], dataset.train.labels[batch]


def platforms_views_nearby(dataset: Dataset, training: StageTraining, epoch: int) -> Batches:
    yield from platforms_views(dataset, training, epoch)


def loop(dataset: Dataset, given: Pretrained, epochs: int, seed: int, views: Views) -> Run:
    """As one writes it by hand."""
    torch.manual_seed(seed)
    network = timm.create_model(MODEL, num_classes=len(dataset.classes))
    network.load_state_dict(given.tensors, strict=False)
    nn.init.normal_(network.classifier.weight, std=0.01)
    nn.init.zeros_(network.classifier.bias)
    training = StageTraining([stage_of(dataset, epochs, seed)], dataset, [[]], pretrained=given)
    if views in (platforms_views, platforms_views_nearby):
        network.load_state_dict(training.taught.weights(0), strict=False)
    if views is platforms_views_nearby:
        for each in network.parameters():
            each.data.mul_(1 + 1e-7 * torch.randn_like(each))
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
    steps = -(-len(dataset.train.labels) // BATCH)
    rest = CosineAnnealingLR(optimizer, (epochs - 1) * steps)
    schedule = SequentialLR(optimizer, [LinearLR(optimizer, 0.01, total_iters=steps), rest], [steps])
    losses = []
    for epoch in range(epochs):
        network.train()
        for each in network.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.eval()
        for images, labels in views(dataset, training, epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(normalised(images)), labels)
            loss.backward()
            losses.append(loss.item())
            nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
    return Run(told(average.module.eval(), dataset), losses)


def platform(dataset: Dataset, given: Pretrained, epochs: int, seed: int) -> Run:
    training, losses = StageTraining([stage_of(dataset, epochs, seed)], dataset, [[]], pretrained=given), []
    step = training.train_step

    def noted(*of: Any) -> Tensor:
        found = step(*of)
        losses.append(found.item())
        return found

    training.train_step = noted  # type: ignore[assignment, method-assign]
    while not training.done:
        training.run_epoch()
    [(_, trained)] = training.finish()
    network = timm.create_model(MODEL, num_classes=len(dataset.classes))
    network.load_state_dict(trained.weights, strict=False)  # two buffers beside it say what pixels it takes
    return Run(told(network.eval(), dataset), losses)


def stage_of(dataset: Dataset, epochs: int, seed: int) -> Stage:
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
    return Stage(role="student", recipe=recipe, seed=seed, **about)


def normalised(images: Tensor) -> Tensor:
    """As these weights expect them: mean and deviation 0.5."""
    return images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def told(module: nn.Module, dataset: Dataset) -> Tensor:
    return torch.cat([module(each) for each in normalised(dataset.test().images[:]).split(50)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
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
