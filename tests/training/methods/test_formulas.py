"""Each method against its formula in NumPy and against torchdistill's, by lanes, and where inputs say nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torchdistill.losses import mid_level
from torchdistill.models.adaptation import ConvReg
from torchdistill.models.wrapper import Regressor4VID

from takd.search_spaces import Loss
from takd.trainables.models.stage_models import Projector
from takd.trainables.training.losses import SoftTargets, distillation, labels_only, soften
from takd.trainables.training.methods.attention import at
from takd.trainables.training.methods.logits import dist
from takd.trainables.training.methods.regressions import (
    convolutional,
    fitnet,
    hint,
    linear,
    simkd,
    simkd_linear,
    variational,
    vid,
)
from takd.trainables.training.methods.relations import pkt, rkd, sp, sp_pooled

IMAGES, CLASSES = 6, 10
LABELS = torch.arange(IMAGES) % CLASSES
Given = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A method with what it is given: shapes without the images, of the student and of the teacher."""

    function: Callable[..., Tensor]
    student: tuple[tuple[int, ...], ...]
    teacher: tuple[tuple[int, ...], ...]
    modules: Callable[..., nn.Module] | None = None
    maps: bool = False

    def drawn(self, seed: int = 0, images: int = IMAGES, kind: torch.dtype = torch.float32) -> tuple[Given, Given]:
        torch.manual_seed(seed)
        sides = []
        for shapes in (self.student, self.teacher):
            each = tuple(torch.randn(images, *shape).relu().to(kind) for shape in shapes)
            sides.append(each if self.maps else each[0])
        return sides[0], sides[1]

    def module(self, seed: int = 0) -> nn.Module | None:
        torch.manual_seed(seed)
        return self.modules and self.modules(self.student, self.teacher, CLASSES, 100)

    def __call__(self, student: Given, teacher: Given, module: Any = None) -> Tensor:
        return self.function(student, teacher, LABELS, **({} if module is None else {"modules": module}))


def projected(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """SimKD's projector is a part of its student."""

    def of_student(student: Given, teacher: Given, labels: Tensor, *, modules: Any) -> Tensor:
        maps = isinstance(student, tuple)
        return function((modules(student[-1]),) if maps else modules(student), teacher, labels)

    return of_student


def projector(student: Any, teacher: Any, classes: int, examples: int) -> nn.Module:
    return Projector(student[-1][0], teacher[-1][0], teacher[-1][1:])


LOGITS, EMBEDDINGS = (((CLASSES,),), ((CLASSES,),)), (((5,),), ((8,),))
MAPS = (((4, 8, 8), (6, 4, 4)), ((5, 8, 8), (7, 4, 4)))
UNEVEN = (((4, 8, 8), (6, 2, 2), (3, 3, 3)), ((5, 4, 4), (7, 4, 4), (4, 5, 5)))
CASES = {
    "dist": Case(dist, *LOGITS),
    "rkd": Case(rkd, *EMBEDDINGS),
    "pkt": Case(pkt, *EMBEDDINGS),
    "sp_pooled": Case(sp_pooled, *EMBEDDINGS),
    "hint": Case(hint, *EMBEDDINGS, linear),
    "simkd_linear": Case(projected(simkd_linear), *EMBEDDINGS, linear),
    "at": Case(at, *MAPS, maps=True),
    "sp": Case(sp, *UNEVEN, maps=True),
    "fitnet": Case(fitnet, *UNEVEN, convolutional, maps=True),
    "simkd": Case(projected(simkd), UNEVEN[0][-1:], UNEVEN[1][-1:], projector, maps=True),
    "vid": Case(vid, *MAPS, variational, maps=True),
}
WITHOUT_MAPS = [name for name, case in CASES.items() if not case.maps]


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def unit(vectors: np.ndarray, added: float = 0.0) -> np.ndarray:
    return vectors / (np.sqrt((vectors**2).sum(axis=1, keepdims=True)) + added)


def huber(difference: np.ndarray) -> float:
    size = np.abs(difference)
    return float(np.where(size < 1, size**2 / 2, size - 0.5).mean())


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(*rows)[0, 1] for rows in zip(x, y, strict=True)]))


