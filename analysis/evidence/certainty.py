"""How sure it is: what moves the numbers, what would make an interval narrower, how firm the search's choices are."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from takd.analysis.evidence.agreement import discordance, gain
from takd.analysis.evidence.chosen import best_configurations, chosen_students, order_of_setting, unit_of
from takd.analysis.evidence.measured import Measured, measured, spread_between
from takd.analysis.evidence.statistics import (
    Components,
    Spread,
    components,
    difference,
    how_often_chosen,
    paths_needed,
    winners_curse,
)
from takd.analysis.evidence.surface import weights
from takd.analysis.tables import (
    Missing,
    assistants_of,
    by_cell,
    column_of_study,
    confirmed,
    hyperparameters_of,
    metric_of,
    smallest_effect,
    students,
)
from takd.search_spaces.metrics import ACCURACY, Metric

MORE_PATHS, MORE_STUDENTS, MORE_IMAGES = 5, 50, 10


def variance_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Standard deviations in points: of each arm's accuracy, and of its difference to kd, by what they come from."""
    rows = []
    for cell, part in by_cell(trials).items():
        arms, unit = measured(part), unit_of(part)
        pairs: list[tuple[str, str, str | None]] = [(arm, arm, None) for arm in arms]
        pairs += [(f"{arm} - kd", arm, "kd") for arm in arms if "kd" in arms and arm != "kd"]
        for name, arm, reference in pairs:
            found = _components(arms[arm], arms[reference] if reference else None)
            if found is not None:
                rows.append({"cell": cell, "of": name} | _deviations(found, unit))
    if not rows:
        raise Missing(
            "What moves the numbers is known of accuracies: it needs a study that goes by them, and a confirm phase "
            "with two paths or two seeds and its predictions."
        )
    table = pd.DataFrame(rows)
    return table if table["cell"].nunique() > 1 else table.drop(columns="cell")


def _components(arm: Measured, reference: Measured | None = None) -> Components | None:
    if reference is not None:
        arm, reference = arm.beside(reference)
    values = arm.by_student()
    if values is None or len(values) < 2:
        return None
    if reference is not None:
        other = reference.by_student()
        if other is None:
            return None
        values = values - other
    return components(values)


def _deviations(found: Components, unit: str) -> dict[str, str]:
    def points(variance: float) -> str:
        return "-" if np.isnan(variance) else f"{100 * np.sqrt(variance):.2f}"

    between = {"between paths": points(found.paths), "between students of a path": points(found.students)}
    if unit == "student":
        between = {"between students": points(found.paths)}
    return between | {"between test images": points(found.images)}


class Help(NamedTuple):
    """How well a difference is known, in points: half an interval, now and with more of something."""

    of: str  # what it was measured on: `5 paths of 2 students and 10,000 test images`
    now: float
    more: Mapping[str, float]  # by `5 more paths`
    needed: str  # to see the smallest difference that matters


def help_with(trials: pd.DataFrame, arm: str, reference: str) -> Help | None:
    """How wide the interval of their difference is, and would be with more; None where that can't be said."""
    arms = measured(trials)
    found = _components(arms[arm], arms[reference])
    if found is None:
        return None
    paths, each, images = found.counts
    assert images is not None
    spread = spread_between(*arms[arm].beside(arms[reference]))
    measured_now = difference(spread)
    now = float(measured_now.high - measured_now.low) / 2
    scale = now / found.half_width(paths, each, images)  # its variances are estimates that can't fall below zero
    more = {
        f"{MORE_PATHS} more paths": found.half_width(paths + MORE_PATHS, each, images),
        f"{MORE_STUDENTS} more students of each path": found.half_width(paths, each + MORE_STUDENTS, images),
        f"{MORE_IMAGES} times as many test images": found.half_width(paths, each, MORE_IMAGES * images),
    }
    what = f"{paths} paths of {each} students" if each > 1 else f"{paths} paths"
    if unit_of(trials) == "student":
        what = f"{paths} students"
        more = {f"{MORE_STUDENTS} more students": found.half_width(paths + MORE_STUDENTS, 1, images)} | {
            name: width for name, width in more.items() if "images" in name
        }
    widths = {name: 100 * scale * width for name, width in more.items()}
    return Help(f"{what} and {images:,} test images", 100 * now, widths, _needed(trials, spread))


def what_would_help(trials: pd.DataFrame, arm: str, reference: str) -> str:
    """The same in words."""
    found = help_with(trials, arm, reference)
    if found is None:
        return ""
    listed = ", ".join(f"±{width:.2f} with {name}" for name, width in found.more.items())
    return (
        f"The difference of {arm} to {reference} is known to ±{found.now:.2f} points, by {found.of}. It would be "
        f"{listed}. {found.needed}"
    ).strip()


def _needed(trials: pd.DataFrame, spread: Spread) -> str:
    """How many paths show the smallest difference that matters."""
    effect, unit = smallest_effect(trials), unit_of(trials)
    if effect is None:
        return ""
    needed = paths_needed(spread, effect / 100)
    if needed.images_forbid:
        return f"No number of {unit}s shows a difference of {effect:g} points with these test images: they are too few."
    if needed.paths is None:
        return f"More than 200 {unit}s would be needed to show a difference of {effect:g} points."
    if needed.paths <= spread.paths:
        return f"The {spread.paths} {unit}s are enough to show a difference of {effect:g} points."
    return f"{needed.paths} {unit}s would show a difference of {effect:g} points with a power of 80 %."


