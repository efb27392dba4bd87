"""The finding in words, and five questions answered by a study's own numbers: see QUESTIONS."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from takd.analysis.arms import arms_table, as_good_as_best, cheapest_as_good, comparisons, with_interval
from takd.analysis.cost import pareto_front
from takd.analysis.importance import importance
from takd.analysis.statistics import ALPHA, mean_interval
from takd.analysis.tables import (
    Missing,
    assistants_of,
    chosen_configurations,
    chosen_students,
    confirmed,
    split_of,
    students,
)
from takd.analysis.teachers import not_judged, teacher_warnings

NOTHING_YET = "No student has ended yet, so there is no finding."


def finding(trials: pd.DataFrame) -> list[str]:
    """What taught the student best, whether an assistant was worth it, what it cost; then warnings about teachers."""
    if not len(chosen_students(trials)):
        return [NOTHING_YET]
    table = arms_table(trials)
    found = [_best(trials, table), _assistant(trials, table), _price(trials, table)]
    return [*found, *teacher_warnings(trials), *not_judged(trials)]


def _best(trials: pd.DataFrame, table: pd.DataFrame) -> str:
    best = table.sort_values("accuracy").iloc[-1]
    student = chosen_students(trials).iloc[0]
    kind = "test" if split_of(trials) == "test" else "validation (not test)"
    seeds = f"{best['seeds']} seeds" if best["seeds"] > 1 else "one seed"
    interval = "" if np.isnan(best["low"]) else f", 95 % CI {best['low']:.2f} to {best['high']:.2f}"
    return (
        f"The highest mean {kind} accuracy of {student['model']} on {student['examples']:,} images is that of "
        f"{best['arm']}: {best['accuracy']:.2f} % ({seeds}{interval})."
    )


def _assistant(trials: pd.DataFrame, table: pd.DataFrame) -> str:
    """The verdict on the best arm with assistants, else the one on kd."""
    compared = comparisons(trials)
    assisted = table[table["arm"].map(lambda arm: bool(assistants_of(arm)))]
    best = str(assisted.sort_values("accuracy")["arm"].iloc[-1]) if len(assisted) else ""
    arm, reference = (best, "kd") if best else ("kd", "labels")
    row = compared[(compared["arm"] == arm) & (compared["reference"] == reference)]
    if not len(row):
        return "There are no two arms to compare yet."
    said = f"Of the arms with an assistant, {arm} has the highest mean: " if len(assisted) > 1 else ""
    sentence = f"{said}{row['verdict'].iloc[0]}"
    return f"{sentence[0].upper() if not said and sentence[:2] == 'no' else sentence[0]}{sentence[1:]}."


def _price(trials: pd.DataFrame, table: pd.DataFrame) -> str:
    """What the cheapest good assistant costs beside plain distillation."""
    there = table.dropna(subset=["path_seconds"])
    assisted = there[there["arm"].map(lambda arm: bool(assistants_of(arm)))]
    kd = there[there["arm"] == "kd"]
    if not len(assisted) or not len(kd):
        front = " and ".join(pareto_front(there)) if len(there) else "no arm"
        return f"By the seconds of training of the whole path, {front} gave the most accuracy for the cost."
    row, plain = cheapest_as_good(trials, assisted), kd.iloc[0]
    return (
        f"Of the arms with an assistant that these seeds can't tell from the best of them, {row['arm']} is the "
        f"cheapest: a student's whole path takes {row['path_seconds']:.1f} s of training against "
        f"{plain['path_seconds']:.1f} s with kd ({_percent(row['path_seconds'] / plain['path_seconds'])}), or "
        f"{row['shared_seconds']:.2f} s against {plain['shared_seconds']:.2f} s when the students share what is "
        "trained once."
    )


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"


def choice(trials: pd.DataFrame) -> str:
    """Which student to ship, and why."""
    if not len(chosen_students(trials)):
        raise Missing(NOTHING_YET)
    table = arms_table(trials).dropna(subset=["path_seconds"])
    if not len(table):
        raise Missing("No path has ended as a whole yet.")
    good = as_good_as_best(trials, table["arm"].tolist())
    best, row = good[0], cheapest_as_good(trials, table)
    ship, others = str(row["arm"]), [arm for arm in good[1:] if arm != row["arm"]]
    why = "it has the highest mean, and no cheaper arm was found to be as good"
    if ship != best:
        why = f"it is the cheapest of those that the seeds can't tell from {best}, which has the highest mean"
    also = (
        f" The seeds can't tell these from the best either, but they cost more: {', '.join(others)}." if others else ""
    )
    return (
        f"**{ship}**, {with_interval(row['accuracy'], row['low'], row['high'])} % on the {split_of(trials)} split at "
        f"{row['path_seconds']:.1f} s: {why}.{also} All students of this study have the same size, so they run at "
        f"the same speed: the choice is about training alone. `takd export STUDY --arm '{ship}' --out DIR` writes it."
    )


# The questions


def answers(trials: pd.DataFrame) -> list[tuple[str, str]]:
    """Each question with what this study's numbers say, or what is missing to say it."""
    return [(question, answer(trials)) for question, answer in QUESTIONS.items()]


def _temperature(trials: pd.DataFrame) -> str:
    return _parameter(trials, "temperature", "T")


def _lambda(trials: pd.DataFrame) -> str:
    return _parameter(trials, "lambda", "lambda")


