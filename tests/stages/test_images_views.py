"""Decoding and views against Pillow, torchvision and the models' own transforms."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from teachonce.stages.corpora.images import BadImage, decode, image_extensions, probe, shrink
from teachonce.stages.views import ViewSpec, render, render_views
from teachonce.storage_schemas.errors import InputError
from torchvision.transforms import functional as tvf


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "format_", "extension"),
    [("RGB", "JPEG", "jpg"), ("L", "JPEG", "jpg"), ("CMYK", "JPEG", "jpg"), ("RGBA", "PNG", "png"), ("P", "PNG", "png"),
     ("P", "GIF", "gif"), ("RGB", "WEBP", "webp"), ("RGB", "BMP", "bmp"), ("RGB", "TIFF", "tiff")],
)  # fmt: skip
def test_every_format_decodes_as_pillow_converts_it(mode, format_, extension):
    data = encoded(picture(40, 30, mode=mode), format_)
    assert probe(data) == extension
    assert np.array_equal(decode(data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_bad_files_are_told_apart():
    whole = encoded(picture(64, 64), "JPEG")
    png = encoded(picture(64, 64), "PNG")
    reasons = {
        "empty file": b"",
        "not an image that Pillow reads": b"<html>404</html>",
        "truncated image": whole[: len(whole) // 2],
        "too many pixels: 64x64, more than 4000": whole,
    }
    for reason, data in reasons.items():
        for check in (probe, decode, lambda d, m: shrink(d, 32, m)):
            with pytest.raises(BadImage) as caught:
                check(data, 4000 if "pixels" in reason else 10**6)
            assert str(caught.value) == reason
    with pytest.raises(BadImage):
        probe(png[: len(png) // 2])
    with pytest.raises(BadImage):
        probe(encoded(picture(64, 64), "WEBP")[:-200])


def test_a_bomb_is_refused_before_its_pixels_are_allocated():
    small = encoded(Image.new("1", (8, 8)), "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + small[24:29]
    bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(BadImage, match="^too many pixels: 60000x60000"):
        probe(bomb)


def test_trailing_bytes_behind_a_whole_jpeg_are_no_fault():
    assert probe(encoded(picture(30, 30), "JPEG") + b"\0" * 500) == "jpg"


def test_no_document_format_counts_as_an_image():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp"} <= image_extensions()
    assert ".pdf" not in image_extensions()


def test_shrinking_keeps_small_images_and_the_aspect_ratio():
    small = encoded(picture(50, 40), "PNG")
    assert shrink(small, 64) is small
    reduced = Image.open(io.BytesIO(shrink(encoded(picture(300, 200), "PNG"), 100)))
    assert (reduced.format, reduced.size) == ("JPEG", (150, 100))


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (224, 224), (97, 400), (30, 20)])
def test_the_centre_view_is_open_clips_own_preprocessing(size):
    image = picture(*size)
    transform = open_clip.image_transform(
        224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic"
    )
    view = render(image, ViewSpec().params("k", *size)[0], 224, ViewSpec())
    assert torch.equal(torch.from_numpy(view.copy()).permute(2, 0, 1).float() / 255, transform(image))


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (255, 256)])
def test_the_centre_view_is_timms_own_preprocessing(size):
    from timm.data import create_transform

    image = picture(*size)
    transform = create_transform(224, interpolation="bicubic", crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    spec = ViewSpec(crop_pct=0.875)
    view = render(image, spec.params("k", *size)[0], 224, spec)
    assert torch.equal(torch.from_numpy(view.copy()).permute(2, 0, 1).float() / 255, transform(image))


def test_a_random_view_is_torchvisions_resized_crop():
    spec = ViewSpec(kind="random_resized_crop", count=8, seed=3)
    image = picture(123, 87)
    params = spec.params("ab" * 16, 123, 87)
    views = render_views(image, params, 64, spec, range(8))
    for (top, left, height, width, flip, *_), view in zip(params.tolist(), views, strict=True):
        crop = tvf.resized_crop(image, top, left, height, width, [64, 64], tvf.InterpolationMode.BICUBIC)
        expected = tvf.hflip(crop) if flip else crop
        assert np.array_equal(view.transpose(1, 2, 0), np.asarray(expected))


def test_boxes_depend_on_seed_key_and_view_and_on_nothing_else():
    spec = ViewSpec(kind="random_resized_crop", count=20, seed=0)
    params = spec.params("k", 300, 200)
    assert np.array_equal(
        params[:4], ViewSpec(kind="random_resized_crop", count=4, seed=0).params("k", 300, 200)
    )
    assert np.array_equal(params, spec.params("k", 300, 200))
    assert len({tuple(p) for p in params.tolist()}) == 20
    assert not np.array_equal(params, spec.params("l", 300, 200))
    assert not np.array_equal(
        params, ViewSpec(kind="random_resized_crop", count=20, seed=1).params("k", 300, 200)
    )


@pytest.mark.parametrize(
    ("key", "size"), [("ab" * 16, (300, 200)), ("k", (97, 400)), ("z" * 32, (4000, 3000))]
)
def test_boxes_are_those_that_were_written_down(key, size):
    """They must never change, since stored targets depend on them; nor with colours, which are drawn after them."""
    plain = {"kind": "random_resized_crop", "count": 3, "seed": 7}
    for colors in ({}, {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_probability": 0.5}, {"grayscale": 0.5}):
        found = ViewSpec(**plain, **colors).params(key, *size)
        assert [list(view)[:5] for view in found.tolist()] == BOXES[key], colors


def test_views_without_colours_say_so():
    views = ViewSpec(kind="random_resized_crop", count=2).params("k", 30, 20)
    assert [view[5:] for view in views.tolist()] == [(-1, 0, 1.0, 1.0, 1.0, 0.0)] * 2
    assert ViewSpec(crop_pct=0.875).params("k", 300, 200).tolist() == [
        (12, 62, 175, 175, 0, -1, 0, 1.0, 1.0, 1.0, 0.0)
    ]


def test_boxes_have_the_distribution_that_they_declare():
    spec = ViewSpec(kind="random_resized_crop", count=4000, seed=0)
    views = spec.params("k", 300, 300)
    top, left, height, width, flip = (views[name] for name in ("top", "left", "height", "width", "flip"))
    share = height * width / 300**2
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 300).all()
    assert 0.45 < flip.mean() < 0.55
    assert share.min() >= 0.075
    assert 0.48 < share.mean() < 0.56  # uniform over (0.08, 1), less what does not fit
    ratio = width / height
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35


def test_a_box_that_never_fits_falls_back_to_the_centre():
    spec = ViewSpec(kind="random_resized_crop", count=1, scale=(1.0, 1.0))
    assert spec.params("k", 400, 100)[0].item()[:4] == (0, 133, 100, 133)
    assert spec.params("k", 100, 400)[0].item()[:4] == (133, 0, 133, 100)


def test_impossible_specs_are_refused():
    for fields in ({"kind": "mosaic"}, {"count": 0}, {"kind": "center", "count": 2}, {"scale": (0.0, 1.0)},
                   {"ratio": (1.0, float("inf"))}, {"flip": float("nan")}):  # fmt: skip
        with pytest.raises(InputError):
            ViewSpec(**fields)
    spec = ViewSpec(kind="random_resized_crop", count=3)
    assert ViewSpec.from_json(spec.to_json()) == spec


BOXES = {
    "ab" * 16: [[115, 67, 68, 84, 1], [25, 162, 123, 93, 1], [93, 1, 70, 87, 1]],
    "k": [[318, 9, 81, 80, 0], [103, 0, 69, 90, 0], [235, 1, 110, 94, 1]],
    "z" * 32: [[164, 295, 2718, 3522, 1], [970, 1471, 1932, 1950, 0], [898, 2424, 1810, 1506, 0]],
}
