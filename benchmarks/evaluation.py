"""How long a look at the validation split takes, by how many images go through the model at once.

    .venv/bin/python benchmarks/evaluation.py [--models cnn resnet-20 mlp-1200 torchvision/mobilenet_v2]
        [--pixels 200704 2500000] [--threads 2]

Of models of MNIST, in whose place those of `torchvision/` and `timm/` get 98 made-up images of 224 x 224, with weights
as they are drawn. Each number of pixels is tried three times, and the least CPU seconds count. `faults` are pages that
the system had to find for the process: where tensors are large the C library gives each back, and the next is of new
pages, which are zeroed one by one. `takd` marks what the platform takes.
"""

import argparse
import math
import resource
import time

import torch
from torch import Tensor

from takd.search_spaces import Recipe, Stage
from takd.trainables.datasets.dataset import load
from takd.trainables.models.families import build
from takd.trainables.training import inputs
from takd.trainables.training.inputs import Pixels, evaluation_batch, predict
from takd.trainables.training.lanes import Alone, LaneModel
from takd.trainables.training.loop import StageTraining

LARGE = (3, 224, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cnn", "resnet-20", "mlp-1200", "torchvision/mobilenet_v2"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[2_500_000, 800_000, 401_408, 200_704, 100_352])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model | pixels at once | images at once | CPU seconds | seconds | faults |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    own = inputs.EVALUATION_BATCH, inputs.EVALUATION_PIXELS
    for name in options.models:
        model, images, shape = made(name)
        inputs.EVALUATION_BATCH, inputs.EVALUATION_PIXELS = own
        usual = evaluation_batch(shape, fully_connected=model.stacked)
        for pixels in options.pixels:
            inputs.EVALUATION_BATCH, inputs.EVALUATION_PIXELS = ({model.stacked: each} for each in (1000, pixels))
            size = evaluation_batch(shape, fully_connected=model.stacked)
            cpu, wall, faults = min(measured(model, images) for _ in range(3))
            mark = " (takd)" if size == usual else ""
            print(f"| {name} | {pixels:,} | {size}{mark} | {cpu:.2f} | {wall:.2f} | {faults:,} |", flush=True)


def made(name: str) -> tuple[LaneModel, Pixels | Tensor, tuple[int, ...]]:
    """A model of one lane, images, and the shape of one."""
    if "/" in name:
        module = build(name, LARGE, 10).to(memory_format=torch.channels_last)
        return Alone([module]), torch.randn(98, *LARGE).to(memory_format=torch.channels_last), LARGE
    dataset = load("mnist")
    recipe = Recipe.model_validate({"epochs": 1, "examples": 100})
    stage = Stage(role="teacher", dataset=dataset.fingerprint, model=name, recipe=recipe, seed=0)
    training = StageTraining([stage], dataset, [[]])
    return training.taught.model, training.inputs.validation, dataset.image_shape


def measured(model: LaneModel, images: Pixels | Tensor) -> tuple[float, float, int]:
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    predict(model, images)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.fsum([after.ru_utime, after.ru_stime, -before.ru_utime, -before.ru_stime])
    return cpu, time.perf_counter() - started, after.ru_minflt - before.ru_minflt


if __name__ == "__main__":
    main()
