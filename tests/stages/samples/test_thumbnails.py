"""Thumbnails: they show the stored view's box and mirroring, and an unusable row has a reason instead of a picture."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from teachonce.stages.corpora.images import BadImage
from teachonce.stages.samples.images import Images
from teachonce.stages.samples.registry import KINDS
from teachonce.stages.samples.thumbnails import Thumbnails, thumbnail
from teachonce.stages.views.spec import CENTER, ViewSpec

SPEC = ViewSpec(kind="random_resized_crop", count=4, seed=5, interpolation="bilinear")


def image_of(shards, row: int) -> tuple[str, Image.Image]:
    reader = shards.reader(row // shards.corpus.shard_size)
    return reader.key(row), Image.open(io.BytesIO(reader.read(row))).convert("RGB")


@pytest.mark.parametrize("row", [0, 20, 45])
def test_it_is_the_stored_box_mirrored_where_the_view_is(picture_shards, row) -> None:
    key, image = image_of(picture_shards, row)
    params = SPEC.params(key, *image.size)
    with Thumbnails(picture_shards, SPEC) as thumbnails:
        found = thumbnails.pixels(row, params, 24)
        files = thumbnails.views(row, params, 24)
    assert found.shape == (4, 24, 24, 3)
    for view, file, pixels in zip(params, files, found, strict=True):
        top, left, height, width, flip = (int(view[name]) for name in ("top", "left", "height", "width", "flip"))
        box = (left, top, left + width, top + height)
        expected = image.crop(box).resize((24, 24), Image.Resampling.BILINEAR)
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else expected
        np.testing.assert_array_equal(pixels, np.asarray(expected))
        opened = Image.open(io.BytesIO(file))
        assert (opened.format, opened.size) == ("WEBP", (24, 24))
        near = np.asarray(opened.convert("RGB"), int) - pixels
        assert np.abs(near).mean() < 12  # lossy, but that picture and no other
    assert {int(view["flip"]) for view in SPEC.params(key, *image.size)} <= {0, 1}
    assert thumbnail(picture_shards, row, params[2], SPEC, edge=24) == files[2]


def test_a_centre_view_needs_no_box(picture_shards) -> None:
    _, image = image_of(picture_shards, 3)
    file = thumbnail(picture_shards, 3, CENTER, ViewSpec(interpolation="bilinear"), edge=16)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    expected = image.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), int) - np.asarray(expected)).mean() < 14


def test_an_unusable_row_has_a_reason(picture_shards) -> None:
    (row, reason), *_ = picture_shards.reader(0).invalid.items() or picture_shards.reader(1).invalid.items()
    with pytest.raises(BadImage, match=reason[:10]):
        thumbnail(picture_shards, row, CENTER, ViewSpec())


def test_other_kinds_of_samples_are_no_pictures(picture_shards, monkeypatch) -> None:
    class Sounds(Images):
        name = "sound"
        axes = ("channel", "time")  # type: ignore[assignment]

    monkeypatch.setitem(KINDS, "sound", Sounds())
    monkeypatch.setitem(picture_shards.__dict__, "corpus", replace(picture_shards.corpus, sample_kind="sound"))
    with Thumbnails(picture_shards, ViewSpec()) as thumbnails:
        assert thumbnails.no_pictures == "samples of the kind 'sound' are no pictures"
        with pytest.raises(BadImage, match="no pictures"):
            thumbnails.views(0, [CENTER], 8)
