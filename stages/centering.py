"""Owns the centre views: the fixed ways in which a model's test-time transform resizes an image, then crops or pads it.

They are those of timm (`transforms_imagenet_eval`) and open_clip (`image_transform`), pixel for pixel on RGB images.
"""

from __future__ import annotations

import math

from PIL import Image

#: Kinds of centre views, by timm's names: the shorter side is resized to size / crop_pct; or both sides are, whatever the
#: aspect ratio; or the longer side is. Then the middle is cropped, and what is missing of the square is padded.
CENTERED = ("center", "squash", "border")

#: Red, green and blue in whole levels, 0 to 255.
Color = tuple[int, int, int]


def center_box(kind: str, crop_pct: float, width: int, height: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of what a centre view shows of an image, in its pixels; padding lies outside."""
    if kind == "squash":
        w, h = width * crop_pct, height * crop_pct
    else:
        w = h = (min if kind == "center" else max)(width, height) * crop_pct
    shown_w, shown_h = min(width, max(1, round(w))), min(height, max(1, round(h)))
    return (height - shown_h) // 2, (width - shown_w) // 2, shown_h, shown_w


def draw_center(
    image: Image.Image,
    size: int,
    *,
    kind: str,
    crop_pct: float,
    filter_: Image.Resampling,
    fill: Color = (0, 0, 0),
) -> Image.Image:
    """A centre view of an RGB image, square of `size` pixels; `fill` is the colour of the padding."""
    new_size = _resized(kind, math.floor(size / crop_pct), *image.size)
    resized = image if new_size == image.size else image.resize(new_size, filter_)
    left, top = (_offset(side, size) for side in new_size)
    if min(new_size) >= size:
        return resized.crop((left, top, left + size, top + size))
    view = Image.new("RGB", (size, size), fill)
    view.paste(resized, (-left, -top))
    return view


def _resized(kind: str, target: int, width: int, height: int) -> tuple[int, int]:
    if kind == "squash":
        return target, target
    if kind == "border":
        ratio = max(width / target, height / target)
        # A side that rounds to nothing, which timm and open_clip refuse, keeps a pixel.
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def _offset(side: int, size: int) -> int:
    """Where the view begins on a side: torchvision rounds half to even where it crops, and down where it pads."""
    return round((side - size) / 2.0) if side >= size else -((size - side) // 2)
