"""Owns drawing the parameters of images' views: a function of (seed, key, view) and of the image's size, for many samples at once.

It is part of the formats: a store that derives parameters on reading has what is computed here. Changes of it need a version of their own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fingerprint import Json
from .json_file import as_schema
from .philox import Philox
from .view_params import COLOR_CHOICES, COLOR_FACTORS, NO_COLOR, VIEW, Views

#: The kind of random views.
RANDOM_CROP = "random_resized_crop"

#: Orders of the four operations on colours.
NUM_ORDERS = math.factorial(len(COLOR_FACTORS))

#: Attempts at a random box before the central one is taken, as in torchvision's RandomResizedCrop.
_ATTEMPTS = 10

#: Blocks of random numbers: one for each attempt; one whose first is the mirroring's, and whose others are colours'; and one more for colours.
_FLIP_BLOCK, _NUM_BLOCKS = _ATTEMPTS, _ATTEMPTS + 2


@dataclass(frozen=True, kw_only=True)
class ViewDrawing:
    """How parameters are drawn; the facts of `ViewSpec` that decide them, with the same names.

    Attributes:
        chosen: the number by which each view is drawn; None for its place.
    """

    kind: str
    chosen: tuple[int, ...] | None = None
    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    crop_pct: float = 1.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 1.0
    grayscale: float = 0.0

    @staticmethod
    def from_json(views: Mapping[str, Json], where: object) -> ViewDrawing:
        """Of a description of views (`ViewSpec.to_json`).

        Raises:
            DamagedError: something else.
        """
        return as_schema(
            dict(views),
            ViewDrawing,
            what="not a description of views",
            code="views-malformed",
            where=where,
            hint="restore the store from a copy",
        )

    def params(self, keys: Sequence[str], sizes_N2: NDArray[Any], views: Sequence[int]) -> Views:
        """Parameters of some views of samples: VIEW (sample, view); boxes in pixels of the images.

        Random boxes follow torchvision's `RandomResizedCrop.get_params`, colours its `ColorJitter.get_params`, drawn
        from a Philox stream keyed by (seed, key, view): they need no order and no state.

        Args:
            sizes_N2: height and width of the images.
            views: their places.
        """
        num_views = len(views)
        height, width = np.repeat(np.asarray(sizes_N2, np.int64).reshape(-1, 2), num_views, axis=0).T
        found = np.empty(len(height), VIEW)
        for name, value in zip((*COLOR_CHOICES, *COLOR_FACTORS), NO_COLOR, strict=True):
            found[name] = value
        if self.kind == RANDOM_CROP:
            numbers = views if self.chosen is None else [self.chosen[view] for view in views]
            drawn = Philox([self.name(key, number) for key in keys for number in numbers], _NUM_BLOCKS)
            self._boxes(found, drawn, height, width)
            if any(self.jitter) or self.grayscale > 0:
                self._colors(found, drawn)
        else:
            self._center(found, height, width)
        return found.reshape(-1, num_views)

    def name(self, key: str, number: int) -> bytes:
        """16 bytes that a view's random numbers are a function of."""
        return hashlib.blake2b(f"{self.seed}/{key}/{number}".encode(), digest_size=16).digest()

    def _boxes(self, found: Views, drawn: Philox, height: NDArray[np.int64], width: NDArray[np.int64]) -> None:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        left = np.arange(len(found))
        found["flip"] = drawn.block(_FLIP_BLOCK, left)[:, 0] < self.flip
        for attempt in range(_ATTEMPTS):
            if not len(left):
                return
            area, aspect, y, x = drawn.block(attempt, left).T
            target = (height[left] * width[left]) * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            # NumPy's exponential differs in its last bit from processor to processor; the C library's does not.
            ratio = np.array([math.exp(value) for value in (low + aspect * (high - low)).tolist()])
            w, h = np.rint(np.sqrt(target * ratio)), np.rint(np.sqrt(target / ratio))
            fits = (w > 0) & (w <= width[left]) & (h > 0) & (h <= height[left])
            here = left[fits]
            found["top"][here] = (y * (height[left] - h + 1))[fits]
            found["left"][here] = (x * (width[left] - w + 1))[fits]
            found["height"][here], found["width"][here] = h[fits], w[fits]
            left = left[~fits]
        narrow = width[left] / height[left] < self.ratio[0]
        wide = ~narrow & (width[left] / height[left] > self.ratio[1])
        h = np.where(narrow, np.maximum(1, np.rint(width[left] / self.ratio[0])), height[left])
        w = np.where(wide, np.maximum(1, np.rint(height[left] * self.ratio[1])), width[left])
        _put_middle(found, left, h.astype(np.int64), w.astype(np.int64), height[left], width[left])

    def _colors(self, found: Views, drawn: Philox) -> None:
        """Every field has a number of its own: one strength never moves another's draw."""
        everywhere = np.arange(len(found))
        parts = (drawn.block(_FLIP_BLOCK, everywhere)[:, 1:], drawn.block(_FLIP_BLOCK + 1, everywhere))
        jittered, order, *draws, gray = np.concatenate(parts, axis=1).T
        found["grayscale"] = gray < self.grayscale
        if not any(self.jitter):
            return
        *strengths, hue = self.jitter
        ranges = [(max(0.0, 1 - s), 1 + s) for s in strengths] + [(-hue, hue)]
        here = jittered < self.jitter_probability
        found["color_order"][here] = (order * NUM_ORDERS)[here]
        for name, u, (low, high) in zip(COLOR_FACTORS, draws, ranges, strict=True):
            found[name][here] = (low + u * (high - low))[here]

    def _center(self, found: Views, height: NDArray[np.int64], width: NDArray[np.int64]) -> None:
        """What a centre view shows of an image; padding lies outside."""
        if self.kind == "squash":
            h, w = height * self.crop_pct, width * self.crop_pct
        else:
            h = w = (np.minimum if self.kind == "center" else np.maximum)(height, width) * self.crop_pct
        shown_h, shown_w = (
            np.minimum(side, np.maximum(1, np.rint(shown).astype(np.int64)))
            for side, shown in ((height, h), (width, w))
        )
        found["flip"] = 0
        _put_middle(found, np.arange(len(found)), shown_h, shown_w, height, width)


def _put_middle(
    found: Views,
    places: NDArray[np.int64],
    h: NDArray[np.int64],
    w: NDArray[np.int64],
    height: NDArray[np.int64],
    width: NDArray[np.int64],
) -> None:
    """Boxes of this size in the middle of their images."""
    found["top"][places], found["left"][places] = (height - h) // 2, (width - w) // 2
    found["height"][places], found["width"][places] = h, w
