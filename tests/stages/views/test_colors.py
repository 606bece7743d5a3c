"""Colours of views against torchvision's own functions, with the same factors in the same order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from teachonce.stages.views.colors import COLOR_ORDERS, recolor
from teachonce.stages.views.render import draw, render, render_views
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.view_params import VIEW
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as tvf

SIMCLR = {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_probability": 0.8, "grayscale": 0.2}
OPERATIONS = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)


def spec(**fields) -> ViewSpec:
    return ViewSpec(kind="random_resized_crop", **fields)


def picture(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    """Smooth colours of every hue, with noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4, 0.1), (0.8, 0.8, 0.8, 0.2), (0, 3, 0, 0), (0, 0, 0, 0.5)])
def test_a_view_has_torchvisions_pixels(strengths, by_torchvision):
    views = spec(count=60, seed=1, jitter=strengths, jitter_probability=0.8, grayscale=0.2)
    image = picture()
    params = views.params("ab" * 16, *image.size)
    assert {0, 1} == set(params["grayscale"].tolist())
    assert -1 in params["color_order"]
    assert len(set(params["color_order"].tolist())) > 18
    rendered = render_views(image, params, 48, views, range(60))
    for view, pixels in zip(params, rendered, strict=True):
        expected = by_torchvision(image, view, 48, strengths)
        assert np.array_equal(pixels.transpose(1, 2, 0), expected), view


def test_every_order_and_the_ends_of_every_range():
    image = picture(40, 30)
    assert len(COLOR_ORDERS) == 24
    for order, factors in itertools.product(range(24), [(0.0, 2.0, 0.5, -0.5), (1.7, 0.0, 3.0, 0.5), (1, 1, 1, 0)]):
        view = np.array((0, 0, 30, 40, 0, order, 0, *factors), VIEW)[()]
        found = recolor(image, order, 0, [float(view[n]) for n in VIEW.names[7:]], (1, 1, 2, 0.5))
        expected = image
        for index in COLOR_ORDERS[order]:
            expected = OPERATIONS[index](expected, float(view[VIEW.names[7 + index]]))
        assert found.tobytes() == expected.tobytes(), (order, factors)


def test_the_hue_of_every_byte_is_shifted_as_torchvision_does():
    image = picture(64, 64, seed=3)
    for step in range(-128, 129):
        turns = float(np.float32(step / 256))
        assert recolor(image, 0, 0, (1, 1, 1, turns), (0, 0, 0, 0.5)).tobytes() == (
            tvf.adjust_hue(image, turns).tobytes()
        )


def test_what_is_off_leaves_pixels_alone():
    image = picture()
    plain, colored = spec(count=30), spec(count=30, jitter=(0.9, 0.9, 0.9, 0.5), jitter_probability=1e-9)
    params = colored.params("k", *image.size)
    assert set(params["color_order"].tolist()) == {-1}
    for view, same in zip(params, plain.params("k", *image.size), strict=True):
        assert np.array_equal(render(image, view, 32, colored), render(image, same, 32, plain))


def test_colours_are_those_that_were_written_down():
    """They must never change, since stored targets depend on them."""
    found = spec(count=4, seed=7, **SIMCLR).params("ab" * 16, 300, 200)
    assert [view[5:] for view in found.tolist()] == COLORS


def test_colours_depend_on_seed_key_and_view_and_on_nothing_else():
    views = spec(count=9, seed=7, **SIMCLR)
    found = views.params("k", 300, 200)
    colors = list(VIEW.names[5:])
    assert np.array_equal(found[colors], views.params("k", 31, 17)[colors])  # not on the image's size
    assert np.array_equal(found[:4], spec(count=4, seed=7, **SIMCLR).params("k", 300, 200))
    assert len({view[7:] for view in found.tolist() if view[5] >= 0}) > 5
    assert not np.array_equal(found[colors], views.params("l", 300, 200)[colors])
    assert not np.array_equal(found[colors], spec(count=9, seed=8, **SIMCLR).params("k", 300, 200)[colors])
    # One strength moves nobody else's number.
    other = spec(count=9, seed=7, **(SIMCLR | {"jitter": (0.8, 0.8, 0.8, 0.0)})).params("k", 300, 200)
    untouched = [name for name in VIEW.names if name != "hue"]
    assert np.array_equal(other[untouched], found[untouched])
    assert not other["hue"].any()


