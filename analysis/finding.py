"""The finding in words, and the questions answered by a study's own numbers: see QUESTIONS."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from takd.analysis.arms import arms_table, comparisons, mean_text, to_ship, value_cell
from takd.analysis.cost import pareto_front
from takd.analysis.effects import effects_in_words, factor_word, values_of_cell
from takd.analysis.evidence.certainty import choice_table, what_would_help
from takd.analysis.evidence.chosen import chosen_configurations, chosen_students
from takd.analysis.evidence.ends import at_ends
from takd.analysis.evidence.sizes import best_sizes
from takd.analysis.evidence.statistics import ALPHA
from takd.analysis.importance import importance
from takd.analysis.tables import (
    Missing,
    assistants_of,
    by_cell,
    by_lambda,
    confirmed,
    images_text,
    is_another_method,
    metric_of,
    remembering,
    sized_arms,
    smallest_effect,
    split_of,
    students,
)
from takd.analysis.teachers import WARNING, not_judged, teacher_warnings
from takd.search_spaces.metrics import ACCURACY, Metric

NOTHING_YET = "No student has ended yet, so there is no finding."


@remembering()
def finding(trials: pd.DataFrame) -> list[str]:
    """What taught the student best, whether an assistant was worth it, what it cost; then what is to be known of it.

    Of a study with factors: in how many of its cells what holds. Warnings come last.
    """
    if not len(chosen_students(trials)):
        return [NOTHING_YET]
    table, compared = arms_table(trials), comparisons(trials)
    if table["cell"].nunique() > 1:
        found = [*_by_cell(compared, table), *effects_in_words(trials)]
    else:
        found = [*_best_by_metric(table), _best(trials, table), _assistant(table, compared), _price(trials, table)]
    found += at_ends(trials)
    return [*found, *_failed(trials), *_changed(trials), *teacher_warnings(trials), *not_judged(trials)]


def _best(trials: pd.DataFrame, table: pd.DataFrame) -> str:
    best = table.sort_values("accuracy").iloc[-1]
    chosen = chosen_students(trials)
    kind = "test" if split_of(trials) == "test" else "validation (not test)"
    interval = "" if np.isnan(best["low"]) else f"95 % CI {best['low']:.2f} to {best['high']:.2f}, "
    return (
        f"The highest mean {kind} accuracy of {chosen['model'].iloc[0]} on {images_text(chosen)} is that of "
        f"{best['arm']}: {best['accuracy']:.2f} % ({interval}{of_what(best, trials)})."
    )


def _best_by_metric(table: pd.DataFrame) -> Iterator[str]:
    """Who is best by what the search went by, where that is not the accuracy."""
    metric = metric_of(table)
    if metric == ACCURACY or not table["score"].notna().any():
        return
    best, unit = table.sort_values("score").dropna(subset=["score"]).iloc[-1], " %" if metric.fraction else ""
    kind = "test" if best["split"] == "test" else "validation (not test)"
    yield (
        f"The search went by the {metric.title}: {'highest' if metric.higher else 'lowest'} is the mean "
        f"{kind} {metric.title} of {best['arm']}, {_with_unit(value_cell(best.to_dict(), metric), unit)}."
    )


def _with_unit(cell: str, unit: str) -> str:
    """`91.30 % (95 % CI 90.10 to 92.40)`"""
    return cell.replace(" (", f"{unit} (", 1) if "no interval" in cell else cell.replace(" (", f"{unit} (95 % CI ", 1)


def of_what(row: "pd.Series[Any]", trials: pd.DataFrame) -> str:
    """What an arm's mean is over: `over 10 paths of 2 students and 10,000 test images`"""
    units, seeds = int(row["units"]), int(row["seeds"])
    what = f"{units} {row['unit']}{'s' * (units > 1)}"
    if seeds > units:
        what += f" of {seeds / units:g} students"
    images = "images" in row["covers"] and not np.isnan(row["low"])
    return f"over {what}" + (f" and {int(trials['test_images'].dropna().iloc[0]):,} test images" if images else "")


