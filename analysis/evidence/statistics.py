"""What is real: means and paired differences whose intervals cover paths and test images, and what they let one say.

Accuracies, differences and margins are fractions from `Spread` on: 0.003 is 0.3 points. Arrays are `[..., paths,
images]`, or `[..., paths]` where no predictions are kept, so that one study and a thousand simulated ones take the same
road. A value is the mean over a path's students of right (1) and wrong (0). Where a study has one path, its unit is the
student's seed, which then stands wherever it says path. docs/statistics.md derives the formulas.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # not stats: a second of every command that says an interval

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
ASSURANCE = 0.8  # how surely the variance that a number of paths is computed from is not above what was measured
MOST_PATHS = 200  # beyond them no one is told how many would be needed
NO_SPREAD = 1e-18  # of variances of fractions: below it is what rounding leaves


@dataclass(frozen=True)
class Spread:
    """A mean over paths and images, and the variance of that mean in two parts; arrays `[...]`.

    `of_paths` would fall to nothing with ever more paths, `of_images` with ever more images; for one path they are NaN.
    `between` is the variance of the path means. `noise` is what `of_paths` can't truly lie below: chance in single
    images, which is well known, for there are many. `images` is None where only path means are known: then `of_images`
    and `noise` are 0, and an interval covers paths alone.
    """

    mean: Floats
    of_paths: Floats
    of_images: Floats
    between: Floats
    noise: Floats
    paths: int
    images: int | None

    @property
    def variance(self) -> Floats:
        return self.of_paths + self.of_images

    @property
    def share(self) -> Floats:
        """Which part of the variance is of paths; all where nothing else is known, and none where nothing varies."""
        if self.images is None:
            return np.ones_like(self.mean)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.variance > NO_SPREAD, self.of_paths / self.variance, 0.0)

    @property
    def covers(self) -> tuple[str, ...]:
        """What an interval of this spread holds for: `("paths", "images")`, or `("paths",)`."""
        return ("paths",) if self.images is None else ("paths", "images")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, arrays `[...]`; the interval is NaN where nothing can be said."""

    mean: Floats
    low: Floats
    high: Floats
    covers: tuple[str, ...]


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference; `p` is two-sided and below 0.05 exactly where the interval leaves out 0.

    `hedges_g` is of the differences' path means, and NaN for two paths.
    """

    p: Floats
    hedges_g: Floats


def spread_of_images(values: ArrayLike) -> Spread:
    """Of `[..., paths, images]`: the two-way variance sum of crossed random effects.

    V = (MS_paths + MS_images - MS_rest) / (paths images), of which the last two are the images' part, and not negative.
    """
    values = np.asarray(values, float)
    paths, images = values.shape[-2:]
    by_path, by_image = values.mean(axis=-1), values.mean(axis=-2)
    mean = by_path.mean(axis=-1)
    of_paths = images * np.square(by_path - mean[..., None]).sum(axis=-1)
    of_images = paths * np.square(by_image - mean[..., None]).sum(axis=-1)
    total = np.einsum("...pi,...pi->...", values, values) - paths * images * mean**2
    return _spread(mean, total, of_paths, of_images, paths, images)


def _spread(mean: Floats, total: Floats, of_paths: Floats, of_images: Floats, paths: int, images: int) -> Spread:
    """From sums of squares about the mean."""
    if paths < 2 or images < 2:
        nothing = np.full_like(mean, np.nan)
        return Spread(mean, nothing, nothing, nothing, nothing, paths, images)
    rest = np.maximum(total - of_paths - of_images, 0) / ((paths - 1) * (images - 1))
    between = of_paths / (paths - 1) / images
    part_of_images = np.maximum(of_images / (images - 1) - rest, 0) / (paths * images)
    return Spread(mean, between / paths, part_of_images, between, rest / (paths * images), paths, images)


def spread_of_paths(values: ArrayLike) -> Spread:
    """Of path means `[..., paths]`, where no predictions are kept, and of metrics that no single image has."""
    values = np.asarray(values, float)
    paths = values.shape[-1]
    between = values.var(axis=-1, ddof=1) if paths > 1 else np.full(values.shape[:-1], np.nan)
    mean = np.asarray(values.mean(axis=-1))
    nothing = np.zeros_like(mean)
    return Spread(mean, np.asarray(between / paths), nothing, np.asarray(between), nothing, paths, None)


def spreads_of_differences(values: ArrayLike, pairs: ArrayLike) -> Spread:
    """Of `values[..., arms, paths, images]` the differences `[..., pairs]` of arms `pairs[pairs, 2]`, the first's minus
    the second's, as `spread_of_images` has each: by products of arms, so that many pairs cost no more than few.
    """
    every = np.asarray(values, float)
    *_, paths, images = every.shape
    every = every - every.mean(axis=(-3, -2, -1), keepdims=True)
    by_path, by_image = every.mean(axis=-1), every.mean(axis=-2)
    means = by_path.mean(axis=-1)
    flat = every.reshape(*every.shape[:-2], paths * images)
    first, second = np.asarray(pairs).T

    def squares(each: Floats) -> Floats:
        products = each @ np.swapaxes(each, -1, -2)
        single = np.diagonal(products, axis1=-2, axis2=-1)
        of_pairs = single[..., first] + single[..., second] - 2 * products[..., first, second]
        return np.where(of_pairs > 1e-12 * paths * images, of_pairs, 0.0)

    return _spread(
        means[..., first] - means[..., second],
        squares(flat - means[..., None]),
        images * squares(by_path - means[..., None]),
        paths * squares(by_image - means[..., None]),
        paths,
        images,
    )


def half_width(spread: Spread, tail: float | Floats = ALPHA / 2) -> Floats:
    """How far off the mean a bound lies that is beyond it with the probability `tail`.

    Its number of standard errors lies between Student's t with images - 1 and with paths - 1 degrees of freedom: nearer
    to the latter the larger the paths' share of the variance, and the farther out the sooner, as `_curve` says. At 95 %
    it is no less than one standard error that images alone leave: the means of few paths may happen to be the same.
    """
    freedom = max(spread.paths - 1, 1)
    if spread.images:  # path means come in steps, so that two of them are often the same
        spread = replace(spread, of_paths=spread.of_paths + 1 / (12 * spread.images**2 * spread.paths))
    of_paths = -special.stdtrit(freedom, tail)
    of_images = -special.stdtrit(spread.images - 1, tail) if spread.images else of_paths
    errors = of_images + (of_paths - of_images) * spread.share ** _curve(of_images, of_paths, freedom)
    least = np.sqrt(spread.noise + spread.of_images) * special.ndtri(tail) / special.ndtri(ALPHA / 2)
    return np.maximum(errors * np.sqrt(spread.variance), least)


def _curve(of_images: Floats, of_paths: Floats, freedom: int) -> Floats:
    """The power of the paths' share at which intervals miss about as often as they say, whatever the share truly is.

    Found by computing that for 2 to 10 paths and tails from 0.2 to 0.0005. Satterthwaite's degrees of freedom, that of
    a power of about 2, miss up to twice as often at two paths, and 20 times in the far tail that Holm's family needs.
    """
    with np.errstate(all="ignore"):
        nearness = np.where(np.asarray(of_paths) > 1e-9, of_images / of_paths, 1.0)
    return 0.5 + max(1.5, 4.5 / freedom) * nearness


def bounded_interval(spread: Spread) -> Interval:
    """Of an accuracy, or of another mean that lies in [0, 1]: Wilson's, of as many images as would vary so much.

    Where no student errs, or all do, on every image, their number is that of the images. NaN for one path, and where
    path means are all that is known and they are the same.
    """
    mean, variance = spread.mean, spread.mean * (1 - spread.mean)
    squared_t = special.stdtrit(max((spread.images or 2) - 1, 1), ALPHA / 2) ** 2
    without = squared_t / spread.images if spread.images else np.nan
    with np.errstate(all="ignore"):
        squared = half_width(spread) ** 2
        ratio = np.where((variance > NO_SPREAD) & (squared > NO_SPREAD), squared / variance, without)
        ratio = np.where(np.isnan(squared), np.nan, ratio)
    center = (mean + ratio / 2) / (1 + ratio)
    half = np.sqrt(ratio * variance + ratio**2 / 4) / (1 + ratio)
    low, high = np.minimum(center - half, mean), np.maximum(center + half, mean)  # but for rounding they are
    return Interval(mean, np.clip(low, 0, 1), np.clip(high, 0, 1), spread.covers)


def difference(spread: Spread) -> Difference:
    """Of paired differences in [-1, 1], path by path and image by image, a spread by any of the three functions above.

    Bonett and Price's two images are added to each path, one that either arm alone has right, so that an interval has a
    width also where two arms never differ. NaN for one path, and where path means are all that is known and they are
    the same.
    """
    spread = _with_two_images(spread)
    half = half_width(spread)
    half = np.where(half > np.sqrt(NO_SPREAD), half, np.nan)
    low, high = np.clip(spread.mean - half, -1, 1), np.clip(spread.mean + half, -1, 1)
    p = np.where(np.isnan(half), np.nan, _two_sided_p(spread))
    return Difference(spread.mean, low, high, spread.covers, p, _g(spread))


def _with_two_images(spread: Spread) -> Spread:
    if spread.images is None:
        return spread
    return replace(spread, of_images=spread.of_images + 2 / (spread.images + 2) ** 2 / spread.paths)


def _two_sided_p(spread: Spread) -> Floats:
    """The level at which an interval just reaches 0: by halving."""
    low, high = np.full(np.shape(spread.mean), -40.0), np.zeros(np.shape(spread.mean))  # logarithms
    for _ in range(32):  # to a part in ten millions
        middle = (low + high) / 2
        reaches = half_width(spread, np.exp(middle) / 2) > np.abs(spread.mean)
        low, high = np.where(reaches, middle, low), np.where(reaches, high, middle)
    return np.asarray(np.exp((low + high) / 2))


def _g(spread: Spread) -> Floats:
    freedom = spread.paths - 1
    if freedom < 2:
        return np.full_like(spread.mean, np.nan)
    with np.errstate(all="ignore"):
        d = np.where(spread.between > NO_SPREAD, spread.mean / np.sqrt(spread.between), np.nan)
    return d * _unbiased(freedom)


def _unbiased(freedom: int) -> float:
    """Hedges' exact factor (1981)."""
    return float(np.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / np.sqrt(freedom / 2))


