"""The convolutional networks of the TAKD paper (Mirzadeh et al. 2020), layers as in its public code."""

from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor, nn

from takd.search_spaces import InputError
from takd.trainables.datasets.sources import ImageShape

WIDE_CLASSES = 100  # from so many classes on, plain networks have the wide form

# By size: a number is a 3x3 convolution of so many channels, M a max-pool that halves, FC a hidden layer. Those for
# CIFAR-10, then those for CIFAR-100; the layer that gives the logits comes last in each.
PLAIN: dict[int, tuple[str, str]] = {
    2: ("16 M 16 M", "32 M 32 M"),
    4: ("16 16 M 32 32 M", "32 32 M 64 64 M"),
    6: ("16 16 M 32 32 M 64 64 M", "32 32 M 64 64 M 128 128"),
    8: ("16 16 M 32 32 M 64 64 M 128 128 M FC64", "32 32 M 64 64 M 128 128 M 256 256 M FC64"),
    10: (
        "32 32 M 64 64 M 128 128 M 256 256 256 256 M FC128",
        "32 32 M 64 64 M 128 128 M 256 256 256 256 M FC512",
    ),
}
RESNET_DEPTHS = (8, 14, 20, 26, 32, 44, 56, 110)


def plain(size: int, image_shape: ImageShape, classes: int) -> nn.Module:
    """Convolutions with padding 1, batch normalisation and ReLU, in the paper's form for the number of classes."""
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    features = 0  # after the first hidden layer
    for word in PLAIN[size][classes >= WIDE_CLASSES].split():
        if word == "M":
            height, width = height // 2, width // 2
            layers.append(nn.MaxPool2d(2))
        elif word.startswith("FC"):
            layers += [nn.Flatten(), nn.Linear(channels * height * width, features := int(word[2:])), nn.ReLU(True)]
        else:
            layers += _convolution(channels, channels := int(word))
    if not height * width:
        raise InputError(f"plain-{size}: images of {image_shape[1]}x{image_shape[2]} are too small for its max-pools")
    if not features:
        layers.append(nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(features or channels * height * width, classes))


def _convolution(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def is_resnet(size: object) -> bool:
    """A depth, or `8x4`: four times as wide."""
    return size in RESNET_DEPTHS or size in [f"{depth}x4" for depth in RESNET_DEPTHS]


def resnet(size: int | str, image_shape: ImageShape, classes: int) -> nn.Module:
    """He et al. 2016, section 4.2: 6n + 2 layers, widths 16, 32 and 64.

    Those named `8x4` have the widths 64, 128 and 256 and begin with 32, as in the public code of Tian et al. 2020.
    Shortcuts where the width changes are 1x1 convolutions, as in the TAKD paper's code (option B), and convolutions
    start from He et al. 2015's normal distribution over what they give out.
    """
    depth, _, wide = str(size).partition("x")
    blocks, first, (one, two, three) = (
        (int(depth) - 2) // 6,
        32 if wide else 16,
        (64, 128, 256) if wide else (16, 32, 64),
    )
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(image_shape[0], first, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(first),
        relu=nn.ReLU(inplace=True),
        layer1=nn.Sequential(*_blocks(first, one, blocks, stride=1)),
        layer2=nn.Sequential(*_blocks(one, two, blocks, stride=2)),
        layer3=nn.Sequential(*_blocks(two, three, blocks, stride=2)),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(three, classes),
    )
    module = nn.Sequential(layers)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module


def _blocks(channels: int, width: int, number: int, stride: int) -> Iterator["Block"]:
    yield Block(channels, width, stride)
    for _ in range(number - 1):
        yield Block(width, width, 1)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is one too where the width changes; the first has the stride."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, width, height / stride, width / stride]"""
        inner = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(inner)) + self.shortcut(features))
