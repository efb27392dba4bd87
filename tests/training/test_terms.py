"""Methods as terms of the loss: what a teacher leaves once, lanes that are as if alone, and what trains beside them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_stage, tiny_space
from torch import nn

from takd.search_spaces import (
    InputError,
    Left,
    Loss,
    Recipe,
    Stage,
    Term,
    derived_of,
    learned_by,
    names_of,
    needed_by,
)
from takd.search_spaces import Path as StudyPath
from takd.search_spaces.methods import METHODS, compared_stages
from takd.study.checks import inside_of, stages_by_model
from takd.study.loops import Seconds, faster_in_loop, images_of, measured
from takd.study.search.graph import Proposal, StageGraph
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import load, taught_on
from takd.trainables.derivation import derive
from takd.trainables.models.families import build
from takd.trainables.models.stage_models import check_takes_means, finished_module, size_of_stage
from takd.trainables.store.artifacts import WEIGHTS, ArtifactStore
from takd.trainables.training.checkpoint import Checkpoint
from takd.trainables.training.features import Frozen, check_map, embedding_in, halved, left_by, maps_in, stages_in
from takd.trainables.training.inputs import Inputs
from takd.trainables.training.lanes import Alone
from takd.trainables.training.loop import StageTraining
from takd.trainables.training.terms import Guide

MNIST = load("mnist")
SHAPE, CLASSES = MNIST.image_shape, len(MNIST.classes)
EMBEDDING = Left("embedding").name
SMALL = {"crd": {"negatives": 32.0, "width": 8.0}}
TEACHER = make_stage("mlp-16", role="teacher", dataset=MNIST.fingerprint)


def term(method: str, weight: float = 1.0, **given: Any) -> Term:
    params = {name: each.default for name, each in METHODS[method].params.items()} | SMALL.get(method, {})
    return Term(method=method, weight=weight, params=params, **given)


def student(*terms: Term, upstream: Sequence[Stage] = (TEACHER,), kd: bool = False, **given: Any) -> Stage:
    recipe = {"batch_size": 64, "epochs": 3, "learning_rate": 0.01} | given
    stage = make_stage("mlp-8", upstream=tuple(upstream), dataset=MNIST.fingerprint, **recipe)
    return stage.model_copy(
        update={"terms": terms} | ({} if kd else {"loss": None, "temperature": None, "lambda_": None})
    )


def lessons(features: int = 16, seed: int = 0) -> dict[Any, Any]:
    random = np.random.default_rng(seed)
    drawn = {"embedding": (50_000, features), "soft_targets": (50_000, CLASSES)}
    return {(what, None): [random.normal(size=shape).astype(np.float32)] for what, shape in drawn.items()}


def heads(*stages: Stage) -> list[dict[str, torch.Tensor]] | None:
    """Of the teacher of each, drawn, where students end in that."""
    torch.manual_seed(7)
    drawn = [{"weight": torch.randn(CLASSES, 16), "bias": torch.randn(CLASSES)} for _ in stages]
    return drawn if stages[0].head_of else None


def weights_of(training: StageTraining) -> list[dict[str, torch.Tensor]]:
    while not training.done:
        training.run_epoch()
    return [trained.weights for _, trained in training.finish()]


def close(one: Sequence[dict[str, torch.Tensor]], other: Sequence[dict[str, torch.Tensor]], atol: float = 2e-5) -> None:
    for left, right in zip(one, other, strict=True):
        for name, tensor in left.items():
            torch.testing.assert_close(tensor, right[name], atol=atol, rtol=1e-4)


ON_EMBEDDINGS = [name for name, facts in METHODS.items() if facts.needs == "embedding"]


@pytest.mark.parametrize("method", [*ON_EMBEDDINGS, "dist"])
def test_lanes_of_a_method_are_as_if_alone_and_go_on_from_checkpoints_when_a_neighbour_has_ended(method):
    """Of two teachers, one of which two lanes share; with what trains beside them and the banks of CRD."""
    shared, other = lessons(), lessons(seed=1)
    stages = [student(term(method, weight), seed=seed, learning_rate=0.01 / (seed + 1))
              for seed, weight in enumerate((0.1, 1.0, 2.0))]  # fmt: skip
    upstream = [[shared], [other], [shared]]
    own = heads(*stages)
    together = weights_of(StageTraining(stages, MNIST, upstream, heads=own))
    close(together[:1], weights_of(StageTraining(stages[:1], MNIST, upstream[:1], heads=own and own[:1])))
    first = StageTraining(stages, MNIST, upstream, heads=own)
    first.run_epoch()
    kept = [Checkpoint.parse(first.checkpoint(lane)) for lane in first.lanes]
    again = StageTraining(stages, MNIST, upstream, heads=own)
    again.restore(kept)
    again.run_epoch()
    again.end([again.lanes[1]])
    close([together[0], together[2]], weights_of(again))


def test_a_term_adds_its_weight_times_what_the_method_says_to_the_loss_that_is_there():
    """Beside the labels, and beside kd; over a warm-up it rises epoch by epoch."""
    taught = lessons()

    def first_loss(stage: Stage) -> float:
        training = StageTraining([stage], MNIST, [[taught]])
        return float(training.train_step(torch.arange(64), 1.0))

    alone, with_kd = (first_loss(student(term("rkd", 0.0), kd=kd)) for kd in (False, True))
    said = first_loss(student(term("rkd", 1.0))) - alone
    assert said > 1
    assert first_loss(student(term("rkd", 3.0))) - alone == pytest.approx(3 * said, rel=1e-4)
    assert first_loss(student(term("rkd", 1.0), kd=True)) - with_kd == pytest.approx(said, rel=1e-4)
    assert first_loss(student(term("rkd", 1.0, warmup=1.0))) - alone == pytest.approx(said / 3, rel=1e-4)


def test_the_weight_of_soft_targets_rises_over_a_warm_up():
    taught, form = lessons(), {"form": "additive", "divergence": "decoupled"}

    def first_loss(**loss: Any) -> float:
        stage = make_stage("mlp-8", upstream=(TEACHER,), dataset=MNIST.fingerprint, epochs=4, loss=Loss(**form, **loss))
        return float(StageTraining([stage], MNIST, [[taught]]).train_step(torch.arange(64), 1.0))

    labels = make_stage("mlp-8", dataset=MNIST.fingerprint, epochs=4)
    hard = float(StageTraining([labels], MNIST, [[]]).train_step(torch.arange(64), 1.0))
    assert first_loss(warmup=0.5) - hard == pytest.approx((first_loss() - hard) / 2, rel=1e-4)


def test_of_several_upstreams_a_method_says_the_mean_each_with_what_is_its_own():
    """As in dense arms: their embeddings have different widths, and the regressor of each is another."""
    assistant = make_stage("mlp-4", role="assistant", upstream=(TEACHER,), dataset=MNIST.fingerprint)
    stage = student(term("hint"), upstream=(TEACHER, assistant))
    training = StageTraining([stage], MNIST, [[lessons(16), lessons(4, seed=1)]])
    training.run_epoch()
    names = {
        name.removeprefix("teaching.") for name in Checkpoint.parse(training.checkpoint(training.lanes[0])).tensors
    }
    assert {"hint.0.module.weight", "hint.1.module.weight", "hint.1.optimizer.weight.exp_avg"} <= names


@pytest.mark.parametrize("model", ["mlp-8", "cnn", "resnet-8"])
def test_the_embedding_is_what_enters_the_head(model):
    found, module = embedding_in(model, SHAPE, CLASSES), build(model, SHAPE, CLASSES).eval()
    entered: list[torch.Tensor] = []
    module.get_submodule(found.head).register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    logits = module(torch.randn(3, *SHAPE))
    [linear] = [each for each in module.modules() if isinstance(each, nn.Linear) and each.out_features == CLASSES]
    torch.testing.assert_close(linear(entered[0]), logits)
    assert entered[0].shape[1] == found.features


def convolutional(method: str, models: tuple[str, str] = ("plain-2", "plain-4")) -> Stage:
    """A student of another, with all that a space fills in of layers."""
    teacher = make_stage(models[1], role="teacher", dataset=MNIST.fingerprint)
    own, theirs = compared_stages(method, *(stages_in(each, SHAPE, CLASSES) for each in models))
    layers = {"student_layers": own, "teacher_layers": theirs} if METHODS[method].needs == "maps" else {}
    recipe = {"batch_size": 16, "epochs": 1, "examples": 40, "learning_rate": 0.01, "optimizer": "sgd"}
    stage = make_stage(models[0], upstream=(teacher,), dataset=MNIST.fingerprint, **recipe)
    own_fields = {"terms": (term(method, **layers),), "loss": None, "temperature": None, "lambda_": None}
    return stage.model_copy(update=own_fields)


@pytest.mark.parametrize("method", ["rkd", "at", "fitnet"])
def test_what_is_derived_and_a_model_in_the_loop_make_the_same_student(method):
    stage = convolutional(method)
    torch.manual_seed(0)
    model = Alone([build("plain-4", SHAPE, CLASSES)]).to(memory_format=torch.channels_last)
    frozen = Frozen(model, "plain-4", MNIST)
    inputs = Inputs(MNIST, stage.recipe, torch.device("cpu"), torch.channels_last)
    derived = {}
    for kind in learned_by(stage):
        rows = left_by(model, "plain-4", MNIST, inputs.images, kind[1]).numpy()
        whole = np.zeros((50_000, *rows.shape[1:]), np.float32)  # no memory until somebody writes there
        whole[inputs.transfer_set] = rows
        derived[kind] = [whole]
    in_loop = stage.model_copy(update={"in_loop": True})
    assert in_loop.key == stage.key
    assert needed_by(in_loop) == []
    kept, looped = (
        StageTraining([each], MNIST, [[taught]])
        for each, taught in ((stage, derived), (in_loop, dict.fromkeys(derived, frozen)))
    )
    for step in range(3):
        batch = torch.arange(10 * step, 10 * step + 16) % 40
        assert float(kept.train_step(batch, 1.0)) == pytest.approx(float(looped.train_step(batch, 1.0)), rel=1e-4)
    close([kept.taught.weights(0)], [looped.taught.weights(0)], atol=1e-4)


@pytest.mark.parametrize("method", ["simkd", "simkd_linear"])
def test_a_student_of_simkd_learns_by_the_regression_alone_and_ends_in_its_teachers_head(method):
    """Which stands still; body and projector are trained, and with the head they are what is kept and measured."""
    stage = convolutional(method, ("resnet-8", "resnet-8"))
    torch.manual_seed(0)
    teacher = build("resnet-8", SHAPE, CLASSES)
    head = {name: each.detach() for name, each in teacher.fc.named_parameters()}
    layer = "layer3" if METHODS[method].needs == "maps" else None
    lanes = Alone([teacher]).to(memory_format=torch.channels_last)
    inputs = Inputs(MNIST, stage.recipe, torch.device("cpu"), torch.channels_last)
    rows = left_by(lanes, "resnet-8", MNIST, inputs.images, layer).numpy()
    whole = np.zeros((50_000, *rows.shape[1:]), np.float32)
    whole[inputs.transfer_set] = rows
    training = StageTraining([stage], MNIST, [[{kind: [whole] for kind in learned_by(stage)}]], heads=[head])
    module = training.taught.model.layers
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    batch = torch.arange(16)
    with torch.no_grad():  # what it says is its own; batch normalisation is as in training
        entered: list[torch.Tensor] = []
        place = module.get_submodule("layer3" if layer else "fc.projector")
        hook = place.register_forward_hook(lambda _, __, result: entered.append(result.clone()))
        logits = module(inputs.images[batch])
        hook.remove()
    said = float(training.train_step(batch, 1.0))
    taught = torch.from_numpy(rows[:16])
    assert said == pytest.approx(float((entered[0] - taught).square().mean()), rel=1e-4)
    pooled = entered[0].mean(dim=(2, 3)) if layer else entered[0]
    torch.testing.assert_close(logits, pooled @ head["weight"].T + head["bias"], atol=1e-4, rtol=1e-4)
    moved = {name for name, each in module.named_parameters() if not torch.equal(each, before[name])}
    assert moved == set(before) - {"fc.head.weight", "fc.head.bias"}
    assert any("projector" in name for name in moved)
    finished = finished_module(stage, MNIST, training.taught.weights(0)).eval()
    torch.testing.assert_close(finished.fc.head.weight, head["weight"])
    parameters = sum(each.numel() for each in finished.parameters())
    assert size_of_stage(stage, MNIST).parameters == parameters
    assert parameters > size_of_stage(stage.model_copy(update={"terms": None, "upstream": ()}), MNIST).parameters


def test_a_head_that_takes_no_means_over_places_is_nobody_elses():
    check_takes_means("resnet-8", SHAPE, CLASSES, "layer3")
    with pytest.raises(InputError, match=r"the head of plain-4 does not take the means .*; take simkd_linear"):
        check_takes_means("plain-4", SHAPE, CLASSES, stages_in("plain-4", SHAPE, CLASSES)[-1])


def test_in_float16_embeddings_take_half_the_room_under_keys_of_their_own_and_are_rounded_in_the_loop_too(tmp_path):
    """Numbers that float16 has not are the largest that it has."""
    whole = student(term("rkd"), kd=True)
    half = whole.model_copy(update={"features": "float16"})
    assert half.key != whole.key
    assert needed_by(half)[0] is needed_by(whole)[0] is None  # logits stay as they are
    names = [needed_by(each)[1] for each in (whole, half)]
    assert [Left.parse(name).dtype for name in names] == [None, "float16"]
    assert [Left.parse(name).name for name in names] == names
    kept = [derived_of(TEACHER, "w", name) for name in names]
    assert kept[0].key != kept[1].key
    store = ArtifactStore(str(tmp_path))
    store.prepare()
    values = np.array([[1.0001, 2.0], [3.0, 7e4]], np.float32)
    rounded = halved(torch.from_numpy(values)).numpy()
    for each, said in zip(kept, (values, rounded), strict=True):
        store.derived.publish(each, "s", said, {})
    found = [store.derived.read(each.key) for each in kept]
    assert [each.dtype for each in found] == [np.float32, np.float16]
    np.testing.assert_array_equal(found[1], [[1.0, 2.0], [3.0, 65504.0]])

    class Says(Frozen):
        def __init__(self) -> None: ...

    source = Says()
    inputs = Inputs(MNIST, Recipe(examples=2), torch.device("cpu"), torch.contiguous_format)
    derived = Guide([[np.repeat(rounded, 25_000, axis=0)]], in_half=True)
    derived.show(0, inputs)
    in_loop = Guide([source], in_half=True)
    batch = torch.arange(2)
    said = {id(source): {None: torch.from_numpy(values)[(inputs.transfer_set >= 25_000).long()]}}
    pair = [each.of(batch, said)[0] for each in (derived, in_loop)]
    assert {each.dtype for each in pair} == {torch.float32}
    torch.testing.assert_close(pair[0], pair[1], atol=0, rtol=0)


def test_a_models_stages_are_its_layers_of_one_size_of_maps_each_by_its_last_layer():
    assert stages_in("resnet-20", SHAPE, CLASSES) == ["layer1", "layer2", "layer3"]
    assert stages_in("torchvision/mobilenet_v2", (3, 64, 64), 10)[:3] == ["features.1", "features.3", "features.6"]
    assert maps_in("resnet-20", SHAPE, CLASSES)["layer2"] == (32, 14, 14)
    assert maps_in("mlp-8", SHAPE, CLASSES) == {}
    with pytest.raises(InputError, match=r"resnet-20 has no maps of a layer 'layr2'; did you mean 'layer2'\?"):
        check_map("resnet-20", SHAPE, CLASSES, "layr2")


def test_rows_that_nobody_changes_stay_in_the_file_that_they_are_mapped_from(tmp_path):
    """Of the whole training set: no worker has a copy of its own; of a part it has these rows."""
    file = tmp_path / "rows.npy"
    np.save(file, np.zeros((50_000, 3), np.float32))
    mapped = np.load(file, mmap_mode="r")
    for examples, where in ((None, mapped.__array_interface__["data"][0]), (100, None)):
        inputs = Inputs(MNIST, Recipe(examples=examples), torch.device("cpu"), torch.contiguous_format)
        guide = Guide([[mapped]])
        guide.show(0, inputs)
        assert len(guide.tensors[0]) == len(inputs.labels)
        assert where is None or guide.tensors[0].data_ptr() == where


def trained(stages: Sequence[Stage], store: ArtifactStore) -> None:
    """In this process, as a worker does it."""
    batch = StageBatch(stages, store, 1, False, {each.key: {"study": "s", "use": "0.0"} for each in stages})
    while not batch.done:
        batch.run_epoch()
    batch.publish()


def test_what_students_learn_is_derived_once_by_the_graph_and_shared(tmp_path: Path):
    """The whole path without Ray: a teacher, its embedding as one thing in the store, and lanes that learn from it."""
    store = ArtifactStore(str(tmp_path))
    store.prepare()
    teacher = make_stage("mlp-16", role="teacher", dataset=MNIST.fingerprint, epochs=1)
    pupils = [student(term("rkd"), upstream=[teacher], seed=seed, kd=seed == 2, epochs=1) for seed in range(3)]
    graph = graph_of(store, *pupils)
    assert work(graph) == [("train", teacher.name)]
    trained([teacher], store)
    graph.finish(teacher.key)
    assert work(graph) == [("derive", teacher.name)]
    assert needed_by(pupils[2]) == [None, EMBEDDING]
    assert store.lacking(teacher, store.describe(teacher.key) or {}, needed_by(pupils[2])) == [EMBEDDING]
    derive(teacher, [EMBEDDING], store, 1, {})
    graph.finish(teacher.key, frozenset({EMBEDDING}))
    assert [kind for kind, _ in work(graph)] == ["train"] * 3
    trained(pupils[:2], store)
    trained(pupils[2:], store)
    assert len(store.storage.names("derived")) == 2  # soft targets and embedding
    [found] = store.left(teacher, [EMBEDDING])
    assert found.shape == (50_000, 16)
    assert not found.flags.owndata
    module = build("mlp-16", SHAPE, CLASSES)
    module.load_state_dict(safetensors.torch.load(store.read(teacher.key, WEIGHTS)))
    pixels = MNIST.train.images[:5].float()
    scale, shift = MNIST.normalization.of_bytes()
    hidden = module[:-1](pixels * scale + shift)
    torch.testing.assert_close(torch.from_numpy(found[:5].copy()), hidden, atol=1e-5, rtol=1e-4)


def test_a_student_of_other_images_learns_from_its_teacher_alone(tmp_path: Path):
    """Labels of these images change nothing; what the teacher says of them is derived for them."""
    store = ArtifactStore(str(tmp_path))
    store.prepare()
    teacher = make_stage("mlp-16", role="teacher", dataset=MNIST.fingerprint, epochs=1)
    pupil = student(term("rkd"), upstream=[teacher], kd=True, epochs=1).model_copy(
        update={"transfer": MNIST.fingerprint, "lambda_": 1.0}
    )
    assert pupil.key != pupil.model_copy(update={"transfer": None}).key
    trained([teacher], store)
    wanted = needed_by(pupil)
    assert store.lacking(teacher, store.describe(teacher.key) or {}, wanted) == [wanted[1]]  # its own images are these
    derive(teacher, wanted, store, 1, {})
    taught = {kind: store.left(teacher, names_of(pupil, *kind)) for kind in learned_by(pupil)}
    known = StageTraining([pupil], MNIST, [[taught]])
    relabelled = taught_on(MNIST, MNIST)
    images = MNIST.train.images
    relabelled.__dict__["train"] = replace(MNIST.train, labels=torch.zeros(len(images), dtype=torch.int64))
    other = StageTraining([pupil], relabelled, [[taught]])
    assert len(known.inputs.labels) == pupil.recipe.examples
    for batch in (torch.arange(64), torch.arange(64, 128)):
        assert float(known.train_step(batch, 1.0)) == float(other.train_step(batch, 1.0))


def test_a_student_of_other_images_and_its_own_learns_from_both_under_another_key(tmp_path: Path):
    """Its own come first; what a teacher says of both is derived as one thing, in each view."""
    own, other = load("mnist"), load("mnist")
    both = taught_on(own, other, with_own=True)
    assert (both.sizes["train"], len(both.train.labels)) == (100_000, 100_000)
    pupil = student(term("rkd"), kd=True).model_copy(update={"transfer": MNIST.fingerprint, "lambda_": 1.0})
    with_own = pupil.model_copy(update={"with_own": True})
    assert with_own.key != pupil.key
    assert with_own.shape != pupil.shape
    assert with_own.model_copy(update={"recipe": Recipe()}).images == 100_000
    names = [*needed_by(pupil), *needed_by(with_own)]
    assert [Left.parse(name).with_own for name in names] == [False, False, True, True]
    assert [Left.parse(name).name for name in names] == names
    keys = {derived_of(TEACHER, "w", name).key for name in names}
    assert len(keys) == 4
    store = ArtifactStore(str(tmp_path))
    store.prepare()
    teacher = make_stage("mlp-4", role="teacher", dataset=MNIST.fingerprint, epochs=1)
    trained([teacher], store)
    derive(teacher, needed_by(with_own)[:1], store, 1, {})
    [found] = store.left(teacher, needed_by(with_own)[:1])
    assert found.shape == (100_000, CLASSES)
    np.testing.assert_allclose(found[:50_000], found[50_000:], atol=1e-4)


def graph_of(store: ArtifactStore, *students: Stage) -> StageGraph:
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", tuple(StudyPath(arm="rkd", student=each) for each in students)))
    return graph


def work(graph: StageGraph) -> list[tuple[str, str]]:
    """What is ready, taken as workers do."""
    found = []
    while group := next(graph.groups(), None):
        for node in graph.take(group, 100):
            graph.start(node.stage.key)
            found.append((node.work, node.stage.name))
    return found


def test_a_model_runs_in_the_loop_where_that_was_measured_to_be_faster_once_a_study_and_its_students_keep_their_keys():
    assert Seconds(say=1.0, write=1.0, read=0.5).faster_in_loop(derived=100, seen=100)
    assert not Seconds(say=1.0, write=1.0, read=0.5).faster_in_loop(derived=100, seen=1000)
    stage = convolutional("at")
    found = measured(stage, stage.upstream[0], MNIST, torch.device("cpu"))
    assert min(found.say, found.write, found.read) > 0
    space = tiny_space(
        arms=["at", "kd"],
        teacher__model="plain-4",
        student__model="plain-2",
        confirm={"paths": 2, "seeds": 3},
        trials=4,
        seeds=2,
        methods={"at": {"weight": 1}},
    )
    space = space.model_copy(update={"inside": inside_of(space, MNIST)})
    [own] = [each for alike in stages_by_model(space, MNIST) for each in alike if each.terms]
    # Three teachers; 2 configurations of 2 students and 6 that confirm, of 3 epochs on 200 images.
    assert images_of(space, own) == (3 * 50_000, 10 * 3 * 200)
    looped = space.model_copy(update={"loops": (own.loop,)})
    [again] = [each for alike in stages_by_model(looped, MNIST) for each in alike if each.terms]
    assert (own.in_loop, again.in_loop, own.loop) == (None, True, "plain-2 by at <- plain-4")
    assert own.key == again.key
    assert looped.identity() == space.identity()
    lanes = (alike for alike in [[student(term("rkd"))]])
    assert faster_in_loop(space, lanes, MNIST, 0.0) == ()  # one reading serves them all