def non_inferior(arm: Difference, margin: float) -> Flags:
    """Whether an arm that lies `arm` above its reference is worse by less than the margin, at a one-sided 2.5 %.

    So the 95 % interval that is printed says the same: it lies above -margin. False where nothing can be said.
    """
    return np.asarray(arm.low > -margin)


def inferior(arm: Difference, margin: float) -> Flags:
    """Whether it is worse by more than the margin: the whole interval says so."""
    return np.asarray(arm.high < -margin)


@dataclass(frozen=True)
class Best:
    """Hsu's multiple comparisons with the best, at 95 % for all arms together; arrays `[..., arms]`.

    `behind` is how far the arm's mean lies below the highest mean of the others, negative for the highest. `at_most` is
    the upper bound of how far it truly lies below the best arm, whichever that is; NaN for one path. `may_be_best`: the
    arms that can't be told from the best; of the others it is known, at 95 % for all together, that another is better.
    """

    behind: Floats
    at_most: Floats
    may_be_best: Flags
    covers: tuple[str, ...]

    def within(self, margin: float) -> Flags:
        """The arms that are as good as the best within a margin."""
        return np.asarray(self.at_most < margin)


def best_arms(values: ArrayLike, *, images: bool) -> Best:
    """Of `[..., arms, paths, images]`, or of `[..., arms, paths]` without `images`; an arm alone is the best.

    `at_most`: for each arm as the best, one-sided bounds of its paired differences to all others hold together (Sidak).
    That those of the arm which is the best do is all that the bounds need, so no more is corrected for. That an arm is
    not the best takes a paired difference of Holm's family of all pairs: Hsu's bounds tell equal arms apart too often.
    """
    values = np.asarray(values, float)
    arms = values.shape[-3 if images else -2]
    first, second = np.triu_indices(arms, 1)
    if images:
        spread = spreads_of_differences(values, np.stack([first, second], axis=1))
    else:
        spread = spread_of_paths(values[..., first, :] - values[..., second, :])
    found = holm(difference(spread).p) < ALPHA
    spread = _with_two_images(spread)
    width = half_width(spread, 1 - (1 - ALPHA) ** (1 / max(arms - 1, 1)))

    def table(one_way: Floats | Flags, other_way: Floats | Flags) -> Floats:
        """`[..., pairs]` as `[..., arms, arms]`: of the first over the second."""
        both = np.zeros((*spread.mean.shape[:-1], arms, arms))
        both[..., first, second], both[..., second, first] = one_way, other_way
        return both

    ahead, bound = table(spread.mean, -spread.mean), table(spread.mean + width, width - spread.mean)
    others = ~np.eye(arms, dtype=bool)
    may_be_best = ~np.any((ahead > 0) & (table(found, found) > 0), axis=-2)
    rivals = others & may_be_best[..., :, None]
    at_most = np.max(np.where(rivals, bound, 0.0), axis=-2, initial=0.0)
    behind = np.max(np.where(others, ahead, -np.inf), axis=-2) if arms > 1 else np.zeros((*spread.mean.shape[:-1], 1))
    return Best(behind, at_most, may_be_best, spread.covers)


