"""Owns views: how boxes are drawn from (seed, key, view), and the one `render` that serves teacher and student."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Json

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

#: Attempts at a random box before the central one is taken, as in torchvision's RandomResizedCrop.
_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How the views of a sample are drawn. Stored with the targets: only a stored view has a valid target.

    Attributes:
        kind: `center` (the model's own test-time crop) or `random_resized_crop`.
        count: number of views K.
        seed: of the random boxes.
        scale, ratio: range of a box's share of the area and of its aspect ratio.
        flip: probability of a mirrored view.
        interpolation: resampling filter, by Pillow's name.
        crop_pct: for `center`: the shorter side is resized to size / crop_pct before the crop (1 for
            open_clip, 0.875 for many timm models).
    """

    kind: str = "center"
    count: int = 1
    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("center", "random_resized_crop"):
            raise InputError("unknown kind of views", where=self.kind, hint="--views K or --views center")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                "unknown interpolation",
                where=self.interpolation,
                expected=sorted(INTERPOLATIONS),
                found=self.interpolation,
            )
        if self.count < 1 or (self.kind == "center" and self.count != 1):
            raise InputError("impossible number of views", where="--views", found=self.count)
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError("impossible range of view scale or ratio", found=f"{self.scale}, {self.ratio}")

    def to_json(self) -> Json:
        """Only the facts that decide pixels: a centre crop has no seed, scale, ratio or flip."""
        facts: dict[str, Json] = {"kind": self.kind, "count": self.count, "interpolation": self.interpolation}
        if self.kind == "center":
            return facts | {"crop_pct": self.crop_pct}
        return facts | {
            "seed": self.seed, "scale": list(self.scale), "ratio": list(self.ratio), "flip": self.flip,
        }  # fmt: skip

    @staticmethod
    def from_json(fields: Any) -> ViewSpec:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return ViewSpec(**values)

    def params(self, key: str, width: int, height: int) -> NDArray[np.int32]:
        """Boxes of one sample, int32 (view, 5): top, left, height, width, flip, in pixels of the image.

        Random boxes follow torchvision's `RandomResizedCrop.get_params`, drawn from a Philox stream keyed by
        (seed, key, view): they need no order and no state.
        """
        if self.kind == "center":
            side = min(width, height) * self.crop_pct
            crop = max(1, round(side))
            return np.array([[(height - crop) // 2, (width - crop) // 2, crop, crop, 0]], np.int32)
        return np.array([self._random_box(key, v, width, height) for v in range(self.count)], np.int32)

    def _random_box(self, key: str, view: int, width: int, height: int) -> tuple[int, int, int, int, int]:
        name = hashlib.blake2b(f"{self.seed}/{key}/{view}".encode(), digest_size=16).digest()
        stream = np.random.Philox(key=int.from_bytes(name, "little"))
        uniform = (stream.random_raw(4 * _ATTEMPTS + 1) >> np.uint64(11)) * 2.0**-53
        flip = int(uniform[-1] < self.flip)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_ATTEMPTS):
            area, aspect, y, x = (float(u) for u in uniform[4 * attempt : 4 * attempt + 4])
            target = width * height * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + aspect * (high - low))
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w, flip
        if width / height < self.ratio[0]:
            w, h = width, max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w, h = max(1, round(height * self.ratio[1])), height
        else:
            w, h = width, height
        return (height - h) // 2, (width - w) // 2, h, w, flip


def render(image: Image.Image, params: NDArray[np.int32], size: int, spec: ViewSpec) -> NDArray[np.uint8]:
    """One view of an RGB image as uint8 (height, width, 3), square of `size` pixels: `draw` as an array."""
    return np.asarray(draw(image, params, size, spec))


def draw(image: Image.Image, params: NDArray[np.int32], size: int, spec: ViewSpec) -> Image.Image:
    """One view of an RGB image, square of `size` pixels.

    A random box is cropped, then resized, as torchvision's `resized_crop` does on a Pillow image. A centre view
    resizes the shorter side, then crops, exactly as open_clip's and timm's test-time transforms do; its params
    say the box that results, in pixels of the original.
    """
    filter_ = INTERPOLATIONS[spec.interpolation]
    if spec.kind == "center":
        shorter = math.floor(size / spec.crop_pct)
        w, h = image.size
        if w <= h:
            new_w, new_h = shorter, int(shorter * h / w)
        else:
            new_w, new_h = int(shorter * w / h), shorter
        resized = image if (new_w, new_h) == (w, h) else image.resize((new_w, new_h), filter_)
        top, left = round((new_h - size) / 2.0), round((new_w - size) / 2.0)
        view = resized.crop((left, top, left + size, top + size))
    else:
        y, x, h, w, flip = (int(p) for p in params)
        view = image.crop((x, y, x + w, y + h))
        if view.size != (size, size):
            view = view.resize((size, size), filter_)
        if flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def render_views(
    image: Image.Image, params: NDArray[np.int32], size: int, spec: ViewSpec, views: range | list[int]
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
