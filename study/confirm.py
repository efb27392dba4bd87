"""The confirm phase: what of it is left to train, what is measured on the test split, and where that is kept."""

import json
from collections.abc import Collection, Iterable

import pandas as pd

from takd.analysis.evidence.chosen import best_configurations, choose
from takd.analysis.tables import by_cell
from takd.search_spaces import Path, Stage
from takd.study.folder import StudyFolder
from takd.study.predictions import add_predictions, predicted_stages
from takd.study.results import TEST, read_test
from takd.study.search.graph import Proposal
from takd.study.search.optimization import Search
from takd.trainables.measured import Measured
from takd.trainables.store.artifacts import needed_files


def unmeasured(folder: StudyFolder, search: Search) -> list[Stage]:
    """The confirmed students that are finished, and those who taught them, as far as not yet measured on test.

    Those with the same one at the head of their paths are beside each other.
    """
    predicted, store = predicted_stages(folder), folder.artifacts
    # Of those with an accuracy an older version may have kept no predictions; of others nothing can be known.
    known = {key: each for key, each in read_test(folder).items() if key in predicted or "test_accuracy" not in each}
    paths = [path for proposal in search.confirming() for path in proposal.paths]
    students = {path.student.key: path.student for path in paths}
    new = [each for key, each in students.items() if key not in known and store.has(key, needed_files(each))]
    ended = {*known, *(each.key for each in new)}
    taught_by = {each.key: each for path in paths if path.student.key in ended for each in path.stages[:-1]}
    new += [each for key, each in taught_by.items() if key not in known and store.has(key, needed_files(each))]
    return sorted(new, key=_head)


def _head(stage: Stage) -> str:
    """The key of the first stage of its path: who measures it needs to know what that one says."""
    return Path(arm="", student=stage).stages[0].key


def keep(folder: StudyFolder, measured: Measured) -> None:
    """Adds numbers and chosen classes to those in the study's folder."""
    add_predictions(folder, measured.labels, measured.names, measured.classes)
    folder.write(TEST, json.dumps(read_test(folder) | dict(measured.metrics), indent=1).encode())


def left_to_confirm(folder: StudyFolder, search: Search, trials: pd.DataFrame) -> bool:
    """Whether students that would confirm a finished search are missing; reads only."""
    return any_missing(folder, search, what_confirms(folder, search, trials))


def any_missing(folder: StudyFolder, search: Search, confirming: Iterable[Proposal]) -> bool:
    students = [path.student for proposal in confirming for path in proposal.paths]
    lasting = search.lasting
    return any(folder.artifacts.describe(each.key) is None for each in students if each.key not in lasting)


def what_confirms(folder: StudyFolder, search: Search, trials: pd.DataFrame) -> list[Proposal]:
    """What confirms, or would confirm, a finished search by its table of trials; reads only."""
    if search.space.confirm is None:
        return []
    return search.confirming(None if choice_stands(folder, search) else best_configurations_of(trials))


def choice_stands(folder: StudyFolder, search: Search) -> bool:
    """Whether what was chosen is confirmed, or goes on being so: a finished study stays finished.

    What a version chose that didn't record from what is kept while there is a student that confirms it.
    """
    if search.choice_stands or not search.choice_is_old:
        return search.choice_stands
    students = [path.student for proposal in search.confirming() for path in proposal.paths]
    return any(folder.artifacts.describe(student.key) is not None for student in students)


def best_configurations_of(trials: pd.DataFrame) -> list[str]:
    """The best configuration of each arm in each cell."""
    return [name for rows in by_cell(trials).values() for name in best_configurations(rows).values()]


def best_so_far(search: Search, ended: Collection[tuple[str, str]]) -> list[str]:
    """Of arms, each with the name of its cell, whose search is complete: their best configurations.

    By what Optuna has, so that nobody waits for tables. What a study is told to confirm is chosen by its tables when
    the search of all arms is complete.
    """
    sign = 1 if search.space.goes_by.higher else -1
    return [
        choose({name: [sign * value for value in values] for name, values in by_name.items()})
        for place, by_name in search.students_by_configuration().items()
        if place in ended
    ]


def has_ended(folder: StudyFolder, search: Search) -> bool:
    """Whether nothing is left to try, to train or to confirm, and all that was trained is there; reads only."""
    if search.is_open or search.incomplete(folder.artifacts.keys()):
        return False
    return search.space.confirm is None or (
        search.choice_stands and not any_missing(folder, search, search.confirming())
    )
