"""Why convolutions train one lane at a time: a step of several models one after another, and stacked by `torch.func`.

    .venv/bin/python benchmarks/convolutions.py [--models cnn plain-2 resnet-8] [--lanes 4 16] [--threads 2]

`one after another` is what a study does: each model in channels-last layout. `torch.func` is `vmap` over the gradient
of the stacked weights. Batches of 128 random images, float32; the best of a few steps. About a minute.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from takd.trainables.models.families import build, convolutional

BATCH, CLASSES, STEPS = 128, 10, 3


def measure(model: str, lanes: int) -> tuple[float, float]:
    """Seconds a step of all lanes: one after another, stacked."""
    shape = (1, 28, 28) if model == "cnn" else (3, 32, 32)
    images, labels = torch.randn(BATCH, *shape), torch.randint(0, CLASSES, (BATCH,))
    # Without dropout and without statistics of batches, which vmap can't draw or keep.
    modules = [build(model, shape, CLASSES).eval() for _ in range(lanes)]
    empty = build(model, shape, CLASSES).eval().to("meta")
    stacked = stack_module_state(modules)

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(empty, (weights, buffers), (images,)), labels)

    step = vmap(grad(loss))
    layout = torch.channels_last if convolutional(model, shape, CLASSES) else torch.contiguous_format
    alone = [module.to(memory_format=layout) for module in modules]
    laid_out = images.to(memory_format=layout)

    def one_after_another() -> None:
        for module in alone:
            module.zero_grad()
            F.cross_entropy(module(laid_out), labels).backward()

    return best_of(one_after_another), best_of(lambda: step(*stacked))


def best_of(act: Callable[[], object]) -> float:
    act()  # warms up
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cnn", "plain-2", "resnet-8"])
    parser.add_argument("--lanes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'model':<9} {'lanes':>5} {'one after another':>18} {'torch.func':>11}")
    for model in options.models:
        for lanes in options.lanes:
            alone, stacked = measure(model, lanes)
            print(
                f"{model:<9} {lanes:5} {1000 * alone:15.0f} ms {1000 * stacked:8.0f} ms  {stacked / alone:.1f} times",
                flush=True,
            )


if __name__ == "__main__":
    main()
