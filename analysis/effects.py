"""What a factor does to the gain of an arm over kd: the teacher-student gap, as a number with an interval."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from takd.analysis.arms import with_interval
from takd.analysis.evidence.measured import Measured, Right, measured
from takd.analysis.evidence.statistics import ALPHA, Spread, difference, holm, spread_of_images, spread_of_paths
from takd.analysis.tables import Missing, assistants_of, by_cell, metric_of, remembered

GAIN, CHANGE = ["gain", "low", "high"], ["change", "change_low", "change_high"]
COLUMNS = ["factor", "arm", "level", *GAIN, "against", *CHANGE, "p_holm"]


@remembered
def factor_effects(trials: pd.DataFrame) -> pd.DataFrame:
    """By factor, arm and level the gain over kd, a mean over the other factors, and its change from the first level.

    A row a level, in points of what the study goes by, with 95 % intervals over the paths and test images that all
    cells have in common: a path's students of different cells share its draws, so levels are paired too. `change` is to
    the level `against`, which is the first; `p_holm` is corrected for all changes of the study. Raises Missing where no
    factor has two levels.
    """
    rows = list(_rows(trials))
    if not rows:
        raise Missing("No factor has two levels in which kd and an arm with an assistant were trained.")
    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    changes = table["p"].notna()
    table.loc[changes, "p_holm"] = holm(table.loc[changes, "p"].to_numpy(float))
    return table[COLUMNS]


def effects_table(trials: pd.DataFrame) -> pd.DataFrame:
    """`factor_effects` as people read it."""
    table, digits = factor_effects(trials), metric_of(trials).digits
    return pd.DataFrame(
        {
            "factor": table["factor"],
            "arm": table["arm"],
            "level": table["level"],
            "over kd": [with_interval(row[0], row[1], row[2], "+", digits) for row in table[GAIN].to_numpy()],
            "change": [with_interval(row[0], row[1], row[2], "+", digits) for row in table[CHANGE].to_numpy()],
            "p (Holm)": ["-" if np.isnan(p) else f"{p:.3f}" for p in table["p_holm"]],
        }
    )


def effects_in_words(trials: pd.DataFrame) -> Iterator[str]:
    """One sentence a factor and arm, on its last level beside its first; none where there is nothing to compare."""
    try:
        table = factor_effects(trials)
    except Missing:
        return
    changes, metric = int(table["p_holm"].notna().sum()), metric_of(trials)
    for (factor, arm), rows in table.groupby(["factor", "arm"], sort=False):
        last = rows.iloc[-1]
        if np.isnan(last["change"]):
            continue
        name = factor_word(str(factor))
        sure = "holds" if last["p_holm"] < ALPHA else "doesn't hold"
        mean, low, high = (float(last[each]) for each in CHANGE)
        yield (
            f"What {arm} adds to kd changes by {with_interval(mean, low, high, '+', metric.digits)} {metric.unit} from "
            f"{name} {last['against']} to {last['level']}, a mean over the other factors; this {sure} after Holm's "
            f"correction for {changes} such differences."
        )


def _rows(trials: pd.DataFrame) -> Iterator[dict[str, Any]]:
    cells = {tuple(values_of_cell(name).items()): measured(rows) for name, rows in by_cell(trials).items() if name}
    factors = list(dict.fromkeys(factor for cell in cells for factor, _ in cell))
    for factor in factors:
        levels = list(dict.fromkeys(dict(cell)[factor] for cell in cells))
        arms = dict.fromkeys(arm for there in cells.values() for arm in there if assistants_of(arm))
        for arm in arms if len(levels) > 1 else ():
            gains = _gains(cells, factor, levels, arm)
            if gains is None:
                continue
            first = gains[0]
            for level, gain in zip(levels, gains, strict=True):
                own = difference(_spread(gain))
                row = {"factor": factor, "arm": arm, "level": level, "gain": _points(own.mean)}
                row |= {"low": _points(own.low), "high": _points(own.high), "p": np.nan}
                if gain is not first:
                    to_first = difference(_spread(gain - first))
                    row |= {"against": levels[0], "change": _points(to_first.mean), "p": float(to_first.p)}
                    row |= {"change_low": _points(to_first.low), "change_high": _points(to_first.high)}
                yield row


def values_of_cell(cell: str) -> dict[str, str]:
    """By factor, of a cell's name: `teacher.model=mlp-200 student.model=mlp-4`."""
    return dict(part.split("=", 1) for part in cell.split(" ") if "=" in part)


def factor_word(factor: str) -> str:
    """`teacher` of `teacher.model`, `examples` of `student.recipe.examples`."""
    return factor.removesuffix(".model").split(".")[-1]


def _gains(
    cells: Mapping[tuple[tuple[str, str], ...], Mapping[str, Measured]], factor: str, levels: Sequence[str], arm: str
) -> list[Right] | None:
    """By level, `[paths, images]` or `[paths]`: means over those combinations of the others that every level has."""
    pairs = {}
    for cell, arms in cells.items():
        if arm in arms and "kd" in arms:
            others = tuple(pair for pair in cell if pair[0] != factor)
            pairs[dict(cell)[factor], others] = arms[arm].beside(arms["kd"])
    everywhere = [others for _, others in pairs if all((level, others) in pairs for level in levels)]
    used = {place: pair for place, pair in pairs.items() if place[1] in everywhere}
    if not used:
        return None
    units = [set(one.rows.index.get_level_values(0)) for one, _ in used.values()]
    common = set.intersection(*units)
    if len(common) < 2:
        return None
    gains = {place: _gain(one, kd, common) for place, (one, kd) in used.items()}
    if len({gain.shape for gain in gains.values()}) > 1:  # some cells don't know which images were right
        gains = {place: gain.mean(axis=1) if gain.ndim == 2 else gain for place, gain in gains.items()}
    return [np.mean([gain for (of, _), gain in gains.items() if of == level], axis=0) for level in levels]


def _gain(arm: Measured, kd: Measured, units: set[int]) -> Right:
    arm, kd = (Measured(each.arm, each.rows[each.rows.index.isin(units, level=0)]) for each in (arm, kd))
    right, other = arm.judged(), kd.judged()
    if right is not None and other is not None:
        return np.asarray(right - other)
    return np.asarray((arm.by_unit() - kd.by_unit()).to_numpy() / 100)


def _spread(values: Right) -> Spread:
    return spread_of_images(values) if values.ndim == 2 else spread_of_paths(values)


def _points(fraction: Any) -> float:
    return 100 * float(fraction)
