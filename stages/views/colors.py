"""Owns the colours of views: jitter and grayscale, pixel for pixel as torchvision does them on Pillow images.

torchvision calls these very functions of Pillow; it is not imported here because every process that decodes would pay for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from PIL import Image, ImageEnhance

from ...storage_schemas.view_params import COLOR_FACTORS

#: `color_order` is an index into this: orders of (brightness, contrast, saturation, hue), as `itertools` lists them.
COLOR_ORDERS: tuple[tuple[int, ...], ...] = tuple(itertools.permutations(range(len(COLOR_FACTORS))))


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """torchvision's `adjust_hue`: the shift in steps of 1/255 turn, towards zero, around the end of a byte."""
    hue, saturation, value = image.convert("HSV").split()
    steps = int(turns * 255)
    hue = hue.point([(h + steps) % 256 for h in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    _shift_hue,
)


def recolor(
    image: Image.Image, order: int, grayscale: int, factors: Sequence[float], strengths: Sequence[float]
) -> Image.Image:
    """An RGB image in other colours: torchvision's `ColorJitter`, then its `RandomGrayscale`, with these parameters.

    Args:
        image: RGB.
        order: index into `COLOR_ORDERS`; -1 for no jitter.
        grayscale: 1 for equal channels (ITU-R 601 luma).
        factors: of brightness, contrast and saturation, and the hue's shift in turns.
        strengths: an operation of strength 0 is left out, since a hue shifted by nothing is still rounded.
    """
    if order >= 0:
        for i in COLOR_ORDERS[order]:
            if strengths[i] > 0:
                image = _OPERATIONS[i](image, factors[i])
    return image.convert("L").convert("RGB") if grayscale else image
