"""Views drawn for many samples at once, against plain Python for one view, and NumPy's generator."""

from __future__ import annotations

import hashlib
import math
import sys

import numpy as np
import pytest
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.philox import Philox
from teachonce.storage_schemas.view_drawing import ViewDrawing
from teachonce.storage_schemas.view_params import NO_COLOR, VIEW


def numbers(seed, key, view):
    """Random numbers of one view, in [0, 1)."""
    name = hashlib.blake2b(f"{seed}/{key}/{view}".encode(), digest_size=16).digest()
    raw = np.random.Philox(key=int.from_bytes(name, "little")).random_raw(48)
    return [(int(n) >> 11) * 2.0**-53 for n in raw]


def plain_view(spec: ViewSpec, key: str, view: int, width: int, height: int) -> tuple:
    """One random view, one number after the other, as torchvision's `get_params` go about it."""
    drawn = numbers(spec.seed, key, view)
    return plain_box(spec, drawn, width, height) + (plain_color(spec, drawn[41:]) if spec.has_colors else NO_COLOR)


def plain_box(spec, drawn, width, height):
    flip = int(drawn[40] < spec.flip)
    low, high = map(math.log, spec.ratio)
    for attempt in range(10):
        area, aspect, y, x = drawn[4 * attempt : 4 * attempt + 4]
        target = width * height * (spec.scale[0] + area * (spec.scale[1] - spec.scale[0]))
        ratio = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w, flip
    w, h = width, height
    if width / height < spec.ratio[0]:
        h = max(1, round(width / spec.ratio[0]))
    elif width / height > spec.ratio[1]:
        w = max(1, round(height * spec.ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w, flip


def plain_color(spec, drawn):
    jittered, order, *draws, gray = drawn
    grayscale = int(gray < spec.grayscale)
    if not any(spec.jitter) or jittered >= spec.jitter_probability:
        return -1, grayscale, *NO_COLOR[2:]
    *strengths, hue = spec.jitter
    ranges = [(max(0.0, 1 - s), 1 + s) for s in strengths] + [(-hue, hue)]
    return int(order * 24), grayscale, *(a + u * (b - a) for u, (a, b) in zip(draws, ranges, strict=False))


def plain_center(spec, width, height):
    if spec.kind == "squash":
        w, h = width * spec.crop_pct, height * spec.crop_pct
    else:
        w = h = (min if spec.kind == "center" else max)(width, height) * spec.crop_pct
    w, h = min(width, max(1, round(w))), min(height, max(1, round(h)))
    return (height - h) // 2, (width - w) // 2, h, w, 0, *NO_COLOR


def samples(count, seed):
    """Keys, and heights and widths: ordinary ones, very long ones, and single pixels."""
    rng = np.random.default_rng(seed)
    keys = [hashlib.blake2b(f"{seed}/{i}".encode(), digest_size=16).hexdigest() for i in range(count)]
    sizes = rng.integers(1, 700, (count, 2))
    sizes[:4] = (1, 1), (1, 9000), (9000, 1), (12000, 9000)
    return keys, sizes


RANDOM = {
    "plain": {},
    "never mirrored": {"flip": 0.0},
    "always mirrored": {"flip": 1.0},
    "large": {"scale": (0.9, 1.0)},  # often no attempt fits
    "whole": {"scale": (1.0, 1.0)},
    "wide": {"ratio": (2.0, 3.0), "scale": (0.5, 1.0)},
    "any ratio": {"ratio": (0.01, 100.0)},
    "SimCLR": {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_probability": 0.8, "grayscale": 0.2},
    "gray": {"grayscale": 0.5},
    "hue alone": {"jitter": (0.0, 0.0, 0.0, 0.5)},
}


@pytest.mark.parametrize("options", RANDOM.values(), ids=RANDOM)
@pytest.mark.parametrize(("seed", "chosen"), [(0, None), (2**62, None), (7, (5, 0, 31))])
def test_many_samples_at_once_are_drawn_as_one_view_by_plain_python(options, seed, chosen):
    spec = ViewSpec(kind="random_resized_crop", count=3, seed=seed, chosen=chosen, **options)
    keys, sizes = samples(40, seed)
    at_once = spec.drawing.params(keys, sizes, range(3))
    assert at_once.shape == (40, 3)
    for key, (height, width), drawn in zip(keys, sizes.tolist(), at_once, strict=True):
        plain = np.array([plain_view(spec, key, view, width, height) for view in spec.drawn], VIEW)
        assert drawn.tobytes() == plain.tobytes(), (key, height, width)
        assert spec.params(key, width, height).tobytes() == plain.tobytes()
    some = spec.drawing.params(keys[3:9], sizes[3:9], (2, 0))
    assert some.tobytes() == np.ascontiguousarray(at_once[3:9][:, [2, 0]]).tobytes()


@pytest.mark.parametrize("kind", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.1, 0.875, 1.0, 1.15, 10.0])
def test_centre_views_of_many_samples(kind, crop_pct):
    spec = ViewSpec(kind=kind, crop_pct=crop_pct)
    keys, sizes = samples(200, 1)
    plain = np.array([plain_center(spec, width, height) for height, width in sizes.tolist()], VIEW)
    assert spec.drawing.params(keys, sizes, range(1))[:, 0].tobytes() == plain.tobytes()


def test_no_sample_has_no_view():
    spec = ViewSpec(kind="random_resized_crop", count=2, grayscale=0.5)
    assert spec.drawing.params([], np.empty((0, 2), int), range(2)).shape == (0, 2)


@pytest.mark.parametrize("count", [1, 47, 48, 300])
def test_the_generator_is_numpys(count):
    rng = np.random.default_rng(count)
    names = [rng.bytes(16) for _ in range(count)]
    drawn, places = Philox(names, 12), np.arange(count)[::-1]
    for number in (0, 1, 10, 11):
        found = drawn.block(number, places)
        for place, four in zip(places.tolist(), found, strict=True):
            raw = np.random.Philox(key=int.from_bytes(names[place], "little")).random_raw(48)
            assert four.tolist() == [(int(n) >> 11) * 2.0**-53 for n in raw[4 * number : 4 * number + 4]]


@pytest.mark.parametrize(
    "spec",
    [
        ViewSpec(kind="border", crop_pct=0.9, fill=(1, 2, 3), interpolation="bilinear"),
        ViewSpec(
            kind="random_resized_crop", count=2, chosen=(4, 1), seed=9, scale=(0.3, 0.7), ratio=(0.5, 1.5), flip=0.1
        ),
        ViewSpec(kind="random_resized_crop", jitter=(0.1, 0.2, 0.3, 0.4), jitter_probability=0.5, grayscale=0.3),
    ],
    ids=["border", "boxes", "colours"],
)
def test_a_drawing_has_the_facts_of_its_spec(spec):
    drawing = ViewDrawing.from_json(spec.to_json(), where="here")
    assert drawing == spec.drawing
    for name in (
        "kind",
        "chosen",
        "seed",
        "scale",
        "ratio",
        "flip",
        "crop_pct",
        "jitter",
        "jitter_probability",
        "grayscale",
    ):
        assert getattr(drawing, name) == getattr(spec, name), name


def test_the_exponential_is_the_c_librarys(monkeypatch):
    """NumPy's own may differ in the last bit on another processor, and a store would then be refused there."""
    called = []
    exponential = math.exp
    monkeypatch.setattr(sys.modules[ViewDrawing.__module__].math, "exp", lambda x: called.append(x) or exponential(x))
    keys, sizes = samples(60, 2)
    ViewSpec(kind="random_resized_crop", count=1).drawing.params(keys, sizes, range(1))
    assert len(called) >= 60
