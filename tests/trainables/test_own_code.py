"""A user's code: what is read of it, what its digests say, and what is said where it can't be used."""

import random
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_space
from torch import nn

from takd.search_spaces import Configuration, InputError, Loss, Space, first_of
from takd.search_spaces.registry import TABLES, check_digests, model_family
from takd.study.code_checks import use_code, with_code
from takd.trainables.datasets.dataset import is_own, load, read_by_code
from takd.trainables.models.dropout import Dropout
from takd.trainables.models.families import FAMILIES, build, check_model, size_of, stacks
from takd.trainables.own_code import NO_CODE, Code, read_code, use
from takd.trainables.training.lanes import Stacked
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.losses import DIVERGENCES, by_method, kl, soften
from takd.trainables.training.views import view

SHAPE = (1, 8, 8)

NETS = """
import takd
from torch import nn

import BESIDE  # a module of the user's, beside this file


@takd.model_family("small")
def small(size, image_shape, classes, dropout=0.0):
    channels, height, width = image_shape
    if size is None:
        raise ValueError("small-N has N channels")
    return nn.Sequential(
        nn.Conv2d(channels, size, 3, padding=1), nn.Dropout2d(dropout), nn.AdaptiveAvgPool2d(BESIDE.POOLED),
        nn.Flatten(), nn.Linear(size * BESIDE.POOLED**2, classes),
    )


@takd.model_family("dense")
def dense(size, image_shape, classes, dropout=0.0):
    channels, height, width = image_shape
    layers = nn.Linear(channels * height * width, size), nn.GELU(), nn.Dropout(dropout)
    return nn.Sequential(nn.Flatten(), nn.Sequential(*layers), nn.Linear(size, classes, bias=False))
""".replace("BESIDE", "analysis")  # as ours is called


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    use(NO_CODE)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes files, by their names with __ for a folder and without ending, and returns the first."""

    def write(**files: str) -> Path:
        for name, source in files.items():
            file = tmp_path.joinpath(*name.replace("init", "__init__").split("__in__")).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(source))
        return tmp_path / f"{next(iter(files))}.py"

    return write


def used(file: Path) -> Code:
    code = read_code([str(file)])
    use(code)
    return code


def refused(written: Any, source: str, model: str | None = None) -> str:
    """What is said of a file of that code, from its line on."""
    file = written(nets=source)

    def act() -> None:
        used(file)
        if model:
            check_model(model, SHAPE, 10)

    with pytest.raises(InputError) as caught:
        act()
    said = str(caught.value)
    assert said.startswith(f"{file}:")
    assert "\n" not in said
    return said.removeprefix(f"{file}:")


def family(body: str, head: str = "") -> str:
    given = "size, image_shape, classes"
    return f"import takd, random, numpy, torch\nfrom torch import nn\n{head}\n@takd.model_family('odd')\n" + (
        f"def odd({given}):\n    {body}\n"
    )


def test_a_users_families_are_built_beside_takds_own_and_leave_with_their_code(written):
    used(written(nets=NETS, analysis="POOLED = 2"))
    assert check_model("small-3", SHAPE, 10)(torch.empty(2, *SHAPE, device="meta")).shape == (2, 10)
    assert build("dense-5", SHAPE, 10)(torch.rand(4, *SHAPE)).shape == (4, 10)
    assert {"small", "dense", "mlp"} <= set(FAMILIES)
    use(NO_CODE)
    assert {"small", "dense"} & set(FAMILIES) == set()
    assert "analysis" not in sys.modules


def test_a_class_or_what_a_library_has_may_be_a_family_too(written):
    source = """
    import functools, takd
    from torch import nn

    @takd.model_family("shallow")
    class Shallow(nn.Linear):
        def __init__(self, size, image_shape, classes):
            super().__init__(64, classes)

        def forward(self, images):
            return super().forward(images.flatten(1))

    takd.model_family("made")(functools.partial(lambda size, image_shape, classes: Shallow(size, None, classes)))
    """
    used(written(nets=source))
    for model in ("shallow-1", "made"):
        assert check_model(model, SHAPE, 10) is not None
    assert str(TABLES["model_family"].origins["made"]).endswith("nets.py:13")
    use(NO_CODE)
    assert {"shallow", "made"} & set(FAMILIES) == set()


def test_what_was_read_runs_whatever_becomes_of_the_files(written):
    """As on a node that has none of them."""
    file = written(nets=NETS, analysis="POOLED = 2")
    code = read_code([str(file)])
    for each in file.parent.iterdir():
        each.unlink()
    use(code)
    assert build("small-3", SHAPE, 10)(torch.rand(4, *SHAPE)).shape == (4, 10)


def test_several_fully_connected_members_train_as_one_model_and_others_do_not(written):
    used(written(nets=NETS, analysis="POOLED = 2"))
    assert [stacks(model, SHAPE, 10) for model in ("dense-5", "mlp-5", "small-3", "cnn")] == [True, True, False, False]


def test_stacked_members_compute_what_each_does_alone(written):
    """Also of layers in groups, without biases, and with other activations than takd's own have."""
    used(written(nets=NETS, analysis="POOLED = 2"))
    members, images = [build("dense-5", SHAPE, 10) for _ in range(3)], torch.rand(4, *SHAPE)
    lanes = Stacked(members)
    torch.testing.assert_close(lanes(images), torch.stack([member(images).t() for member in members]))
    assert lanes.weights(1).keys() == members[1].state_dict().keys()
    assert all(torch.equal(tensor, lanes.weights(1)[name]) for name, tensor in members[1].state_dict().items())


