"""How an image file becomes an image of a data set: the same numbers as torchvision's, of every mode, upright."""

import io
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from takd.trainables.datasets.decoding import Decoders
from takd.trainables.datasets.reading import BROKEN, FORMATS, Block, Reading, as_it_is

WHITE, RED = 255, (255, 0, 0)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    return buffer.getvalue()


def read(content: bytes, reading: Reading) -> np.ndarray:
    """[height, width, channels]"""
    return reading.read(content).transpose(1, 2, 0)


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (100, 100), (224, 300), (60, 45), (1000, 17)])
def test_a_square_is_torchvisions_resize_and_centre_crop(size):
    image = noise(*size)
    expected = v2.Compose([v2.Resize(224), v2.CenterCrop(224)])(image)
    found = read(encoded(image), Reading(224, 224, "crop", "rgb"))
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1


def test_an_image_of_the_size_is_not_touched():
    image = noise(48, 32)
    for fit in ("crop", "pad", "stretch"):
        assert np.array_equal(read(encoded(image), Reading(48, 32, fit, "rgb")), np.asarray(image))


@pytest.mark.parametrize("size", [(90, 30), (30, 90)])
def test_each_fit_does_what_it_says(size):
    """A red image, blue at the ends of its longer side."""
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[..., 0], pixels[:, :20], pixels[:, 70:] = 255, (0, 0, 255), (0, 0, 255)
    image = Image.fromarray(pixels if size == (90, 30) else pixels.swapaxes(0, 1).copy())
    found = {fit: read(encoded(image), Reading(30, 30, fit, "rgb")) for fit in ("crop", "pad", "stretch")}
    assert (found["crop"] == RED).all()
    black = (found["pad"] == 0).all(axis=2)
    assert black.sum() == 20 * 30
    blue = (found["stretch"] == (0, 0, 255)).all(axis=2).sum()
    assert 10 * 30 <= blue <= 14 * 30


def test_a_size_may_be_wider_than_high():
    assert Reading(48, 32, "crop", "grey").read(encoded(noise(100, 100))).shape == (1, 32, 48)


def test_a_long_and_narrow_image_needs_no_memory_for_what_is_cut_off():
    assert Reading(224, 224, "crop", "rgb").read(encoded(noise(60_000, 1))).shape == (3, 224, 224)


def test_transparent_is_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:4, 2:4] = (*RED, 255)
    found = read(encoded(Image.fromarray(pixels)), Reading(8, 8, "crop", "rgb"))
    assert (found[2:4, 2:4] == RED).all()
    assert (found == WHITE).all(axis=2).sum() == 64 - 4


def test_a_colour_that_stands_for_transparent_is_white():
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (read(encoded(image, transparency=(1, 2, 3)), Reading(4, 4, "crop", "rgb")) == WHITE).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_clipped(format):
    levels = np.linspace(0, 65535, 256).reshape(16, 16).round().astype(np.uint16)
    [found] = Reading(16, 16, "crop", "grey").read(encoded(Image.fromarray(levels), format))
    assert found.reshape(-1).tolist() == list(range(256))


@pytest.mark.parametrize(
    ("mode", "format", "conversions", "becomes"),
    [
        ("L", "PNG", [], "L"),
        ("RGB", "WEBP", [], "RGB"),
        ("1", "PNG", ["1-bit"], "L"),
        ("P", "GIF", ["palette"], "RGB"),
        ("CMYK", "JPEG", ["cmyk"], "RGB"),
        ("LA", "PNG", ["grey-alpha"], "RGB"),
        ("RGBA", "TIFF", ["alpha"], "RGB"),
        ("YCbCr", "TIFF", ["other"], "RGB"),
        ("RGB", "BMP", [], "RGB"),
    ],
)
def test_every_mode_becomes_grey_or_rgb(mode, format, conversions, becomes):
    image, found = as_it_is(encoded(noise(20, 20).convert(mode), format))
    assert (image.mode, found) == (becomes, conversions)
    assert format in FORMATS


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_shown_as_its_orientation_says(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.new("L", (40, 24), 0)
    upright.paste(255, (0, 0, 20, 12))  # bright in the corner at the top left
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    image, found = as_it_is(encoded(stored, format, exif=exif))
    assert found == ["exif"] * (orientation > 1)
    assert image.size == (40, 24)
    corners = np.asarray(image.convert("L"))[[6, 6, 18, 18], [10, 30, 10, 30]]
    assert (corners > 128).tolist() == [True, False, False, False]


def test_an_exif_block_that_is_damaged_turns_nothing():
    content = encoded(noise(8, 8), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert as_it_is(content)[1] == []


def test_the_first_frame_of_an_animation_counts():
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), "blue")
    image, found = as_it_is(encoded(first, "GIF", save_all=True, append_images=[second]))
    assert found[0] == "animated"
    assert (np.asarray(image) == RED).all()


def test_processes_and_threads_read_the_same(tmp_path):
    """Also what is broken and what is in memory; a process that ends takes nothing with it silently."""
    file = tmp_path / "a.png"
    noise(50, 30).save(file)
    images = [file, str(file), encoded(noise(9, 9, "L")), np.asarray(noise(32, 32)), b"no image", None]
    blocks = [
        Block(images[:4], Reading(16, 16, "crop", "rgb"), True, True),
        Block(images[4:], Reading(16, 16, "crop", "rgb"), True, True),
    ]
    read = {}
    for number in (0, 10_000):
        out = np.zeros((6, 3, 16, 16), np.uint8)
        with Decoders(number, cores=2) as decoders:
            assert decoders.processes == (number > 0)
            findings = decoders.read(blocks, [out[:4], out[4:]])
        read[number] = (findings, out.tobytes())
    assert read[0] == read[10_000]
    assert [kind for _, kind, _ in read[0][0][1]] == [BROKEN, BROKEN]
    assert any(read[0][1])


def test_a_decoding_process_that_ends_is_said():
    block = Block([b""], Reading(4, 4, "crop", "rgb"), True, True)
    with Decoders(10_000, cores=1) as decoders:
        process = decoders.idle.get()
        process.send_signal(signal.SIGSTOP)
        decoders.idle.put(process)
        threading.Timer(0.5, process.kill).start()  # while it is asked
        with pytest.raises(RuntimeError, match="a process that decodes images ended with -9"):
            decoders.read([block], [np.zeros((1, 3, 4, 4), np.uint8)])
        [findings] = decoders.read([block], [np.zeros((1, 3, 4, 4), np.uint8)])  # another is in its place
        assert [kind for _, kind, _ in findings] == [BROKEN]


def test_a_path_is_read_as_what_is_in_the_file(tmp_path: Path):
    noise(8, 8).save(tmp_path / "a.png", "JPEG")
    assert as_it_is(tmp_path / "a.png")[0].mode == "RGB"
