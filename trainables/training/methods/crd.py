"""Contrastive representation distillation: whether two embeddings, a student's and a teacher's, are of one image."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from takd.trainables.training.methods.known_gradients import with_gradients
from takd.trainables.training.methods.regressions import Shapes
from takd.trainables.training.methods.relations import directions


def crd(student: Tensor, teacher: Tensor, labels: Tensor, *, indices: Tensor, modules: Callable[..., Tensor]) -> Tensor:
    """Tian et al. 2020, L_critic with both memory banks, on embeddings `[images, d_s]` and `[images, d_t]`.

    indices `[images]` are the images' places in the transfer set. All is in `Contrast`, which has weights and banks.
    Published: the weight 0.8 beside the cross-entropy.
    """
    return modules(student, teacher, indices)


class Contrast(nn.Module):
    """Two linear embeddings of one width, and a bank a side of what they were: a row an image of the transfer set.

    A batch's image is told from negatives, images of other classes: `x / (x + m * Pn)` is the probability that a pair
    is of one image, where x is `exp(<a, b> / tau) / Z`, a of the one side and b of the other's bank, m is the
    number of negatives and Pn is 1 over the images of the transfer set. Z is estimated from the first batch and stays.
    After each batch its images' rows move to their embeddings by `1 - momentum`.

    As published, negatives are images of other classes. They are drawn evenly, with replacement, where there are more
    of those than `negatives`; else each of them is one negative. The published code draws without replacement in the
    first case, and with in the second. Without labels each image is a class of its own.

    The draws follow from `seed`, the number of the batch and the image, by hashing whole numbers on the device: nothing
    is drawn on the host, and training that goes on from a checkpoint draws what it would have drawn. All products with
    a bank are one product of matrices, and an image that is drawn twice counts twice: the same numbers as if the
    bank's rows were gathered first, `[images, 1 + m, width]`, in a part of the time.

    torchdistill: the same formula for negatives that are given to it, its `contrast_idx`.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    seed: Tensor
    step: Tensor
    constants: Tensor
    classes: Tensor
    order: Tensor
    first: Tensor
    members: Tensor

    def __init__(
        self,
        widths: tuple[int, int],
        labels: Tensor,
        *,
        width: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        """`widths` of the student's and the teacher's embedding, labels `[examples]`; ValueError if all are alike."""
        super().__init__()
        examples = len(labels)
        values, classes, members = labels.unique(return_inverse=True, return_counts=True)
        if len(values) < 2:
            raise ValueError("crd tells an image from those of other classes, and the transfer set has one class")
        self.tau, self.momentum = tau, momentum
        self.all_others = negatives >= examples - int(members.min())
        self.negatives = negatives
        self.student, self.teacher = (nn.Linear(each, width) for each in widths)
        bound = 1 / math.sqrt(width / 3)
        for side in ("student", "teacher"):
            self.register_buffer(f"memory_{side}", torch.empty(examples, width).uniform_(-bound, bound))
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("constants", torch.full((2,), -1.0))  # Z of student and teacher; negative: not yet
        self.register_buffer("classes", classes)
        # All images, those of a class side by side: where each class starts, and how many it has.
        self.register_buffer("order", classes.argsort(stable=True))
        self.register_buffer("first", members.cumsum(0) - members)
        self.register_buffer("members", members)

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        own, upstream = directions(self.student(student)), directions(self.teacher(teacher))
        counts = self._negatives(indices)
        with torch.no_grad():
            found = [
                self._contrasted(side, bank, constant, indices, counts)
                for side, bank, constant in zip(
                    (own, upstream), (self.memory_teacher, self.memory_student), self.constants, strict=True
                )
            ]
            losses, gradients, constants = zip(*found, strict=True)
            # Only now: the gradients were those with the banks of before.
            self.constants.copy_(torch.stack(constants))
            self.step.add_(1)
            for bank, side in ((self.memory_student, own), (self.memory_teacher, upstream)):
                moved = self.momentum * bank.index_select(0, indices) + (1 - self.momentum) * side
                bank.index_put_((indices,), directions(moved))
        return with_gradients(torch.stack(losses).sum(), (own, gradients[0]), (upstream, gradients[1]))

    def _negatives(self, indices: Tensor) -> Tensor:
        """How many times each image of the transfer set is a negative of each of the batch, `[images, examples]`."""
        own = self.classes.index_select(0, indices)
        if self.all_others:
            return (own.unsqueeze(1) != self.classes).to(self.constants.dtype)
        drawn = self._drawn(indices, own)
        none = self.constants.new_zeros(len(indices), len(self.classes))
        return none.scatter_add(1, drawn, torch.ones_like(drawn, dtype=none.dtype))

    def _drawn(self, indices: Tensor, own: Tensor) -> Tensor:
        """Images of other classes than the images' own, `[images, negatives]`."""
        keys = hashed(hashed(self.seed + self.step) + indices).unsqueeze(1)
        bits = hashed(
            keys + torch.arange((self.negatives + 1) // 2, device=indices.device)
        )  # two draws of 32 bits each
        halves = torch.cat([bits >> 32, bits], dim=1)[:, : self.negatives] & 0xFFFFFFFF
        first, members = (each.index_select(0, own).unsqueeze(1) for each in (self.first, self.members))
        drawn = (halves * (len(self.order) - members)) >> 32
        return self.order[torch.where(drawn < first, drawn, drawn + members)]

    def _contrasted(
        self, side: Tensor, bank: Tensor, constant: Tensor, indices: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A side's loss, a mean over images, with its gradient `[images, width]`, and Z."""
        images, examples = counts.shape
        place, many = indices.unsqueeze(1), counts.sum(dim=1, keepdim=True)
        raised = (side @ bank.mT / self.tau).exp()
        mean = (raised.gather(1, place).sum() + (counts * raised).sum()) / (images + many.sum())
        constant = torch.where(constant < 0, mean * examples, constant)
        x = raised / constant
        noise = many / examples  # m * Pn
        total = x + (noise + 1e-7)
        alike = x / total  # the probability that a pair is of one image
        own = alike.gather(1, place)
        loss = -(own.log().sum() + (counts * (noise.log() - total.log())).sum()) / images
        toward = (counts * alike).scatter(1, place, own - 1)
        return loss, toward @ bank / (self.tau * images), constant


def hashed(numbers: Tensor) -> Tensor:
    """Whole numbers of 64 bits that look random: the finaliser of SplitMix64 (Steele et al. 2014)."""
    numbers = numbers * -7046029254386353131  # so that neighbours are far apart
    numbers = (numbers ^ _shifted(numbers, 30)) * -4658895280553007687
    numbers = (numbers ^ _shifted(numbers, 27)) * -7723592293110705685
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """To the right, zeros following."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def contrast(
    student_shapes: Shapes,
    teacher_shapes: Shapes,
    classes: int,
    examples: int,
    *,
    labels: Tensor | None,
    width: int = 128,
    negatives: int = 16384,
    tau: float = 0.07,
    momentum: float = 0.5,
) -> nn.Module:
    """That of `crd`, as published; labels of the transfer set, None where they are ignored."""
    (own,), (upstream,) = student_shapes[0], teacher_shapes[0]
    return Contrast(
        (own, upstream),
        torch.arange(examples) if labels is None else labels.cpu(),
        width=width,
        negatives=negatives,
        tau=tau,
        momentum=momentum,
    )
