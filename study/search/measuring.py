"""The one look at the test split: which finished stages are left to be measured, and by whom."""

from collections.abc import Callable, Sequence

from takd.search_spaces import Stage
from takd.trainables.measured import Measured


class Measuring:
    """The stages that are to be measured on the test split once all have ended, in lists for a worker each."""

    def __init__(self, find: Callable[[], Sequence[Stage]], keep: Callable[[Measured], None]) -> None:
        """`find` says which these are, when they are to be measured, and `keep` keeps what was found."""
        self.find, self.keep = find, keep
        self.waiting: list[list[Stage]] | None = None  # not yet begun
        self.deaths = 0  # of workers that measured
        self.refused: str | None = None  # why the test split can't be read

    def begin(self, workers: int) -> int:
        """Divides what is to be measured among so many workers, once; returns how many stages that are."""
        stages = list(self.find())
        size = max(1, -(-len(stages) // workers))
        self.waiting = [stages[start : start + size] for start in range(0, len(stages), size)]
        return len(stages)

    @property
    def left(self) -> int:
        """How many lists no worker has."""
        return len(self.waiting or ())

    def take(self) -> list[Stage]:
        assert self.waiting
        return self.waiting.pop(0)

    def give_back(self, stages: Sequence[Stage]) -> None:
        """The worker that measured them died."""
        assert self.waiting is not None
        self.deaths += 1
        self.waiting.append(list(stages))

    def end(self, found: Measured | str) -> None:
        """A worker has measured its list, or says why it can't."""
        if isinstance(found, str):
            self.refused, self.waiting = found, []
        else:
            self.keep(found)
