"""What holds on a GPU, shown without one: torch's fake tensors say where each would lie, and which step would wait."""

import contextlib
import gc
import importlib.util
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import make_stage, run, tiny_space
from test_lanes import reports, stages, states, worker
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from takd.search_spaces import MIXING, InputError, Loss
from takd.search_spaces.methods import METHODS, SOFTENED
from takd.study.checks import check_space
from takd.study.folder import study_folder
from takd.trainables import batch as batches
from takd.trainables import derivation
from takd.trainables.datasets.dataset import load
from takd.trainables.models import dropout
from takd.trainables.models.families import FAMILIES
from takd.trainables.models.transfer import Head
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.training import devices, inputs, teaching
from takd.trainables.training.devices import device_of, room_left
from takd.trainables.training.inputs import Pixels, evaluation_batch, predict
from takd.trainables.training.lanes import OPTIMIZERS, EpochMetrics
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.losses import DIVERGENCES, FORMS, distillation, labels_only, soften
from takd.trainables.training.optimizers import RULES
from takd.trainables.training.views import AUGMENTATIONS

MNIST = load("mnist")
GPU = torch.device("cuda", 0)
OTHER = torch.device("lazy", 0)  # stands for a GPU where there is a backward pass: for CUDA autograd wants a real one
ROOM = 1e9


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """`benchmarks/gpu.py`, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("gpu", Path(__file__).parents[2] / "benchmarks/gpu.py")
    assert spec
    assert spec.loader
    sys.modules["gpu"] = module = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors have a device, a shape and a size, and nothing in them: whoever asks for a number gets an error."""
    monkeypatch.setattr(inputs, "room_on", lambda device: ROOM)
    monkeypatch.setattr(dropout, "_generator", lambda device, seed: torch.Generator())
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class Held(TorchDispatchMode):
    """Bytes of the tensors that live on a device, of those made while it watches, and the most there were."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.now, self.most = device, 0, 0
        self.storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if any(known() is storage for known in self.storages.values()):
            return
        size, key = storage.nbytes(), id(storage)

        def gone(_: object) -> None:
            self.storages.pop(key, None)
            self.now -= size

        self.storages[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


class NoCopies(TorchDispatchMode):
    """Refuses what takes a tensor from one device to another, or a list of numbers to one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten._fused_sgd_:
            return None  # one kernel, which fake tensors don't know
        made = func(*args, **(kwargs or {}))
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if copies and len({each.device.type for each in tree_leaves((args, made)) if isinstance(each, Tensor)}) > 1:
            raise AssertionError(f"{func} goes from device to device")
        return made


def moved(thing: Any, device: torch.device, known: dict[int, tuple[Any, Any]]) -> Any:
    """The same objects with fake tensors of a device in the place of all tensors of the CPU."""
    if id(thing) in known:
        return known[id(thing)][1]
    if isinstance(thing, Tensor):
        there = torch.empty_like(thing, device=device, requires_grad=False)
        made = nn.Parameter(there, thing.requires_grad) if isinstance(thing, nn.Parameter) else there
    elif isinstance(thing, torch.device):
        made = device
    elif isinstance(thing, dict):
        kind = OrderedDict if isinstance(thing, OrderedDict) else dict  # of hooks, which are referred to weakly
        made = kind((moved(key, device, known), moved(value, device, known)) for key, value in thing.items())
    elif type(thing) in (list, tuple):
        made = type(thing)(moved(each, device, known) for each in thing)
    else:
        made = thing
        known[id(thing)] = (thing, made)
        own = type(thing).__module__.startswith("takd.trainables.training") and hasattr(thing, "__dict__")
        if isinstance(thing, nn.Module) or own:
            for name, value in list(vars(thing).items()):
                vars(thing)[name] = moved(value, device, known)
    known[id(thing)] = (thing, made)  # the thing too, so that its place in memory stays its own
    return made


