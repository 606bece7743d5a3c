"""Decoding and views against Pillow, torchvision and the models' own transforms."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import xarray
from click.testing import CliRunner
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from teachonce.cli import main
from teachonce.stages.corpora.images import BadImage, decode, image_extensions, probe, shrink
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.students.bundle import load_student
from teachonce.stages.views.render import render_views
from teachonce.stages.views.settings import CENTERED
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError
from torchvision.transforms import functional as tvf

#: A mean colour, and what it is in whole levels.
MEAN = (0.4, 0.5, 0.6)
FILL = (102, 128, 153)


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
    [
        ("RGB", "JPEG", "jpg"),
        ("L", "JPEG", "jpg"),
        ("CMYK", "JPEG", "jpg"),
        ("RGBA", "PNG", "png"),
        ("P", "PNG", "png"),
        ("P", "GIF", "gif"),
        ("RGB", "WEBP", "webp"),
        ("RGB", "BMP", "bmp"),
        ("RGB", "TIFF", "tiff"),
    ],
)
def test_every_format_decodes_as_pillow_converts_it(mode, format_, extension):
    data = encoded(picture(40, 30, mode=mode), format_)
    assert probe(data) == extension
    assert np.array_equal(decode(data), Image.open(io.BytesIO(data)).convert("RGB"))  # type: ignore[arg-type]


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


# Landscape, portrait, square, smaller than any view, and extreme: the last two leave one or two pixels of a side.
SIZES = ((300, 200), (200, 301), (224, 224), (255, 256), (97, 400), (30, 20), (600, 7), (3, 250))


def by_timm(image: Image.Image, size: int, crop_pct: float, mode: str, interpolation: str) -> np.ndarray:
    """uint8 (3, size, size): timm's test-time transform before it normalises; the padding is `MEAN`."""
    from timm.data import create_transform

    transform = create_transform(
        size,
        crop_pct=crop_pct,
        crop_mode=mode,
        interpolation=interpolation,
        mean=MEAN,
        std=(1, 1, 1),
        normalize=False,
    )
    return transform(image).numpy()


def by_open_clip(image: Image.Image, size: int, mode: str, interpolation: str, fill: int = 0) -> np.ndarray:
    """uint8 (3, size, size): open_clip's test-time transform, which scales to 0 to 1 and here does no more."""
    cfg = PreprocessCfg(
        size=size,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        interpolation=interpolation,
        resize_mode=mode,
        fill_color=fill,
    )
    levels = image_transform_v2(cfg, is_train=False)(image) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    return levels.round().to(torch.uint8).numpy()


