"""How often intervals cover the truth and verdicts are wrong, in simulated studies that go through search and choice.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/coverage.py [--studies 2000] [--seed 18]

Right and wrong of every student on every image come of a latent model: the difficulty of images, what a path does to
all arms alike and to one alone, what a student's seed does, and what each of them does to single images. Each study
searches 4 configurations an arm by 3 seeds of one path on validation images, chooses by the rule of `choose`, and
confirms what was chosen on test images by 10 new paths of 2 students, of which the first 2, 3, 5 and 10 are taken. The
truth is the mean over all paths and images of the configuration that was chosen. Beside it is what intervals over seeds
say of the same: as many students of one path, the test images fixed. About 3 minutes on one core; prints the tables of
docs/statistics.md.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from takd.analysis.evidence.statistics import (
    ALPHA,
    Spread,
    best_arms,
    bounded_interval,
    choose,
    difference,
    holm,
    mean_interval,
    non_inferior,
    paths_needed,
    spread_of_images,
    spread_of_paths,
    spreads_of_differences,
)

Floats = NDArray[np.float64]
Halves = NDArray[np.float32]
Flags = NDArray[np.bool_]

PATHS = (2, 3, 5, 10)
STUDENTS, SEARCH_SEEDS, VALIDATION = 2, 3, 500
# Standard deviations in the latent model of what is of images: their difficulty, what an arm, a path, an arm's path and
# a student do to single ones.
DIFFICULTY, ARM_IMAGE, PATH_IMAGE, OWN_IMAGE, STUDENT_IMAGE = 0.8, 0.2, 0.2, 0.3, 0.4
OF_IMAGES = float(np.sqrt(sum(np.square([DIFFICULTY, ARM_IMAGE, PATH_IMAGE, OWN_IMAGE, STUDENT_IMAGE]))))
KD, LABELS = 1, 0
AT_ONCE = 10  # studies, so that all fits in the processor's cache
MOST_PLANNED = 40  # paths


@dataclass(frozen=True)
class Scenario:
    """`effects` by arm in points; labels, kd and assistants. The rest are standard deviations in the latent model."""

    name: str
    effects: tuple[float, ...] = (0, 0, 0, 0, -0.5)
    accuracy: float = 0.90
    images: int = 1000
    configurations: tuple[float, ...] = (-0.01, 0.0, -0.03, -0.15)  # in the order of preference
    path: float = 0.03
    own_path: float = 0.03
    student: float = 0.02
    heavy: bool = False  # Student's t with 3 degrees of freedom in place of the normal distribution

    def draw(self, random: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> Halves:
        drawn = random.standard_t(3, shape) if self.heavy else random.standard_normal(shape)
        return (deviation * drawn).astype(np.float32)


@cache
def truth_of(scenario: Scenario) -> tuple[Floats, Floats]:
    """A grid of latent means, and the accuracies over all paths and images that belong to them."""
    grid = np.linspace(-1, 5, 400)
    if not scenario.heavy:
        return grid, special.ndtr(grid / np.sqrt(OF_IMAGES**2 + of_training(scenario)))
    random = np.random.default_rng(1)
    parts = (scenario.path, scenario.own_path, scenario.student)
    drawn = np.sum([scenario.draw(random, each, (50_000,)) for each in parts], axis=0, dtype=float)
    both = np.concatenate([drawn, -drawn])
    return grid, np.array([special.ndtr((each + both) / OF_IMAGES).mean() for each in grid])


def of_training(scenario: Scenario) -> float:
    """The latent variance of paths and students."""
    return scenario.path**2 + scenario.own_path**2 + scenario.student**2


SCENARIOS = (
    Scenario("no effect", effects=(0,) * 5, configurations=(0, 0, 0, -0.3)),
    Scenario("no effect, 9 arms", effects=(0,) * 9, configurations=(0, 0, 0, -0.3)),
    Scenario("half a point", effects=(0, 0, 0.5, 0, -0.5)),
    Scenario("strong teachers", path=0.15, own_path=0.06),
    Scenario("153 test images", images=153),
    Scenario("heavy tails at 99 %", accuracy=0.99, path=0.06, own_path=0.06, student=0.04, heavy=True),
)


@dataclass(frozen=True)
class Studies:
    """Simulated studies, arrays `[studies, ...]`; spreads and bounds by number of paths."""

    truth: Floats  # [studies, arms]: accuracy of the chosen configuration over all paths and images
    lost: Floats  # [studies, arms]: accuracy of the best configuration minus that of the chosen
    lost_by_highest: Floats  # had the highest mean been chosen
    by_seed: Floats  # [studies, arms, seeds], of one path
    arms: dict[int, Spread]
    pairs: dict[int, Spread]
    at_most: dict[int, Floats]
    may_be_best: dict[int, Flags]


def right(latent: Halves, random: np.random.Generator, students: int) -> Halves:
    """`[..., images]` to the part of so many students that is right."""
    found = np.zeros(latent.shape, np.float32)
    for _ in range(students):
        found += latent + np.float32(STUDENT_IMAGE) * random.standard_normal(latent.shape, np.float32) > 0
    return found / np.float32(students)


def simulate(scenario: Scenario, studies: int, random: np.random.Generator, paths: int = max(PATHS)) -> tuple[Any, ...]:
    """A few studies: confirmed right and wrong `[studies, arms, paths, images]`, and the rest of `Studies`."""
    arms, images = len(scenario.effects), scenario.images
    grid, truth = truth_of(scenario)
    base = np.interp(scenario.accuracy + np.array(scenario.effects) / 100, truth, grid)
    means = (base[:, None] + np.array(scenario.configurations)).astype(np.float32)  # [arms, configurations]

    def normal(deviation: float, *shape: int) -> Halves:
        return np.float32(deviation) * random.standard_normal((studies, *shape), np.float32)

    # The search: one path, which all arms and configurations share.
    configurations, count = means.shape[1], VALIDATION
    on_path = scenario.draw(random, scenario.path, (studies, 1, 1, 1))
    on_path = on_path + scenario.draw(random, scenario.own_path, (studies, arms, 1, 1))
    by_image = normal(DIFFICULTY, 1, count) + normal(PATH_IMAGE, 1, count) + normal(ARM_IMAGE, arms, count)
    by_image = by_image + normal(OWN_IMAGE, arms, count)
    by_seed = scenario.draw(random, scenario.student, (studies, arms, configurations, SEARCH_SEEDS))
    latent = (means[:, :, None] + on_path + by_seed)[..., None] + by_image[:, :, None, None, :]
    validation = right(latent, random, 1).mean(axis=-1, dtype=float)
    chosen = choose(validation)
    accuracy = np.interp(means, grid, truth)
    of_chosen = np.take_along_axis(accuracy[None], chosen[..., None], axis=-1)[..., 0]
    highest = validation.mean(axis=-1).argmax(axis=-1)
    of_highest = np.take_along_axis(accuracy[None], highest[..., None], axis=-1)[..., 0]
    mean = np.take_along_axis(means[None], chosen[..., None], axis=-1)[..., 0]  # [studies, arms]

    # The confirm phase: new paths, and other images.
    difficulty = normal(DIFFICULTY, 1, images) + normal(ARM_IMAGE, arms, images)  # [studies, arms, images]
    on_path = scenario.draw(random, scenario.path, (studies, 1, paths))
    on_path = on_path + scenario.draw(random, scenario.own_path, (studies, arms, paths))
    latent = (mean[..., None] + on_path)[..., None] + difficulty[:, :, None]
    latent += normal(PATH_IMAGE, 1, paths, images)
    latent += normal(OWN_IMAGE, arms, paths, images)
    confirmed = np.zeros(latent.shape, np.float32)
    for _ in range(STUDENTS):
        by_seed = scenario.draw(random, scenario.student, (studies, arms, paths, 1))
        confirmed += right(latent + by_seed, random, 1) / STUDENTS
    # What intervals over seeds see: students of the first of these paths.
    by_seed = scenario.draw(random, scenario.student, (studies, arms, max(PATHS), 1))
    seeds = right(latent[:, :, :1] + by_seed, random, 1).mean(axis=-1, dtype=float)
    best = accuracy.max(axis=1)
    return confirmed, of_chosen, best - of_chosen, best - of_highest, seeds


def pairs_of(arms: int) -> list[tuple[int, int]]:
    """Every arm against kd and against labels, as a study's family has them."""
    return [(arm, KD) for arm in range(2, arms)] + [(arm, LABELS) for arm in range(1, arms)]


