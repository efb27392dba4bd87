"""Networks for small images that papers on methods compare, layers as in the public code of Tian et al. 2020."""

import re
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import ImageShape

# By size, the 3x3 convolutions of each block by their channels; a max-pool that halves is between blocks.
VGG: dict[int, tuple[tuple[int, ...], ...]] = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
LARGE = 64  # from so many pixels a side on there is a max-pool before the last block too

SHUFFLE = ((240, 4), (480, 8), (960, 4))  # channels and units of each stage, of ShuffleNet 1x with 3 groups
GROUPS = 3


def is_wide(size: object) -> bool:
    """`40-2`: depth and width; the depth is 6n + 4."""
    found = re.fullmatch(r"([1-9]\d{1,2})-([1-9]\d?)", str(size))
    return found is not None and int(found[1]) >= 10 and int(found[1]) % 6 == 4


def wide(size: str, image_shape: ImageShape, classes: int) -> nn.Module:
    """Zagoruyko & Komodakis 2016: residual blocks that normalise before they convolve, 16, 32 and 64 times the width.

    No dropout. Convolutions start from a normal distribution over what they give out.
    """
    depth, width = map(int, size.split("-"))
    blocks, channels = (depth - 4) // 6, [16 * width, 32 * width, 64 * width]
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False))
    for number, (before, after) in enumerate(zip([16, *channels], channels, strict=False)):
        strides = [1 if number == 0 else 2, *[1] * (blocks - 1)]
        units = [PreActivated(before if place == 0 else after, after, each) for place, each in enumerate(strides)]
        layers[f"layer{number + 1}"] = nn.Sequential(*units)
    layers["bn"], layers["relu"] = nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True)
    layers |= _ending(channels[-1], classes)
    return _drawn(nn.Sequential(layers))


class PreActivated(nn.Module):
    """Two 3x3 convolutions, each after normalisation and ReLU; so is a shortcut that changes the width."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if channels != width else None

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, width, height / stride, width / stride]"""
        active = self.relu(self.bn1(features))
        inner: Tensor = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return inner + (features if self.shortcut is None else self.shortcut(active))


def vgg(size: int, image_shape: ImageShape, classes: int) -> nn.Module:
    """Simonyan & Zisserman 2015 with batch normalisation, and the mean over places before one layer for the classes."""
    channels, height, width = image_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, block in enumerate(VGG[size]):
        if number in (1, 2, 3) or (number == 4 and min(height, width) >= LARGE):
            layers[f"pool{number - 1}"] = nn.MaxPool2d(2)
        parts: list[nn.Module] = []
        for each in block:
            parts += [nn.Conv2d(channels, each, 3, padding=1), nn.BatchNorm2d(each), nn.ReLU(inplace=True)]
            channels = each
        layers[f"block{number}"] = nn.Sequential(*parts)
    if min(height, width) < 8:
        raise InputError(f"vgg-{size}: images of {height}x{width} are too small for its max-pools")
    ending = _ending(channels, classes)
    module = _drawn(nn.Sequential(layers | ending))
    for name, weight in ending["fc"].named_parameters():
        nn.init.zeros_(weight) if name == "bias" else nn.init.normal_(weight, 0.0, 0.01)
    return module


def shufflenet(size: str, image_shape: ImageShape, classes: int) -> nn.Module:
    """Zhang et al. 2018, ShuffleNet 1x with 3 groups, for small images: its first layer is a 1x1 convolution."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(image_shape[0], 24, 1, bias=False), bn1=nn.BatchNorm2d(24), relu=nn.ReLU(inplace=True)
    )
    before = 24
    for number, (width, units) in enumerate(SHUFFLE):
        layers[f"layer{number + 1}"] = nn.Sequential(*_units(before, width, units))
        before = width
    layers |= _ending(before, classes)
    return nn.Sequential(layers)


def _units(before: int, width: int, number: int) -> Iterator["Shuffled"]:
    yield Shuffled(before, width, 1 if before == 24 else GROUPS, halves=True)
    for _ in range(number - 1):
        yield Shuffled(width, width, GROUPS, halves=False)


class Shuffled(nn.Module):
    """1x1 convolutions of groups with a 3x3 one by channel between them; channels are shuffled after the first.

    Where it halves, the shortcut is a mean over 3x3 places, and both are put side by side.
    """

    def __init__(self, channels: int, width: int, groups: int, halves: bool) -> None:
        super().__init__()
        self.groups, out = groups, width - channels if halves else width
        inner = out // 4
        self.conv1 = nn.Conv2d(channels, inner, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, 2 if halves else 1, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if halves else None

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, width, height, width], or half of both"""
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = inner.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        inner = self.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        inner = inner + features if self.pool is None else torch.cat([inner, self.pool(features)], dim=1)
        return self.relu(inner)


def _ending(channels: int, classes: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, classes))


def _drawn(module: nn.Sequential) -> nn.Sequential:
    """He et al. 2015's normal distribution over what convolutions give out; no shift."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
