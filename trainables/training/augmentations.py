"""How images are altered: each function takes a batch and what was drawn for each image, and draws nothing itself.

Images are uint8 `[batch, channels, height, width]`, before and after; what is drawn is `[batch]`. The numbers are those
of torchvision's transforms (v2), each image with its own; nothing here makes the processor wait for a GPU.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# torchvision's RandomResizedCrop: the part of the area that is cut out, its width over its height, and how often it is
# drawn anew where it does not fit.
AREA, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
# As SimCLR and much transfer learning have it: how far brightness, contrast, saturation and hue go.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.4, 0.1
STAIN = 0.05  # "HED-light" of Tellez et al. 2019: how far the amount of each stain goes, of itself and in density
BINS = 31  # of magnitudes, in both of torchvision's policies
RAND_OPERATIONS, RAND_MAGNITUDE = 2, 9  # torchvision's RandAugment
OPERATIONS = (
    *("identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast"),
    *("sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)


def mirror(images: Tensor, flip: Tensor) -> Tensor:
    """Left to right, where `flip` is 1."""
    return torch.where(_by_image(flip).bool(), images.flip(3), images)


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """A part of each image, in pixels, at the size of the whole: bilinear, as torchvision's `resized_crop`."""
    rows, columns = images.shape[2:]
    grid = torch.stack(
        [
            _sampled(left, width, columns).unsqueeze(1).expand(-1, rows, -1),
            _sampled(top, height, rows).unsqueeze(2).expand(-1, -1, columns),
        ],
        dim=3,
    )
    found = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return _as_bytes(found.round_())