def dist_formula(student: np.ndarray, teacher: np.ndarray) -> float:
    """Huang et al. 2022, L_inter and L_intra, at tau 4 with beta and gamma 2."""
    raised = [np.exp(each / 4) for each in (student, teacher)]
    q, p = (each / each.sum(axis=1, keepdims=True) for each in raised)
    return 16 * (2 * (1 - correlation(q, p)) + 2 * (1 - correlation(q.T, p.T)))


def rkd_formula(student: np.ndarray, teacher: np.ndarray) -> float:
    """Park et al. 2019, L_RKD-D and L_RKD-A, a pair and a triple after the other."""

    def distances(e: np.ndarray) -> np.ndarray:
        found = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
        return found / found[found > 0].mean()

    def cosines(e: np.ndarray) -> np.ndarray:
        found = np.zeros((len(e),) * 3)
        for j, middle in enumerate(e):
            for i, a in enumerate(e):
                for k, b in enumerate(e):
                    if j not in (i, k):
                        found[j, i, k] = unit((a - middle)[None])[0] @ unit((b - middle)[None])[0]
        return found

    return 25 * huber(distances(student) - distances(teacher)) + 50 * huber(cosines(student) - cosines(teacher))


def pkt_formula(student: np.ndarray, teacher: np.ndarray) -> float:
    """Passalis & Tefas 2018, section 3, with the published code's mean and 1e-7."""
    neighbours = [(unit(each, 1e-7) @ unit(each, 1e-7).T + 1) / 2 for each in (student, teacher)]
    q, p = (each / each.sum(axis=1, keepdims=True) for each in neighbours)
    return float((p * np.log((p + 1e-7) / (q + 1e-7))).mean())


def sp_formula(student: np.ndarray, teacher: np.ndarray) -> float:
    """Tung & Mori 2019, equation 4."""
    own, upstream = (each.reshape(len(each), -1) for each in (student, teacher))
    return float(np.linalg.norm(unit(own @ own.T) - unit(upstream @ upstream.T), "fro") ** 2 / len(student) ** 2)


def at_formula(student: np.ndarray, teacher: np.ndarray) -> float:
    """Zagoruyko & Komodakis 2017, the published code's form of equation 2."""
    own, upstream = (unit((each**2).mean(axis=1).reshape(len(each), -1)) for each in (student, teacher))
    return float(((own - upstream) ** 2).mean())


def mean_square(student: np.ndarray, teacher: np.ndarray) -> float:
    return float(((student - teacher) ** 2).mean())