def test_colours_have_the_distribution_that_they_declare():
    views = spec(count=6000, jitter=(0.4, 1.5, 0.2, 0.1), jitter_probability=0.8, grayscale=0.2)
    found = views.params("k", 30, 20)
    on = found["color_order"] >= 0
    assert 0.77 < on.mean() < 0.83
    assert 0.18 < found["grayscale"].mean() < 0.22
    assert 0.15 < found["grayscale"][on].mean() < 0.25
    assert np.bincount(found["color_order"][on], minlength=24).min() > 130  # of 200
    jitter = ColorJitter(0.4, 1.5, 0.2, 0.1)
    for name in ("brightness", "contrast", "saturation", "hue"):
        low, high = (np.float32(end) for end in getattr(jitter, name))
        values = found[name][on]
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)
        assert set(found[name][~on].tolist()) == {0.0 if name == "hue" else 1.0}


def test_the_global_generators_are_left_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    draw(picture(), spec(**SIMCLR).params("k", 90, 70)[0], 16, spec(**SIMCLR))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_specs_name_colour_only_where_it_is_used():
    plain = {"kind", "count", "interpolation", "seed", "scale", "ratio", "flip"}
    assert set(spec().to_json()) == plain
    assert set(spec(grayscale=0.2).to_json()) == plain | {"grayscale"}
    assert set(spec(jitter=(0, 0, 0.4, 0)).to_json()) == plain | {"jitter", "jitter_probability"}
    for fields in ({}, {"grayscale": 0.2}, SIMCLR):
        again = ViewSpec.from_json(spec(**fields).to_json())
        assert again == spec(**fields)
        assert again.has_colors == bool(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"jitter": (0.4, -0.1, 0, 0)},
            "impossible strengths of the colour jitter: --view-jitter: expected brightness, "
            "contrast, saturation of 0 or more, and a hue from 0 to 0.5, found 0.4, -0.1, 0, 0",
        ),
        (
            {"jitter": (0, 0, 0, 0.6)},
            "impossible strengths of the colour jitter: --view-jitter: expected brightness, "
            "contrast, saturation of 0 or more, and a hue from 0 to 0.5, found 0, 0, 0, 0.6",
        ),
        (
            {"jitter": (float("nan"), 0, 0, 0)},
            "impossible strengths of the colour jitter: --view-jitter: expected "
            "brightness, contrast, saturation of 0 or more, and a hue from 0 to 0.5, found nan, 0, 0, 0",
        ),
        ({"grayscale": 1.5}, "not a probability: --view-grayscale: expected 0 to 1, found 1.5"),
        (
            {"jitter": (1, 0, 0, 0), "jitter_probability": 0.0},
            "impossible probability of the colour jitter: "
            "--view-jitter-probability: expected more than 0, at most 1, found 0.0. Next: leave out the jitter to have none",
        ),
        (
            {"jitter_probability": 0.8},
            "a probability of a colour jitter that there is not: --view-jitter-probability: "
            "found 0.8. Next: add --view-jitter, such as 0.4,0.4,0.2,0.1",
        ),
        (
            {"kind": "center", "grayscale": 0.2},
            "centre views keep their colours: --view-jitter, --view-grayscale. Next: use --views K for random views",
        ),
    ],
)
def test_impossible_colours_are_refused(fields, message):
    with pytest.raises(InputError) as caught:
        ViewSpec(**({"kind": "random_resized_crop"} | fields))
    assert str(caught.value) == message


COLORS = [
    (20, 0, 0.9444689750671387, 1.6032475233078003, 0.6967179179191589, -0.13065217435359955),
    (-1, 0, 1.0, 1.0, 1.0, 0.0),
    (21, 1, 0.6346925497055054, 1.6951243877410889, 1.0852001905441284, -0.1528187096118927),
    (-1, 1, 1.0, 1.0, 1.0, 0.0),
]
