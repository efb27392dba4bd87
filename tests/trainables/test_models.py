"""Model families: what exists, and sizes that are computed."""

import pytest
import torch
from torch import nn

from takd.search_spaces import InputError
from takd.trainables.models.dropout import Dropout, StochasticDepth
from takd.trainables.models.families import FAMILIES, build, check_model, family_of, parameters_of, size_of
from takd.trainables.models.libraries import timm_models, torchvision_models
from takd.trainables.models.stage_models import check_takes_means
from takd.trainables.training.features import stages_in

MNIST = (1, 28, 28)
CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    "model", ["mlp-8", "mlp-1200", "cnn", "plain-2", "plain-6", "plain-10", "resnet-8", "torchvision/mobilenet_v2"]
)
@pytest.mark.parametrize("shape", [MNIST, (3, 32, 32)])
def test_a_model_maps_images_to_logits(model, shape):
    assert build(model, shape, 10).eval()(torch.rand(4, *shape)).shape == (4, 10)


def test_an_mlp_has_two_hidden_layers_of_its_size():
    layers = [module for module in build("mlp-30", MNIST, 10) if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(784, 30), (30, 30), (30, 10)]


def test_the_cnn_has_two_convolutions_and_pools_of_stride_1_and_2():
    names = [type(module).__name__ for module in build("cnn", MNIST, 10)]
    assert " ".join(names) == "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Dropout Flatten Linear ReLU Dropout Linear"
    pools = [module for module in build("cnn", MNIST, 10) if isinstance(module, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride) for pool in pools] == [(2, 1), (2, 2)]


def test_parameters_and_flops_are_those_of_the_layers():
    size = size_of("mlp-30", MNIST, 10)
    assert size.parameters == 784 * 30 + 30 + 30 * 30 + 30 + 30 * 10 + 10
    assert size.flops == 2 * (784 * 30 + 30 * 30 + 30 * 10)
    convolutions = 2 * (26 * 26 * 32 * 9 + 23 * 23 * 64 * 32 * 9)
    assert size_of("cnn", MNIST, 10).flops == convolutions + 2 * (11 * 11 * 64 * 128 + 128 * 10)


def test_dropout_is_the_familys_unless_the_recipe_says_otherwise():
    def probabilities(*given: float) -> list[float]:
        return [1 - module.keep for module in build(*model, *given) if isinstance(module, Dropout)]

    model = ("cnn", MNIST, 10)
    assert probabilities() == [0.5, 0.5]
    assert probabilities(0.1) == pytest.approx([0.1, 0.1])
    model = ("mlp-8", MNIST, 10)
    assert probabilities() == []
    assert probabilities(0.5) == [0.5, 0.5]


@pytest.mark.parametrize(
    "model", ["mlp", "mlp-", "mlp-0", "mlp-x", "mlp-8-8", "cnn-3", "resnet-18", "plain-3", "mlp/8", ""]
)
def test_an_unknown_family_or_size_is_told_what_exists(model):
    with pytest.raises(InputError, match="does not exist; valid: ") as caught:
        family_of(model)
    assert all(family.sizes in str(caught.value) for family in FAMILIES.values())


def test_dropout_keeps_as_many_as_it_says_and_the_same_for_the_same_seed():
    layer = Dropout(0.3)
    ones = torch.ones(4, 64, 50, 50).contiguous(memory_format=torch.channels_last)
    layer.seed([(7, 0)])
    first = layer(ones)
    assert (first != 0).float().mean().item() == pytest.approx(0.7, abs=0.005)
    assert first.max().item() == pytest.approx(1 / 0.7)
    assert not torch.equal(first, layer(ones))  # the next batch
    layer.seed([(7, 0)])
    assert torch.equal(first, layer(ones))
    layer.seed([(8, 0)])
    assert not torch.equal(first, layer(ones))
    assert torch.equal(layer.eval()(ones), ones)