def test_a_model_that_looks_at_its_numbers_can_be_measured(written):
    """On torch's meta device, where sizes are counted, there are none."""
    looking = (
        "class Looking(nn.Linear):\n"
        "    def forward(s, x): return super().forward(x.flatten(1) * (1 + 0 * x.sum().item()))"
    )
    used(written(nets=family("return Looking(64, 10)", looking)))
    assert check_model("odd-1", SHAPE, 10) is not None
    assert size_of("odd-1", SHAPE, 10).flops == 2 * 64 * 10


@pytest.mark.parametrize(
    "layers",
    [
        "nn.Dropout(0.2), nn.Linear(64, 10)",  # lanes share their images
        "nn.Linear(64, 8), nn.Softmax(1), nn.Linear(8, 10)",
        "nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)",
        "nn.utils.parametrizations.weight_norm(nn.Linear(64, 10))",
        "nn.Linear(64, 10).requires_grad_(False), nn.Linear(10, 10)",
    ],
)
def test_what_has_no_form_for_lanes_trains_alone(written, layers):
    used(written(nets=family(f"return nn.Sequential(nn.Flatten(), {layers})")))
    assert not stacks("odd-1", SHAPE, 10)


def test_dropout_of_torchs_is_made_ours(written):
    used(written(nets=NETS, analysis="POOLED = 2"))
    for model in ("dense-5", "small-3"):
        module = build(model, SHAPE, 10, dropout=0.5)
        dropped = [each for each in module.modules() if isinstance(each, Dropout)]
        assert len(dropped) == 1
        assert not any(isinstance(each, nn.Dropout | nn.Dropout2d) for each in module.modules())
        images, outputs = torch.rand(4, *SHAPE), []
        for seed in (1, 1, 2):
            dropped[0].seed([(seed, 0)])
            outputs.append(module.train()(images))
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])


def test_a_digest_is_of_a_file_and_of_those_beside_it_that_it_imports(written):
    def digest(**changes: str) -> str:
        files = {"nets": NETS, "analysis": "POOLED = 2", "unrelated": "", "late": "", "model__in__init": ""}
        files["nets"] += "\n\ndef later():\n    import late\n    from model import part\n"
        file = written(
            **(
                files
                | {"model__in__part": "FROM . import other".replace("FROM", "from"), "model__in__other": ""}
                | changes
            )
        )
        return read_code([str(file)]).digest_of("nets")

    before = digest()
    assert digest(unrelated="x = 1") == before
    changed = [digest(**{name: "x = 1"}) for name in ("analysis", "late", "model__in__init", "model__in__other")]
    assert len({before, *changed}) == 5


