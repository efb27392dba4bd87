"""The losses against their closed forms, written out in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from search_spaces import Loss
from trainables.losses import distillation, labels_only, soften

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


def measured(loss: Loss) -> np.ndarray:
    targets = [soften(upstream, float(t), loss.guidance) for upstream, t in zip(UPSTREAM, T, strict=True)]
    probabilities = torch.stack([each.probabilities for each in targets])
    entropy = torch.stack([each.negative_entropy for each in targets])
    return distillation(STUDENT.mT, LABELS, probabilities.mT, entropy, T, LAMBDA, loss).numpy()


def cross_entropy(student: np.ndarray) -> float:
    return -np.log(softmax(student))[np.arange(BATCH), LABELS.numpy()].mean()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return (p * np.log(p / q)).sum(axis=-1).mean()


def expected(lane: int, loss: Loss) -> float:
    t, weight = float(T[lane]), float(LAMBDA[lane])
    student, upstream = STUDENT[lane].numpy(), UPSTREAM[lane].numpy()
    q, ps = softmax(student / t), softmax(upstream / t)
    divergence = kl(ps.mean(axis=0), q) if loss.guidance == "ensemble" else np.mean([kl(p, q) for p in ps])
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


def test_the_kl_term_is_the_one_of_pytorch():
    t = 4.0
    p, q = (UPSTREAM[1, :1] / t).log_softmax(-1), (STUDENT[1] / t).log_softmax(-1)
    theirs = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(q, p[0])
    targets = soften(UPSTREAM[1, :1], t, "separate")
    ours = distillation(
        STUDENT[1:2].mT, LABELS, targets.probabilities[None].mT, targets.negative_entropy[None],
        torch.tensor([t]), torch.tensor([1.0]), Loss(),
    )  # fmt: skip
    assert ours.item() == pytest.approx(t**2 * theirs.item(), rel=1e-6)


def test_a_student_that_agrees_with_its_upstream_has_no_soft_loss():
    targets = soften(STUDENT[:1], 4.0, "separate")
    loss = distillation(
        STUDENT[:1].mT, LABELS, targets.probabilities[None].mT, targets.negative_entropy[None],
        torch.tensor([4.0]), torch.tensor([1.0]), Loss(),
    )  # fmt: skip
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_a_lane_gets_the_gradient_it_would_get_alone():
    together = STUDENT.clone().requires_grad_()
    loss = Loss()
    targets = [soften(upstream, float(t), "separate") for upstream, t in zip(UPSTREAM, T, strict=True)]
    p, entropy = (
        torch.stack([each.probabilities for each in targets]),
        torch.stack([each.negative_entropy for each in targets]),
    )
    distillation(together.mT, LABELS, p.mT, entropy, T, LAMBDA, loss).sum().backward()
    alone = STUDENT[1:2].clone().requires_grad_()
    distillation(alone.mT, LABELS, p[1:2].mT, entropy[1:2], T[1:2], LAMBDA[1:2], loss).sum().backward()
    assert together.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(together.grad[1:2], alone.grad, rtol=0, atol=0)
