"""Whether a search over an assistant's size finds a good one: mnist-gap's models, sizes as numbers, many seeds.

    .venv/bin/python benchmarks/ta_size.py --root runs-ta-size [--trials 40] [--repeats 5] [--small]

First what is true: the study `grid` has kd and an assistant of each of 12 sizes, every T and lambda of mnist-gap, and
40 fresh students of what was chosen for each arm. An arm's gain is its mean test accuracy over that of kd, paired by
seed. Then so many searches by TPE, each with another seed: `models: {family: mlp, size: {low:, high:, log: true}}` with
T and lambda. The gain of the size that a search chose lies on the line between those of its neighbours in the grid. A
search found a good one where that is at most 0.15 points below the grid's best. The same is asked of the middle of the
range of sizes that the report of the search calls the best, and of the configuration that has the best students, as
arms without sizes are chosen.

All studies are below one root: teacher, assistants and students that two have in common are trained once. Ctrl-C ends
it; the same command goes on. `--small` takes a few minutes, with fewer sizes, trials, seeds and epochs: it says that
this runs, and nothing of sizes. The whole takes about 25 minutes on 2 idle cores.
"""

import argparse
import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

import takd
from takd.analysis.arms import arms_table
from takd.analysis.evidence.chosen import best_configurations, choose_setting
from takd.analysis.evidence.sizes import Band, best_sizes, by_size
from takd.analysis.tables import assistant_size, students

ARM = "takd:mlp-*"
NEAR = 0.15  # points below the best that a size may lie
GOOD = 0.8  # of the repetitions that must find such a size


def grid_of(low: int, high: int, number: int) -> list[int]:
    """Sizes whose logarithms lie evenly."""
    return sorted({round(size) for size in np.geomspace(low, high, number)})


def true_gains(options: argparse.Namespace, sizes: list[int], small: dict[str, Any]) -> pd.DataFrame:
    """By size: `gain` over kd in points on the test split, with `low` and `high` of its 95 % interval."""
    arms = ["kd", *(f"takd:mlp-{size}" for size in sizes)]
    space = takd.load_space(
        "mnist-gap",
        {
            "assistants.models": [f"mlp-{size}" for size in sizes],
            "arms": arms,
            "seeds": options.seeds,
            "confirm": {"seeds": options.fresh},
            **small,
        },
    )
    study = takd.run(space, name="grid", root=options.root, slots=options.slots, wandb="disabled")
    table = arms_table(study.trials).set_index("arm").loc[arms[1:]]
    gains = table[["over_kd", "over_kd_low", "over_kd_high"]].set_axis(["gain", "low", "high"], axis=1)
    return gains.assign(size=sizes).reset_index(drop=True)


def searched(options: argparse.Namespace, repeat: int, small: dict[str, Any]) -> tuple[int, Band, int, str]:
    """The size that a search chose by its validation numbers, the best range of sizes, the size of the configuration
    with the best students, and what is said of the range."""
    space = takd.load_space(
        "mnist-gap",
        {
            "assistants.models": {"family": "mlp", "size": {"low": options.low, "high": options.high, "log": True}},
            "arms": [ARM],
            "sampler": "tpe",
            "sampler_seed": repeat,
            "trials": options.trials,
            "coverage": 1,
            "seeds": options.seeds,
            "confirm": None,
            "allow_any_size": True,
            **small,
        },
    )
    study = takd.run(space, name=f"search-{repeat}", root=options.root, slots=options.slots, wandb="disabled")
    size = assistant_size(best_configurations(study.trials)[ARM])
    scores = {str(name): rows["score"].tolist() for name, rows in students(study.trials).groupby("configuration")}
    alone = assistant_size(choose_setting(scores))
    assert size is not None
    assert alone is not None
    [best] = [band for band in by_size(study.trials, ARM).bands if band.best]
    return size, best, alone, best_sizes(study.trials, ARM)


def gain_at(gains: pd.DataFrame, size: float) -> float:
    return float(np.interp(math.log(size), np.log(gains["size"]), gains["gain"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="runs-ta-size")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--low", type=int, default=8)
    parser.add_argument("--high", type=int, default=400)
    parser.add_argument("--sizes", type=int, default=12, help="of the grid")
    parser.add_argument("--trials", type=int, default=40, help="of each search")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first search's sampler")
    parser.add_argument("--seeds", type=int, default=8, help="students of a trial")
    parser.add_argument("--fresh", type=int, default=40, help="students of an arm whose gain is taken as true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    small: dict[str, Any] = {}
    if options.small:
        options.sizes, options.trials, options.repeats, options.seeds, options.fresh = 3, 10, 2, 2, 4
        options.low, options.high = 8, 64
        short = {"epochs": 2, "examples": 4000}
        small = {"teacher.model": "mlp-200", "teacher.recipe": short, "assistants.recipe": short}
        small |= {"student.recipe.epochs": 10, "student.temperature": {"choices": [2, 8]}}
        small |= {"student.lambda": {"choices": [0.5, 0.9]}}
    sizes = grid_of(options.low, options.high, options.sizes)
    gains = true_gains(options, sizes, small)
    best = gains.to_dict("records")[int(gains["gain"].to_numpy().argmax())]
    print_ = partial(Console(highlight=False).print, soft_wrap=True)
    print_("\n| size | gain over kd, points (95 % CI) |\n|---:|---:|")
    for row in gains.to_dict("records"):
        print_(f"| {row['size']:.0f} | {row['gain']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}) |")
    print_(f"\nThe best of the grid is mlp-{best['size']:.0f}, with {best['gain']:+.2f} points over kd.\n")
    print_("| search | chosen size | its gain, below the best | best range | | of the best students | |")
    print_("|---:|---:|---:|---:|---:|---:|---:|")
    found = {"chose a size": 0, "called a range the best whose middle is": 0, "had their best students with one": 0}
    said = []
    for repeat in range(options.first, options.first + options.repeats):
        size, band, alone, sentence = searched(options, repeat, small)
        sizes_found = (size, math.sqrt(band.smallest * band.largest), alone)
        reached = [gain_at(gains, each) for each in sizes_found]
        below = [float(best["gain"]) - each for each in reached]
        for what, each in zip(found, below, strict=True):
            found[what] += each <= NEAR
        said.append(sentence)
        cells = [
            f"{one} | {gain:+.2f}, {less:.2f}"
            for one, gain, less in zip((size, band.text, alone), reached, below, strict=True)
        ]
        print_(f"| {repeat} | {' | '.join(cells)} |")
    print_("\n" + "\n".join(said) + "\n")
    enough = math.ceil(GOOD * options.repeats - 1e-9)
    for what, number in found.items():
        print_(
            f"{number} of {options.repeats} searches of {options.trials} trials {what} within {NEAR} points of the "
            f"best: {'enough' if number >= enough else 'too few'}, where {GOOD:.0%} are asked for."
        )


if __name__ == "__main__":
    main()
