"""Augmentations alter images as torchvision does with the same numbers, and mixed images have both labels."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_stage, tiny_space
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from takd.search_spaces import InputError, Loss, Stage
from takd.study.checks import _check_augmentation
from takd.trainables.datasets.dataset import load, transfer_set
from takd.trainables.derivation import derive
from takd.trainables.models.families import build
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.training import augmentations as own
from takd.trainables.training.inputs import Pixels
from takd.trainables.training.loop import StageTraining, train
from takd.trainables.training.losses import labels_only
from takd.trainables.training.mixing import mix
from takd.trainables.training.teaching import SoftTeaching
from takd.trainables.training.views import view

MNIST = load("mnist")
CPU = torch.device("cpu")


def photographs(number: int = 6, rows: int = 40, columns: int = 48, channels: int = 3) -> Tensor:
    """Smooth shapes with all tones, as photographs have them."""
    torch.manual_seed(0)
    coarse = torch.rand(number, channels, 6, 7)
    whole = F.interpolate(coarse, size=(rows, columns), mode="bicubic", align_corners=False)
    return (whole * 230 + torch.rand_like(whole) * 20).clamp(0, 255).to(torch.uint8)


IMAGES = photographs()


def alike(ours: Tensor, theirs: Tensor, levels: int = 1, except_for: float = 0.0) -> None:
    """Within some of 255 levels, but for a part of the pixels."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.uint8
    far = (ours.int() - theirs.int()).abs() > levels
    assert far.float().mean() <= except_for, f"{far.float().mean():.4f} of the pixels"


def test_a_resized_crop_is_torchvisions():
    crops = torch.tensor(
        [[0.0, 0, 40, 48], [3, 5, 20, 17], [10, 0, 7, 48], [39, 47, 1, 1], [1, 2, 33, 9], [0, 8, 40, 40]]
    )
    ours = own.resized_crop(IMAGES, *crops.unbind(1))
    for image, (top, left, height, width), found in zip(IMAGES, crops.int().tolist(), ours, strict=True):
        expected = functional.resized_crop(image, top, left, height, width, [40, 48], antialias=True)
        alike(found, expected, levels=2)


def test_crops_are_drawn_as_torchvision_draws_them(monkeypatch):
    """From the same numbers, put in the place of its random ones; in a wide image where few attempts fit."""
    torch.manual_seed(1)
    rows, columns, number = 20, 64, 60
    areas, ratios, places = torch.rand(number, 10), torch.rand(number, 10), torch.rand(number, 2)
    ours = torch.stack(own.crop_of(areas, ratios, *places.unbind(1), rows, columns), dim=1).int().tolist()
    theirs = v2.RandomResizedCrop(8)
    for number, (top, left, height, width) in enumerate(ours):
        draws = iter(torch.stack([areas[number], ratios[number]], dim=1).flatten().tolist())
        monkeypatch.setattr(
            torch.Tensor,
            "uniform_",
            lambda self, low, high, draws=draws: self.fill_(low + (high - low) * next(draws)),
        )
        found = theirs.make_params([torch.empty(3, rows, columns)])
        assert (found["height"], found["width"]) == (height, width)
        assert 0 <= top <= rows - height
        assert 0 <= left <= columns - width


@pytest.mark.parametrize("channels", [3, 1])
def test_a_jitter_is_torchvisions(channels):
    images = IMAGES[:, :channels]
    torch.manual_seed(2)
    factors, hue = 0.6 + 0.8 * torch.rand(3, 6), 0.2 * torch.rand(6) - 0.1
    ours = own.jitter(images, *factors, hue)
    for number, image in enumerate(images):
        brightness, contrast, saturation = factors[:, number].tolist()
        expected = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
        expected = functional.adjust_hue(functional.adjust_saturation(expected, saturation), hue[number].item())
        alike(ours[number], expected, levels=2, except_for=0.001)


@pytest.mark.parametrize("wide", [False, True])
def test_every_operation_of_the_policies_is_torchvisions(wide):
    """Each operation at each of its magnitudes, by torchvision's own class; both signs."""
    theirs = v2.TrivialAugmentWide() if wide else v2.RandAugment()
    names = {name.lower().replace("-", ""): name for name in own.OPERATIONS}
    image = photographs(1, 36, 36)[0]
    for name, (magnitudes, signed) in theirs._AUGMENTATION_SPACE.items():
        number = own.OPERATIONS.index(names[name.lower()])
        whole = magnitudes(own.BINS, 36, 36)
        for place in (9,) if not wide else (0, 7, 15, 30):
            for sign in (1, -1) if signed else (1,):
                operation, bins = torch.tensor([float(number)]), torch.tensor([float(place)])
                drawn = own._magnitude(
                    operation, bins, torch.tensor([0.3 if sign < 0 else 0.7]), torch.Size([1, 3, 36, 36]), wide
                )
                expected = 0.0 if whole is None else sign * float(whole[place])
                assert drawn.item() == pytest.approx(expected, abs=1e-4)
                found = own.operate(image[None], operation, drawn)[0]
                result = theirs._apply_image_or_video_transform(image, name, drawn.item(), "nearest", theirs._fill)
                turned = name in ("Rotate", "ShearX", "ShearY")  # halfway between two pixels either is the nearest
                alike(found, result, except_for=0.01 if turned else 0.0005)