def choice_table(trials: pd.DataFrame) -> pd.DataFrame:
    """How firm each arm's choice is, by its search's seeds drawn anew, and how much it was flattered."""
    rows = [row for cell, part in by_cell(trials).items() for row in _choices(cell, part)]
    if not rows:
        raise Missing("No arm has two configurations in the search: there was nothing to choose.")
    table = pd.DataFrame(rows)
    return table if table["cell"].nunique() > 1 else table.drop(columns="cell")


def _choices(cell: str, trials: pd.DataFrame) -> Iterator[dict[str, Any]]:
    done, fresh, metric = students(trials), confirmed(trials), metric_of(trials)
    for arm, best in best_configurations(trials).items():
        own = done[done["arm"] == arm]
        by_setting = own.pivot_table(index="configuration", columns="path_seed", values="score")
        by_setting = by_setting.loc[sorted(by_setting.index, key=order_of_setting)]
        if len(by_setting) < 2:
            continue
        final = fresh[fresh["arm"] == arm]
        chosen = str(final["configuration"].iloc[0]) if len(final) else best
        weighed = weights({str(name): row.dropna().tolist() for name, row in by_setting.iterrows()})
        often = dict(zip(by_setting.index, how_often_chosen(by_setting.to_numpy(float), weighed), strict=True))
        others = {name: share for name, share in often.items() if name != chosen}
        second = max(others, key=lambda name: others[name])
        row = {
            "cell": cell,
            "arm": arm,
            "chosen": hyperparameters_of(chosen, cell),
            "chosen again": _share(often[chosen]),
            "next": f"{hyperparameters_of(second, cell)} ({_share(others[second])})",
        }
        if len(final) and chosen in by_setting.index:
            fresh_of = final.assign(score=final[column_of_study(trials).searched].map(metric.score) / 100)
            name = "points" if metric == ACCURACY else metric.title
            row[f"search minus fresh validation, {name}"] = _flattered(by_setting.T[chosen].dropna(), fresh_of, metric)
        yield row


def _share(part: float) -> str:
    return "-" if np.isnan(part) else f"{100 * part:.0f} %"


def _flattered(search: "pd.Series[float]", fresh: pd.DataFrame, metric: Metric) -> str:
    """By how much; of a loss, which is flattered where it was lower in the search, that much."""
    values = fresh["score"].astype(float)
    if "replicate" in fresh and fresh["replicate"].notna().all():
        values = values.groupby(fresh["replicate"]).mean()
    found = winners_curse(search.to_numpy() / 100, values.to_numpy())
    mean, low, high = (100 * float(each) for each in (found.mean, found.low, found.high))
    form = f"+.{metric.digits}f"
    return f"{mean:{form}}" + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")


def images_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Of how many test images the students of an arm, and those of kd, chose the class: McNemar's table of each arm.

    Means over pairs of students of one path and seed. `p` asks whether these students differ, not whether arms do.
    """
    rows = []
    for cell, part in by_cell(trials).items():
        arms = measured(part)
        for name in arms if "kd" in arms else ():
            if name == "kd":
                continue
            arm, reference = arms[name].beside(arms["kd"])
            right, other = arm.bits(), reference.bits()
            if right is None or other is None or not len(right):
                continue
            found = discordance(right, other)
            rows.append(
                {
                    "cell": cell,
                    "arm": name,
                    "both right": f"{found.both_right:,.1f}",
                    "arm alone": f"{found.arm_only:,.1f}",
                    "kd alone": f"{found.reference_only:,.1f}",
                    "both wrong": f"{found.both_wrong:,.1f}",
                    "images won": found.won,
                    "images lost": found.lost,
                    "p of these students": f"{found.p:.3f}",
                }
            )
    if not rows:
        raise Missing("Single test images are known of confirmed students beside kd; this study has none.")
    table = pd.DataFrame(rows)
    return table if table["cell"].nunique() > 1 else table.drop(columns="cell")


MOST_WON = 10


def won_table(trials: pd.DataFrame, predictions: pd.DataFrame | None) -> pd.DataFrame:
    """The test images that the best arm with an assistant won most clearly against kd, and those that it lost.

    `predictions` is `results/predictions.parquet`. Shares are of the arm's students.
    """
    arms = measured(trials)
    assisted = [arm for arm in arms if assistants_of(arm)]
    if predictions is None or "kd" not in arms or not assisted:
        raise Missing("Which images an assistant won needs kd, an arm with an assistant, and their predictions.")
    best = max(assisted, key=lambda arm: arms[arm].by_unit().mean())
    arm, reference = arms[best].beside(arms["kd"])
    right, other = arm.bits(), reference.bits()
    if right is None or other is None or not len(right):
        raise Missing("Which images an assistant won needs predictions of single images; `takd run` again adds them.")
    gained = gain(right, other)
    order = np.argsort(-gained, kind="stable")
    rows = []
    for image in [*order[:MOST_WON], *order[::-1][:MOST_WON]]:
        if not gained[image]:
            continue
        rows.append(
            {
                "image": predictions["name"].iloc[image] or f"number {image}",
                "class": int(predictions["label"].iloc[image]),
                f"{best} is right": f"{100 * right[:, image].mean():.0f} %",
                "kd is right": f"{100 * other[:, image].mean():.0f} %",
                "teacher's pupils say": _said(predictions, chosen_students(trials), best, image),
            }
        )
    return pd.DataFrame(rows).rename(columns={"teacher's pupils say": f"{best} says most often"})


def _said(predictions: pd.DataFrame, chosen: pd.DataFrame, arm: str, image: int) -> int:
    keys = [key for key in chosen.loc[chosen["arm"] == arm, "stage_key"] if key in predictions]
    return int(predictions[keys].iloc[image].mode().iloc[0])