def halved(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mean over squares, to a whole part of the size."""
    images, channels, tall, wide = maps.shape
    return maps.reshape(images, channels, height, tall // height, width, wide // width).mean(axis=(3, 5))


@pytest.mark.parametrize(
    ("name", "formula"),
    [("dist", dist_formula), ("rkd", rkd_formula), ("pkt", pkt_formula), ("sp_pooled", sp_formula)],
)
def test_a_method_is_its_formula(name, formula):
    student, teacher = CASES[name].drawn(kind=torch.float64)
    assert CASES[name](student, teacher).item() == pytest.approx(formula(array(student), array(teacher)), rel=1e-9)


@pytest.mark.parametrize(("name", "formula"), [("at", at_formula), ("sp", sp_formula)])
def test_a_method_on_maps_is_the_sum_of_its_formula_over_layers(name, formula):
    student, teacher = CASES[name].drawn(kind=torch.float64)
    expected = sum(formula(array(own), array(upstream)) for own, upstream in zip(student, teacher, strict=True))
    assert CASES[name](student, teacher).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["hint", "simkd_linear"])
def test_a_regression_on_embeddings_is_the_mean_square_of_what_a_linear_layer_misses(name):
    (student, teacher), module = CASES[name].drawn(), CASES[name].module()
    guess = array(student) @ array(module.weight).T + array(module.bias)
    assert CASES[name](student, teacher, module).item() == pytest.approx(mean_square(guess, array(teacher)), rel=1e-5)


def test_maps_of_two_sizes_are_compared_at_the_smaller():
    """The larger side is averaged to the size of the other; and a convolution makes the teacher's size where it can."""
    student, teacher = torch.rand(2, 4, 8, 8), torch.rand(2, 5, 4, 4)
    expected = at_formula(halved(array(student), 4, 4), array(teacher))
    assert at((student,), (teacher,), LABELS[:2]).item() == pytest.approx(expected, rel=1e-5)
    case = CASES["fitnet"]
    module, (student, teacher) = case.module(), case.drawn()
    guesses = module(student)
    # Halved, doubled; and 3x3 for 5x5, to which no convolution leads: the teacher's is averaged.
    assert [tuple(guess.shape[1:]) for guess in guesses] == [(5, 4, 4), (7, 4, 4), (4, 3, 3)]
    expected = sum(
        mean_square(array(guess), array(F.adaptive_avg_pool2d(upstream, guess.shape[-1])))
        for guess, upstream in zip(guesses, teacher, strict=True)
    )
    assert case(student, teacher, module).item() == pytest.approx(expected, rel=1e-5)


def test_the_projector_of_simkd_has_the_published_layers():
    """Chen et al. 2022: 1x1, 3x3, 1x1 through half of the teacher's channels, each normalised and rectified."""
    case = CASES["simkd"]
    module, (student, teacher) = case.module().eval(), case.drawn()
    convolutions = [layer for layer in module if isinstance(layer, nn.Conv2d)]
    assert [(each.in_channels, each.out_channels, each.kernel_size[0]) for each in convolutions] == [
        (3, 2, 1),
        (2, 2, 3),
        (2, 4, 1),
    ]
    maps = student[-1]
    for convolution in convolutions:
        maps = F.conv2d(maps, convolution.weight, padding=convolution.padding) / np.sqrt(1 + 1e-5)
        maps = maps.relu()
    expected = mean_square(array(maps), array(F.adaptive_avg_pool2d(teacher[-1], 3)))
    assert case(student, teacher, module).item() == pytest.approx(expected, rel=1e-5)


def test_vid_is_a_normal_density_with_a_variance_a_channel():
    """Ahn et al. 2019, -log q(t | s), a layer after the other."""
    case = CASES["vid"]
    module, (student, teacher) = case.module(), case.drawn()
    with torch.no_grad():
        for layer in module:
            layer.scale.copy_(torch.randn(layer.scale.shape))
    expected = 0.0
    for layer, own, upstream in zip(module, student, teacher, strict=True):
        variance = np.log1p(np.exp(array(layer.scale)))[None, :, None, None] + 1e-5
        error = (array(layer.mean(own)) - array(upstream)) ** 2
        expected += (0.5 * (error / variance + np.log(variance))).mean()
    assert case(student, teacher, module).item() == pytest.approx(expected, rel=1e-5)
    starting = case.module()[0]
    assert starting(student[0])[1].flatten().tolist() == pytest.approx([5.0] * 5, rel=1e-6)


ENDS = ({"path": "s", "io": "output"}, {"path": "t", "io": "output"})
PATHS = {
    "student_module_path": "s",
    "student_module_io": "output",
    "teacher_module_path": "t",
    "teacher_module_io": "output",
}
BOTH = {"student_output_path": "s", "teacher_output_path": "t"}


def of_torchdistill(loss: nn.Module, student: Any, teacher: Any, *more: Any) -> float:
    """By one layer or, as s0, s1... and t0, t1..., by several."""
    sides = {}
    for side, given in (("s", student), ("t", teacher)):
        layers = {f"{side}{number}": each for number, each in enumerate(given)} if isinstance(given, tuple) else {}
        sides[side] = {name: {"output": each} for name, each in {side: given, **layers}.items()}
    return loss(sides["s"], sides["t"], *more).item()


def pairs(layers: int) -> dict[str, Any]:
    return {
        str(number): {side: {"path": f"{side[0]}{number}", "io": "output"} for side in ("student", "teacher")}
        for number in range(layers)
    }


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("dist", mid_level.DISTLoss(**PATHS, beta=2.0, gamma=2.0, tau=4.0)),
        ("rkd", mid_level.RKDLoss(**BOTH, dist_factor=25.0, angle_factor=50.0, reduction="mean")),
        ("pkt", mid_level.PKTLoss(**PATHS)),
        ("at", mid_level.ATLoss(pairs(2), mode="code")),
    ],
)
def test_torchdistill_says_the_same(name, loss):
    student, teacher = CASES[name].drawn(seed=3, images=64)
    expected = of_torchdistill(loss, student, teacher)
    assert CASES[name](student, teacher).item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ["sp", "sp_pooled"])