@dataclass(frozen=True)
class Components:
    """What moves one arm's accuracy, or a paired difference: variances (of fractions), none below 0.

    `students` is NaN where each path has one, and then `paths` holds theirs too. What is of images is NaN where there
    are no predictions. `paths_by_images`: what a path does to single images; `rest`: what a student does to them.
    """

    paths: float
    students: float
    images: float
    paths_by_images: float
    rest: float
    counts: tuple[int, int, int | None]  # paths, students of each, test images

    def spread(self, paths: int, students: int, images: int | None) -> Spread:
        """That of a study with these numbers of paths, students of each, and test images (None: not counted)."""
        chance = np.nan_to_num(self.paths_by_images) + np.nan_to_num(self.rest) / students
        noise = chance / (images or self.counts[2] or 1)
        between = self.paths + np.nan_to_num(self.students) / students + noise
        of_images = np.nan_to_num(self.images) / images if images else 0.0
        numbers = (0.0, between / paths, of_images, between, noise / paths)
        parts = [np.asarray(each, float) for each in numbers]
        return Spread(parts[0], parts[1], parts[2], parts[3], parts[4], paths, images)

    def half_width(self, paths: int, students: int, images: int | None) -> float:
        """Of the 95 % interval that such a study would have; NaN for one path."""
        return float(half_width(self.spread(paths, students, images))) if paths > 1 else np.nan


