"""What a search may go by: a metric as spaces, searches and tables know it, without the function that measures it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What is measured on the validation images, and how people read it."""

    name: str
    title: str  # in sentences and headings: `AUC`
    higher: bool = True  # is better
    fraction: bool = True  # between 0 and 1, shown in percent; else a number as it is
    digest: str | None = None  # of the user's code that measures it

    @property
    def kept(self) -> str:
        """The name under which an artifact keeps its value: what another code measures has another."""
        return f"{self.name}@{self.digest[:12]}" if self.digest else self.name

    @property
    def times(self) -> float:
        """What a value is multiplied by for people."""
        return 100.0 if self.fraction else 1.0

    @property
    def digits(self) -> int:
        """After the point, of a value for people."""
        return 2 if self.fraction else 4

    @property
    def unit(self) -> str:
        """Of a difference: `points`, `points of AUC`, `of loss`."""
        if self.name == "accuracy":
            return "points"
        return f"points of {self.title}" if self.fraction else f"of {self.title}"

    def score(self, value: float) -> float:
        """As people read it, and the better the higher: of a loss its negative."""
        return self.times * value if self.higher else -self.times * value


ACCURACY = Metric("accuracy", "accuracy")
# Those of takd; `takd.trainables.training.scores` measures them, and a test holds that both say the same.
METRICS: Mapping[str, Metric] = {
    each.name: each
    for each in (ACCURACY, Metric("auc", "AUC"), Metric("f1", "F1"), Metric("loss", "loss", False, False))
}
