"""Views that are drawn anew: functions of (seed, row, epoch) and the image, with the libraries' own pixels."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from teachonce.stages.views.anew import StrongView, WeakView, _augmentation, _posterize, seeded
from torchvision.transforms import functional as tvf

FILL = (102, 128, 153)
STRONG = StrongView(scale=(0.3, 1.0), augment="rand-m9-mstd0.5-inc1", fill=FILL)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    coarse = np.random.default_rng(3).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((61, 40), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("view", [WeakView(), STRONG], ids=["weak", "strong"])
def test_a_view_depends_on_seed_row_and_epoch_alone(view, image) -> None:
    def drawn(**changes: int) -> bytes:
        made = view.draw(image, 32, **{"seed": 1, "row": 4, "epoch": 2, **changes})
        assert made.size == (32, 32)
        return made.tobytes()

    first = drawn()
    before = random.getstate(), np.random.get_state()[1].tolist()
    others = [drawn(seed=2), drawn(row=5), drawn(epoch=3)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(9)
    np.random.seed(9)
    assert drawn() == first
    assert len({first, *others}) == 4


def test_the_weak_view_is_a_crop_of_the_resized_image(image) -> None:
    resized = tvf.resize(image, 32, tvf.InterpolationMode.BICUBIC)  # 48 x 32
    assert resized.size == (48, 32)
    starts = {tvf.crop(resized, 0, left, 32, 32).tobytes(): left for left in range(17)}
    found = [starts[WeakView().draw(image, 32, seed=0, row=row, epoch=0).tobytes()] for row in range(200)]
    assert set(found) == set(range(17))  # every place, both ends among them


@pytest.mark.parametrize("size", [(5, 70_000), (70_000, 5)])
def test_long_images_are_never_made_whole(size) -> None:
    assert WeakView().draw(Image.new("RGB", size, (1, 2, 3)), 224, seed=0, row=1, epoch=0).getpixel((9, 9)) == (1, 2, 3)


def test_the_strong_view_is_a_box_then_timms_augmentation(image, by_torchvision) -> None:
    from teachonce.stages.views.spec import ViewSpec

    drawing = ViewSpec(kind="random_resized_crop", seed=6, scale=(0.3, 1.0)).drawing
    augment = _augmentation(STRONG.augment, 32, FILL, "bicubic")
    changed = 0
    for row in range(30):
        params = drawing.params([f"strong/{row}"], np.array([(40, 61)]), [1])[0, 0]
        assert params["height"] * params["width"] > 0.25 * 40 * 61
        plain = Image.fromarray(by_torchvision(image, params, 32))
        with seeded(f"6/augment/{row}/1"):
            expected = augment(plain)
        assert STRONG.draw(image, 32, seed=6, row=row, epoch=1).tobytes() == expected.tobytes()
        changed += expected.tobytes() != plain.tobytes()
    assert 10 < changed < 30  # two operations, each done with probability 0.5
    none = StrongView(scale=(0.3, 1.0), augment="", fill=FILL)
    assert none.draw(image, 32, seed=6, row=29, epoch=1).tobytes() == plain.tobytes()


def test_timms_settings_are_those_of_its_own_transform() -> None:
    from timm.data import create_transform

    mean = (0.4, 0.5, 0.6)
    theirs = create_transform(
        64,
        is_training=True,
        scale=(0.3, 1),
        color_jitter=0,
        auto_augment=STRONG.augment,
        interpolation="bicubic",
        mean=mean,
    )
    found = next(t for t in theirs.transforms if type(t).__name__ == "RandAugment")
    own: Any = _augmentation(STRONG.augment, 64, FILL, "bicubic")
    assert [(op.name, op.prob, op.magnitude, op.hparams, op.kwargs) for op in own.ops] == [
        (op.name, op.prob, op.magnitude, op.hparams, op.kwargs) for op in found.ops
    ]
    assert own.num_layers == found.num_layers


def test_no_level_is_refused(image) -> None:
    """Posterize to 0 bits is a black image, whatever Pillow has come to think of it."""
    assert _posterize(ImageOps.posterize, image, 0).getextrema() == ((0, 0),) * 3
    augment: Any = _augmentation("rand-m10-n1-inc1", 16, FILL, "bicubic")
    (operation,) = [op for op in augment.ops if op.name == "PosterizeIncreasing"]
    operation.prob = 1
    assert operation(image).getextrema() == ((0, 0),) * 3
