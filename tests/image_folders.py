"""Makes a small folder of images, as a user may have one: splits, in them classes, in them files."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ash", "birch", "cedar")
NUMBERS = {"train": (20, 20, 10), "test": (4, 3, 2)}


def write_images(
    folder: Path, mode: str = "RGB", suffix: str = ".png", seed: int = 0, size: tuple[int, int] = (6, 8)
) -> Path:
    """Classes by brightness, so that they can be learned."""
    rng = np.random.default_rng(seed)
    for split, numbers in NUMBERS.items():
        for label, (name, number) in enumerate(zip(CLASSES, numbers, strict=True)):
            (folder / split / name).mkdir(parents=True)
            for each in range(number):
                shape = size if mode == "L" else (*size, 3)
                pixels = rng.normal(50 + 80 * label, 20, shape).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{each:02d}{suffix}")
    return folder
