"""Students that were ended early: what they had done, and what that says to those that come after them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from takd.study.search.optimization import Search
from takd.trainables.looks import Looks, looks
from takd.trainables.store.artifacts import ArtifactStore

Epochs = Sequence[Mapping[str, Any]]


class Pruned:
    """A file for each in the study's folder, written when it is ended: there is no artifact of it."""

    def __init__(self, store: ArtifactStore, study: str) -> None:
        self.storage, self.folder = store.storage, f"{study}/pruned"

    def note(self, key: str, epochs: Epochs) -> None:
        self.storage.replace(f"{self.folder}/{key}.json", json.dumps({"epochs": epochs}).encode())

    def names(self) -> list[str]:
        """Of its files."""
        return self.storage.names(self.folder)

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """The epochs of each, by stage key; of a file that is damaged none: that student is trained again."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name in self.names():
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                content = json.loads(self.storage.read(f"{self.folder}/{name}"))
                found[name.removesuffix(".json")] = list(content["epochs"])
        return found


def looks_before(search: Search, store: ArtifactStore, pruned: Mapping[str, Epochs], every: int) -> dict[str, Looks]:
    """What students of the study that have ended had reached, by key: those that it trained itself.

    Those that were in training say it themselves, when they go on from their checkpoints.
    """
    metric = search.space.goes_by
    found: dict[str, Looks] = {key: looks(epochs, every, metric) for key, epochs in pruned.items()}
    for trial in search.proposed():
        for key in (path.student.key for path in search.paths_of(trial)):
            outcome = (store.describe(key) or {}).get("outcome", {}) if key not in found else {}
            if outcome.get("origin", {}).get("study") == search.study.study_name:
                found[key] = looks(outcome["epochs"], every, metric)
    return found
