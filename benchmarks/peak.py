"""How far from the processor's peak the models train that a path waits for, and what would bring them nearer.

    .venv/bin/python benchmarks/peak.py [--models mlp-1200 cnn plain-10 resnet-20] [--threads 2]

Peak is what a product of two matrices of 2,048 x 2,048 reaches, in float32 and in bfloat16. A step is forward,
backward and a fused Adam's update of a batch of random images, without dropout; its work is three times the forward
pass. `takd` has convolutions in channels-last layout and float32, with the examples in memory that a step indexes.
Beside it each thing that might help: torch's own layout, autocast to bfloat16, `torch.compile` (with the seconds until
the first step is done). `batch` is how much of takd's step the indexing takes, `forward` how much the forward pass.
The median of several steps. About two minutes, and a C++ compiler for `torch.compile`.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from takd.trainables.models.families import build, convolutional, family_of, size_of

CLASSES, EXAMPLES, STEPS, PRODUCT = 10, 4096, 7, 2048
BATCH = {"mlp-1200": 256}  # else 128


def median_seconds(call: Callable[[], object], times: int = STEPS) -> float:
    call()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def peak(dtype: torch.dtype) -> float:
    """FLOPs a second."""
    left, right = (torch.randn(PRODUCT, PRODUCT, dtype=dtype) for _ in range(2))
    return 2 * PRODUCT**3 / median_seconds(lambda: left @ right)


def shape_of(model: str) -> tuple[int, int, int]:
    """Of MNIST's images, or of CIFAR-10's."""
    return (1, 28, 28) if model.startswith(("mlp", "cnn")) else (3, 32, 32)


def has_convolutions(model: str) -> bool:
    return convolutional(model, shape_of(model), CLASSES)


class Steps:
    """Training steps of one model."""

    def __init__(self, model: str, channels_last: bool = True, bfloat16: bool = False, compiled: bool = False) -> None:
        shape = shape_of(model)
        self.batch_size = BATCH.get(model, 128)
        self.work = 3 * size_of(model, shape, CLASSES).flops * self.batch_size
        layout = torch.channels_last if channels_last and has_convolutions(model) else torch.contiguous_format
        self.images = torch.randn(EXAMPLES, *shape).contiguous(memory_format=layout)
        self.labels = torch.randint(0, CLASSES, (EXAMPLES,))
        dropout = 0.0 if family_of(model)[0].takes_dropout else None
        module = build(model, shape, CLASSES, dropout).to(memory_format=layout)
        self.optimizer = torch.optim.Adam(module.parameters(), fused=True)
        self.module: nn.Module = torch.compile(module) if compiled else module  # type: ignore[assignment]
        self.bfloat16 = bfloat16

    def batch(self) -> tuple[Tensor, Tensor]:
        index = torch.randperm(EXAMPLES)[: self.batch_size]
        return self.images[index], self.labels[index]

    def forward(self) -> Tensor:
        images, labels = self.batch()
        with torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext():
            logits = self.module(images)
        return F.cross_entropy(logits.float(), labels)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.forward().backward()
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp-1200", "cnn", "plain-10", "resnet-20"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    most = peak(torch.float32)
    print(f"peak {most / 1e9:.0f} GFLOP/s in float32, {peak(torch.bfloat16) / 1e9:.0f} in bfloat16")
    for model in options.models:
        own = Steps(model)
        seconds = median_seconds(own.step)
        rate = own.work / seconds
        parts = {"batch": median_seconds(own.batch), "forward": median_seconds(own.forward)}
        print(
            f"{model:<10} {1000 * seconds:7.1f} ms a step of {own.batch_size}, {rate / 1e9:5.0f} GFLOP/s, "
            f"{100 * rate / most:3.0f} % of peak; "
            + ", ".join(f"{name} {100 * each / seconds:.0f} %" for name, each in parts.items())
        )
        others = {"torch's layout": {"channels_last": False}} if has_convolutions(model) else {}
        others |= {"bfloat16": {"bfloat16": True}}
        others |= {"compiled": {"compiled": True}} if shutil.which("g++") else {}
        for name, how in others.items():
            started = time.perf_counter()
            other = Steps(model, **how)
            other.step()
            first = time.perf_counter() - started
            said = f", {first:.0f} s until the first is done" if name == "compiled" else ""
            took = median_seconds(other.step)
            print(f"  {name:<16} {1000 * took:7.1f} ms, {seconds / took:.2f} times as fast{said}", flush=True)


if __name__ == "__main__":
    main()