def test_code_that_changed_is_not_taken_for_what_trained(written):
    code = used(written(nets=NETS, analysis="POOLED = 2"))
    stage = {"model_family small": code.digest_of("nets")}
    check_digests(stage)
    used(written(analysis="POOLED = 4", nets=NETS).with_name("nets.py"))
    with pytest.raises(InputError, match=r"nets.py:8: model_family 'small' has the digest \w+, what was trained by it"):
        check_digests(stage)
    use(NO_CODE)
    with pytest.raises(InputError, match="'small' is of code that is not given"):
        check_digests(stage)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import takd\nx = (", "2: is not Python: '(' was never closed"),
        ("import takd\n\nimport nowhere", "3: ModuleNotFoundError: No module named 'nowhere'"),
        ("import sys\nsys.exit(3)", "2: SystemExit: 3"),
        (family("pass") + family("pass"), "10: model_family 'odd' is there already: "),
        (family("pass").replace("'odd'", "'mlp'"), "4: model_family 'mlp' is there already: takd's own"),
        (
            family("pass").replace("'odd'", "'od-d'"),
            "4: model_family 'od-d': a name is small letters, digits and _",
        ),
        (family("pass").replace("size, ", ""), "4: model_family 'odd': is called with (size, image_shape, classes)"),
        ("import takd\n@takd.method('m')\ndef m(student): pass", "2: method 'm': is called with (student, teacher, "),
        ("import takd\n@takd.method\ndef m(s): pass", "2: @takd.method takes a name: @takd.method('m')"),
        ("import takd\n@takd.metric('images')\ndef m(a, b): pass", "2: metric 'images': tables have something else"),
        (
            "import takd\n@takd.metric('m', higher=1)\ndef m(a, b): pass",
            "2: metric 'm': higher is 1; expected True or ",
        ),
        ("import takd\n@takd.method('m', needs='x')\ndef m(s): pass", "2: method 'm': needs is 'x'; valid: logits, "),
    ],
)
def test_code_that_can_not_be_used_is_one_line(written, source, said):
    assert refused(written, source).startswith(said)


HEADS = {
    "Drawn": (
        "class Drawn(nn.Module):\n    def __init__(s):\n        super().__init__()\n        s.l = nn.Linear(64, 10)\n"
        "    def forward(s, x): return s.l(nn.functional.dropout(x.flatten(1), 0.5, s.training))"
    ),
    "Ending": (
        "class Ending(nn.Module):\n    def __init__(s, end):\n        super().__init__()\n        s.e = end\n"
        "        s.l = nn.Linear(64, 10)\n"
        "    def forward(s, x): return s.e(s.l(x.flatten(1)))"
    ),
}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('odd-N is even')", "6: odd-N is even"),
        ("return 5", "4: model odd-2: expected an nn.Module, got int"),
        (
            "return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))",
            "4: model odd-2 gives torch.float32 [4, 5] of 4 images; expected logits [4, 10], one a class",
        ),
        ("return nn.Linear(3, 10)", "4: model odd-2 with images of 1x8x8: RuntimeError: "),
        ("return Drawn()", "4: model odd-2 draws random numbers while it computes; "),
        (
            "m = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)); m[1].bias.data.fill_(random.random()); return m",
            "4: model odd-2 is another each time it is built from one seed (1.bias differs); draw from torch alone",
        ),
        (
            "m = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)); m[1].bias.data.fill_(numpy.random.rand()); return m",
            "4: model odd-2 is another each time",
        ),
        (
            "return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)",
            "4: model odd-2 has no weights",
        ),
        (
            "return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))",
            "4: model odd-2: 1.weight has no size yet, as of a la",
        ),
        (
            "m = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)); m[1].bias.data.fill_(float('nan')); return m",
            "4: model odd-2 gives logits that are no finite numbers",
        ),
        (
            "return globals().setdefault('kept', nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))",
            "4: model odd-2 has the same weights each time it is built (1.weight)",
        ),
        ("return Ending(lambda y: y.squeeze())", "4: model odd-2 gives [10] of one image; expected logits [1, 10]"),
        (
            "return Ending(lambda y: y - y.mean(0))",
            "4: model odd-2 says something else of an image in evaluation where",
        ),
    ],
)
def test_a_model_that_can_not_be_trained_is_one_line(written, body, said):
    drawn = next((head for name, head in HEADS.items() if f"{name}(" in body), "")
    said_of = refused(written, family(body, drawn), "odd-2")
    shift = drawn.count("\n")
    line, _, rest = said.partition(":")
    assert said_of.startswith(f"{int(line) + shift}:{rest}"), said_of


