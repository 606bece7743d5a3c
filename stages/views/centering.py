"""Owns the centre views: the fixed ways in which a model's test-time transform resizes an image, then crops or pads it.

They are those of timm (`transforms_imagenet_eval`) and open_clip (`image_transform`), pixel for pixel on RGB images.
"""

from __future__ import annotations

import math

from PIL import Image

#: Resized images of more pixels than this are not made whole, since a view shows little of them. Only images a thousand times
#: longer than wide come to that: others are resized as the libraries do it, and so to the bit.
MAX_RESIZED = 1 << 26

#: How far Pillow's filters reach, in pixels of the smaller side of the resizing.
_REACH = {
    Image.Resampling.NEAREST: 1,
    Image.Resampling.BILINEAR: 1,
    Image.Resampling.BICUBIC: 2,
    Image.Resampling.LANCZOS: 3,
}

#: Red, green and blue in whole levels, 0 to 255.
Color = tuple[int, int, int]


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
    left, top = (_offset(side, size) for side in new_size)
    return _show(image, size, new_size, (left, top), filter_, fill)


def draw_placed(image: Image.Image, size: int, *, across: float, down: float, filter_: Image.Resampling) -> Image.Image:
    """The shorter side of an RGB image resized to `size` pixels, then a square of it: from the left or upper end (0) to the other (1)."""
    width, height = new_size = _resized("center", size, *image.size)
    start = (int(across * (width - size + 1)), int(down * (height - size + 1)))
    return _show(image, size, new_size, start, filter_, (0, 0, 0))


def _show(
    image: Image.Image,
    size: int,
    new_size: tuple[int, int],
    start: tuple[int, int],
    filter_: Image.Resampling,
    fill: Color,
) -> Image.Image:
    left, top = start
    if math.prod(new_size) > MAX_RESIZED:
        resized = _resize_shown(image, new_size, start, size, filter_)
        left, top = min(left, 0), min(top, 0)
    else:
        resized = _resize(image, new_size, filter_)
    return cut(resized, left, top, size, size, fill)


def cut(image: Image.Image, left: int, top: int, width: int, height: int, fill: Color = (0, 0, 0)) -> Image.Image:
    """A box of an RGB image; `fill` where it reaches beyond. (`Image.crop` is subject to a limit of pixels that is the user's.)"""
    inside = left >= 0 and top >= 0 and left + width <= image.width and top + height <= image.height
    box = Image.new("RGB", (width, height), None if inside else fill)
    box.paste(image, (-left, -top))
    return box


def _resize(image: Image.Image, new_size: tuple[int, int], filter_: Image.Resampling) -> Image.Image:
    if new_size == image.size:
        return image
    if new_size[0] * image.height > MAX_RESIZED:  # Pillow resizes rows first, and keeps what comes of that
        image = image.resize((image.width, new_size[1]), filter_)
    return image.resize(new_size, filter_)


def _resize_shown(
    image: Image.Image,
    new_size: tuple[int, int],
    start: tuple[int, int],
    size: int,
    filter_: Image.Resampling,
) -> Image.Image:
    """What a view of `size` shows from `start` on of the resized image, which is never made whole."""
    # Pillow keeps boxes in single precision: the pixels around what is shown are cut out first, so that numbers are small.
    cuts, boxes = [], []
    for side, new_side, first in zip(image.size, new_size, start, strict=True):
        scale = side / new_side
        low, high = (first * scale, (first + size) * scale) if new_side > size else (0.0, float(side))
        reach = math.ceil(_REACH[filter_] * max(scale, 1.0)) + 1
        begin, end = max(0, math.floor(low) - reach), min(side, math.ceil(high) + reach)
        cuts.append((begin, end - begin))
        boxes.append((low - begin, high - begin))
    (left, width), (top, height) = cuts
    (x0, x1), (y0, y1) = boxes
    shown = (min(size, new_size[0]), min(size, new_size[1]))
    return cut(image, left, top, width, height).resize(shown, filter_, box=(x0, y0, x1, y1))


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
