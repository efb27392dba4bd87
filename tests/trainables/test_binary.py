"""Two classes, and AUC and F1 at a look at a split: the metrics against slow, obvious ways to the same numbers."""

import numpy as np
import pytest
import torch

from takd.trainables.binary import auc_interval, best_threshold, binary_metrics, f1
from takd.trainables.training.scores import scores

RANDOM = np.random.default_rng(0)


def drawn(positives: int = 60, negatives: int = 140, apart: float = 1.0, random=RANDOM):
    positive = np.arange(positives + negatives) < positives
    scores = 1 / (1 + np.exp(-random.normal(apart * positive - apart / 2)))
    return scores.round(2), positive  # rounded: there are ties


def test_the_auc_is_the_part_of_the_pairs_in_the_right_order():
    scores, positive = drawn()
    pairs = scores[positive][:, None] - scores[~positive][None]
    by_hand = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert auc_interval(scores, positive)[0] == pytest.approx(by_hand, abs=1e-12)


def test_the_interval_of_the_auc_covers_it_as_often_as_it_says():
    random = np.random.default_rng(1)
    truth = auc_interval(*drawn(20_000, 20_000, random=random))[0]
    intervals = [auc_interval(*drawn(random=random)) for _ in range(1000)]
    covered = np.mean([low <= truth <= high for _, low, high in intervals])
    assert 0.925 <= covered <= 0.975


def test_an_auc_needs_both_classes():
    with pytest.raises(ValueError, match="both classes"):
        auc_interval(np.array([0.1, 0.9]), np.array([True, True]))


def test_f1_is_that_of_precision_and_recall():
    scores, positive = drawn()
    chosen = scores >= 0.6
    precision, recall = positive[chosen].mean(), chosen[positive].mean()
    assert f1(chosen, positive) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1(~positive, positive) == 0


def test_no_threshold_has_a_higher_f1_than_the_best_one():
    for _ in range(20):
        scores, positive = drawn(random=RANDOM)
        found = f1(scores >= best_threshold(scores, positive), positive)
        assert found == pytest.approx(max(f1(scores >= cut, positive) for cut in np.linspace(0, 1, 2001)))


def test_of_equal_thresholds_the_one_nearest_to_a_half_is_taken():
    assert best_threshold(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == 0.5


def test_metrics_are_at_the_threshold():
    scores, positive = drawn()
    low, high = (binary_metrics(scores, positive, threshold) for threshold in (0.3, 0.7))
    assert low["test_auc"] == high["test_auc"]
    assert low["test_accuracy_at_threshold"] == ((scores >= 0.3) == positive).mean()
    assert low["test_f1"] != high["test_f1"]


# At a look at a split, while a stage trains


def drawn_logits(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[classes, n]`, rounded so that there are ties, and labels of which few are of the last class."""
    generator = torch.Generator().manual_seed(classes)
    share = torch.tensor([1.0] * (classes - 1) + [0.3])
    labels = torch.multinomial(share, 300, replacement=True, generator=generator)
    logits = torch.randn(classes, 300, generator=generator) + torch.nn.functional.one_hot(labels, classes).t()
    return logits.round(decimals=1), labels


def test_with_two_classes_they_are_those_of_the_test_split():
    logits, labels = drawn_logits(2)
    positive, probabilities = labels.numpy() == 1, logits.double().softmax(dim=0)[1].numpy()
    expected = binary_metrics(probabilities, positive, best_threshold(probabilities, positive))
    found = scores(logits, labels, ["auc", "f1"])
    assert found == {"auc": pytest.approx(expected["test_auc"]), "f1": pytest.approx(expected["test_f1"])}


def test_with_more_classes_they_are_means_over_classes():
    logits, labels = drawn_logits(4)
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
