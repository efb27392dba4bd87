"""The gap figure: accuracy over the size of teacher, student and transfer set, of studies and of a study's cells."""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_analysis import made_up, with_searched_teacher

from takd.analysis import gap
from takd.analysis.arms import accuracies_by_block, arms_table, gains_by_block
from takd.analysis.files import Results
from takd.analysis.tables import Missing, blocks_of, remembered, remembering
from takd.search_spaces import InputError

FIGURES = [gap.accuracy_by_student, gap.accuracy_by_teacher, gap.accuracy_by_examples, gap.accuracy_by_study]
TEACHERS, STUDENTS, SIZES = ("mlp-200", "mlp-1200"), ("mlp-8", "mlp-4", "mlp-16"), {"mlp-4": 3_210, "mlp-16": 13_002}


@cache
def with_factors() -> pd.DataFrame:
    """One study of six cells: a point is lost a student smaller, and kd's students gain two by the larger teacher."""
    parts = []
    for teacher in TEACHERS:
        for place, student in enumerate(STUDENTS):
            part = made_up(teacher=teacher)
            pupil = part["role"] == "student"
            part.loc[pupil, "model"] = student
            part.loc[pupil, "parameters"] = SIZES.get(student, 6_442)
            part.loc[pupil, "val_accuracy"] -= (0, 0.01, -0.01)[place]
            part.loc[pupil & (part["arm"] == "kd") & (teacher == "mlp-1200"), "val_accuracy"] += 0.02
            part["stage_key"] = f"{teacher} {student} " + part["stage_key"]
            parts.append(part.assign(cell=f"teacher.model={teacher} student.model={student}"))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module", autouse=True)
def tables_are_made_once() -> Iterator[None]:
    with remembering():
        yield


def lines(figure: Figure, panel: int, arm: str) -> list[float]:
    """The means of an arm in a panel, from left to right."""
    axes = figure.axes[panel]
    [drawn] = [each for each in axes.containers if each.get_label() == arm]
    return [float(value) for value in drawn[0].get_ydata()]


def test_a_study_with_factors_has_one_as_axis_and_the_other_as_panels():
    trials = with_factors()
    figure = gap.accuracy_by_student(trials)
    assert [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes] == [
        "teacher mlp-200", "teacher mlp-1200",
    ]  # fmt: skip
    for panel, teacher in enumerate(TEACHERS):
        cells = [f"teacher.model={teacher} student.model={student}" for student in ("mlp-4", "mlp-8", "mlp-16")]
        means = [arms_table(trials[trials["cell"] == cell]).set_index("arm").loc["kd", "accuracy"] for cell in cells]
        assert lines(figure, panel, "kd") == pytest.approx(means)
        assert means == sorted(means)
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["mlp-4", "mlp-8", "mlp-16"]
    assert gap.main_factor(trials) == "student.model"
    assert len(gap.accuracy_by_teacher(trials).axes) == 3


def test_what_an_assistant_adds_is_drawn_over_the_factor_with_most_values():
    trials = with_factors()
    figure = gap.gain_by_factor(trials)
    assert {container.get_label() for container in figure.axes[0].containers} == {"takd:mlp-64", "takd:mlp-16"}
    kd_gained = np.subtract(lines(figure, 0, "takd:mlp-16"), lines(figure, 1, "takd:mlp-16"))
    assert kd_gained == pytest.approx([2, 2, 2])
    assert "over kd" in figure.get_supylabel()


def test_studies_with_several_teachers_make_the_papers_gap_figure():
    several = pd.concat([made_up(), made_up(teacher="mlp-64", study="other")], ignore_index=True)
    figure = gap.accuracy_by_teacher(several)
    assert figure.get_supxlabel() == "teacher, smaller to larger"
    assert len(lines(figure, 0, "kd")) == 2
    with pytest.raises(Missing, match=r"one student\. `takd report A B` puts studies into one figure"):
        gap.accuracy_by_student(several)
    with pytest.raises(Missing, match="tell these studies apart"):
        gap.accuracy_by_study(several)


def test_studies_that_sizes_do_not_tell_apart_stand_side_by_side():
    several = pd.concat([made_up(), made_up(study="again")], ignore_index=True)
    assert gap.main_factor(several) == "study"
    figure = gap.accuracy_by_study(several)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["made-up", "again"]
    assert gap.main_factor(made_up()) is None


def test_a_study_that_searched_its_teacher_is_a_gap_figure_by_itself():
    figure = gap.accuracy_by_teacher(with_searched_teacher())
    assert "validation" in figure.get_supylabel()
    gained = {arm: round(float(np.diff(lines(figure, 0, arm))[0]), 2) for arm in arms_table(made_up())["arm"]}
    assert sorted(gained.values()).count(1.0) == 3, gained  # labels and label_smoothing have no teacher


@pytest.mark.parametrize("make", [*FIGURES, gap.gain_by_factor])
def test_of_nothing_there_is_no_figure(make: Callable[[pd.DataFrame], Figure]):
    with pytest.raises(Missing, match=r"\.$"):
        make(made_up().assign(status="unfinished"))


def test_every_study_and_every_cell_has_a_column_of_its_own():
    both = pd.concat([with_factors(), made_up(study="other").assign(cell="")], ignore_index=True)
    assert len(blocks_of(both)) == 7
    assert list(accuracies_by_block(both).columns)[-1] == "other (validation)"
    assert "made-up teacher.model=mlp-200 student.model=mlp-4 (validation)" in gains_by_block(both).columns


def test_a_notebook_of_one_cell_is_told_which():
    trials = with_factors()
    results = Results("runs", ("made-up",), trials, trials)
    with pytest.raises(InputError, match=r"study made-up: has 6 cells; name one in TAKD_CELL: 'teacher.model=mlp-200 "):
        results.trials  # noqa: B018
    cell = "teacher.model=mlp-200 student.model=mlp-4"
    assert set(Results("runs", ("made-up",), trials, trials, cell).trials["cell"]) == {cell}
    with pytest.raises(InputError, match="has no cell 'x', but 6 cells"):
        Results("runs", ("made-up",), trials, trials, "x").trials  # noqa: B018


def test_what_a_report_remembers_is_forgotten_when_it_ends_and_nobody_changes_it():
    trials, made = made_up(), []

    @remembered
    def count(rows: pd.DataFrame, column: str = "arm") -> pd.DataFrame:
        made.append(column)
        return rows[[column]].drop_duplicates()

    with remembering():
        changed = count(trials)
        changed["arm"] = "changed"
        assert "changed" not in set(count(trials, column="arm")["arm"])
        assert made == ["arm"]
        count(trials, "role")
        count(trials.copy())
    assert made == ["arm", "role", "arm"]