def run(scenario: Scenario, studies: int, seed: int) -> Studies:
    """Simulates and measures, a few studies at a time; a line a tenth of them."""
    random, pairs = np.random.default_rng(seed), pairs_of(len(scenario.effects))
    parts: list[tuple[Any, ...]] = []
    spreads: dict[str, dict[int, list[Spread]]] = {"arms": {n: [] for n in PATHS}, "pairs": {n: [] for n in PATHS}}
    bounds: dict[int, list[tuple[Floats, Flags]]] = {n: [] for n in PATHS}
    started = time.monotonic()
    for done in range(0, studies, AT_ONCE):
        confirmed, *rest = simulate(scenario, AT_ONCE, random)
        values = confirmed.astype(float)
        parts.append(tuple(rest))
        for n in PATHS:
            spreads["arms"][n].append(spread_of_images(values[:, :, :n]))
            spreads["pairs"][n].append(spreads_of_differences(values[:, :, :n], pairs))
            best = best_arms(values[:, :, :n], images=True)
            bounds[n].append((best.at_most, best.may_be_best))
        if (done + AT_ONCE) % max(studies // 4, AT_ONCE) == 0:
            print(f"{scenario.name}: {done + AT_ONCE:,} of {studies:,}, {time.monotonic() - started:.0f} s", flush=True)
    truth, lost, lost_by_highest, by_seed = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Studies(
        truth,
        lost,
        lost_by_highest,
        by_seed,
        arms={n: joined(each) for n, each in spreads["arms"].items()},
        pairs={n: joined(each) for n, each in spreads["pairs"].items()},
        at_most={n: np.concatenate([at_most for at_most, _ in each]) for n, each in bounds.items()},
        may_be_best={n: np.concatenate([may_be_best for _, may_be_best in each]) for n, each in bounds.items()},
    )


def joined(spreads: list[Spread]) -> Spread:
    arrays: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in spreads]) for name in PARTS}
    return replace(spreads[0], **arrays)