def test_grey_images_take_every_operation():
    images = photographs(len(own.OPERATIONS), 20, 20, channels=1)
    operation = torch.arange(len(own.OPERATIONS)).float()
    found = own.operate(images, operation, torch.full_like(operation, 0.5))
    alike(found[own.OPERATIONS.index("color")], images[own.OPERATIONS.index("color")], levels=0)
    alike(found[-1], functional.equalize(images[-1]), levels=0)


def test_stains_are_those_of_ruifrok_and_johnston():
    """Written out in NumPy; no change leaves the image."""
    torch.manual_seed(3)
    factors, shifts = 0.95 + 0.1 * torch.rand(6, 3), 0.1 * torch.rand(6, 3) - 0.05
    rgb_from_hed = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    rgb = np.maximum(IMAGES.permute(0, 2, 3, 1).numpy() / 255, 1e-6)
    stains = -np.log(rgb) @ np.linalg.inv(rgb_from_hed)
    stains = stains * factors.numpy()[:, None, None] + shifts.numpy()[:, None, None]
    back = np.clip(np.exp(-stains @ rgb_from_hed), 0, 1)
    expected = torch.from_numpy((back * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
    alike(own.stain_jitter(IMAGES, factors, shifts), expected)
    alike(own.stain_jitter(IMAGES, torch.ones(6, 3), torch.zeros(6, 3)), IMAGES, levels=0)


def test_a_part_draws_the_same_beside_any_other_and_existing_views_do_not_change():
    alone, both = view("color-jitter", 3, 50), view("random-resized-crop+color-jitter", 3, 50)
    assert alone
    assert both
    assert torch.equal(alone.chance["color-jitter"], both.chance["color-jitter"])
    images = photographs(50, 12, 12)
    crops = view("random-resized-crop", 3, 50)
    assert crops
    expected = alone.apply(crops.apply(images, slice(None)), slice(None))
    alike(both.apply(images, slice(None)), expected, levels=0)
    known = view("crop-flip", 3, 8)
    assert known
    drawn = [known.flip.tolist(), known.down.tolist(), known.right.tolist(), known.turns.tolist()]
    random = np.random.Generator(np.random.PCG64([0x7669657773, 3]))
    assert drawn == [random.integers(0, high, 8, dtype=np.uint8).tolist() for high in (2, 9, 9, 4)]


# Mixed images.


def mixed(augment: str, **given: Any) -> Stage:
    return make_stage("mlp-8", dataset=MNIST.fingerprint, batch_size=64, views=3, augment=augment, **given)


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_an_image_is_mixed_with_its_partner_as_its_labels_are(how):
    training = StageTraining([mixed(how, epochs=3)], MNIST, [[]])
    training.run_epoch()
    training._begin_epoch()
    inputs, rows = training.inputs, torch.arange(200)
    drawn = inputs.images.mix
    assert drawn
    plain = inputs.pixels(MNIST.train.images[inputs.transfer_set])
    own_part, partner = drawn.part, drawn.partner
    seen, first, second = inputs.images[rows], plain[rows], plain[partner]
    if how == "mixup":
        expected = own_part[:, None, None, None] * first + (1 - own_part[:, None, None, None]) * second
        torch.testing.assert_close(seen, expected)
    else:
        kept = (seen == first).flatten(1).float().mean(dim=1)
        assert (kept >= own_part - 1e-6).all()  # outside the box all, inside where both are alike
        assert ((seen == first) | (seen == second)).all()
        x1, y1, x2, y2 = drawn.box[7].tolist()  # type: ignore[index]
        torch.testing.assert_close(seen[7, :, y1:y2, x1:x2], second[7, :, y1:y2, x1:x2])
        assert own_part[7] == pytest.approx(1 - (x2 - x1) * (y2 - y1) / (28 * 28))
    logits = torch.randn(1, 10, 200)
    targets = F.one_hot(inputs.labels, 10) * own_part[:, None] + F.one_hot(inputs.labels[partner], 10) * (
        1 - own_part[:, None]
    )
    expected = F.cross_entropy(logits[0].t(), targets)
    torch.testing.assert_close(training.teaching.losses(logits, inputs.labels, rows, 0)[0], expected)
    assert 0.3 < own_part.mean() < 0.7
    assert sorted(partner.tolist()) == rows.tolist()


def test_mixed_labels_are_weighed_by_class_as_one_mean():
    torch.manual_seed(4)
    logits, labels, others, part = torch.randn(2, 3, 8), torch.randint(3, (8,)), torch.randint(3, (8,)), torch.rand(8)
    weights = torch.tensor([1.0, 2.0, 5.0])
    whole = labels_only(logits, labels, 0.1, weights, None, (others, part))
    each = F.log_softmax(logits, dim=1)
    targets = F.one_hot(labels, 3) * part[:, None] + F.one_hot(others, 3) * (1 - part[:, None])
    each = -(each * (0.9 * targets + 0.1 / 3).t()).sum(dim=1)
    of_each = part * weights[labels] + (1 - part) * weights[others]
    torch.testing.assert_close(whole, (each * of_each).sum(dim=1) / of_each.sum())


def test_a_teachers_soft_targets_are_of_the_mixed_images_of_the_students_transfer_set(tmp_path):
    """The teacher was trained on another transfer set: what the student needs is derived, keyed by that set."""
    teacher = mixed("crop-flip+mixup", role="teacher", epochs=2, examples=300)
    student = mixed("crop-flip+mixup", epochs=3, examples=100, upstream=(teacher,))
    assert student.recipe.view_names == (None, "crop-flip+mixup@100.0 1", "crop-flip+mixup@100.0 2")
    store = ArtifactStore(str(tmp_path))
    [left] = train([teacher], MNIST, [[]])
    assert left.soft_targets is not None
    assert left.soft_targets.shape[:2] == (1, 50_000)  # of the images as they are
    from takd.trainables.batch import StageBatch

    origin = {each.key: {"study": "s", "use": "0.0"} for each in (teacher, student)}
    taught = StageBatch([teacher], store, 1, False, origin)
    while not taught.done:
        taught.run_epoch()
    taught.publish()
    derive(teacher, student.recipe.view_names, store, 1, origin[teacher.key])
    by_view = store.soft_targets(teacher, student.recipe.view_names)
    assert [len(each) for each in by_view] == [50_000, 100, 100]
    training = StageTraining([student], MNIST, [[by_view]])
    for _ in range(2):
        training.run_epoch()
    training._begin_epoch()
    assert isinstance(training.teaching, SoftTeaching)
    module = build("mlp-8", MNIST.image_shape, 10).eval()
    module.load_state_dict(left.weights)
    with torch.no_grad():
        expected = (module(training.inputs.images[torch.arange(100)]) / 4.0).softmax(1)
    torch.testing.assert_close(training.teaching.probabilities[:, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_who_has_another_transfer_set_has_other_partners_and_other_names():
    names = [
        mixed("mixup", examples=size, examples_seed=seed).recipe.view_names[1]
        for size, seed in ((100, 0), (100, 1), (None, 0))
    ]
    assert names == ["mixup@100.0 1", "mixup@100.1 1", "mixup 1"]
    assert mixed("crop-flip", examples=100).recipe.view_names[1] == "crop-flip 1"
    pixels = Pixels(MNIST.train.images, MNIST, CPU, torch.contiguous_format)
    part = pixels.named("mixup@100.1 1", MNIST.train.labels)
    assert len(part) == 100
    chosen = transfer_set(MNIST.train.labels, 100, 1)
    assert torch.equal(part.images, MNIST.train.images[chosen])
    drawn = mix("mixup", 1, 100, MNIST.image_shape)
    assert drawn
    assert part.mix
    assert torch.equal(part.mix.partner, drawn.partner)
    assert len(pixels.named(None, MNIST.train.labels)) == 50_000


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"augment": "blur"}, "augment is 'blur'; expected crop-flip, flip-rotate, random-resized-crop"),
        ({"augment": "crop-flip+crop-flip"}, "crop-flip is there twice"),
        ({"augment": "mixup+crop-flip"}, r"say crop-flip\+mixup"),
        ({"augment": "mixup+cutmix"}, "images are mixed in one way: mixup or cutmix"),
        ({"augment": "mixup", "views": 1}, "1 is neither per-epoch nor a whole number of at least 2"),
        ({"augment": "mixup", "views": "each"}, "'each' is neither per-epoch nor"),
        ({"views": "per-epoch"}, "views is only for a recipe with augment"),
    ],
)
def test_no_augmentation_that_there_is_not_is_read(recipe, words):
    with pytest.raises(InputError, match=words):
        tiny_space(arms=["labels"], student__recipe=recipe)


def test_a_loss_that_needs_one_label_is_refused_beside_mixed_images():
    recipe = {"augment": "crop-flip+cutmix"}
    with pytest.raises(InputError, match=r"student.recipe: augment is crop-flip\+cutmix, whose images have two labels"):
        tiny_space(arms=["kd"], loss=Loss(divergence="decoupled"), student__recipe=recipe, teacher__recipe=recipe)
    tiny_space(arms=["labels"], loss=Loss(divergence="decoupled"), student__recipe=recipe)


def test_grey_images_have_no_stains():
    space = tiny_space(arms=["labels"], student__recipe={"augment": "stain-jitter"})
    with pytest.raises(InputError, match="stain-jitter, and stains have colours; images of mnist have 1 channel"):
        _check_augmentation("student", space.student, MNIST)
