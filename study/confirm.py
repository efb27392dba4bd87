"""The end of a confirm phase: which stages are measured on the test split, and where that is kept."""

import json

from takd.search_spaces import Path, Stage
from takd.study.folder import StudyFolder
from takd.study.predictions import add_predictions, predicted_stages
from takd.study.results import TEST, read_test
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