def components(values: ArrayLike) -> Components:
    """Of one study, `[paths, students, images]`, or means `[paths, students]` where no predictions are kept.

    From the mean squares of students within paths, crossed with images. Where the unit is the student's seed, pass
    `[seeds, 1, images]`: `paths` then is what seeds do. NaN throughout for one path.
    """
    values = np.asarray(values, float)
    paths, students, *rest = values.shape
    images = rest[0] if rest else None
    counts = (paths, students, images)
    if paths < 2:
        return Components(np.nan, np.nan, np.nan, np.nan, np.nan, counts)
    means = values.mean(axis=2) if images else values
    by_path = means.mean(axis=1)
    of_students = means.var(axis=1, ddof=1).mean() if students > 1 else np.nan
    if images is None:
        between = by_path.var(ddof=1) - np.nan_to_num(of_students) / students
        return Components(max(between, 0.0), float(of_students), np.nan, np.nan, np.nan, counts)
    by_both = values.mean(axis=1)  # [paths, images]
    by_image = by_both.mean(axis=0)
    crossed = by_both - by_path[:, None] - by_image + values.mean()
    of_crossed = np.square(crossed).sum() / ((paths - 1) * (images - 1))  # rest / students + paths by images
    of_rest = np.nan
    if students > 1:
        single = values - means[:, :, None] - by_both[:, None, :] + by_path[:, None, None]
        of_rest = np.square(single).sum() / (paths * (students - 1) * (images - 1))
        of_students = max(of_students - of_rest / images, 0.0)
    of_both = max(of_crossed - np.nan_to_num(of_rest) / students, 0.0)
    between = by_path.var(ddof=1) - np.nan_to_num(of_students) / students - of_crossed / images
    of_images = by_image.var(ddof=1) - of_crossed / paths
    kinds = (between, of_students, of_images, of_both, of_rest)
    between, of_students, of_images, of_both, of_rest = (float(np.maximum(each, 0.0)) for each in kinds)
    return Components(between, of_students, of_images, of_both, of_rest, counts)