def layers_of(model: str, shape: tuple[int, int, int], classes: int) -> str:
    """`16 M FC10`: convolutions by their channels, max-pools, and fully connected layers."""
    words = []
    for layer in build(model, shape, classes).modules():
        match layer:
            case nn.Conv2d():
                assert (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), (1, 1), (1, 1))
                words.append(str(layer.out_channels))
            case nn.MaxPool2d():
                words.append("M")
            case nn.Linear():
                words.append(f"FC{layer.out_features}")
    return " ".join(words)


@pytest.mark.parametrize(
    ("model", "cifar_10", "cifar_100"),
    [
        ("plain-2", "16 M 16 M FC10", "32 M 32 M FC100"),
        ("plain-4", "16 16 M 32 32 M FC10", "32 32 M 64 64 M FC100"),
        ("plain-6", "16 16 M 32 32 M 64 64 M FC10", "32 32 M 64 64 M 128 128 FC100"),
        ("plain-8", "16 16 M 32 32 M 64 64 M 128 128 M FC64 FC10", "32 32 M 64 64 M 128 128 M 256 256 M FC64 FC100"),
        (
            "plain-10",
            "32 32 M 64 64 M 128 128 M 256 256 256 256 M FC128 FC10",
            "32 32 M 64 64 M 128 128 M 256 256 256 256 M FC512 FC100",
        ),
    ],
)
def test_plain_networks_have_the_papers_layers(model, cifar_10, cifar_100):
    assert layers_of(model, CIFAR, 10) == cifar_10
    assert layers_of(model, CIFAR, 100) == cifar_100
    assert layers_of(model, MNIST, 10) == cifar_10


def test_every_convolution_of_a_plain_network_is_normalised():
    names = [type(layer).__name__ for layer in build("plain-2", CIFAR, 10)]
    assert " ".join(names) == " ".join(["Conv2d BatchNorm2d ReLU MaxPool2d"] * 2) + " Flatten Linear"
    assert parameters_of("plain-2", CIFAR, 10) == (27 + 3) * 16 + (144 + 3) * 16 + (8 * 8 * 16 + 1) * 10


@pytest.mark.parametrize(
    ("depth", "millions"),
    [(8, 0.08), (14, 0.18), (20, 0.27), (26, 0.37), (32, 0.47), (44, 0.66), (56, 0.86), (110, 1.73)],
)
def test_resnets_have_the_depth_and_the_parameters_of_the_paper(depth, millions):
    module = build(f"resnet-{depth}", CIFAR, 10)
    weighted = [name for name, each in module.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    assert len([name for name in weighted if "shortcut" not in name]) == depth
    assert parameters_of(f"resnet-{depth}", CIFAR, 10) == pytest.approx(millions * 1e6, abs=6e3)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("wrn-40-2", 2.255),
        ("wrn-16-2", 0.703),
        ("resnet-8x4", 1.233),
        ("resnet-32x4", 7.433),
        ("vgg-8", 3.965),
        ("vgg-13", 9.462),
        ("shufflenet-v1", 0.949),
    ],
)
def test_networks_that_papers_on_methods_compare_have_the_published_number_of_parameters(model, millions):
    """Of CIFAR-100; and they take other images, down to a stage whose maps end in their head."""
    assert parameters_of(model, CIFAR, 100) == pytest.approx(millions * 1e6, abs=1e3)
    assert build(model, MNIST, 10).eval()(torch.rand(2, *MNIST)).shape == (2, 10)
    last = stages_in(model, CIFAR, 100)[-1]
    check_takes_means(model, CIFAR, 100, last)


@pytest.mark.parametrize("model", ["wrn-40", "wrn-41-2", "wrn-40-0", "resnet-8x2", "resnet-9x4", "vgg-9", "shufflenet"])
def test_a_size_that_no_paper_has_is_told_those_that_there_are(model):
    with pytest.raises(InputError, match="does not exist; valid: "):
        family_of(model)


