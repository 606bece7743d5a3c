"""Owns rendering: the one `draw` that serves teacher and student, from an image, a view's parameters and its spec."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...storage_schemas.view_params import Views
from .centering import cut, draw_center
from .colors import recolor
from .spec import INTERPOLATIONS, ViewSpec


def render(image: Image.Image, params: np.void, size: int, spec: ViewSpec) -> NDArray[np.uint8]:
    """One view of an RGB image as uint8 (height, width, 3), square of `size` pixels: `draw` as an array."""
    return np.asarray(draw(image, params, size, spec))


def draw(image: Image.Image, params: np.void, size: int, spec: ViewSpec) -> Image.Image:
    """One view of an RGB image, square of `size` pixels; `params` is one VIEW record.

    A random box is cropped, then resized, as torchvision's `resized_crop` does on a Pillow image; colours change last.
    A centre view resizes, then crops or pads, exactly as open_clip's and timm's test-time transforms do; its params
    say what it shows, in pixels of the original (`CENTER` is enough).
    """
    filter_ = INTERPOLATIONS[spec.interpolation]
    if not spec.is_random:
        return draw_center(image, size, kind=spec.kind, crop_pct=spec.crop_pct, filter_=filter_, fill=spec.fill)
    y, x, h, w, flip, order, grayscale, *factors = params.item()
    view = cut(image, x, y, w, h)
    if view.size != (size, size):
        view = view.resize((size, size), filter_)
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if spec.has_colors:
        view = recolor(view, order, grayscale, factors, spec.jitter)
    return view


def render_views(
    image: Image.Image, params: Views, size: int, spec: ViewSpec, views: range | list[int]
) -> NDArray[np.uint8]:
    """Several views of one image: uint8 (view, 3, height, width), contiguous, for a model that normalises."""
    out = np.empty((len(views), 3, size, size), np.uint8)
    for i, view in enumerate(views):
        fill_planes(out[i], draw(image, params[view], size, spec))
    return out


def fill_planes(out_CHW: NDArray[np.uint8], view: Image.Image) -> None:
    """Write an RGB view into uint8 (3, height, width). Pillow parts the planes faster than numpy copies them."""
    for plane, name in zip(out_CHW, "RGB", strict=True):
        plane[...] = np.frombuffer(view.tobytes("raw", name), np.uint8).reshape(plane.shape)