def _assistant(table: pd.DataFrame, compared: pd.DataFrame) -> str:
    """The verdict on the best arm with assistants, else on the best of another method, else the one on kd."""
    assisted = table[table["arm"].map(lambda arm: bool(assistants_of(arm)))]
    pair = main_pair(table)
    if pair is None:
        return "There are no two arms to compare yet."
    arm, reference = pair
    row = compared[(compared["arm"] == arm) & (compared["reference"] == reference)]
    others = table[table["arm"].map(is_another_method)]
    best = f"best mean {metric_of(table).title}" if metric_of(table) != ACCURACY else "highest mean"
    said = f"Of the arms with an assistant, {arm} has the {best}. " if len(assisted) > 1 else ""
    if not len(assisted) and len(others) > 1:
        said = f"Of the methods beside kd, {arm} has the {best}. "
    return f"{said}{row['verdict'].iloc[0]}."


def _price(trials: pd.DataFrame, table: pd.DataFrame) -> str:
    """What the best assistant, or a cheaper one that is as good, costs beside plain distillation."""
    there = table.dropna(subset=["path_seconds"])
    assisted = there[there["arm"].map(lambda arm: bool(assistants_of(arm)))]
    kd = there[there["arm"] == "kd"]
    if not len(assisted) or not len(kd):
        front = " and ".join(pareto_front(there)) if len(there) else "no arm"
        what = metric_of(table).title
        return f"By the seconds of training of the whole path, {front} gave the best {what} for the cost."
    stand, row = to_ship(trials, assisted)
    plain = kd.iloc[0]
    who = f"{row['arm']}, which has the highest mean of the arms with an assistant"
    if row["arm"] != stand.best:
        who = (
            f"{row['arm']}, the cheapest arm with an assistant that is as good as the best of them within the "
            f"{smallest_effect(trials):g} points that matter"
        )
    more = percent_more(row["path_seconds"] / plain["path_seconds"])
    return (
        f"A student's whole path takes {row['path_seconds']:.1f} s of training with {who}, and "
        f"{plain['path_seconds']:.1f} s with kd ({more}); it takes "
        f"{row['shared_seconds']:.2f} s and {plain['shared_seconds']:.2f} s when the students share what is trained "
        "once."
    )