def test_a_worker_trains_on_what_it_was_given_whatever_it_sees(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert [device_of(gpus).type for gpus in (0.0, 0.25, 1.0)] == ["cpu", "cuda", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (device_of(0.0).type, caplog.text) == ("cpu", "")
    assert device_of(0.5).type == "cpu"
    assert "0.5 GPUs are given to a worker on a node where torch" in caplog.text


def test_a_worker_without_gpus_leaves_the_one_it_sees_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    of = stages(2, epochs=1)
    assert states(reports(worker(tmp_path, of))[-1]["stages"]) == {stage.key: "done" for stage in of}


@pytest.mark.parametrize(
    ("share", "free", "cached", "held", "room"),
    [(20, 80, 0, 0, 18), (20, 80, 7, 5, 13.5), (40, 10, 2, 1, 9.9), (20, 80, 30, 25, 0), (20, 0, 0, 0, 0)],
    ids=["a share", "what it holds is not free", "others took more", "more than its share", "others took all"],
)
def test_a_worker_counts_on_its_share_and_on_no_more_than_there_is(share, free, cached, held, room):
    assert room_left(share, free, cached, held) == pytest.approx(room)


def test_evaluation_takes_as_many_images_as_the_device_has_room_for():
    assert evaluation_batch((3, 224, 224)) == 4
    assert evaluation_batch((3, 224, 224), room=40e9) == 398
    assert evaluation_batch((3, 32, 32), room=40e9) == 4000
    assert evaluation_batch((3, 224, 224), room=0) == 1


class Small(nn.Module):
    """A model for which the device has room for so many images at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.seen, self.tf32 = room, list[int](), set[bool]()

    def forward(self, images: Tensor) -> Tensor:
        self.tf32.add(torch.backends.cudnn.allow_tf32)
        if len(images) > self.room:
            raise torch.OutOfMemoryError("made up")
        self.seen.append(len(images))
        return images.flatten(1).sum(dim=1).expand(1, 2, -1)


def test_evaluation_halves_a_batch_that_has_no_room_and_computes_in_float32():
    pixels = Pixels(MNIST.validation.images[:300], MNIST, torch.device("cpu"), torch.contiguous_format)
    wide, narrow = Small(10_000), Small(100)
    found = predict(wide, pixels)  # type: ignore[arg-type]
    assert torch.equal(predict(narrow, pixels), found)  # type: ignore[arg-type]
    assert (wide.seen, narrow.seen) == ([128, 128, 44], [64, 64, 64, 64, 44])
    assert (wide.tf32, torch.backends.cudnn.allow_tf32) == ({False}, True)
    with pytest.raises(torch.OutOfMemoryError):
        predict(Small(0), pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_a_step_computes_in_tf32_only_where_the_recipe_says_so(precision, allowed, monkeypatch):
    [one] = stages(1, precision=precision)
    training, seen = StageTraining([one], MNIST, [[]]), []
    losses = training.teaching.losses
    monkeypatch.setattr(
        training.teaching, "losses", lambda *given: (seen.append(torch.backends.cudnn.allow_tf32), losses(*given))[1]
    )
    training.run_epoch()
    assert set(seen) == {allowed}
    assert torch.backends.cudnn.allow_tf32


def test_what_goes_into_the_head_is_in_memory_once():
    pixels = Pixels(MNIST.validation.images, MNIST, torch.device("cpu"), torch.contiguous_format)
    module = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    with Held("cpu") as held:
        features = inputs._features(module, Head(("1",), whole=True), pixels, contextlib.nullcontext())
    torch.testing.assert_close(features[-1], pixels[slice(9999, None)].flatten())
    assert features.nbytes < held.most < 1.7 * features.nbytes  # with a few batches of a tenth, and the bytes


def test_soft_targets_take_no_second_copy_of_the_images(fake_gpu):
    one = make_stage("mlp-8", role="teacher", dataset=MNIST.fingerprint, examples=None, epochs=1)
    with torch.utils._python_dispatch._disable_current_modes():
        training = StageTraining([one], MNIST, [[]])
    training.lanes[0].epochs.append(EpochMetrics(1, 0.1, 1.0, 1.0, 0.5, 1.0, 1.0))
    with Held("cuda") as held:
        training = moved(training, GPU, {})
        images, before = MNIST.train.images.nbytes, held.now
        assert before > images  # they are there for training
        held.most = before
        [(_, trained)] = training.finish()
    assert trained.soft_targets is not None
    assert trained.soft_targets.shape == (1, 50_000, 10)
    assert before < held.most < before + images / 4


VARIANTS = (
    "mlp, lanes, dropout", "rates by lane, adam", "rates by lane, adamw", "sgd, smoothing, weights", "additive, mean",
    "decoupled", "standardised", "ensemble", "dropped guides", "cnn, crop-flip", "plain, flip-rotate", "resnet, tf32",
    "torchvision", "crops, colours", "operations", "mixup", "cutmix, averaged", "clipped, in parts", *RULES,
    *(name for name in METHODS if name not in SOFTENED), "wide", "vgg", "shuffled",
)  # fmt: skip


def test_steps_are_tried_of_every_family_loss_method_augmentation_and_optimizer(benchmark):
    assert set(VARIANTS) == set(benchmark.VARIANTS)
    kinds = list(benchmark.VARIANTS.values())
    losses = [given["loss"] for _, _, given in kinds if "loss" in given] + [Loss()]
    assert {model.partition("-")[0].partition("/")[0] for model, _, _ in kinds} == set(FAMILIES) - {"timm"}
    assert {loss.form for loss in losses} == set(FORMS)
    assert {loss.divergence for loss in losses} == {
        None,
        *(name for name, kind in DIVERGENCES.items() if kind.is_divergence),
    }
    augments = {part for _, _, given in kinds for part in given.get("augment", "").split("+")}
    assert augments == {"", *AUGMENTATIONS, *MIXING} - {"stain-jitter"}  # which is of colours, and the images are grey
    assert {given.get("optimizer", "adam") for _, _, given in kinds} == set(OPTIMIZERS)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_step_waits_for_the_device_or_copies_to_it(name, benchmark, fake_gpu):
    with torch.utils._python_dispatch._disable_current_modes():
        training = benchmark.begun(benchmark.variant(name, MNIST, torch.device("cpu")))
    training = moved(training, OTHER, {})
    training.inputs.device = torch.device("cpu")  # of autocast alone, in a step
    batch = torch.empty(32, dtype=torch.int64, device=OTHER)
    with NoCopies():
        losses = training.train_step(batch, 0.5, 0)
        training.train_step(batch, 0.5, 1)
    assert losses.device == OTHER


def test_a_step_that_waits_or_copies_would_be_noticed(fake_gpu):
    there = torch.ones(3, device=OTHER)
    waits = (there.sum().item, there.nonzero, lambda: there[there > 0], lambda: float(there.max()))
    for wait in waits:
        with pytest.raises(Exception, match=r"item|_local_scalar_dense|nonzero|dynamic|data.dependent"):
            wait()
    for copy in (lambda: torch.tensor([0.1, 0.2], device=OTHER), lambda: torch.ones(3).to(OTHER), there.cpu):
        with NoCopies(), pytest.raises(AssertionError, match="from device to device"):
            copy()


def test_a_head_that_starts_at_zero_gets_no_huge_gradient_from_standardised_logits():
    student = torch.zeros(1, 10, 8, requires_grad=True)
    labels, loss = torch.arange(8), Loss(standardize=True)
    upstream = torch.randn(1, 8, 10, generator=torch.Generator().manual_seed(0)) * 5
    soft = soften(upstream, 4.0, loss)
    targets = type(soft)(soft.probabilities.permute(1, 2, 0)[None], soft.negative_entropy.t()[None])
    hard = labels_only(student, labels)
    distillation(hard, student, labels, targets, torch.tensor([4.0]), torch.tensor([0.7]), loss).sum().backward()
    assert student.grad is not None
    assert 0 < float(student.grad.abs().max()) < 50


def test_standardised_logits_of_two_classes_are_refused(monkeypatch):
    two = dict(vars(MNIST)) | {"classes": ("no", "yes")}
    monkeypatch.setattr("takd.study.checks.load", lambda name: type(MNIST)(**{
        field: two[field] for field in type(MNIST).__dataclass_fields__
    }))  # fmt: skip
    with pytest.raises(InputError, match=r"loss.standardize is true; of two classes, as mnist has, standardised"):
        check_space(tiny_space(loss={"standardize": True}), "two.yaml")


class Counted(StageTraining):
    """Notes which trainings live when one is made, and finds no room for more lanes than `lanes` in an epoch."""

    made: list["weakref.ref[Counted]"]
    lanes_that_fit, fits_until = 64, 0

    def __init__(self, *given: Any) -> None:
        assert [each for each in self.made if each() is not None] == [], "the one before has gone"
        self.made.append(weakref.ref(self))
        super().__init__(*given)

    def run_epoch(self) -> None:
        if len(self.running) > self.lanes_that_fit and self.epoch >= self.fits_until:
            raise torch.OutOfMemoryError("made up")
        super().run_epoch()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Counted]]:
    """Without the collector of garbage: what refers to itself holds a device's memory until it runs."""

    class Own(Counted):
        made: list[Any] = []  # noqa: RUF012

    monkeypatch.setattr(batches, "StageTraining", Own)
    gc.disable()
    yield Own
    gc.enable()


def test_a_worker_lets_go_of_one_list_before_it_begins_the_next(tmp_path, counted):
    trainable = worker(tmp_path, stages(2, epochs=1))
    reports(trainable)
    for of in (stages(1, "mlp-4", epochs=1), stages(8, "mlp-6", epochs=1)):
        given = worker(tmp_path, of).given
        trainable.assign(given | {"measure_width": True})
        told = [state for report in reports(trainable) for state in report["stages"]]
        assert {each["state"] for each in told} <= {"done", "returned", "running"}
    assert len(counted.made) > 4  # widths were measured too


def test_out_of_memory_halves_the_lanes_which_go_on_from_their_checkpoints(tmp_path, counted):
    counted.lanes_that_fit, counted.fits_until = 2, 1
    of = stages(8, epochs=3)
    told = reports(worker(tmp_path, of))
    ended = {
        state["key"]: state["state"] for report in told for state in report["stages"] if state["state"] != "running"
    }
    assert [ended[stage.key] for stage in of] == ["done"] * 2 + ["returned"] * 6
    assert {report["width"] for report in told} >= {2}
    epochs = [
        each["epoch"]
        for report in told
        for state in report["stages"]
        if state["key"] == of[0].key
        for each in state["epochs"]
    ]
    assert epochs == [1, 2, 3]
    assert all(ArtifactStore(str(tmp_path)).load_checkpoint(stage.key) for stage in of[2:])


def test_a_stage_that_has_no_room_alone_says_what_would_fit(tmp_path, counted):
    counted.lanes_that_fit = 0
    [one] = stages(1, batch_size=64)
    [report] = reports(worker(tmp_path, [one]))
    [state] = report["stages"]
    assert (state["state"], report["idle"]) == ("no memory", True)
    assert state["reason"] == (
        "mlp-8 with batch_size 64 has no room in the memory that a worker with gpu 0 has; "
        "try student.recipe.batch_size: 32"
    )


def test_what_is_derived_from_a_model_without_room_says_what_would_fit(tmp_path, monkeypatch):
    """In one report: a worker that died of it would be retried."""
    [one] = stages(1, role="teacher", epochs=1)
    reports(worker(tmp_path, [one]))
    trainable = worker(tmp_path, [one])
    trainable.assign(trainable.given | {"work": "derive", "views": {one.key: ["crop-flip 1"]}})
    trainable.gpus = 0.25

    def no_memory(*given: Any) -> None:
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(derivation, "predict", no_memory)
    monkeypatch.setattr(teaching, "predict", no_memory)
    [report] = reports(trainable)
    [state] = report["stages"]
    assert (state["state"], report["idle"]) == ("no memory", True)
    assert state["reason"] == (
        "mlp-8 beside one image has no room in the memory that a worker with gpu 0.25 has; "
        "try resources.teacher.gpu: 0.5"
    )


def test_deterministic_fixes_what_a_gpu_may_choose(monkeypatch):
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        devices.fix_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def test_the_benchmark_runs_in_its_small_form_without_a_gpu(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "PARTS", benchmark.PARTS | {"broken": (lambda bench: 1 / 0, 5)})
    parts = ["device", "finish", "float32", "lanes", "broken", "tune"]
    assert benchmark.main(["--out", str(tmp_path / "gpu.md"), "--parts", *parts]) == 1
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# On a GPU\n")
    assert "**The small form" in page
    assert "| a worker with gpu 0 trains on what it was given |" in page
    assert "| `broken` runs to its end | ZeroDivisionError: ['division by zero'] | **NO** |" in page
    assert page.count("**NO**") == 1
    assert "## Students of MNIST" in page


@pytest.mark.usefixtures("ray_slots")
def test_a_student_without_room_fails_at_once_and_the_next_run_tries_it_again(tmp_path, monkeypatch):
    folder = study_folder(str(tmp_path), "tiny")
    space = tiny_space(arms=["labels"], trials=1, coverage=1, seeds=1, confirm=None, max_failures=3)
    with monkeypatch.context() as full:

        def no_room(training: StageTraining) -> None:
            tried.append(training)
            raise torch.OutOfMemoryError("made up")

        tried: list[Any] = []
        full.setattr(StageTraining, "run_epoch", no_room)
        rows = pd.read_parquet(run(folder, space).folder.trials)
    assert len(tried) == 1
    assert (list(rows["status"]), rows["error"].str.contains("has no room in the memory").all()) == (["failed"], True)
    rows = pd.read_parquet(run(folder, space).folder.trials)
    assert "done" in set(rows["status"])
