"""What students may be chosen by: one table for the measurement, the columns, the export and the report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a student may be chosen by: its column of confirmed students, on test, and of the search's, on validation.

    Fractions, but for the loss; null where the task has none. `title`: in the table of what the test split shows beside
    accuracy, in percent.
    """

    confirmed: str
    searched: str | None = None
    higher: bool = True
    title: str | None = None


METRICS = {
    "accuracy": Metric("test_accuracy", "val_accuracy"),
    "loss": Metric("test_loss", "val_loss", higher=False),  # cross-entropy
    "ece": Metric("test_ece", higher=False, title="expected calibration error (points)"),
    # Of the images, those where student and teacher choose the same class.
    "agreement": Metric("test_agreement", title="agreement with its teacher (%)"),
    # Of more classes than two AUC and F1 are means over classes, and measured where the study goes by them.
    # Of two classes, the second being the positive one; the last two at the threshold of the best F1 on validation.
    "auc": Metric("test_auc", "val_auc", title="AUC (%)"),
    "f1": Metric("test_f1", "val_f1", title="F1 (%)"),
    "threshold_accuracy": Metric("test_accuracy_at_threshold", title="accuracy at F1's threshold (%)"),
}

NAMES = {"accuracy": "accuracy", "loss": "loss", "auc": "AUC", "f1": "F1"}  # of those that a search may go by


def shown(value: float, metric: str) -> str:
    """`86.25 %`; of a loss, which is in nats, `0.4312`."""
    return f"{value:.4f}" if metric == "loss" else f"{100 * value:.2f} %"


def value_text(value: float, metric: str) -> str:
    """On validation, for people: `86.25 % validation`, `91.30 % validation AUC`."""
    return f"{shown(value, metric)} validation{'' if metric == 'accuracy' else f' {NAMES[metric]}'}"