def _parameter(trials: pd.DataFrame, name: str, symbol: str) -> str:
    """The best and worst of a parameter in the search, and what it explains beside chance."""
    done = students(trials).dropna(subset=[name])
    if done[name].nunique() < 2:
        return f"This study can't answer it: {symbol} was not varied."
    cells = done[name] if done[name].nunique() <= 8 else pd.qcut(done[name], 4, duplicates="drop")
    means = done.groupby(cells, observed=True)["accuracy"].mean()
    said = [f"{symbol} = {_cell(place)}: {_mean(done[cells == place])}" for place in (means.idxmax(), means.idxmin())]
    text = (
        f"On the search's validation images the best is {said[0]} %, and the worst {said[1]} %, as means over all else "
        "that was varied."
    )
    row = importance(trials).set_index("parameter").reindex([name]).iloc[0]
    if not np.isnan(row["explained"]):
        sure = "more than chance" if row["explained"] > row["chance"] else "no more than chance"
        text += (
            f" {symbol} explains {100 * row['explained']:.0f} % of the variance between configurations, {sure} "
            f"(which explains up to {100 * row['chance']:.0f} %)."
        )
    best = chosen_configurations(trials)
    chosen = {
        arm: f"{done.loc[done['configuration'] == configuration, name].iloc[0]:.3g}"
        for arm, configuration in best.items()
        if (done["configuration"] == configuration).any()
    }
    listed = ", ".join(f"{value} ({arm})" for arm, value in sorted(chosen.items()))
    return f"{text} The chosen configuration of each arm has {symbol} = {listed}."


def _cell(place: Any) -> str:
    return f"{place.left:.3g} to {place.right:.3g}" if isinstance(place, pd.Interval) else f"{place:.3g}"


def _mean(rows: pd.DataFrame) -> str:
    """Over configurations, not students: those of one configuration share what was chosen."""
    estimate = mean_interval(rows.groupby("configuration")["accuracy"].mean())
    text = with_interval(float(estimate.mean), float(estimate.low), float(estimate.high))
    return text.replace("(one seed)", "(one configuration)")


def _regulariser(trials: pd.DataFrame) -> str:
    """Whether distillation is more than a regulariser: kd against label smoothing."""
    chosen = chosen_students(trials)
    arms = {arm: rows.set_index("path_seed")["accuracy"] for arm, rows in chosen.groupby("arm")}
    compared = comparisons(trials)
    over_labels = compared[(compared["arm"] == "kd") & (compared["reference"] == "labels")]
    text = f"Against the labels alone: {over_labels['verdict'].iloc[0]}." if len(over_labels) else ""
    if "label_smoothing" not in arms or "kd" not in arms:
        missing = "It can't be told from a regulariser here: this study has no arm label_smoothing beside kd."
        return f"{text} {missing}".strip()
    row = compared[(compared["arm"] == "label_smoothing") & (compared["reference"] == "kd")].iloc[0]
    more = row["p_holm"] < ALPHA and row["difference"] < 0
    conclusion = "So it is more than a regulariser here." if more else "So nothing here shows that it is more than one."
    return (
        f"{text} Against label smoothing, which regularises and teaches nothing: {row['verdict']}. {conclusion}".strip()
    )


def _assistants(trials: pd.DataFrame) -> str:
    compared = comparisons(trials)
    rows = compared[(compared["reference"] == "kd") & compared["arm"].map(lambda arm: bool(assistants_of(arm)))]
    if not len(rows):
        return "This study can't answer it: it has no arm with an assistant beside kd."
    text = _listed(rows["verdict"])
    final = confirmed(trials)
    if "test_agreement" in final and final["test_agreement"].notna().any():
        means = final.groupby("arm")["test_agreement"].mean().dropna()
        listed = ", ".join(f"{arm} {100 * value:.1f} %" for arm, value in means.items())
        text += f"\n\nA student and its teacher choose the same class on this share of the test images: {listed}."
    return text


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _cost(trials: pd.DataFrame) -> str:
    table = arms_table(trials).dropna(subset=["path_seconds"])
    kd = table[table["arm"] == "kd"]
    if not len(kd):
        return "This study can't answer it yet: no path of kd has ended."
    plain = kd.iloc[0]
    rows = table[table["arm"].map(lambda arm: bool(assistants_of(arm)))]
    listed = _listed(
        f"{row['arm']}: {row['path_seconds']:.1f} s ({_percent(row['path_seconds'] / plain['path_seconds'])}), "
        f"shared {row['shared_seconds']:.2f} s, {row['path_flops']:.3g} FLOPs "
        f"({_percent(row['path_flops'] / plain['path_flops'])})"
        for row in rows.to_dict("records")
    )
    text = (
        f"A path of kd takes {plain['path_seconds']:.1f} s of training, {plain['shared_seconds']:.2f} s a student "
        f"where the teacher is shared, {plain['path_flops']:.3g} FLOPs."
    )
    if listed:
        text += f" With an assistant:\n\n{listed}\n\n"
    return f"{text} On the Pareto front, from the cheapest: {', '.join(pareto_front(table))}."


QUESTIONS: Mapping[str, Callable[[pd.DataFrame], str]] = {
    "What does temperature do?": _temperature,
    "How does lambda balance labels and soft targets?": _lambda,
    "Is distillation a regulariser here?": _regulariser,
    "What does a teacher assistant change?": _assistants,
    "What does it cost?": _cost,
}
