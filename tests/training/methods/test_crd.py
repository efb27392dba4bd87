"""Contrastive representation distillation: its formula with both banks, its negatives, and how it goes on."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torchdistill.losses.mid_level import CRDLoss

from takd.trainables.training.methods.crd import Contrast, contrast, crd

EXAMPLES, IMAGES, WIDTH = 60, 8, 16
LABELS = torch.arange(EXAMPLES) % 5  # 12 images of each class
ALL, FEW = 48, 20  # negatives: all images of other classes, and some


def module(negatives: int = FEW, seed: int = 0, labels: Tensor | None = LABELS, width: int = WIDTH) -> Contrast:
    torch.manual_seed(seed)
    made = contrast(((5,),), ((9,),), 5, EXAMPLES, labels=labels, width=width, negatives=negatives)
    assert isinstance(made, Contrast)
    return made


def batch(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the student and of the teacher, and which examples they are."""
    random = torch.Generator().manual_seed(number)
    indices = torch.randperm(EXAMPLES, generator=random)[:IMAGES]
    return torch.randn(IMAGES, 5, generator=random), torch.randn(IMAGES, 9, generator=random), indices


def chosen(made: Contrast, indices: Tensor) -> Tensor:
    """The negatives of the next batch, `[images, negatives]`."""
    places = torch.arange(EXAMPLES)
    return torch.stack([places.repeat_interleave(counts.long()) for counts in made._negatives(indices)])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class Formula:
    """Tian et al. 2020, L_critic, an image and a negative after the other, in float64."""

    def __init__(self, made: Contrast) -> None:
        weights = made.state_dict()
        self.weights = {
            name: value.double().numpy() for name, value in weights.items() if name.endswith(("weight", "bias"))
        }
        self.banks = {side: weights[f"memory_{side}"].double().numpy().copy() for side in ("student", "teacher")}
        self.constants: dict[str, float] = {}

    def __call__(self, student: Tensor, teacher: Tensor, indices: Tensor, negatives: Tensor) -> float:
        given = {"student": student.double().numpy(), "teacher": teacher.double().numpy()}
        sides = {
            side: unit(each @ self.weights[f"{side}.weight"].T + self.weights[f"{side}.bias"])
            for side, each in given.items()
        }
        total = 0.0
        for side, other in (("student", "teacher"), ("teacher", "student")):
            contrasted = np.concatenate([indices[:, None], negatives], axis=1)
            x = np.array(
                [
                    [np.exp(a @ self.banks[other][n] / 0.07) for n in row]
                    for a, row in zip(sides[side], contrasted, strict=True)
                ]
            )
            x = x / self.constants.setdefault(side, x.mean() * EXAMPLES)
            noise = negatives.shape[1] / EXAMPLES
            told = np.log(x[:, 0] / (x[:, 0] + noise + 1e-7))
            apart = np.log(noise / (x[:, 1:] + noise + 1e-7)).sum(axis=1)
            total -= float((told + apart).mean())
        for side, bank in self.banks.items():
            bank[indices] = unit(0.5 * bank[indices] + 0.5 * sides[side])
        return total


@pytest.mark.parametrize("negatives", [ALL, FEW])
def test_crd_is_its_formula_over_several_batches(negatives):
    """So with what the banks have become and with the constants of the first batch."""
    made = module(negatives)
    formula = Formula(made)
    for number in range(4):
        student, teacher, indices = batch(number)
        others = chosen(made, indices).numpy()
        found = crd(student, teacher, LABELS[indices], indices=indices, modules=made)
        assert found.item() == pytest.approx(formula(student, teacher, indices, others), rel=1e-5)
    np.testing.assert_allclose(made.memory_student.numpy(), formula.banks["student"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.memory_teacher.numpy(), formula.banks["teacher"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("negatives", [ALL, FEW])
def test_torchdistill_says_the_same_and_teaches_the_same_of_the_same_negatives(negatives):
    made = module(negatives)
    theirs = CRDLoss("norm", "batch", "norm", WIDTH, EXAMPLES, negatives, EXAMPLES)
    theirs.memory_v1.copy_(made.memory_student)
    theirs.memory_v2.copy_(made.memory_teacher)
    for number in range(3):
        student, teacher, indices = batch(number)
        contrasted = torch.cat([indices.unsqueeze(1), chosen(made, indices)], dim=1)
        embedded = [
            torch.nn.functional.normalize(made.student(student)),
            torch.nn.functional.normalize(made.teacher(teacher)),
        ]
        expected = theirs(
            {"norm": {"output": embedded[0]}, "batch": {"input": {"pos_idx": indices, "contrast_idx": contrasted}}},
            {"norm": {"output": embedded[1]}},
        )
        found = crd(student, teacher, LABELS[indices], indices=indices, modules=made)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        weights = list(made.parameters())
        for own, upstream in zip(
            *(torch.autograd.grad(loss.sum(), weights) for loss in (found, expected)), strict=True
        ):
            torch.testing.assert_close(own, upstream, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made.memory_student, theirs.memory_v1)
    torch.testing.assert_close(made.memory_teacher, theirs.memory_v2)


def test_negatives_are_drawn_evenly_from_all_images_of_other_classes():
    """Classes of 5 to 25 images; the counts of 2,000 draws an image are within five deviations of even."""
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 10, 20, 25]))[torch.randperm(EXAMPLES)]
    made = module(negatives=FEW, labels=labels)
    counts = torch.zeros(EXAMPLES, EXAMPLES)
    every = torch.arange(EXAMPLES)
    for _ in range(100):
        counts += made._negatives(every)
        made.step.add_(1)
    other = labels.unsqueeze(1) != labels
    assert counts[~other].sum() == 0
    expected = 100 * FEW / other.sum(dim=1, keepdim=True).float()
    assert ((counts - expected).abs() / expected.sqrt())[other].max() < 5
    assert ((counts - expected).square() / expected)[other].mean() == pytest.approx(1, abs=0.1)