def test_checking_a_model_leaves_the_callers_random_numbers_as_they_were(written):
    used(written(nets=NETS, analysis="POOLED = 2"))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    check_model("small-3", SHAPE, 10)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]  # type: ignore[index]
    assert torch.get_rng_state().tolist() == states[2]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere.py", "code: .*nowhere.py does not exist; expected a Python file or a package's folder"),
        ("nets.txt", "code: .*nets.txt is no Python file"),
        ("folder", "code: .*folder has no __init__.py"),
        ("random.py", "code: .*random.py can't be the module 'random', which is another's; rename it"),
    ],
)
def test_what_is_no_code_is_told_what_would_be(tmp_path, place, said):
    (tmp_path / "nets.txt").touch()
    (tmp_path / "random.py").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=said):
        read_code([str(tmp_path / place)])


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(f"import shared\nX = '{folder}'")
        (tmp_path / folder / f"nets_{folder}.py").write_text("import shared")
        (tmp_path / folder / "shared.py").write_text(f"X = '{folder}'")
    with pytest.raises(InputError, match="two files are the module 'nets'"):
        read_code([str(tmp_path / folder / "nets.py") for folder in ("a", "b")])
    with pytest.raises(InputError, match=r"a/shared.py and \S+b/shared.py are both the module 'shared'"):
        read_code([str(tmp_path / folder / f"nets_{folder}.py") for folder in ("a", "b")])


def test_a_module_that_was_imported_before_is_its_importers_own(written, monkeypatch):
    mine = type(sys)("analysis")
    monkeypatch.setitem(sys.modules, "analysis", mine)
    used(written(nets=NETS, analysis="POOLED = 2"))
    assert sys.modules["analysis"] is mine
    assert build("small-3", SHAPE, 10)(torch.rand(4, *SHAPE)).shape == (4, 10)


def test_outside_of_a_study_a_decorator_keeps_nothing():
    """So that anybody may import such a file: a test of the user's own."""
    before = {kind: dict(table) for kind, table in TABLES.items()}

    @model_family("mine")
    def mine(size, image_shape, classes):
        return nn.Identity()

    assert {kind: dict(table) for kind, table in TABLES.items()} == before


def test_a_method_of_logits_is_what_its_formula_says_in_every_lane(written):
    """Hinton's loss written as a user would is takd's own."""
    used(
        written(
            nets="""
            import takd
            from torch.nn import functional as F

            @takd.method("hinton")
            def hinton(student, teacher, labels, temperature):
                own, theirs = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
                return temperature**2 * F.kl_div(own, theirs, reduction="none").sum(1)
            """
        )
    )
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(*shape, generator=generator) for shape in ((2, 10, 6), (2, 1, 10, 6)))
    degrees = torch.tensor([2.0, 4.0])
    found = by_method(DIVERGENCES["hinton"], student, teacher, torch.arange(6), degrees.tolist())
    for lane, temperature in enumerate(degrees.tolist()):
        targets = soften(teacher[lane].transpose(1, 2), temperature, Loss())
        batch = type(targets)(
            targets.probabilities.permute(1, 2, 0).unsqueeze(0), targets.negative_entropy.t().unsqueeze(0)
        )
        own = (student[lane] / temperature).log_softmax(0).unsqueeze(0)
        expected = temperature**2 * kl(own, batch).mean()
        torch.testing.assert_close(found[lane, 0], expected)


NEAR = """
import takd, torch
from torch import nn

@takd.method("near", needs="embedding", params={"power": takd.Param(1.0, above=0)}, modules=GUESS)
def near(student, teacher, labels, *, power, modules):
    return ((modules(student) - teacher).abs() ** power).mean(1)
"""