PARTS = ("mean", "of_paths", "of_images", "between", "noise")


def covered(low: Floats, high: Floats, truth: Floats) -> str:
    """In percent, the mean over arms or pairs and the least of them."""
    each = 100 * np.mean((low <= truth) & (truth <= high), axis=0)
    return f"{each.mean():.1f} ({each.min():.1f}-{each.max():.1f})"


def differences_of(values: Floats, pairs: list[tuple[int, int]]) -> Floats:
    """Of `[studies, arms, ...]`."""
    first, second = np.array(pairs).T
    return np.asarray(values[:, first] - values[:, second])


def false_findings(mean: Floats, p: Floats, truth: Floats) -> str:
    """In percent of the studies: a difference found that is not there, or the wrong way round, in Holm's family."""
    wrong = (holm(p) < ALPHA) & (np.sign(mean) * truth <= 1e-12)
    return f"{100 * wrong.any(axis=1).mean():.1f}"


def rows_of(scenario: Scenario, found: Studies) -> Iterator[list[str]]:
    pairs = pairs_of(len(scenario.effects))
    truth = differences_of(found.truth, pairs)
    gaps = found.truth.max(axis=1, keepdims=True) - found.truth
    for n in PATHS:
        arms, pair = bounded_interval(found.arms[n]), difference(found.pairs[n])
        worse = truth < -1e-9
        called = non_inferior(pair, 0) if not worse.any() else pair.low > truth
        seeds = found.by_seed[:, :, :n]
        old, old_pairs = mean_interval(seeds), differences_of(seeds, pairs)
        old_pair = mean_interval(old_pairs)
        beyond = np.any(found.at_most[n] < gaps, axis=1)
        worse_than_itself = np.any((gaps < 1e-12) & ~found.may_be_best[n], axis=1)
        yield [
            scenario.name, str(n),
            covered(arms.low, arms.high, found.truth),
            covered(pair.low, pair.high, truth),
            false_findings(pair.mean, pair.p, truth),
            f"{100 * called[worse].mean() if worse.any() else 100 * called.mean():.1f}",
            f"{100 * beyond.mean():.1f}, {100 * worse_than_itself.mean():.1f}",
            covered(old.low, old.high, found.truth),
            covered(old_pair.low, old_pair.high, truth),
            false_findings(old_pair.mean, stats.ttest_1samp(old_pairs, 0.0, axis=-1).pvalue, truth),
        ]  # fmt: skip


