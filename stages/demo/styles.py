"""How one demo image is painted: the source style and the shifted domain style.

Every random number of an image comes from its own Philox stream, keyed by (seed, stream) with the image's
index as the counter. Only uniform draws, exactly rounded float32 operations and lookups are used on the
pixels, so an image's bytes depend neither on the batch it is painted in nor on the order.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Style = Literal["source", "domain"]

SIZE = 36
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "orange": (240, 140, 35),
    "yellow": (235, 225, 60),
    "green": (50, 190, 70),
    "blue": (55, 90, 240),
    "purple": (150, 60, 215),
    "pink": (245, 135, 190),
    "white": (240, 240, 240),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (8, 8, 8),
    "grey": (72, 72, 72),
    "navy": (14, 20, 82),
    "brown": (78, 46, 20),
    "olive": (58, 64, 16),
    "teal": (10, 70, 74),
}

_Floats = npt.NDArray[np.float32]
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
_GROUND = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
_DIGIT = 28  # pixels on a side of a digit drawing
_GRID = 7  # cells on a side of the coarse field that becomes a texture
_NUM_SCALARS = 24
_NUM_TEXTURE = _GRID * _GRID * 3
_BATCH = 256


def paint(
    digits_NHW: npt.NDArray[np.uint8],
    colours_N: npt.NDArray[np.int64],
    indices_N: npt.NDArray[np.int64],
    *,
    style: Style,
    seed: int,
    stream: int,
    strength: float,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Paint drawings (N, 28, 28) in the given colours: RGB images (N, 36, 36, 3) and background ids (N,).

    `indices_N` number the images within their stream. `strength` scales the disturbances of the style: 0
    gives clean, upright digits. The domain style has no named background, so its background ids are -1.
    """
    if style not in ("source", "domain"):
        raise ValueError(f"unknown style {style!r}: expected 'source' or 'domain'")
    images = np.empty((len(indices_N), SIZE, SIZE, 3), dtype=np.uint8)
    backgrounds = np.empty(len(indices_N), dtype=np.int64)
    for start in range(0, len(indices_N), _BATCH):
        part = slice(start, start + _BATCH)
        draws = _draws(indices_N[part], seed, stream)
        painter = _paint_source if style == "source" else _paint_domain
        images[part], backgrounds[part] = painter(digits_NHW[part], colours_N[part], draws, strength)
    return images, backgrounds


def _draws(indices_N: npt.NDArray[np.int64], seed: int, stream: int) -> tuple[_Floats, _Floats, _Floats]:
    """Uniform numbers of each image: scalars (N, 24), texture (N, 7, 7, 3), noise (N, 36, 36, 3)."""
    num_noise = SIZE * SIZE * 3
    draws = np.empty((len(indices_N), _NUM_SCALARS + _NUM_TEXTURE + num_noise), dtype=np.float32)
    for row, index in enumerate(indices_N):
        counter = np.array([0, 0, 0, index], dtype=np.uint64)  # the low words count the draws
        bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=counter)
        draws[row] = np.random.Generator(bits).random(draws.shape[1], dtype=np.float32)
    scalars, texture, noise = np.split(draws, [_NUM_SCALARS, _NUM_SCALARS + _NUM_TEXTURE], axis=1)
    return scalars, texture.reshape(-1, _GRID, _GRID, 3), noise.reshape(-1, SIZE, SIZE, 3)