def of_near(written: Any, guess: str = "lambda own, theirs, classes, examples: nn.Linear(own[0][0], theirs[0][0])",
            **changes: Any) -> Space:  # fmt: skip
    file = written(nets=NEAR.replace("GUESS", guess))
    space = tiny_space(**({"code": [str(file)], "arms": ["kd", "near+kd"]} | changes))
    use_code(space, "space")
    return with_code(space, "space")


def test_a_method_of_a_users_may_compare_embeddings_and_train_a_module_beside_the_student(written):
    space = of_near(written, methods={"near": {"power": 2}})
    assert space.needs == {"near": "embedding"}
    arm = space.all_arms[1]
    chosen = {name: first_of(name, value) for name, value in space.varied(arm).items()}
    mnist = load("mnist")
    [path] = space.paths(Configuration(arm, chosen), mnist.fingerprint, [0])
    [term] = path.student.terms or ()
    assert (term.needed, term.params, term.weight) == ("embedding", {"power": 2.0}, 1.0)
    assert path.student.code == {"method near": TABLES["method"].origins["near"].digest}
    lessons = {("soft_targets", None): [np.zeros((50_000, 10), np.float32)]}
    lessons |= {("embedding", None): [np.ones((50_000, 64), np.float32)]}
    training = StageTraining([path.student], mnist, [[lessons]])
    batch = torch.arange(100)
    first = float(training.train_step(batch, 1.0))
    for _ in range(20):
        last = float(training.train_step(batch, 1.0))
    assert last < first - 0.3  # the module has learned what is always 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": {"near": {"pow": 2}}}, "methods: near has no pow; valid: weight, power, warmup"),
        ({"methods": {"near": {"power": 0}}}, "methods: near.power is 0; expected a number above 0"),
        ({"loss": {"divergence": "near"}}, r"loss.divergence is 'near', which has parameters .* name it in an arm"),
        ({"arms": ["far"]}, "arms: a method is 'far'; valid: .*near.*docs/own-code.md says how to bring"),
        ({"guess": "lambda own: nn.Linear(1, 1)"}, r"nets.py:\d+: .*takes 1 positional argument"),
        ({"guess": "lambda *all: (lambda x: torch.zeros(8, 12))"}, "'near' has no gradient of the student's embedding"),
    ],
)
def test_what_is_wrong_with_a_method_of_a_users_is_one_line(written, changes, said):
    with pytest.raises(InputError, match=said) as caught:
        of_near(written, **changes)
    assert "\n" not in str(caught.value)


def test_a_name_that_arms_have_is_no_method_of_a_users(written):
    source = "import takd\n@takd.method('{}')\ndef one(student, teacher, labels, temperature):\n    return student"
    assert "takd has that name in arms; choose another" in refused(written, source.format("standardize"))
    assert "takd has that name in arms; choose another" in refused(written, source.format("rkd"))
    assert "a name is small letters, digits and _, a letter first" in refused(written, source.format("my-kd"))


def test_an_augmentation_of_a_users_is_the_same_for_all_who_see_a_view(written):
    used(
        written(
            nets="""
            import takd

            @takd.augmentation("dim", numbers=2)
            def dim(images, drawn):
                return (images * drawn[:, 0, None, None, None]).to(images.dtype)
            """
        )
    )
    images = torch.full((6, 1, 4, 4), 200, dtype=torch.uint8)
    first, second = view("dim", 1, 6), view("dim", 2, 6)
    assert first
    assert second
    whole = first.apply(images, slice(None))
    assert torch.equal(whole[2:4], first.apply(images[2:4], torch.tensor([2, 3])))
    assert not torch.equal(whole, second.apply(images, slice(None)))
    assert view("dim", 0, 6) is None