def _sampled(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where `size` pixels lie along an axis of the whole, from -1 to 1, `[batch, size]`; never outside the part."""
    places = (torch.arange(size, device=start.device) + 0.5) * (length[:, None] / size) - 0.5
    inside = torch.minimum(places.clamp_(min=0), length[:, None] - 1) + start[:, None]
    return (2 * inside + 1) / size - 1


def crop_of(areas: Tensor, ratios: Tensor, down: Tensor, right: Tensor, rows: int, columns: int) -> tuple[Tensor, ...]:
    """What RandomResizedCrop cuts out, of draws in [0, 1): top, left, height and width, each `[batch]` float32.

    Of the attempts `areas` and `ratios [batch, attempts]` the first that fits; else the middle, as whole as may be.
    """
    area = rows * columns * (AREA[0] + (AREA[1] - AREA[0]) * areas)
    low, high = (math.log(each) for each in RATIO)
    ratio = (low + (high - low) * ratios).exp()
    widths, heights = ((area * each).sqrt().round() for each in (ratio, 1 / ratio))
    fits = (widths > 0) & (widths <= columns) & (heights > 0) & (heights <= rows)
    first = (fits.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # ATTEMPTS where none does
    middle_height, middle_width = _middle(rows, columns)
    height, width = (
        torch.cat([each, torch.full_like(each[:, :1], middle)], dim=1).gather(1, first).squeeze(1)
        for each, middle in ((heights, middle_height), (widths, middle_width))
    )
    drawn = first.squeeze(1) < areas.shape[1]
    top = torch.where(drawn, (down * (rows - height + 1)).floor(), ((rows - height) / 2).floor())
    left = torch.where(drawn, (right * (columns - width + 1)).floor(), ((columns - width) / 2).floor())
    return torch.minimum(top, rows - height), torch.minimum(left, columns - width), height, width


def _middle(rows: int, columns: int) -> tuple[int, int]:
    if columns / rows < RATIO[0]:
        return round(columns / RATIO[0]), columns
    if columns / rows > RATIO[1]:
        return rows, round(rows * RATIO[1])
    return rows, columns


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """torchvision's ColorJitter in its order of arguments: three factors around 1, and a part of the circle of hues."""
    pixels = _blend(images.float(), None, brightness)
    pixels = _blend(pixels, _mean_gray(pixels), contrast)
    pixels = _blend(pixels, _gray(pixels), saturation)
    return _as_bytes(_turn_hue(pixels, hue) if images.shape[1] == 3 else pixels)


def _blend(pixels: Tensor, other: Tensor | None, factor: Tensor) -> Tensor:
    """`factor` of the pixels and the rest of another image, black where there is none; whole numbers."""
    factor = _by_image(factor)
    mixed = pixels * factor if other is None else pixels * factor + other * (1 - factor)
    return mixed.clamp_(0, 255).floor_()


def _gray(pixels: Tensor) -> Tensor:
    """`[batch, 1, height, width]`"""
    if pixels.shape[1] != 3:
        return pixels
    red, green, blue = pixels.unbind(1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_().unsqueeze(1)


def _mean_gray(pixels: Tensor) -> Tensor:
    return _gray(pixels).mean(dim=(1, 2, 3), keepdim=True)


def _turn_hue(pixels: Tensor, hue: Tensor) -> Tensor:
    red, green, blue = (pixels / 255).unbind(1)
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    spread = high - low
    safe = torch.where(spread > 0, spread, 1.0)
    angle = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = torch.remainder(angle / 6 + hue[:, None, None], 1.0) * 6

    def channel(number: float) -> Tensor:
        place = torch.remainder(number + turned, 6)
        return high - spread * torch.minimum(place, 4 - place).clamp_(0, 1)

    return (torch.stack([channel(5), channel(3), channel(1)], dim=1) * (256 - 1e-3)).clamp_(0, 255).floor_()


# Ruifrok and Johnston 2001: what haematoxylin, eosin and DAB take of red, green and blue; and its inverse.
_STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64)
_OF_STAINS, _TO_STAINS = _STAINS.tolist(), torch.linalg.inv(_STAINS).tolist()
_DARKEST = 1e-6


def stain_jitter(images: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
    """Tellez et al. 2018: another amount of each stain, by `factors` near 1 and `shifts` near 0, `[batch, 3]` each."""
    density = (images.float() / 255).clamp_(min=_DARKEST).log_().neg_()  # optical, 0 where it is white
    stains = _in_basis(density.unbind(1), _TO_STAINS)
    other = [
        each * factors[:, number, None, None] + shifts[:, number, None, None] for number, each in enumerate(stains)
    ]
    back = torch.stack(_in_basis(other, _OF_STAINS), dim=1).neg_().exp_()
    return _as_bytes((back * 255).round_().clamp_(0, 255))


def _in_basis(parts: Sequence[Tensor], basis: Sequence[Sequence[float]]) -> list[Tensor]:
    """`parts @ basis`, with the numbers of the matrix in the code: none are copied to a GPU."""
    one, two, three = parts
    return [one * first + two * second + three * third for first, second, third in zip(*basis, strict=True)]


def operate(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """One of OPERATIONS for each image, by its number, as torchvision's policies have it.

    `magnitude`: of a shear its tangent, of a translation pixels, of a rotation degrees, of brightness, color, contrast
    and sharpness how far from 1, of posterize bits, of solarize a part of the brightest.
    """

    def of(name: str) -> Tensor:
        return operation == OPERATIONS.index(name)

    pixels = _warp(images, of, magnitude).float()
    enhanced = of("brightness") | of("color") | of("contrast") | of("sharpness")
    factor = torch.where(enhanced, 1 + magnitude, 1.0)
    other = torch.where(_by_image(of("color")), _gray(pixels), 0.0)
    other = torch.where(_by_image(of("contrast")), _mean_gray(pixels), other)
    other = torch.where(_by_image(of("sharpness")), _blurred(pixels), other)
    if images.shape[1] != 3:  # grey ones have no colour to change
        factor = torch.where(of("color"), 1.0, factor)
    pixels = _blend(pixels, other, factor)
    threshold = torch.where(of("solarize"), 255 * magnitude, 256.0)
    pixels = torch.where(pixels >= _by_image(threshold), 255 - pixels, pixels)
    pixels = torch.where(_by_image(of("autocontrast")), _stretched(pixels), pixels)
    step = torch.where(of("posterize"), 8 - magnitude, 0.0).exp2()
    pixels = (pixels / _by_image(step)).floor_() * _by_image(step)
    altered = _as_bytes(pixels)
    return torch.where(_by_image(of("equalize")), _equalized(altered), altered)


def _warp(images: Tensor, of: Callable[[str], Tensor], magnitude: Tensor) -> Tensor:
    """Sheared, moved or turned, the nearest pixel of each, black where nothing was."""
    rows, columns = images.shape[2:]
    angle = torch.where(of("rotate"), magnitude, 0.0) * (math.pi / 180)
    shear_x, shear_y = (torch.where(of(name), magnitude, 0.0) for name in ("shear-x", "shear-y"))
    move_x, move_y = (torch.where(of(name), magnitude, 0.0).trunc() for name in ("translate-x", "translate-y"))
    # From a pixel of the result to that of the image, from the middle; shears keep the first row or column.
    across = [angle.cos(), shear_x - angle.sin(), shear_x * (rows / 2) - move_x]
    along = [shear_y + angle.sin(), angle.cos(), shear_y * (columns / 2) - move_y]
    x = torch.arange(columns, device=images.device) - (columns - 1) / 2
    y = (torch.arange(rows, device=images.device) - (rows - 1) / 2).unsqueeze(1)

    def source(numbers: list[Tensor], middle: float) -> Tensor:
        one, two, three = (each[:, None, None] for each in numbers)
        return (one * x + two * y + three + middle).round_()

    column, row = source(across, (columns - 1) / 2), source(along, (rows - 1) / 2)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    place = (row.clamp_(0, rows - 1) * columns + column.clamp_(0, columns - 1)).long().flatten(1)
    moved = images.flatten(2).gather(2, place.unsqueeze(1).expand(-1, images.shape[1], -1)).view_as(images)
    return moved * inside.unsqueeze(1)


def _blurred(pixels: Tensor) -> Tensor:
    """Each pixel with its neighbours, itself five times; those at the edge as they are."""
    if min(pixels.shape[2:]) <= 2:
        return pixels
    inner = pixels[:, :, 1:-1, 1:-1]
    blurred = ((F.avg_pool2d(pixels, 3, stride=1) * 9 + inner * 4) / 13).round_()
    whole = pixels.clone()
    whole[:, :, 1:-1, 1:-1] = blurred
    return whole


def _stretched(pixels: Tensor) -> Tensor:
    """Each channel from black to white; one of a single value stays."""
    low, high = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    scale = torch.where(high > low, (high - low) * (1 / 255), 1.0)
    return torch.where(high > low, ((pixels - low) / scale).clamp_(0, 255).floor_(), pixels)


def _equalized(images: Tensor) -> Tensor:
    """Each channel's histogram made even, as Pillow does it."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=torch.int32))
    brightest = (flat == flat.amax(dim=2, keepdim=True)).sum(dim=2, keepdim=True)
    step = (flat.shape[2] - brightest) // 255
    upto = counts.cumsum(dim=2) - counts  # pixels that are darker
    table = ((upto + step // 2) // step.clamp(min=1)).clamp_(0, 255).to(torch.uint8)
    return torch.where(step.unsqueeze(3) > 0, table.gather(2, flat).view_as(images), images)


def rand_augment(images: Tensor, chance: Tensor) -> Tensor:
    """torchvision's RandAugment, of draws in [0, 1) `[batch, 2 * RAND_OPERATIONS]`: operation and sign of each."""
    bins = torch.full_like(chance[:, 0], RAND_MAGNITUDE)
    for drawn in chance.split(2, dim=1):
        which, sign = drawn.unbind(1)
        operation = _chosen(which, len(OPERATIONS))
        magnitude = _magnitude(operation, bins, sign, images.shape, wide=False)
        images = operate(images, operation, magnitude)
    return images


def trivial_augment(images: Tensor, chance: Tensor) -> Tensor:
    """torchvision's TrivialAugmentWide, of draws in [0, 1) `[batch, 3]`: operation, magnitude and sign."""
    which, size, sign = chance.unbind(1)
    operation = _chosen(which, len(OPERATIONS))
    return operate(images, operation, _magnitude(operation, _chosen(size, BINS), sign, images.shape, wide=True))


def _chosen(chance: Tensor, among: int) -> Tensor:
    return (chance * among).floor_().clamp_(max=among - 1)  # a product may be rounded up


def _magnitude(operation: Tensor, bins: Tensor, sign: Tensor, shape: torch.Size, wide: bool) -> Tensor:
    """That of each image's operation, in the bins of its policy."""
    part = bins / (BINS - 1)
    rows, columns = shape[2:]
    most = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99 if wide else 0.9)
    most |= dict.fromkeys(("shear-x", "shear-y"), 0.99 if wide else 0.3) | {"rotate": 135.0 if wide else 30.0}
    most |= {"translate-x": 32.0 if wide else 150 / 331 * columns, "translate-y": 32.0 if wide else 150 / 331 * rows}
    signed = part * torch.where(sign <= 0.5, -1.0, 1.0)
    found = torch.zeros_like(part)
    for name, highest in most.items():
        found = torch.where(operation == OPERATIONS.index(name), signed * highest, found)
    fewer_bits = (bins / ((BINS - 1) / (6 if wide else 4))).neg_().add_(8).round_()
    found = torch.where(operation == OPERATIONS.index("posterize"), fewer_bits, found)
    return torch.where(operation == OPERATIONS.index("solarize"), 1 - part, found)


def _by_image(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]


def _as_bytes(pixels: Tensor) -> Tensor:
    return pixels.to(torch.uint8)