@dataclass(frozen=True)
class Needed:
    """Paths that show an effect with a power of 0.8; None beyond `MOST_PATHS`.

    `images_forbid`: not even paths without end would do, for the test images alone vary too much.
    """

    paths: int | None
    images_forbid: bool


def paths_needed(spread: Spread, effect: float, comparisons: int = 1) -> Needed:
    """Of a study of paired differences with one spread: how many paths it should have had to show `effect` > 0.

    At the level that is left when the family's 5 % are shared by all comparisons. With one comparison it is also what
    shows that an arm which is as good as its reference is not worse by `effect`. Students of a path and images stay as
    they are. Few paths tell little of their own variance, so it is taken as large as it is with a certainty of 0.8.
    """
    spread = _with_two_images(spread)
    if not spread.paths > 1 or not spread.variance > NO_SPREAD:
        return Needed(None, False)
    freedom, tail = spread.paths - 1, ALPHA / comparisons / 2
    between = float(spread.between * freedom / special.chdtri(freedom, ASSURANCE))

    def enough(paths: int) -> bool:
        return _power(effect, replace(spread, between=np.asarray(between), paths=paths), tail) >= POWER

    of_images = float(np.sqrt(spread.of_images))
    if of_images and special.ndtr(effect / of_images + special.ndtri(tail)) < POWER:
        return Needed(None, True)
    numbers = range(2, MOST_PATHS + 1)
    first = bisect_left(numbers, True, key=enough)
    return Needed(numbers[first] if first < len(numbers) else None, False)


def _power(effect: float, true: Spread, tail: float) -> float:
    """How often an interval leaves out 0 where the difference is `effect`: over what paths' variances turn out."""
    freedom, of_images = true.paths - 1, np.full(200, true.of_images)
    of_paths = true.between / true.paths * special.chdtri(freedom, (np.arange(200) + 0.5) / 200) / freedom
    measured = replace(true, mean=np.zeros(200), of_paths=of_paths, of_images=of_images, noise=np.zeros(200))
    deviation = np.sqrt(true.between / true.paths + true.of_images)
    return float(special.ndtr((effect - half_width(measured, tail)) / deviation).mean())


def holm(p: ArrayLike) -> Floats:
    """Corrected for families `[..., comparisons]` (Holm 1979); a NaN stays one and counts for nothing."""
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1)  # NaNs last
    ranked = np.take_along_axis(p, order, axis=-1)
    left = np.sum(~np.isnan(p), axis=-1, keepdims=True) - np.arange(p.shape[-1])
    ranked = np.minimum(np.maximum.accumulate(ranked * left, axis=-1), 1.0)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, ranked, axis=-1)
    return corrected


