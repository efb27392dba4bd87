"""AUC and F1 of a look at a split, against the test split's and against slow, obvious ways to the same numbers."""

import numpy as np
import pytest
import torch

from takd.study.binary import best_threshold, binary_metrics
from takd.trainables.scores import scores


def drawn(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[classes, n]`, rounded so that there are ties, and labels of which few are of the last class."""
    generator = torch.Generator().manual_seed(classes)
    share = torch.tensor([1.0] * (classes - 1) + [0.3])
    labels = torch.multinomial(share, 300, replacement=True, generator=generator)
    logits = torch.randn(classes, 300, generator=generator) + torch.nn.functional.one_hot(labels, classes).t()
    return logits.round(decimals=1), labels


def test_with_two_classes_they_are_those_of_the_test_split():
    logits, labels = drawn(2)
    positive, probabilities = labels.numpy() == 1, logits.double().softmax(dim=0)[1].numpy()
    expected = binary_metrics(probabilities, positive, best_threshold(probabilities, positive))
    found = scores(logits, labels, ["auc", "f1"])
    assert found == {"auc": pytest.approx(expected["test_auc"]), "f1": pytest.approx(expected["test_f1"])}


def test_with_more_classes_they_are_means_over_classes():
    logits, labels = drawn(4)
    areas, f1s = [], []
    probabilities, chosen = logits.double().softmax(dim=0).numpy(), logits.argmax(dim=0)
    for each in range(4):
        inside = labels.numpy() == each
        pairs = probabilities[each][inside][:, None] - probabilities[each][~inside][None]
        areas.append((pairs > 0).mean() + (pairs == 0).mean() / 2)
        right = int(((chosen == each) & (labels == each)).sum())
        precision, recall = right / int((chosen == each).sum()), right / int((labels == each).sum())
        f1s.append(2 * precision * recall / (precision + recall))
    found = scores(logits, labels, ["auc", "f1"])
    assert found == {"auc": pytest.approx(np.mean(areas)), "f1": pytest.approx(np.mean(f1s))}


def test_of_a_class_without_images_nothing_can_be_said():
    logits, labels = torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)
    assert all(np.isnan(each) for each in scores(logits, labels, ["auc", "f1"]).values())
    assert scores(logits, labels, []) == {}