def test_torchdistill_says_the_same_of_similarities_once_it_divides_by_lengths(name, monkeypatch):
    """It passes the dimension, 1, where `normalize` has p; the paper and its authors' code have p 2."""
    loss = mid_level.SPKDLoss(**BOTH, reduction="batchmean")
    student, teacher = CASES[name].drawn(seed=3, images=64)
    layers = list(zip(student, teacher, strict=True)) if name == "sp" else [(student, teacher)]
    found = CASES[name](student, teacher).item()
    assert found != pytest.approx(sum(of_torchdistill(loss, *pair) for pair in layers), rel=0.1)
    monkeypatch.setattr(mid_level, "normalize", lambda products, dim: F.normalize(products, dim=dim))
    assert found == pytest.approx(sum(of_torchdistill(loss, *pair) for pair in layers), rel=1e-5)


def test_torchdistill_says_the_same_of_regressions():
    """FitNets, which it makes of `ConvReg` and a mean squared error, and VID with its regressor."""
    (student, teacher), own = CASES["fitnet"].drawn(seed=3), CASES["fitnet"].module()
    theirs = ConvReg(4, 5, kernel_size=3, stride=2, padding=1)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), own[0].state_dict().values(), strict=True)))
    loss = mid_level.SimpleLossWrapper(
        nn.MSELoss(),
        input={"is_from_teacher": False, "module_path": "s", "io": "output"},
        target={"is_from_teacher": True, "module_path": "t", "io": "output"},
    )
    expected = of_torchdistill(loss, theirs(student[0]), teacher[0], LABELS)
    found = fitnet(student[:1], teacher[:1], LABELS, modules=lambda maps: (own[0](maps[0]),))
    assert found.item() == pytest.approx(expected, rel=1e-5)

    case = CASES["vid"]
    (student, teacher), own = case.drawn(seed=3), case.module()
    said = []
    for layer, maps in zip(own, student, strict=True):
        regressor = Regressor4VID(maps.shape[1], len(layer.scale), len(layer.scale), eps=1e-5, init_pred_var=5.0)
        regressor.regressor.load_state_dict(layer.mean.state_dict())
        said.append(regressor(maps))
    expected = of_torchdistill(mid_level.VIDLoss(pairs(2)), tuple(said), teacher)
    assert case(student, teacher, own).item() == pytest.approx(expected, rel=1e-5)


def test_torchdistill_says_the_same_of_soft_targets():
    """KD; and logit standardisation, whose deviation it divides by classes - 1 where the paper divides by classes."""
    (student, teacher), weight = CASES["dist"].drawn(seed=3), 0.7
    for standardize, temperature in ((None, 4.0), (True, 2.0)):
        loss = Loss(standardize=standardize)
        kind = mid_level.LogitStdKDLoss if standardize else mid_level.KDLoss
        theirs = temperature / np.sqrt(CLASSES / (CLASSES - 1)) if standardize else temperature
        oracle = kind(**PATHS, temperature=theirs, alpha=1 - weight, beta=weight * (temperature / theirs) ** 2)
        targets = soften(teacher.unsqueeze(0), temperature, loss)
        found = distillation(
            labels_only(student.t().unsqueeze(0), LABELS),
            student.t().unsqueeze(0),
            LABELS,
            SoftTargets(targets.probabilities.permute(1, 2, 0).unsqueeze(0), targets.negative_entropy.t().unsqueeze(0)),
            torch.tensor([temperature]),
            torch.tensor([weight]),
            loss,
        )
        assert found.item() == pytest.approx(of_torchdistill(oracle, student, teacher, LABELS), rel=1e-5), standardize


