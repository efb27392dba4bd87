"""The ways to teach that takd has, as plain data: what each needs and weighs, and what a space may say of it. No torch.

The functions are in `takd.trainables.training.methods`; a user's own come with their parameters (`registry.method`).
What a space says of methods is checked in `method_rules`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Needs = Literal["logits", "embedding", "maps"]

KD = "kd"  # by the student's temperature and lambda, and the space's loss
DKD = "dkd"  # the same with `divergence: decoupled`, by weights of its own
STANDARDIZE = "standardize"  # a modifier of both
SOFTENED = (KD, DKD)  # of which an arm has one at most: both stand in one place of the loss

FORM, WEIGHT, TEMPERATURE, WARMUP = "form", "weight", "temperature", "warmup"
STUDENT_LAYERS, TEACHER_LAYERS = "student_layers", "teacher_layers"
LAYERS = (STUDENT_LAYERS, TEACHER_LAYERS)

# What a space says of the inside of models: the embedding, and before a layer's name that a stage ends with it.
EMBEDDING, STAGE = "", "stage "

OWN_TEMPERATURE = 4.0  # of a user's method that needs logits, unless its decorator says another


@dataclass(frozen=True)
class Param:
    """A number that a method has: its value where a space says nothing, and what it may be."""

    default: float
    low: float = 0.0  # the lowest that it may be
    above: float | None = None  # what it must be above, where that is said
    high: float | None = None
    whole: bool = False

    def wrong(self, value: float) -> str | None:
        """What a value must be that it is not."""
        if self.whole and value != int(value):
            return "a whole number"
        if self.above is not None and value <= self.above:
            return f"a number above {self.above:g}"
        if self.above is None and value < self.low:
            return f"a number of at least {self.low:g}"
        return f"a number of at most {self.high:g}" if self.high is not None and value > self.high else None


@dataclass(frozen=True)
class MethodFacts:
    """What is published of a method. `weight` is of its whole loss beside the cross-entropy with the labels."""

    needs: Needs
    source: str
    weight: float = 1.0
    params: Mapping[str, Param] = field(default_factory=dict)
    temperature: float | None = None  # None: it has none
    warmup: float | None = None  # the part of a run over which its weight rises
    stages: Literal["all", "middle", "last"] = "last"  # of a model, whose maps it compares unless layers are named
    # Whether it is all that a student learns by, whose network then ends in a projector and its teacher's head.
    reuses_head: bool = False

    @property
    def search(self) -> tuple[float, float]:
        """Between which its weight is searched, on a logarithmic scale, unless a space says otherwise."""
        return self.weight / 10, self.weight * 10


# Of those that Tian et al. 2020 compare the weights are theirs, which most papers have used since.
METHODS: Mapping[str, MethodFacts] = {
    KD: MethodFacts("logits", "Hinton et al. 2015", 1.0),
    DKD: MethodFacts(
        "logits",
        "Zhao et al. 2022, section 4",
        params={"alpha": Param(1.0), "beta": Param(8.0)},
        temperature=4.0,
        warmup=20 / 240,
    ),
    "dist": MethodFacts(
        "logits",
        "Huang et al. 2022, section 4",
        params={"tau": Param(4.0, above=0), "beta": Param(2.0), "gamma": Param(2.0)},
    ),
    "hint": MethodFacts("embedding", "Romero et al. 2015; the weight of Tian et al. 2020", 100.0),
    "rkd": MethodFacts(
        "embedding", "Park et al. 2019, section 4", params={"distance": Param(25.0), "angle": Param(50.0)}
    ),
    "pkt": MethodFacts("embedding", "Passalis and Tefas 2018; the weight of Tian et al. 2020", 30_000.0),
    "sp_pooled": MethodFacts("embedding", "Tung and Mori 2019, on the embedding", 3000.0),
    "crd": MethodFacts(
        "embedding",
        "Tian et al. 2020",
        0.8,
        params={
            "negatives": Param(16_384, above=0, whole=True),
            "width": Param(128, above=0, whole=True),
            "tau": Param(0.07, above=0),
            "momentum": Param(0.5, high=1),
        },
    ),
    "fitnet": MethodFacts("maps", "Romero et al. 2015; the weight of Tian et al. 2020", 100.0, stages="middle"),
    "at": MethodFacts("maps", "Zagoruyko and Komodakis 2017", 1000.0, stages="all"),
    "sp": MethodFacts("maps", "Tung and Mori 2019", 3000.0),
    "vid": MethodFacts("maps", "Ahn et al. 2019", stages="all"),
    "simkd_linear": MethodFacts("embedding", "Chen et al. 2022, with a linear projector", reuses_head=True),
    "simkd": MethodFacts("maps", "Chen et al. 2022", reuses_head=True),
}


def reuses_head(method: str) -> bool:
    """Whether a student of that method ends in its teacher's head."""
    return method in METHODS and METHODS[method].reuses_head


RESERVED = frozenset({"labels", "label_smoothing", KD, "takd", "dense", "ensemble", STANDARDIZE})


def compared_stages(
    name: str, student: Sequence[str], teacher: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the last layers of both models' stages those that a method compares: in pairs, from the last stage back."""
    number = min(len(student), len(teacher))
    pairs = [*zip(student[-number:], teacher[-number:], strict=True)] if number else []
    which = METHODS[name].stages if name in METHODS else "last"
    if pairs and which != "all":
        pairs = [pairs[-1] if which == "last" else pairs[len(pairs) // 2]]
    return tuple(own for own, _ in pairs), tuple(theirs for _, theirs in pairs)