def center(image: Image.Image, size: int, spec: ViewSpec) -> np.ndarray:
    return render_views(image, spec.params("k", *image.size), size, spec, range(1))[0]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Photographs that scikit-learn and matplotlib ship: 640 x 427, 640 x 427, 512 x 600."""
    files = {
        "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
        "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
    }
    folders = {name: Path(find_spec(name).submodule_search_locations[0]) for name in files}
    return [decode((folders[name] / file).read_bytes()) for name, found in files.items() for file in found]


@pytest.mark.parametrize("mode", CENTERED)
@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [
        (224, 1.0, "bicubic"),
        (224, 0.875, "bilinear"),
        (96, 0.9, "bicubic"),
        (65, 0.95, "bicubic"),
        (32, 0.5, "nearest"),
        (64, 1.15, "bicubic"),
        (65, 1.15, "bilinear"),
    ],
)
def test_a_centre_view_is_timms_own_preprocessing(mode, size, crop_pct, interpolation, photographs):
    spec = ViewSpec(
        kind=mode,
        crop_pct=crop_pct,
        interpolation=interpolation,
        fill=FILL if mode == "border" else (0, 0, 0),
    )
    for image in [picture(*size_) for size_ in SIZES] + photographs:
        expected = by_timm(image, size, crop_pct, mode, interpolation)
        assert np.array_equal(center(image, size, spec), expected), image.size


@pytest.mark.parametrize("fill", [0, 77])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("resize_mode", "kind"), [("shortest", "center"), ("squash", "squash"), ("longest", "border")])
def test_a_centre_view_is_open_clips_own_preprocessing(resize_mode, kind, interpolation, fill, photographs):
    spec = ViewSpec(kind=kind, interpolation=interpolation, fill=(fill,) * 3 if kind == "border" else (0, 0, 0))
    for image in [picture(*size) for size in SIZES] + photographs:
        for size in (224, 33):
            if resize_mode == "longest" and min(image.size) * size < max(image.size) / 2:
                continue  # a side of no pixel, which open_clip refuses
            expected = by_open_clip(image, size, resize_mode, interpolation, fill)
            assert np.array_equal(center(image, size, spec), expected), (image.size, size)


def test_a_side_too_thin_to_be_seen_keeps_a_pixel():
    image = picture(900, 2)
    with pytest.raises(ValueError, match="height and width must be > 0"):
        by_timm(image, 64, 1.0, "border", "bicubic")
    view = center(image, 64, ViewSpec(kind="border", fill=FILL)).transpose(1, 2, 0)
    padding = np.delete(view, 31, axis=0)
    assert (padding == FILL).all()
    assert not (view[31] == FILL).all(axis=-1).any()


RESIZE_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}


@pytest.mark.parametrize("kind", CENTERED)
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_gray_and_opaque_images_are_as_open_clip_has_them(mode, kind, photographs):
    for image in (picture(300, 200), photographs[2]):
        image = image.convert(mode)
        view = center(decode(encoded(image, "PNG")), 96, ViewSpec(kind=kind))
        assert np.array_equal(view, by_open_clip(image, 96, RESIZE_MODES[kind], "bicubic"))


@pytest.mark.parametrize("kind", CENTERED)
@pytest.mark.parametrize(
    ("mode", "format_", "apart"),
    [("P", "PNG", 10), ("1", "PNG", 30), ("RGBA", "PNG", 20), ("CMYK", "TIFF", 2)],
)
def test_other_images_are_converted_before_they_are_resized_as_timm_does(mode, format_, apart, kind, photographs):
    """open_clip's transform converts them last, and comes out elsewhere: `apart` levels of 255 away, on average."""
    image = photographs[0]
    if mode == "RGBA":
        image = image.copy()
        image.putalpha(picture(*image.size, mode="L").point(lambda level: 255 * (level > 128)))  # type: ignore[misc]
    elif mode == "CMYK":  # Pillow makes no black ink of RGB
        image = Image.merge("CMYK", (*image.split(), image.convert("L")))
    else:
        image = image.convert(mode)
    data = encoded(image, format_)
    original, converted = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data)).convert("RGB")
    assert original.mode == mode
    spec = ViewSpec(kind=kind)
    view = center(decode(data), 96, spec)
    assert np.array_equal(view, by_open_clip(converted, 96, RESIZE_MODES[kind], "bicubic"))
    padded = replace(spec, fill=FILL) if kind == "border" else spec
    assert np.array_equal(center(decode(data), 96, padded), by_timm(converted, 96, 1.0, kind, "bicubic"))
    last = by_open_clip(original, 96, RESIZE_MODES[kind], "bicubic")
    assert np.abs(last.astype(float) - view).mean() > apart


@pytest.mark.parametrize(
    ("fields", "size", "box"),
    [
        ({"kind": "center"}, (300, 200), (0, 50, 200, 200)),
        ({"kind": "center", "crop_pct": 0.875}, (300, 200), (12, 62, 175, 175)),
        ({"kind": "center", "crop_pct": 1.15}, (300, 200), (0, 35, 200, 230)),
        ({"kind": "squash"}, (300, 200), (0, 0, 200, 300)),
        ({"kind": "squash", "crop_pct": 0.9}, (300, 200), (10, 15, 180, 270)),
        ({"kind": "border"}, (300, 200), (0, 0, 200, 300)),
        ({"kind": "border"}, (30, 250), (0, 0, 250, 30)),
        ({"kind": "border", "crop_pct": 0.9}, (300, 200), (0, 15, 200, 270)),
        ({"kind": "border", "crop_pct": 0.5}, (200, 300), (75, 25, 150, 150)),
        ({"kind": "squash", "crop_pct": 0.1}, (600, 1), (0, 270, 1, 60)),
    ],
)
def test_the_box_of_a_centre_view_is_what_it_shows(fields, size, box):
    spec = ViewSpec(**fields)
    assert spec.params("k", *size).tolist() == [(*box, 0, -1, 0, 1.0, 1.0, 1.0, 0.0)]
    assert not spec.is_random
    view = center(coordinates(*size), 100, spec)
    top, left, height, width = box
    for levels, first, length, whole in ((view[0], left, width, size[0]), (view[1], top, height, size[1])):
        seen = levels[view[2] > 250].astype(float) / 255 * whole
        close = 0.6 + 0.01 * max(size)  # a pixel of the view
        assert (seen.min(), seen.max()) == pytest.approx((first, first + length), abs=close)