@pytest.mark.parametrize("name", CASES)
def test_lanes_learn_together_what_they_learn_alone(name):
    """The loss of each lane, its gradient, and what its modules gained."""
    case, lanes = CASES[name], 3
    modules = [case.module(seed) for seed in range(lanes)]
    given = [case.drawn(seed)[0] for seed in range(lanes)]
    _, teacher = case.drawn(7)
    students = tuple(map(torch.stack, zip(*given, strict=True))) if case.maps else torch.stack(given)
    leaves = [each.requires_grad_() for each in (students if case.maps else (students,))]

    def one(student: Given, weights: Any, buffers: Any) -> Tensor:
        return case(student, teacher, modules[0] and (lambda x: functional_call(modules[0], (weights, buffers), (x,))))

    weights, buffers = stack_module_state(modules) if case.modules else ({}, {})
    together = vmap(one)(students, weights, buffers)
    gradients = torch.autograd.grad(together.sum(), [*leaves, *weights.values()])
    alone = []
    for number, module in enumerate(modules):
        own = [each[number].detach().requires_grad_() for each in leaves]
        loss = case(tuple(own) if case.maps else own[0], teacher, module)
        alone.append((loss, torch.autograd.grad(loss, [*own, *(module.parameters() if module else ())])))
        for name_of, buffer in module.named_buffers() if module else ():
            torch.testing.assert_close(buffers[name_of][number], buffer)
    torch.testing.assert_close(together, torch.stack([loss for loss, _ in alone]))
    for number, found in enumerate(gradients):
        expected = torch.stack([each[number] for _, each in alone])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def degenerate(case: Case, kind: str) -> tuple[Given, Given]:
    """What says nothing: of one image, of two, images that are all alike, or nothing but zeros."""
    images = {"one image": 1, "two images": 2}.get(kind, IMAGES)
    student, teacher = case.drawn(images=images)

    def changed(given: Given) -> Given:
        if isinstance(given, tuple):
            return tuple(changed(each) for each in given)
        return {"all alike": given[:1].expand_as(given).clone(), "zeros": torch.zeros_like(given)}.get(kind, given)

    if kind == "the teacher":  # what is learned is known already
        narrow = Case(case.function, case.teacher, case.teacher, case.modules, case.maps)
        return narrow.drawn()[1], narrow.drawn()[1]
    return changed(student), changed(teacher) if kind == "all alike" else teacher


@pytest.mark.parametrize("kind", ["one image", "two images", "all alike", "zeros", "the teacher"])
@pytest.mark.parametrize("name", CASES)
def test_what_says_nothing_has_a_finite_gradient(name, kind):
    """And one that no step would be ruined by: torchdistill's are not a number, or 1e7 and more, in many of these."""
    case = CASES[name]
    student, teacher = degenerate(case, kind)
    module = case.modules and case.modules(case.teacher if kind == "the teacher" else case.student, case.teacher, 10, 9)
    if module:
        module.eval()  # batch normalisation of one value is refused by torch
    leaves = [each.requires_grad_() for each in (student if case.maps else (student,))]
    loss = case(student, teacher, module)
    gradients = torch.autograd.grad(loss, leaves)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() and gradient.abs().max() < 1e4 for gradient in gradients)


def test_dist_of_two_classes_and_of_a_head_of_zeros_is_finite():
    for classes in (2, CLASSES):
        student = torch.zeros(IMAGES, classes, requires_grad=True)
        loss = dist(student, torch.randn(IMAGES, classes), LABELS)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.item() == pytest.approx(16 * 4, rel=1e-5)  # no correlation at all
        assert 0 < gradient.abs().max() < 1e4, classes


def test_rkd_teaches_what_torchdistill_teaches(monkeypatch):
    """Its gradient is not autograd's; neither does it matter how many angles there are at once."""
    student, teacher = (each * torch.linspace(0.2, 2, 32)[:, None] for each in CASES["rkd"].drawn(images=32))
    loss = mid_level.RKDLoss(**BOTH, dist_factor=25.0, angle_factor=50.0, reduction="mean")
    student.requires_grad_()
    sides = {"s": {"output": student}}, {"t": {"output": teacher}}
    (expected,) = torch.autograd.grad(loss(*sides), student)
    for angles in (1, 5 * 32**2, 2**17):
        monkeypatch.setattr("takd.trainables.training.methods.relations.AT_ONCE", angles)
        (found,) = torch.autograd.grad(rkd(student, teacher, LABELS), student)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_rkd_loses_no_digits_where_embeddings_are_far_from_zero():
    """Its products are of centred embeddings: means of a hundred deviations leave the loss as it was."""
    student, teacher = CASES["rkd"].drawn(images=32)
    expected = rkd(student.double(), teacher.double(), LABELS).item()
    assert rkd(student + 100, teacher + 100, LABELS).item() == pytest.approx(expected, rel=1e-4)