def percent_more(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"


def _by_cell(compared: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    """In which cells each arm is better or worse than kd, and kd than labels."""
    number, metric = table["cell"].nunique(), metric_of(table)
    yield (
        f"The arms were searched, chosen and confirmed in each of {number} cells of the factors. Holm's correction is "
        f"for all {len(compared)} comparisons of all cells together."
    )
    against = compared[(compared["reference"] == "kd") & (compared["arm"] != "labels")]
    pairs = [*dict.fromkeys(zip(against["arm"], against["reference"], strict=True)), ("kd", "labels")]
    for arm, reference in pairs:
        rows = compared[(compared["arm"] == arm) & (compared["reference"] == reference)]
        if not len(rows):
            continue
        sure = rows[rows["p_holm"] < ALPHA]
        parts = []
        for word, part in (("better", sure[sure["difference"] > 0]), ("worse", sure[sure["difference"] < 0])):
            ordered = part.sort_values("difference", key=abs, ascending=False)
            most = (
                f" (most by {abs(ordered['difference'].iloc[0]):.{metric.digits}f} {metric.unit}, at "
                f"{_in_words(ordered['cell'].iloc[0])})"
                if len(part)
                else ""
            )
            parts.append(f"{word} than {reference} in {len(part)} of {len(rows)} cells{most}")
        yield f"{arm} is {' and '.join(parts)}; in {len(rows) - len(sure)} they can't be told apart."


def _in_words(cell: str) -> str:
    """`teacher mlp-1200, student mlp-32, examples 500`."""
    return ", ".join(f"{factor_word(factor)} {value}" for factor, value in values_of_cell(cell).items())


def _failed(trials: pd.DataFrame) -> Iterator[str]:
    """Arms that have no finished student, and why."""
    rows = trials[(trials["role"] == "student") & (trials["status"] == "failed")]
    there = set(trials.loc[(trials["role"] == "student") & (trials["status"] == "done"), "arm"])
    for arm in [arm for arm in rows["arm"].unique() if arm not in there]:
        uses = trials[(trials["arm"] == arm) & (trials["status"] == "failed")]
        reasons = uses["error"].dropna().tolist() if "error" in uses else []
        yield f"{arm} is left out: none of its students ended" + (f" ({reasons[0]})." if reasons else ".")


def _changed(trials: pd.DataFrame) -> Iterator[str]:
    """What was said after the test split could be known: the difference which matters, values of factors."""
    before = trials["smallest_effect_before"].dropna().tolist() if "smallest_effect_before" in trials else []
    if before:
        now, then = (f"{each:g}" if each else "null" for each in (smallest_effect(trials), before[0]))
        yield (
            f"{WARNING}smallest_effect is {now} now and was {then} when the confirm phase began: what is called as "
            "good was decided with the numbers known."
        )
    if "late_cell" not in trials:
        return
    if number := trials.loc[trials["late_cell"].fillna(False).astype(bool), "cell"].nunique():
        yield (
            f"{WARNING}{number} of {trials['cell'].nunique()} cells were added when the confirm phase of the others "
            "had begun: that they are compared was decided with numbers known."
        )


@remembering()
def choice(trials: pd.DataFrame) -> str:
    """Which student to ship, and why."""
    if not len(chosen_students(trials)):
        raise Missing(NOTHING_YET)
    every = arms_table(trials).dropna(subset=["path_seconds"])
    if not len(every):
        raise Missing("No path has ended as a whole yet.")
    parts = by_cell(trials)
    return "\n\n".join(
        (f"At {cell}: " if cell else "") + _choice(parts[cell], every[every["cell"] == cell])
        for cell in every["cell"].unique()
    )


def _choice(trials: pd.DataFrame, table: pd.DataFrame) -> str:
    stand, row = to_ship(trials, table)
    ship, matters, metric = str(row["arm"]), smallest_effect(trials), metric_of(trials)
    of = "" if metric == ACCURACY else f" of {metric.title}"
    why = "it has the highest mean" if metric.higher else "it has the lowest mean"
    if ship != stand.best:
        why = (
            f"it is the cheapest of those that are as good as {stand.best}, the best, within the {matters:g} points "
            "that matter"
        )
    close = [arm for arm in stand.close if arm != ship]
    also = f" These can't be told from the best: {', '.join(close)}." if close else ""
    if close and matters is None:
        also += " Whether one of them is as good can be said where the space names a `smallest_effect`."
    return (
        f"**{ship}**, {value_cell(row.to_dict(), metric)}{' %' if metric.fraction else ''}{of} on the "
        f"{split_of(trials)} split at {row['path_seconds']:.1f} s of training: {why}.{also} "
        f"`takd export STUDY --arm '{ship}' --out DIR` writes it."
    )


# The questions


@remembering()
def answers(trials: pd.DataFrame) -> list[tuple[str, str]]:
    """Each question with what this study's numbers say, or what is missing to say it."""
    return [(question, answer(trials)) for question, answer in QUESTIONS.items()]


def _temperature(trials: pd.DataFrame) -> str:
    return _parameter(trials, "temperature", "T")


def _lambda(trials: pd.DataFrame) -> str:
    return _parameter(trials, "lambda", "lambda")


class Effect(NamedTuple):
    """What a parameter did in the search."""

    best: str  # its best value, or range of values, and what that reached in percent: `T = 4: 92.10 % (91.80 to 92.40)`
    worst: str
    explained: float  # of the variance between configurations, a fraction; NaN where there are too few
    chance: float  # what chance explains up to
    chosen: Mapping[str, str]  # by arm the value of what was chosen


def parameter_effect(trials: pd.DataFrame, name: str, symbol: str) -> Effect | None:
    """By means over all else that was varied, of the search's validation images; None where it was not varied."""
    done = by_lambda(students(trials)).dropna(subset=[name])
    if done[name].nunique() < 2:
        return None
    cells = done[name] if done[name].nunique() <= 8 else pd.qcut(done[name], 4, duplicates="drop")
    means, metric = done.groupby(cells, observed=True)["score"].mean(), metric_of(trials)
    unit, of = " %" if metric.fraction else "", "" if metric == ACCURACY else f" of {metric.title}"
    best, worst = (
        f"{symbol} = {_cell(place)}: {_mean(done[cells == place], metric).replace(' (', f'{unit} (', 1)}{of}"
        for place in (means.idxmax(), means.idxmin())
    )
    row = importance(trials).set_index("parameter").reindex([name]).iloc[0]
    chosen = {
        arm: f"{done.loc[done['configuration'] == configuration, name].iloc[0]:.3g}"
        for arm, configuration in chosen_configurations(trials).items()
        if (done["configuration"] == configuration).any()
    }
    return Effect(best, worst, float(row["explained"]), float(row["chance"]), chosen)


def _parameter(trials: pd.DataFrame, name: str, symbol: str) -> str:
    """The best and worst of a parameter in the search, and what it explains beside chance."""
    found = parameter_effect(trials, name, symbol)
    if found is None:
        return f"This study can't answer it: {symbol} was not varied."
    text = (
        f"On the search's validation images the best is {found.best}, and the worst {found.worst}, as means over "
        "all else that was varied."
    )
    if not np.isnan(found.explained):
        sure = "more than chance" if found.explained > found.chance else "no more than chance"
        text += (
            f" {symbol} explains {100 * found.explained:.0f} % of the variance between configurations, {sure} "
            f"(which explains up to {100 * found.chance:.0f} %)."
        )
    listed = ", ".join(f"{value} ({arm})" for arm, value in sorted(found.chosen.items()))
    return f"{text} The chosen configuration of each arm has {symbol} = {listed}."


def _cell(place: Any) -> str:
    return f"{place.left:.3g} to {place.right:.3g}" if isinstance(place, pd.Interval) else f"{place:.3g}"


def _mean(rows: pd.DataFrame, metric: Metric) -> str:
    """Over configurations, not students: those of one configuration share what was chosen."""
    return mean_text(rows.groupby("configuration")["value"].mean(), metric)


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
    rows = compared[(compared["arm"] == "label_smoothing") & (compared["reference"] == "kd")]
    if len(rows) > 1:
        return _listed([*over_labels["verdict"], *rows["verdict"]])
    row = rows.iloc[0]
    more = row["p_holm"] < ALPHA and row["difference"] < 0
    conclusion = "So it is more than a regulariser here." if more else "So nothing here shows that it is more than one."
    return (
        f"{text} Against label smoothing, which regularises and teaches nothing: {row['verdict']}. {conclusion}".strip()
    )


def _assistants(trials: pd.DataFrame) -> str:
    compared = comparisons(trials)
    rows = compared[(compared["reference"] == "kd") & compared["arm"].map(lambda arm: bool(assistants_of(arm)))]
    if not len(rows):
        lacking = "This study can't answer it: it has no arm with an assistant beside kd."
        return "\n\n".join([lacking, *_sizes(trials)])
    text = "\n\n".join([_listed(rows["verdict"]), *_sizes(trials)])
    final = confirmed(trials)
    if "test_agreement" in final and final["test_agreement"].notna().any():
        means = final.groupby("arm")["test_agreement"].mean().dropna()
        listed = ", ".join(f"{arm} {100 * value:.1f} %" for arm, value in means.items())
        text += f"\n\nA student and its teacher choose the same class on this share of the test images: {listed}."
    return text


def _methods(trials: pd.DataFrame) -> str:
    """The verdict on each arm of another method against kd."""
    compared = comparisons(trials)
    rows = compared[(compared["reference"] == "kd") & compared["arm"].map(is_another_method)]
    if not len(rows):
        return "This study can't answer it: it has no arm of another method beside kd."
    return _listed(rows["verdict"])


def sizes(trials: pd.DataFrame) -> str:
    """The best range of sizes of the assistants whose size was searched; nothing where there are none, as the figure
    that is above it says."""
    return "\n\n".join(_sizes(trials))


def _sizes(trials: pd.DataFrame) -> Iterator[str]:
    """The best range of sizes of each arm whose assistant's size was searched, by cell."""
    for cell, part in by_cell(trials).items():
        for arm in sized_arms(part):
            try:
                said = best_sizes(part, arm)
            except Missing as missing:
                said = str(missing)
            yield (f"At {cell}: " if cell else "") + said


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _cost(trials: pd.DataFrame) -> str:
    parts = by_cell(trials)
    if len(parts) == 1:
        return _cost_of_one(trials)
    fronts = {cell: arms_table(part).dropna(subset=["path_seconds"]) for cell, part in parts.items()}
    listed = [f"at {cell}: {', '.join(pareto_front(table))}" for cell, table in fronts.items() if len(table)]
    what = metric_of(trials).title
    return f"On the Pareto front of {what} against training seconds are, from the cheapest:\n\n{_listed(listed)}"


def _cost_of_one(trials: pd.DataFrame) -> str:
    table = arms_table(trials).dropna(subset=["path_seconds"])
    kd = table[table["arm"] == "kd"]
    if not len(kd):
        return "This study can't answer it yet: no path of kd has ended."
    plain = kd.iloc[0]
    rows = table[table["arm"].map(lambda arm: bool(assistants_of(arm)))]
    listed = _listed(
        f"{row['arm']}: {row['path_seconds']:.1f} s ({percent_more(row['path_seconds'] / plain['path_seconds'])}), "
        f"shared {row['shared_seconds']:.2f} s, {row['path_flops']:.3g} FLOPs "
        f"({percent_more(row['path_flops'] / plain['path_flops'])})"
        for row in rows.to_dict("records")
    )
    text = (
        f"A path of kd takes {plain['path_seconds']:.1f} s of training, {plain['shared_seconds']:.2f} s a student "
        f"where the teacher is shared, {plain['path_flops']:.3g} FLOPs."
    )
    if listed:
        text += f" With an assistant:\n\n{listed}\n\n"
    return f"{text} On the Pareto front, from the cheapest: {', '.join(pareto_front(table))}."


def _certainty(trials: pd.DataFrame) -> str:
    """What would make the main difference surer, and how firm the choices of settings are."""
    said = []
    for cell, part in by_cell(trials).items():
        if len(chosen_students(part)) and (pair := main_pair(arms_table(part))):
            said.append((f"At {cell}: " if cell else "") + what_would_help(part, *pair))
    try:
        table = choice_table(trials)
    except Missing:
        table = None
    text = "\n\n".join(each for each in said if each) or (
        "What would make it surer can be said of a confirm phase with two paths or two seeds."
    )
    if table is not None and "cell" not in table:
        firm = ", ".join(f"{row['arm']} {row['chosen again']}" for row in table.to_dict("records"))
        text += f"\n\nDrawn anew from the search's seeds, the same configuration would have been chosen in: {firm}."
    return text


def main_pair(table: pd.DataFrame) -> tuple[str, str] | None:
    """The arm with the highest mean of those with an assistant, or else of another method, against kd; else kd against
    labels."""
    there = set(table["arm"])
    assisted = table[table["arm"].map(lambda arm: bool(assistants_of(arm)))]
    others = assisted if len(assisted) else table[table["arm"].map(is_another_method)]
    if len(others) and "kd" in there:
        return str(others.sort_values("score")["arm"].iloc[-1]), "kd"
    return ("kd", "labels") if {"kd", "labels"} <= there else None


QUESTIONS: Mapping[str, Callable[[pd.DataFrame], str]] = {
    "What does temperature do?": _temperature,
    "How does lambda balance labels and soft targets?": _lambda,
    "Is distillation a regulariser here?": _regulariser,
    "What does a teacher assistant change?": _assistants,
    "What does another method change?": _methods,
    "What does it cost?": _cost,
    "How sure is it?": _certainty,
}