def _paint_source(
    digits_NHW: npt.NDArray[np.uint8],
    colours_N: npt.NDArray[np.int64],
    draws: tuple[_Floats, _Floats, _Floats],
    strength: float,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    scalars, _, noise = draws
    alpha = _warp(digits_NHW, scalars, degrees=12 * strength, shear=0.0, shift=2.0 * strength)
    grounds = np.minimum((scalars[:, 8] * len(_GROUND)).astype(np.int64), len(_GROUND) - 1)
    ground = _GROUND[grounds] + _spread(scalars[:, 9:12], 10 * strength)
    ink = _PALETTE[colours_N] + _spread(scalars[:, 12:15], 16 * strength)
    images = _compose(alpha, ground[:, None, None, :], ink)
    noisy = (scalars[:, 15] < 0.25).astype(np.float32) * np.float32(14 * strength)
    images = images + (noise * 2 - 1) * noisy[:, None, None, None]
    return _to_bytes(images), grounds


def _paint_domain(
    digits_NHW: npt.NDArray[np.uint8],
    colours_N: npt.NDArray[np.int64],
    draws: tuple[_Floats, _Floats, _Floats],
    strength: float,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    scalars, texture, noise = draws
    one = np.float32(1)
    alpha = _warp(digits_NHW, scalars, degrees=28 * strength, shear=0.25 * strength, shift=2.0)
    ground = np.float32(45) + _spread(scalars[:, 9:12], 30)[:, None, None, :]
    ground = ground + (_upsample(texture) * 2 - one) * np.float32(75 * strength)
    ink = _PALETTE[colours_N] + _spread(scalars[:, 12:15], 20)
    images = _compose(alpha, ground, ink)
    red, green, blue = images[..., :1], images[..., 1:2], images[..., 2:]
    grey = red * np.float32(0.3) + green * np.float32(0.6) + blue * np.float32(0.1)
    fade = (np.float32(0.15) + scalars[:, 16] * np.float32(0.45)) * np.float32(strength)
    images = images + (grey - images) * fade[:, None, None, None]
    warmth = (scalars[:, 17] * np.float32(strength))[:, None]
    cast = one + warmth * np.array([0.18, 0.04, -0.34], dtype=np.float32)
    images = images * cast[:, None, None, :]
    blur = (scalars[:, 18] * np.float32(strength))[:, None, None, None]
    images = images + (_blurred(images) - images) * blur
    loud = (np.float32(10) + scalars[:, 19] * np.float32(40)) * np.float32(strength)
    images = images + (noise * 2 - one) * loud[:, None, None, None]
    return _to_bytes(images), np.full(len(colours_N), -1, dtype=np.int64)


def _warp(
    digits_NHW: npt.NDArray[np.uint8], scalars: _Floats, *, degrees: float, shear: float, shift: float
) -> _Floats:
    """Rotate, shear, scale and move each drawing onto the canvas, bilinearly: (N, 36, 36) in [0, 1]."""
    angle = _spread(scalars[:, 0], math.radians(degrees)).astype(np.float64)
    # math.sin for each image: the last bit of numpy's vectorised one may depend on the length of the array
    cos = np.array([math.cos(a) for a in angle], dtype=np.float32)[:, None, None]
    sin = np.array([math.sin(a) for a in angle], dtype=np.float32)[:, None, None]
    slant = _spread(scalars[:, 1], shear)[:, None, None]
    zoom = np.float32(1) / (np.float32(1.15) + scalars[:, 2] * np.float32(0.3))[:, None, None]
    axis = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    x = (axis[None, None, :] - _spread(scalars[:, 3], shift)[:, None, None]) * zoom
    y = (axis[None, :, None] - _spread(scalars[:, 4], shift)[:, None, None]) * zoom
    x = x + slant * y
    x, y = cos * x + sin * y, cos * y - sin * x
    centre = np.float32((_DIGIT - 1) / 2 + 1)  # one pixel of padding on each side
    x = np.clip(x + centre, 0, _DIGIT + 1 - 1e-3).astype(np.float32)
    y = np.clip(y + centre, 0, _DIGIT + 1 - 1e-3).astype(np.float32)
    left, top = x.astype(np.int64), y.astype(np.int64)
    dx, dy = x - left.astype(np.float32), y - top.astype(np.float32)
    padded = np.pad(digits_NHW, ((0, 0), (1, 1), (1, 1))).astype(np.float32) / np.float32(255)
    rows = np.arange(len(digits_NHW))[:, None, None]
    upper = padded[rows, top, left] * (1 - dx) + padded[rows, top, left + 1] * dx
    lower = padded[rows, top + 1, left] * (1 - dx) + padded[rows, top + 1, left + 1] * dx
    return np.asarray(upper * (1 - dy) + lower * dy, dtype=np.float32)


def _upsample(texture: _Floats) -> _Floats:
    """Stretch coarse fields (N, 7, 7, 3) to the canvas (N, 36, 36, 3), bilinearly."""
    place = np.linspace(0, _GRID - 1, SIZE)
    low = np.minimum(place.astype(np.int64), _GRID - 2)
    part = (place - low).astype(np.float32)
    across_x, across_y = part[None, None, :, None], part[None, :, None, None]
    wide = texture[:, :, low] * (1 - across_x) + texture[:, :, low + 1] * across_x
    return np.asarray(wide[:, low] * (1 - across_y) + wide[:, low + 1] * across_y, dtype=np.float32)


def _blurred(images: _Floats) -> _Floats:
    """Binomial 1-2-1 blur along both axes, edges repeated."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    half, quarter = np.float32(0.5), np.float32(0.25)
    down = (wide[:, :-2] + wide[:, 2:]) * quarter + wide[:, 1:-1] * half
    return np.asarray((down[:, :, :-2] + down[:, :, 2:]) * quarter + down[:, :, 1:-1] * half, dtype=np.float32)


def _compose(alpha: _Floats, ground: _Floats, ink: _Floats) -> _Floats:
    cover = alpha[..., None]
    return np.asarray(ground * (1 - cover) + ink[:, None, None, :] * cover, dtype=np.float32)


def _spread(uniform: _Floats, reach: float) -> _Floats:
    """Map [0, 1) to [-reach, reach)."""
    return np.asarray((uniform * 2 - 1) * np.float32(reach), dtype=np.float32)


def _to_bytes(images: _Floats) -> npt.NDArray[np.uint8]:
    return np.asarray(np.clip(images + np.float32(0.5), 0, 255), dtype=np.uint8)