def test_without_labels_every_other_image_is_a_negative():
    made = module(negatives=EXAMPLES, labels=None)
    assert torch.equal(made._negatives(torch.arange(3)), 1 - torch.eye(EXAMPLES)[:3])
    drawn = module(negatives=FEW, labels=None)._negatives(torch.arange(3))
    assert drawn.sum(dim=1).tolist() == [FEW] * 3
    assert drawn[:, :3].diag().sum() == 0


@pytest.mark.parametrize("negatives", [ALL, FEW])
def test_crd_goes_on_from_a_checkpoint_to_the_same_bit(negatives):
    whole = module(negatives)
    said = []
    for number in range(4):
        if number == 2:
            kept = {name: value.clone() for name, value in whole.state_dict().items()}
        student, teacher, indices = batch(number)
        said.append(crd(student, teacher, LABELS[indices], indices=indices, modules=whole).item())
    again = module(negatives, seed=5)
    again.load_state_dict(kept)
    for number in (2, 3):
        student, teacher, indices = batch(number)
        assert crd(student, teacher, LABELS[indices], indices=indices, modules=again).item() == said[number]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_seeds_and_batches_draw_other_negatives_and_the_same_ones_draw_the_same():
    indices = torch.arange(IMAGES)
    first, again, other = (module(seed=seed)._negatives(indices) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    later = module()
    student, teacher, _ = batch(0)
    crd(student, teacher, LABELS[:IMAGES], indices=indices, modules=later)
    for differing in (other, later._negatives(indices)):
        assert all((mine != theirs).any() for mine, theirs in zip(first, differing, strict=True))


@pytest.mark.parametrize("negatives", [ALL, FEW])
def test_lanes_contrast_together_as_they_do_alone(negatives):
    modules = [module(negatives, seed) for seed in range(3)]
    weights, buffers = stack_module_state(modules)

    def one(weights: Any, buffers: Any, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        called = lambda *given: functional_call(modules[0], (weights, buffers), given)  # noqa: E731
        return crd(student, teacher, LABELS[indices], indices=indices, modules=called)

    for number in range(2):
        _, teacher, indices = batch(number)
        students = torch.stack([batch(10 * number + lane)[0] for lane in range(3)])
        together = vmap(one, in_dims=(0, 0, 0, None, None))(weights, buffers, students, teacher, indices)
        gradients = torch.autograd.grad(together.sum(), list(weights.values()))
        for lane, made in enumerate(modules):
            alone = crd(students[lane], teacher, LABELS[indices], indices=indices, modules=made)
            torch.testing.assert_close(together[lane], alone)
            for found, expected in zip(gradients, torch.autograd.grad(alone, list(made.parameters())), strict=True):
                torch.testing.assert_close(found[lane], expected, rtol=1e-4, atol=1e-6)
            for name, buffer in made.named_buffers():
                torch.testing.assert_close(buffers[name][lane], buffer)


def test_crd_of_embeddings_that_say_nothing_is_finite():
    """Zeros, also in the layers that embed them; one image; and images that are all alike."""
    for kind in ("zeros", "one image", "all alike"):
        made = module()
        student, teacher, indices = batch(0)
        if kind == "zeros":
            student, made.student.bias.data = torch.zeros_like(student), torch.zeros(WIDTH)
        if kind == "one image":
            student, teacher, indices = student[:1], teacher[:1], indices[:1]
        if kind == "all alike":
            student = student[:1].expand_as(student)
        student = student.clone().requires_grad_()
        loss = crd(student, teacher, LABELS[indices], indices=indices, modules=made)
        gradients = torch.autograd.grad(loss, [student, *made.parameters()])
        assert loss.isfinite()
        assert all(gradient.isfinite().all() and gradient.abs().max() < 1e3 for gradient in gradients), kind
        assert made.memory_student.isfinite().all()


def test_crd_needs_two_classes():
    with pytest.raises(ValueError, match="one class"):
        module(labels=torch.zeros(EXAMPLES, dtype=torch.int64))
