"""What students may be chosen by: one table for the measurement, the columns, the export and the report."""

from dataclasses import dataclass

from takd.search_spaces.metrics import ACCURACY, METRICS, Metric


@dataclass(frozen=True)
class Column:
    """A metric in the tables: of confirmed students, on test, and of the search's, on validation.

    `confirmed` and `searched` are columns; null where the task has none, and `searched` is None of what is measured on
    test alone. `heading`: in the table of what the test split shows beside accuracy.
    """

    metric: Metric
    confirmed: str
    searched: str | None = None
    heading: str | None = None


def column_of(metric: Metric) -> Column:
    """Of a metric that a search may go by."""
    return COLUMNS.get(metric.name) or Column(metric, f"test_{metric.name}", f"val_{metric.name}")


_ECE = Metric("ece", "calibration error", higher=False)
_AGREEMENT, _THRESHOLD = Metric("agreement", "agreement"), Metric("threshold_accuracy", "accuracy at F1's threshold")
COLUMNS = {
    each.metric.name: each
    for each in (
        Column(ACCURACY, "test_accuracy", "val_accuracy"),
        Column(METRICS["loss"], "test_loss", "val_loss"),  # cross-entropy
        Column(_ECE, "test_ece", heading="expected calibration error (points)"),
        # Of the images, those where student and teacher choose the same class.
        Column(_AGREEMENT, "test_agreement", heading="agreement with its teacher (%)"),
        # Of more classes than two AUC and F1 are means over classes, and measured where the study goes by them.
        # Of two classes, the second being the positive one; the last two at the threshold of the best F1 on validation.
        Column(METRICS["auc"], "test_auc", "val_auc", "AUC (%)"),
        Column(METRICS["f1"], "test_f1", "val_f1", "F1 (%)"),
        Column(_THRESHOLD, "test_accuracy_at_threshold", heading="accuracy at F1's threshold (%)"),
    )
}


def shown(value: float, metric: Metric) -> str:
    """`86.25 %`; of what is no fraction `0.4312`."""
    return f"{metric.times * value:.{metric.digits}f}{' %' if metric.fraction else ''}"


def value_text(value: float, metric: Metric) -> str:
    """On validation, for people: `86.25 % validation`, `91.30 % validation AUC`."""
    return f"{shown(value, metric)} validation{'' if metric == ACCURACY else f' {metric.title}'}"


def label(metric: Metric) -> str:
    """Of an axis or a column: `accuracy (%)`, `loss`."""
    return f"{metric.title}{' (%)' if metric.fraction else ''}"
