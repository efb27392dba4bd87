"""The questions of a report on many cells or studies: each as a table with a row a cell."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from takd.analysis.arms import arms_table, comparisons, with_interval
from takd.analysis.cost import pareto_front
from takd.analysis.effects import factor_word, values_of_cell
from takd.analysis.evidence.certainty import choice_table, help_with
from takd.analysis.evidence.chosen import chosen_students
from takd.analysis.evidence.statistics import ALPHA
from takd.analysis.finding import main_pair, parameter_effect, percent_more
from takd.analysis.tables import Missing, assistants_of, is_another_method

SURE = "*"  # after a difference that holds after Holm's correction
LEGEND = (
    f"Differences are in points, with 95 % intervals; {SURE} stands after those that hold after Holm's correction for "
    "all comparisons of the study."
)
Row = dict[str, str]


def questions_over(
    studies: Mapping[str, pd.DataFrame], blocks: Mapping[str, pd.DataFrame]
) -> dict[str, str | pd.DataFrame]:
    """By question a table of text with a row for each block, or a sentence where none of them can answer it.

    `studies` has whole studies by name, whose comparisons Holm's correction is for, `blocks` what has a row.
    """
    found: dict[str, str | pd.DataFrame] = {}
    several = len(studies) > 1
    for question, (answer, lacking) in ANSWERS.items():
        rows = []
        for block in blocks.values():
            if len(chosen_students(block)):
                study = studies[str(block["study"].iloc[0])]
                rows.append(_place(block, several) | answer(study, block))
        told = len(rows[0]) > len(_place(next(iter(blocks.values())), several)) if rows else False
        found[question] = pd.DataFrame(rows).fillna("-") if told else lacking
    return found


def _place(block: pd.DataFrame, several: bool) -> Row:
    """Where a row is of: its study, where there are several, and the values of its cell."""
    place = {"study": str(block["study"].iloc[0])} if several else {}
    return place | {factor_word(name): value for name, value in values_of_cell(_cell(block)).items()}


def _cell(block: pd.DataFrame) -> str:
    return str(block["cell"].iloc[0] or "") if "cell" in block else ""


def _temperature(study: pd.DataFrame, block: pd.DataFrame) -> Row:
    return _parameter(block, "temperature", "T")


def _lambda(study: pd.DataFrame, block: pd.DataFrame) -> Row:
    return _parameter(block, "lambda", "lambda")


def _parameter(block: pd.DataFrame, name: str, symbol: str) -> Row:
    found = parameter_effect(block, name, symbol)
    if found is None:
        return {}
    row = {f"best {symbol}, validation %": _without(found.best, symbol), "worst": _without(found.worst, symbol)}
    if not np.isnan(found.explained):
        row["explains"] = f"{100 * found.explained:.0f} % (chance {100 * found.chance:.0f} %)"
    return row | {f"chosen by {arm}": value for arm, value in found.chosen.items()}


def _without(text: str, symbol: str) -> str:
    return text.removeprefix(f"{symbol} = ")


def _regulariser(study: pd.DataFrame, block: pd.DataFrame) -> Row:
    return _differences(study, block, [("kd", "labels"), ("label_smoothing", "kd"), ("label_smoothing", "labels")])


def _assistants(study: pd.DataFrame, block: pd.DataFrame) -> Row:
    compared = _compared(study, block)
    assisted = [arm for arm in dict.fromkeys(compared["arm"]) if assistants_of(arm)]
    return _differences(study, block, [(arm, reference) for reference in ("kd", "labels") for arm in assisted])


def _methods(study: pd.DataFrame, block: pd.DataFrame) -> Row:
    arms = [arm for arm in dict.fromkeys(_compared(study, block)["arm"]) if is_another_method(arm)]
    return _differences(study, block, [(arm, "kd") for arm in arms])


def _differences(study: pd.DataFrame, block: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> Row:
    compared = _compared(study, block).set_index(["arm", "reference"])
    found = {}
    for arm, reference in pairs:
        if (arm, reference) in compared.index:
            row = compared.loc[[(arm, reference)]].iloc[0]
            sure = SURE if row["p_holm"] < ALPHA else ""
            found[f"{arm} over {reference}"] = with_interval(row["difference"], row["low"], row["high"], "+") + sure
    return found


def _compared(study: pd.DataFrame, block: pd.DataFrame) -> pd.DataFrame:
    compared = comparisons(study)
    return compared[(compared["cell"] == _cell(block)) & (compared["units"] > 0)]


def _cost(study: pd.DataFrame, block: pd.DataFrame) -> Row:
    table = arms_table(block).dropna(subset=["path_seconds"])
    if not len(table):
        return {}
    seconds = table.set_index("arm")["path_seconds"]
    found = {}
    for arm, its in seconds.items():
        more = f" ({percent_more(its / seconds['kd'])})" if "kd" in seconds and assistants_of(str(arm)) else ""
        found[f"{arm}, s of training"] = f"{its:.1f}{more}"
    return found | {"Pareto front": ", ".join(pareto_front(table))}


def _certainty(study: pd.DataFrame, block: pd.DataFrame) -> Row:
    found: Row = {}
    if (pair := main_pair(arms_table(block))) and (known := help_with(block, *pair)):
        found = {"difference of": " - ".join(pair), "known to": f"±{known.now:.2f}"}
        found |= {f"with {name}": f"±{width:.2f}" for name, width in known.more.items()}
    return found | {f"chosen again, {arm}": share for arm, share in _chosen_again(block)}


def _chosen_again(block: pd.DataFrame) -> Iterator[tuple[str, str]]:
    try:
        table = choice_table(block)
    except Missing:
        return
    yield from zip(table["arm"], table["chosen again"], strict=True)


def verdicts_over(studies: Mapping[str, pd.DataFrame], blocks: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every comparison, a row a block."""
    rows = []
    for block in blocks.values():
        study = studies[str(block["study"].iloc[0])]
        pairs = list(_compared(study, block)[["arm", "reference"]].itertuples(index=False, name=None))
        rows.append(_place(block, len(studies) > 1) | _differences(study, block, pairs))
    return pd.DataFrame(rows).fillna("-")


# By question what says a row, and what is said where no block has any.
ANSWERS: Mapping[str, tuple[Any, str]] = {
    "What does temperature do?": (_temperature, "T was not varied."),
    "How does lambda balance labels and soft targets?": (_lambda, "Lambda was not varied."),
    "Is distillation a regulariser here?": (_regulariser, "It needs the arms kd and labels, or label_smoothing."),
    "What does a teacher assistant change?": (_assistants, "It needs an arm with an assistant beside kd or labels."),
    "What does another method change?": (_methods, "It needs an arm of another method beside kd."),
    "What does it cost?": (_cost, "No path has ended as a whole yet."),
    "How sure is it?": (
        _certainty,
        "What would make it surer can be said of a confirm phase with two paths or two seeds.",
    ),
}