def choose(accuracy: ArrayLike) -> Numbers:
    """Which configuration an arm's search chooses, `[...]`, of `[..., configurations, seeds]`, preferred first.

    Configurations within one standard error of the best are tied, and of those the first wins; put the lowest
    temperature first, and of the same temperature the lowest lambda. With one seed the best wins, and the first of
    equals. A configuration with a seed missing (NaN) is no candidate unless all are so: then missing seeds are left
    out of the means.
    """
    accuracy = np.asarray(accuracy, float)
    seeds = accuracy.shape[-1]
    missing = np.isnan(accuracy).any(axis=-1)
    means = accuracy.mean(axis=-1)
    if missing.all(axis=-1).any():
        means = np.where(missing.all(axis=-1)[..., None], np.nanmean(accuracy, axis=-1), means)
    means = np.where(np.isnan(means), -np.inf, means)
    best = means.argmax(axis=-1)[..., None]
    own = np.take_along_axis(accuracy, best[..., None], axis=-2)[..., 0, :]
    error = np.nan_to_num(own.std(axis=-1, ddof=1) / np.sqrt(seeds)) if seeds > 1 else np.zeros(own.shape[:-1])
    tied = means >= np.take_along_axis(means, best, axis=-1) - error[..., None] - 1e-9
    return np.asarray(tied.argmax(axis=-1))


def how_often_chosen(accuracy: ArrayLike, weights: Floats | None = None) -> Floats:
    """By configuration, how often `choose` would have taken it from the search's seeds drawn anew with replacement.

    `[configurations, seeds]`, as `choose` has them. With `weights`, `[configurations, configurations]`, means are
    estimated by them, and the best is taken. All draws where there are at most 5 seeds, else 2,000 of them,
    always the same. NaN for one seed, which tells nothing of the others.
    """
    accuracy = np.asarray(accuracy, float)
    configurations, seeds = accuracy.shape
    if seeds < 2:
        return np.full(configurations, np.nan)
    if seeds <= 5:
        draws = np.stack(np.unravel_index(np.arange(seeds**seeds), (seeds,) * seeds), axis=1)
    else:
        draws = np.random.default_rng(0).integers(0, seeds, (2000, seeds))
    drawn = np.moveaxis(accuracy[:, draws], 1, 0)
    chosen = choose(drawn) if weights is None else (drawn.mean(-1) @ weights.T).argmax(-1)
    return np.bincount(chosen, minlength=configurations) / len(draws)


def winners_curse(search: ArrayLike, fresh: ArrayLike) -> Interval:
    """By how much the chosen configuration's validation in the search, `[seeds]`, lies above the mean of new seeds.

    `fresh` is validation of the confirm phase by path (or by seed, where the path is that of the search), `[paths]`.
    What the search measured is known, and the images are the same, so only new paths make it uncertain. NaN limits for
    one of them, or where all are the same.
    """
    flattered = difference(spread_of_paths(np.asarray(search, float).mean() - np.asarray(fresh, float)))
    return Interval(flattered.mean, flattered.low, flattered.high, flattered.covers)


# Of what has no bounds: losses


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval of Student's t; the interval is NaN for fewer than two values."""

    mean: Floats
    low: Floats
    high: Floats


def mean_interval(values: ArrayLike) -> Estimate:
    """Of `[..., n]`, over the last."""
    values = np.asarray(values, float)
    mean, n = values.mean(axis=-1), values.shape[-1]
    if n < 2:
        return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    half = special.stdtrit(n - 1, 1 - ALPHA / 2) * values.std(axis=-1, ddof=1) / np.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def fraction_interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction (1927), which stays in [0, 1] and has a width also at 0 and 1."""
    z, p = -special.ndtri(ALPHA / 2), count / of
    centre, half = p + z**2 / (2 * of), z * np.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    low, high = ((centre + side * half) / (1 + z**2 / of) for side in (-1, 1))
    return max(0.0, float(low)), min(1.0, float(high))