def planned(studies: int, seed: int) -> Iterator[list[str]]:
    """What becomes of the number of paths that a first study is told: how a second one with as many ends.

    The arm of the second is as good as kd, or worse by just the margin; its interval is the same, a margin lower.
    """
    random = np.random.default_rng(seed + 1)
    needed: dict[tuple[int, float], list[int | None]] = {(n, margin): [] for n in PATHS[1:] for margin in MARGINS}
    called: dict[tuple[int, float], list[tuple[bool, bool]]] = {each: [] for each in needed}
    for done in range(0, studies, AT_ONCE):
        confirmed, *_ = simulate(PLANNED, AT_ONCE, random, MOST_PLANNED)
        values = confirmed[:, 1].astype(float) - confirmed[:, 0]
        for number in range(AT_ONCE):
            for (n, margin), stated in needed.items():
                first = spread_of_images(values[number - 1, :n])
                paths = paths_needed(first, margin / 100).paths
                stated.append(paths)
                if paths and paths <= MOST_PLANNED:
                    second = difference(spread_of_images(values[number, :paths]))
                    good = bool(non_inferior(second, margin / 100))
                    called[n, margin].append((good, bool(second.low > 0)))
        if (done + AT_ONCE) % max(studies // 4, AT_ONCE) == 0:
            print(f"planned: {done + AT_ONCE:,} of {studies:,}", flush=True)
    for (n, margin), stated in needed.items():
        told = [each for each in stated if each and each <= MOST_PLANNED]
        passed = 100 * np.mean(called[n, margin], axis=0) if told else np.full(2, np.nan)
        median = f"{np.median(told):.0f}" if told else "-"
        yield [
            str(n),
            f"{margin:g}",
            median,
            f"{100 * len(told) / len(stated):.0f}",
            f"{passed[0]:.1f}",
            f"{passed[1]:.1f}",
        ]


def bounded(studies: int, seed: int) -> Iterator[list[str]]:
    """Means in [0, 1] that are known by path alone: normal on the logit, as AUC, F1 and calibration errors may be."""
    random = np.random.default_rng(seed + 2)
    for typical, deviation in ((0.5, 0.3), (0.9, 0.3), (0.99, 0.5), (0.999, 1.0)):
        truth = special.expit(special.logit(typical) + deviation * random.standard_normal(1_000_000)).mean()
        row, outside = [f"{truth:.4f}"], []
        for n in BOUNDED_PATHS:
            values = special.expit(special.logit(typical) + deviation * random.standard_normal((10 * studies, n)))
            estimate, plain = bounded_interval(spread_of_paths(values)), mean_interval(values)
            covers, before = (100 * np.mean((each.low <= truth) & (truth <= each.high)) for each in (estimate, plain))
            row.append(f"{covers:.1f} ({before:.1f})")
            outside.append(f"{100 * np.mean((plain.low < 0) | (plain.high > 1)):.0f}")
        yield [*row, ", ".join(outside)]


BOUNDED_PATHS = (2, 3, 5, 20)
MARGINS = (1.5,)  # points
PLANNED = Scenario("planned", effects=(0, 0), configurations=(0,))
HEAD = [
    "scenario", "paths", "accuracies", "differences", "false findings", "inferior passed", "beyond bound, false loser",
    "seeds: accuracies", "seeds: differences", "seeds: false findings",
]  # fmt: skip
HEAD_PLANNED = [
    "paths of the first study", "margin", "paths stated (median)", "stated %", "as good: called so %",
    "inferior: called so %",
]  # fmt: skip
HEAD_BOUNDED = ["truth", *(f"{n} paths (plain t)" for n in BOUNDED_PATHS), "plain t leaves [0, 1]"]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="of each scenario")
    parser.add_argument("--only", default="", help="scenarios whose names have this in them, or: planned, bounded")
    parser.add_argument("--seed", type=int, default=18, help="of all that is drawn")
    options = parser.parse_args()
    rows: list[list[str]] = []
    for scenario in (each for each in SCENARIOS if options.only in each.name):
        found = run(scenario, options.studies, options.seed)
        rows += rows_of(scenario, found)
        lost = f"{100 * found.lost.mean():.2f}, and the highest mean {100 * found.lost_by_highest.mean():.2f}"
        print(f"{scenario.name}: to the best configuration the choice loses {lost} points", flush=True)
    tables = [(HEAD, rows)] if rows else []
    if options.only in "planned":
        tables.append((HEAD_PLANNED, list(planned(options.studies // 2, options.seed))))
    if options.only in "bounded":
        tables.append((HEAD_BOUNDED, list(bounded(options.studies, options.seed))))
    for head, each in tables:
        print("\n" + table(head, each))


if __name__ == "__main__":
    main()
