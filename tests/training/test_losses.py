"""The losses against their closed forms, written out in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from takd.search_spaces import Loss
from takd.trainables.training.losses import SoftTargets, decoupled, distillation, labels_only, soften
from takd.trainables.training.losses import kl as kl_by_example

LANES, UPSTREAMS, BATCH, CLASSES = 3, 2, 5, 7
T = torch.tensor([1.0, 4.0, 20.0])
LAMBDA = torch.tensor([0.0, 0.3, 1.0])


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


STUDENT, UPSTREAM = logits(LANES, BATCH, CLASSES), logits(LANES, UPSTREAMS, BATCH, CLASSES, seed=1)
LABELS = torch.tensor([0, 6, 3, 3, 1])


def measured(loss: Loss, guides: Tensor | None = None) -> np.ndarray:
    hard = labels_only(STUDENT.mT, LABELS)
    return distillation(hard, STUDENT.mT, LABELS, targets_of(loss), T, LAMBDA, loss, guides).numpy()


def targets_of(loss: Loss) -> SoftTargets:
    """Of all lanes at their temperatures, the examples being one batch."""
    targets = [soften(upstream, float(t), loss) for upstream, t in zip(UPSTREAM, T, strict=True)]
    return SoftTargets(
        torch.stack([each.probabilities.permute(1, 2, 0) for each in targets]),
        torch.stack([each.negative_entropy.t() for each in targets]),
    )


def cross_entropy(student: np.ndarray) -> float:
    return -np.log(softmax(student))[np.arange(BATCH), LABELS.numpy()].mean()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return (p * np.log(p / q)).sum(axis=-1).mean()


def z_score(values: np.ndarray) -> np.ndarray:
    """Sun et al. 2024, algorithm 1."""
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True))


def decoupled_kl(p: np.ndarray, q: np.ndarray, alpha: float, beta: float) -> float:
    """Zhao et al. 2022, equation 7, an example after the other."""
    found = []
    for label, upstream, student in zip(LABELS.numpy(), p, q, strict=True):
        b_p, b_q = (np.array([each[label], 1 - each[label]]) for each in (upstream, student))
        p_rest, q_rest = (np.delete(each, label) / (1 - each[label]) for each in (upstream, student))
        found.append(alpha * kl(b_p, b_q) + beta * kl(p_rest, q_rest))
    return float(np.mean(found))


def expected(lane: int, loss: Loss, guides: Tensor | None = None) -> float:
    t, weight = float(T[lane]), float(LAMBDA[lane])
    student, upstream = STUDENT[lane].numpy(), UPSTREAM[lane].numpy()
    scaled = z_score if loss.standardize else lambda values: values
    q, ps = softmax(scaled(student) / t), softmax(scaled(upstream) / t)
    if loss.guidance == "ensemble":
        ps = ps.mean(axis=0, keepdims=True)
    counts = np.full(len(ps), 1 / len(ps)) if guides is None else guides[lane].numpy()
    if loss.divergence == "decoupled":
        divergence = sum(count * decoupled_kl(p, q, loss.alpha, loss.beta) for count, p in zip(counts, ps, strict=True))
    else:
        divergence = sum(count * kl(p, q) for count, p in zip(counts, ps, strict=True))
    if loss.kl_reduction == "mean":
        divergence /= CLASSES
    hard = cross_entropy(student)
    return (
        (1 - weight) * hard + weight * t**2 * divergence if loss.form == "convex" else hard + weight * t**2 * divergence
    )


@pytest.mark.parametrize("form", ["convex", "additive"])
@pytest.mark.parametrize("guidance", ["separate", "ensemble"])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_the_loss_equals_its_closed_form(form, guidance, reduction):
    loss = Loss(form=form, guidance=guidance, kl_reduction=reduction)
    np.testing.assert_allclose(measured(loss), [expected(lane, loss) for lane in range(LANES)], rtol=1e-10)


@pytest.mark.parametrize("guidance", ["separate", "ensemble"])
@pytest.mark.parametrize("how", [{"divergence": "decoupled"}, {"divergence": "decoupled", "alpha": 0.5, "beta": 2.0}])
def test_the_decoupled_loss_is_the_one_of_zhao_et_al(how, guidance):
    loss = Loss(guidance=guidance, **how)
    np.testing.assert_allclose(measured(loss), [expected(lane, loss) for lane in range(LANES)], rtol=1e-10)


def test_kl_is_the_decoupled_loss_whose_beta_follows_from_how_sure_the_upstream_is():
    targets, student = targets_of(Loss(guidance="ensemble")), (STUDENT.mT / T[:, None, None]).log_softmax(1)
    [binary, rest] = [
        decoupled(student, LABELS, targets, Loss(divergence="decoupled", alpha=alpha, beta=1 - alpha))
        for alpha in (1.0, 0.0)
    ]
    sure = targets.probabilities[:, 0, LABELS, torch.arange(BATCH)].unsqueeze(1)
    torch.testing.assert_close(binary + (1 - sure) * rest, kl_by_example(student, targets))


def test_a_sure_upstream_and_a_sure_student_leave_the_decoupled_loss_a_number():
    student = torch.tensor([[[200.0], [-200.0], [-200.0]]]).requires_grad_()
    loss = Loss(divergence="decoupled")
    targets = soften(torch.tensor([[[-300.0, 300.0, -300.0]]]), 1.0, loss)
    batch = SoftTargets(targets.probabilities.permute(1, 2, 0)[None], targets.negative_entropy.t()[None])
    found = decoupled(student.log_softmax(1), torch.tensor([1]), batch, loss)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("guidance", ["separate", "ensemble"])
def test_standardised_logits_are_those_of_sun_et_al(guidance):
    loss = Loss(standardize=True, guidance=guidance)
    found = measured(loss)
    np.testing.assert_allclose(found, [expected(lane, loss) for lane in range(LANES)], rtol=1e-6)  # their 1e-7
    assert not np.allclose(found, measured(Loss(guidance=guidance)), rtol=1e-2)


@pytest.mark.parametrize("how", [{}, {"divergence": "decoupled"}])
def test_a_batch_learns_from_the_guides_it_has(how):
    loss = Loss(drop_guides=0.5, **how)
    guides = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    np.testing.assert_allclose(
        measured(loss, guides), [expected(lane, loss, guides) for lane in range(LANES)], rtol=1e-10
    )


def test_class_weights_are_those_of_pytorch():
    weights = torch.rand(CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    theirs = torch.nn.functional.cross_entropy(STUDENT[1], LABELS, weight=weights)
    assert labels_only(STUDENT.mT, LABELS, class_weights=weights)[1] == pytest.approx(theirs.item(), rel=1e-12)


@pytest.mark.parametrize("form", ["convex", "additive"])
def test_at_lambda_0_the_loss_is_cross_entropy(form):
    assert LAMBDA[0] == 0
    torch_says = torch.nn.functional.cross_entropy(STUDENT[0], LABELS)
    assert measured(Loss(form=form))[0] == pytest.approx(torch_says.item(), rel=1e-12)
    assert labels_only(STUDENT.mT, LABELS)[0] == pytest.approx(torch_says.item(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_the_one_of_pytorch(smoothing):
    theirs = torch.nn.functional.cross_entropy(STUDENT[1], LABELS, label_smoothing=smoothing)
    assert labels_only(STUDENT.mT, LABELS, smoothing)[1] == pytest.approx(theirs.item(), rel=1e-12)


def one_lane(student: Tensor, targets: SoftTargets, temperature: float) -> Tensor:
    """At lambda 1, of logits `[1, batch, classes]`."""
    batch = SoftTargets(targets.probabilities.permute(1, 2, 0)[None], targets.negative_entropy.t()[None])
    t, weight = torch.tensor([temperature]), torch.tensor([1.0])
    return distillation(labels_only(student.mT, LABELS), student.mT, LABELS, batch, t, weight, Loss())


def test_the_kl_term_is_the_one_of_pytorch():
    t = 4.0
    p, q = (UPSTREAM[1, :1] / t).log_softmax(-1), (STUDENT[1] / t).log_softmax(-1)
    theirs = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(q, p[0])
    ours = one_lane(STUDENT[1:2], soften(UPSTREAM[1, :1], t, Loss()), t)
    assert ours.item() == pytest.approx(t**2 * theirs.item(), rel=1e-6)


def test_a_student_that_agrees_with_its_upstream_has_no_soft_loss():
    loss = one_lane(STUDENT[:1], soften(STUDENT[:1], 4.0, Loss()), 4.0)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_a_lane_gets_the_gradient_it_would_get_alone():
    together = STUDENT.clone().requires_grad_()
    loss = Loss()
    targets = targets_of(loss)
    distillation(labels_only(together.mT, LABELS), together.mT, LABELS, targets, T, LAMBDA, loss).sum().backward()
    alone = STUDENT[1:2].clone().requires_grad_()
    own = SoftTargets(targets.probabilities[1:2], targets.negative_entropy[1:2])
    hard = labels_only(alone.mT, LABELS)
    distillation(hard, alone.mT, LABELS, own, T[1:2], LAMBDA[1:2], loss).sum().backward()
    assert together.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(together.grad[1:2], alone.grad, rtol=0, atol=0)