def test_a_resnet_halves_the_image_where_it_gets_wider():
    module, shapes = build("resnet-14", CIFAR, 10), {}
    for name in ("layer1", "layer2", "layer3"):
        layer = module.get_submodule(name)
        layer.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    module(torch.rand(2, *CIFAR))
    assert shapes == {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("torchvision/resnet18", (3, 64, 64)),
        ("torchvision/resnet50", (3, 64, 64)),
        ("torchvision/vgg11", (3, 64, 64)),
        ("torchvision/densenet121", (3, 64, 64)),
        ("torchvision/efficientnet_b0", (3, 64, 64)),
        ("torchvision/convnext_tiny", (3, 64, 64)),
        ("torchvision/vit_b_16", (3, 64, 64)),
        ("torchvision/regnet_y_400mf", (3, 64, 64)),  # computes while it is made
        ("torchvision/googlenet", (3, 64, 64)),
        ("torchvision/squeezenet1_1", (3, 64, 64)),
        ("timm/resnetv2_50", (3, 64, 64)),
        ("timm/resnet18.a1_in1k", (1, 64, 64)),
    ],
)
def test_models_of_the_libraries_have_a_head_for_the_classes(model, shape):
    module = check_model(model, shape, 7)
    with torch.device("meta"):
        assert module(torch.empty(4, *shape)).shape == (4, 7)


def test_a_grey_image_goes_in_as_rgb_alike():
    module, grey = build("torchvision/mobilenet_v2", (1, 32, 32), 10).eval(), torch.rand(2, 1, 32, 32)
    assert torch.equal(module(grey), module(grey.repeat(1, 3, 1, 1)))


def test_what_a_librarys_model_drops_follows_from_seeds_and_the_recipe():
    def dropped(*dropout: float) -> list[float]:
        layers = build("torchvision/efficientnet_b0", CIFAR, 10, *dropout).modules()
        return [1 - layer.keep for layer in layers if type(layer) is Dropout]

    assert dropped() == pytest.approx([0.2])
    assert dropped(0.5) == pytest.approx([0.5])
    kinds = {type(layer) for layer in build("torchvision/efficientnet_b0", CIFAR, 10).modules()}
    assert StochasticDepth in kinds
    assert {kind.__name__ for kind in kinds if kind.__module__.startswith("torch")}.isdisjoint(
        {"Dropout", "StochasticDepth"}
    )
    with pytest.raises(InputError, match=r"recipe\.dropout: torchvision/resnet18 has no dropout"):
        build("torchvision/resnet18", CIFAR, 10, 0.5)


def test_stochastic_depth_drops_whole_examples():
    layer, ones = StochasticDepth(0.3), torch.ones(5000, 2, 3, 3)
    layer.seed([(7, 0)])
    first = layer(ones)
    assert {len(set(example.flatten().tolist())) for example in first[:100]} == {1}
    assert (first != 0).float().mean().item() == pytest.approx(0.7, abs=0.02)
    layer.seed([(7, 0)])
    assert torch.equal(layer(ones), first)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("torchvision/resnet19", r"near: torchvision/resnet18.*\d+ models"),
        ("timm/resnetv3_50", "near: timm/resnetv2_50"),
        ("timm/resnet50.nonsense", "Invalid pretrained tag"),
        ("torchvision/vgg11", "can't take images of 1x28x28: "),
        ("torchvision/vit_b_16", "can't take images of 1x28x28: "),
    ],
)
def test_a_librarys_model_that_can_not_be_is_one_line(model, line):
    with pytest.raises(InputError, match=f"^model {model} .*{line}|^model {model}: {line}") as caught:
        check_model(model, MNIST, 10)
    assert "\n" not in str(caught.value)


def test_without_timm_its_models_say_what_to_install(monkeypatch):
    timm_models.cache_clear()
    monkeypatch.setattr("takd.trainables.models.libraries.find_spec", lambda name: None)  # as on a machine without it
    with pytest.raises(InputError, match=r"need timm; install it: pip install 'takd\[timm\]'"):
        family_of("timm/resnet18")


def test_torchvisions_list_has_classification_models_alone():
    assert {"resnet18", "resnet34", "resnet50", "mobilenet_v2"} <= set(torchvision_models())
    assert not [name for name in torchvision_models() if "rcnn" in name or "deeplab" in name]