def test_an_installed_package_offers_the_same(tmp_path, monkeypatch):
    (tmp_path / "lab_nets.py").write_text(NETS.replace("import " + "analysis", "class analysis:\n    POOLED = 2\n"))
    about = tmp_path / "lab_nets-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-nets\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[takd.plugins]\nlab = lab_nets\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("takd.trainables.own_code._InUse.installed", False)
    try:
        use(NO_CODE)
        origin = TABLES["model_family"].origins["small"]
        assert re.search(r"lab_nets.py:\d+$", str(origin))
        assert len(origin.digest or "") == 64
        assert check_model("small-3", SHAPE, 10) is not None
        with pytest.raises(InputError, match=r"lab_nets.py:\d+: small-N has N channels"):
            check_model("small", SHAPE, 10)
    finally:
        for table in TABLES.values():
            table.forget({str(tmp_path / "lab_nets.py")})
        sys.modules.pop("lab_nets", None)


DATA = """
import numpy
import takd

@takd.dataset("stripes", classes=("down", "across"), validation=4, licence="ours")
def stripes():
    images = numpy.zeros((24, 1, 8, 8), numpy.uint8)
    images[::2, :, ::2], images[1::2, :, :, ::2] = 200, 200
    images[:, 0, 0, 0] = numpy.arange(24)
    labels = numpy.arange(24) % 2
    return {"train": (images, labels), "test": (images[:6] + 1, labels[:6])}
"""


def test_a_data_set_of_a_users_is_one_like_any_other(written, own_cache):
    used(written(nets=DATA))
    read_by_code("stripes")
    dataset = load("stripes")
    assert (dataset.classes, dataset.sizes) == (("down", "across"), {"train": 20, "validation": 4, "test": 6})
    assert is_own("stripes")  # a node may not have it: it is kept below the root
    use(NO_CODE)
    assert load("stripes").digest == dataset.digest
    used(written(nets=DATA.replace("+ 1", "+ 2")))
    read_by_code("stripes")
    assert load("stripes").digest != dataset.digest
    pointer = next(own_cache.rglob("stripes.*json"))
    pointer.write_text(pointer.read_text().replace("by_code", "other"))
    with pytest.raises(
        InputError, match=r"nets.py:5: dataset 'stripes': takd data has converted one of that name here"
    ):
        read_by_code("stripes")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("return {", "return 3, {", "5: dataset 'stripes' gives tuple; expected train and test"),
        ('"test": (', '"tset": (', "5: dataset 'stripes' gives train, tset; expected train and test"),
        (
            "numpy.uint8",
            "numpy.float32",
            "5: dataset 'stripes': train has images float32 [24, 1, 8, 8]; expected uint8",
        ),
        ("labels[:6]", "labels[:5]", "5: dataset 'stripes': test has labels int64 [5] of 6 images; expected one whole"),
        ("% 2", "% 3", "5: dataset 'stripes': train has labels 0 to 2; classes are 0 to 1"),
        ("% 2", "* 0", "5: dataset 'stripes': no training image is of class across, which is one of 2"),
        (
            "    labels",
            "    numpy.load('no.npy'); labels",
            "10: FileNotFoundError: [Errno 2] No such file or directory",
        ),
        ('"stripes"', '"mnist"', "5: dataset 'mnist' is there already: takd's own"),
    ],
)
def test_a_data_set_that_can_not_be_used_is_one_line(written, own_cache, before, after, said):
    file = written(nets=DATA.replace(before, after, 1))

    def act() -> None:
        used(file)
        read_by_code("stripes")

    with pytest.raises(InputError) as caught:
        act()
    assert str(caught.value).removeprefix(f"{file}:").startswith(said), caught.value


def test_what_the_page_shows_can_be_used(written):
    page = (Path(__file__).parents[2] / "docs" / "own-code.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    file = written(nets=blocks[0])
    used(file)
    with pytest.raises(InputError, match=r"nets.py:9: small-N has N channels, such as small-8"):
        check_model("small", SHAPE, 10)
    used(written(nets="\n".join([*blocks, "import torch", "import numpy as np", "from pathlib import Path"])))
    expected = {"model_family": "small", "method": "square", "augmentation": "dim", "optimizer": "plain_sgd"}
    expected |= {"schedule": "linear", "metric": "balanced", "dataset": "cells"}
    assert {kind: name for kind, table in TABLES.items() for name in table if table.origins[name].digest} == expected
    assert check_model("small-8", SHAPE, 10) is not None
