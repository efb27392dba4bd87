"""Makes a folder in MHIST's exact form, with made-up histology: python tests/histology.py OUT [--train 2175 ...]

Stroma in pink, nuclei in purple, and glands with a pale lumen. The class is how serrated the lumens are: little in a
hyperplastic polyp (HP), much in a sessile serrated adenoma (SSA), with images in between that the seven annotators
disagree on. Their votes are drawn, and the label is their majority. Full size takes about two minutes on one core.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = ("Image Name", "Majority Vote Label", "Number of Annotators who Selected SSA (Out of 7)", "Partition")
SSA_SHARE = {"train": 0.290, "test": 0.368}  # of MHIST: 630 of 2,175 and 360 of 977

STROMA, EPITHELIUM, LUMEN, NUCLEUS = (np.array(each, np.float32) for each in (
    (226, 168, 200), (188, 120, 178), (243, 236, 241), (88, 52, 128),
))  # fmt: skip
FIELD = 224  # pixels that an image shows at full size; a smaller one shows the same, smaller


def write_mhist(folder: Path, train: int = 2175, test: int = 977, size: int = 224, seed: int = 0) -> Path:
    """`annotations.csv` and `images/*.png`; the same for the same arguments."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for partition, number in (("train", train), ("test", test)):
        ssa = np.arange(number) < max(1, round(number * SSA_SHARE[partition]))
        for is_ssa in rng.permutation(ssa):
            votes, serration = annotate(rng, bool(is_ssa))
            name = f"MHIST_{len(rows):04d}.png"
            Image.fromarray(draw(rng, serration, size)).save(folder / "images" / name, compress_level=1)
            rows.append((name, "SSA" if is_ssa else "HP", votes, partition))
    with (folder / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder


def annotate(rng: np.random.Generator, is_ssa: bool) -> tuple[int, float]:
    """How many of seven see an SSA, and how serrated the lumens are, from 0 to 1; drawn until the majority agrees."""
    while True:
        serration = rng.beta(*((4, 2) if is_ssa else (2, 4)))
        votes = int(rng.binomial(7, 1 / (1 + np.exp(-9 * (serration - 0.5)))))
        if (votes >= 4) == is_ssa:
            return votes, float(serration)


def draw(rng: np.random.Generator, serration: float, size: int) -> "np.ndarray":
    """uint8 [size, size, 3]"""
    y, x = np.mgrid[:size, :size].astype(np.float32) * (FIELD / size)
    image = STROMA + 22 * (field(rng, size, 9) + field(rng, size, 28))[..., None]
    nuclei = [rng.uniform(0, FIELD, (45, 2))]
    for centre in gland_centres(rng):
        inner = rng.uniform(14, 24)
        band = rng.uniform(9, 13)
        lobes, turn = rng.integers(6, 11), rng.uniform(0, 2 * np.pi)
        dx, dy = x - centre[0], (y - centre[1]) * rng.uniform(0.75, 1.25)
        angle, distance = np.arctan2(dy, dx), np.hypot(dx, dy)
        # Rounded lobes and sharp notches, as infolded epithelium has them.
        lobe = np.abs(np.sin((lobes * angle + turn) / 2)) - 0.64
        lumen = inner * (1 + (0.12 + 0.75 * serration) * lobe)
        image = blend(image, EPITHELIUM, (inner * 1.35 + band - distance) / 2)
        image = blend(image, LUMEN, (lumen - distance) / 1.5)
        around = rng.uniform(0, 2 * np.pi, 34)
        reach = inner * 1.25 + band * rng.uniform(0.2, 0.9, 34)
        nuclei.append(np.stack([centre[0] + reach * np.cos(around), centre[1] + reach * np.sin(around)], 1))
    image = blend(image, NUCLEUS, nuclei_at(np.concatenate(nuclei), rng, size))
    stain = rng.normal(1, 0.04, 3)  # no two slides are stained alike
    return np.clip(image * stain + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def gland_centres(rng: np.random.Generator) -> "np.ndarray":
    """[2 to 4, 2], one in a quarter of the field."""
    quarters = np.array([(1, 1), (3, 1), (1, 3), (3, 3)])[rng.permutation(4)[: rng.integers(2, 5)]]
    return quarters * FIELD / 4 + rng.normal(0, 7, quarters.shape)


def nuclei_at(places: "np.ndarray", rng: np.random.Generator, size: int) -> "np.ndarray":
    """[size, size], how much a nucleus is there: above 0 within one, drawn in a window around each."""
    depth, scale = np.full((size, size), -9, np.float32), FIELD / size
    for (x, y), radius in zip(places, rng.uniform(2.5, 4.5, len(places)), strict=True):
        left, top = (max(0, int((each - 7) / scale)) for each in (x, y))
        right, bottom = (min(size, int((each + 7) / scale) + 1) for each in (x, y))
        if left < right and top < bottom:
            rows, columns = np.mgrid[top:bottom, left:right] * scale
            window = depth[top:bottom, left:right]
            np.maximum(window, radius - np.hypot(columns - x, rows - y), out=window)
    return depth


def field(rng: np.random.Generator, size: int, cells: int) -> "np.ndarray":
    """Smooth noise [size, size] around 0, as many bumps a side as cells."""
    noise = Image.fromarray(rng.normal(0, 0.5, (cells, cells)).astype(np.float32))
    return np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))


def blend(image: "np.ndarray", colour: "np.ndarray", depth: "np.ndarray") -> "np.ndarray":
    """The colour where the depth is above 1, nothing of it below 0."""
    share = np.clip(depth, 0, 1)[..., None]
    return image * (1 - share) + colour * share


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a folder in MHIST's form.")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--train", type=int, default=2175)
    parser.add_argument("--test", type=int, default=977)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_mhist(options.out, options.train, options.test, options.size, options.seed)


if __name__ == "__main__":
    main()