def coordinates(width: int, height: int) -> Image.Image:
    """Red and green say where a pixel lies; blue, that it is none of the padding."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray((np.stack([x, y, np.ones_like(x)], axis=-1) * 255).round().astype(np.uint8))


@pytest.mark.parametrize("kind", ["squash", "border"])
def test_a_stores_centre_views_are_those_of_teacher_and_student(
    kind, picture_shards, pictures, tiny_clip_teacher, tmp_path
):
    """The teacher takes 32 pixels, the student 20; both see the same boxes and the same padding."""
    store, teacher = tmp_path / "s", ("--teacher", f"local-dir:{tiny_clip_teacher}")
    run("vectors", *teacher, "--classes", str(picture_shards.location), "--out", store, "--threads", 1)
    run(
        "cache",
        picture_shards.location,
        *teacher,
        "--teacher-crop-mode",
        kind,
        "--teacher-crop-pct",
        0.9,
        "--out",
        store,
        "--targets",
        "both",
        "--encoding",
        "fp32",
        "--precision",
        "fp32",
        "--threads",
        1,
        "--executor",
        "serial",
    )
    data = xarray.open_zarr(str(store), consolidated=False).load()
    fill = {"fill": list(FILL)} if kind == "border" else {}
    assert data.attrs["cache"]["views"] == {
        "kind": kind,
        "count": 1,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        **fill,
    }
    rows = np.flatnonzero(data["valid"].values)
    entries = list(picture_shards.manifest())
    images = {row: Image.open(pictures / entries[row].path).convert("RGB") for row in rows}
    for row, image in images.items():
        height, width = (round(0.9 * side) for side in image.size[::-1])
        if kind == "border":
            height, width = (min(side, round(0.9 * max(image.size))) for side in image.size[::-1])
        box = ((image.height - height) // 2, (image.width - width) // 2, height, width, 0)
        assert data["view_params"].values[row, 0].tolist() == list(box)

    model = open_clip.create_model(f"local-dir:{tiny_clip_teacher}").eval()
    seen = np.stack([by_timm(images[row], 32, 0.9, kind, "bicubic") for row in rows])
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    with torch.no_grad():
        embedding_ND = model.encode_image((torch.from_numpy(seen) / 255 - mean) / std, normalize=True)
    np.testing.assert_allclose(data["embedding"].values[rows, 0], embedding_ND.numpy(), atol=1e-6)

    with TargetStream(
        picture_shards, store, image_size=20, batch_size=64, targets=["embedding"], drop_last=False
    ) as stream:
        batch = next(stream.batches(0))
    assert sorted(batch.rows_N.tolist()) == rows.tolist()
    for row, image_CHW in zip(batch.rows_N.tolist(), batch.images_NCHW.numpy(), strict=True):
        assert np.array_equal(image_CHW, by_timm(images[row], 20, 0.9, kind, "bicubic"))

    told = " ".join(run("inspect", store).split())
    share = "both sides, squashed" if kind == "squash" else "the longer side, padded with the colour 102 128 153"
    assert f"views 1, the centre: 0.9 of {share}, bicubic" in told
    # The student's own test-time view is another matter.
    run(
        "distill",
        picture_shards.location,
        store,
        "--recipe",
        "kd",
        "--student",
        "timm:test_resnet",
        "--student-size",
        32,
        "--student-crop-mode",
        "border",
        "--student-mean",
        "0,1,0.5",
        "--epochs",
        1,
        "--batch-size",
        16,
        "--threads",
        1,
        "--decode-workers",
        0,
        "--out",
        tmp_path / "b",
    )
    view = load_student(str(tmp_path / "b")).preprocess.center_view()
    assert (view.kind, view.fill) == ("border", (0, 255, 128))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


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
    assert np.array_equal(params[:4], ViewSpec(kind="random_resized_crop", count=4, seed=0).params("k", 300, 200))
    assert np.array_equal(params, spec.params("k", 300, 200))
    assert len({tuple(p) for p in params.tolist()}) == 20
    assert not np.array_equal(params, spec.params("l", 300, 200))
    assert not np.array_equal(params, ViewSpec(kind="random_resized_crop", count=20, seed=1).params("k", 300, 200))


@pytest.mark.parametrize(("key", "size"), [("ab" * 16, (300, 200)), ("k", (97, 400)), ("z" * 32, (4000, 3000))])
def test_boxes_are_those_that_were_written_down(key, size):
    """They must never change, since stored targets depend on them; nor with colours, which are drawn after them."""
    plain = {"kind": "random_resized_crop", "count": 3, "seed": 7}
    for colors in ({}, {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_probability": 0.5}, {"grayscale": 0.5}):
        found = ViewSpec(**plain, **colors).params(key, *size)  # type: ignore[arg-type]
        assert [list(view)[:5] for view in found.tolist()] == BOXES[key], colors


def test_views_without_colours_say_so():
    views = ViewSpec(kind="random_resized_crop", count=2).params("k", 30, 20)
    assert [view[5:] for view in views.tolist()] == [(-1, 0, 1.0, 1.0, 1.0, 0.0)] * 2
    assert ViewSpec(crop_pct=0.875).params("k", 300, 200).tolist() == [(12, 62, 175, 175, 0, -1, 0, 1.0, 1.0, 1.0, 0.0)]


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
    for fields in (
        {"kind": "mosaic"},
        {"count": 0},
        {"kind": "center", "count": 2},
        {"scale": (0.0, 1.0)},
        {"ratio": (1.0, float("inf"))},
        {"flip": float("nan")},
        {"kind": "squash", "count": 2},
        {"kind": "border", "grayscale": 0.1},
        {"kind": "squash", "fill": (1, 1, 1)},
        {"kind": "border", "fill": (0, 0, 256)},
        {"kind": "border", "fill": (0, 0)},
        {"kind": "border", "fill": (0.5, 0.5, 0.5)},
    ):
        with pytest.raises(InputError):
            ViewSpec(**fields)


def test_specs_are_written_as_they_always_were():
    """They are part of stores' fingerprints: what came later appears only where it is used."""
    random = {
        "kind": "random_resized_crop",
        "count": 3,
        "interpolation": "bicubic",
        "seed": 0,
        "scale": [0.08, 1.0],
        "ratio": [3 / 4, 4 / 3],
        "flip": 0.5,
    }
    center = {"kind": "center", "count": 1, "interpolation": "bilinear", "crop_pct": 0.875}
    squash, border = center | {"kind": "squash"}, center | {"kind": "border", "fill": [1, 2, 3]}
    for fields in (random, center, squash, border):
        assert ViewSpec.from_json(fields).to_json() == fields
    assert ViewSpec(kind="random_resized_crop", count=3).to_json() == random
    assert ViewSpec(interpolation="bilinear", crop_pct=0.875).to_json() == center
    assert ViewSpec.from_json(border).fill == (1, 2, 3)


BOXES = {
    "ab" * 16: [[115, 67, 68, 84, 1], [25, 162, 123, 93, 1], [93, 1, 70, 87, 1]],
    "k": [[318, 9, 81, 80, 0], [103, 0, 69, 90, 0], [235, 1, 110, 94, 1]],
    "z" * 32: [[164, 295, 2718, 3522, 1], [970, 1471, 1932, 1950, 0], [898, 2424, 1810, 1506, 0]],
}
