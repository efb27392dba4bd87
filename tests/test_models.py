"""Model families: what exists, and sizes that are computed."""

import pytest
import torch
from torch import nn

from search_spaces import InputError
from trainables.dropout import Dropout
from trainables.models import FAMILIES, build, family_of, size_of

MNIST = (1, 28, 28)


@pytest.mark.parametrize("model", ["mlp-8", "mlp-1200", "cnn"])
@pytest.mark.parametrize("shape", [MNIST, (3, 32, 32)])
def test_a_model_maps_images_to_logits(model, shape):
    assert build(model, shape, 10).eval()(torch.rand(4, *shape)).shape == (4, 10)


def test_an_mlp_has_two_hidden_layers_of_its_size():
    layers = [module for module in build("mlp-30", MNIST, 10) if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(784, 30), (30, 30), (30, 10)]


def test_the_cnn_is_the_courses_teacher():
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


@pytest.mark.parametrize("model", ["mlp", "mlp-", "mlp-0", "mlp-x", "mlp-8-8", "cnn-3", "resnet-18", ""])
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
