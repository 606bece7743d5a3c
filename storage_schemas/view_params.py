"""Owns the parameters of views: one record a view in memory, and the columns of the store's arrays that hold it.

On disk they are plain numbers, so that any reader of Zarr gets at them: `view_params` int32 (sample, view, 5), or 7
columns where views have colour, and only then `view_colors` float32 (sample, view, 4). A store may derive them instead: see
`kept_views`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Columns of `view_params`: a box in pixels of the original image, and whether it is mirrored.
BOX = ("top", "left", "height", "width", "flip")

#: Further columns of `view_params` where views have colour: which of the 24 orders the four operations go in (see
#: `stages/colors.py`; -1 for no jitter), and whether the view is gray.
COLOR_CHOICES = ("color_order", "grayscale")

#: Columns of `view_colors`: factors of brightness, contrast and saturation; shift of the hue in turns.
COLOR_FACTORS = ("brightness", "contrast", "saturation", "hue")

#: One view in memory. What is drawn is rounded to these types at once, so what is stored is what was used.
VIEW = np.dtype([*((name, "<i4") for name in BOX + COLOR_CHOICES), *((name, "<f4") for name in COLOR_FACTORS)])

#: The last six fields of a view that keeps its colours.
NO_COLOR = (-1, 0, 1.0, 1.0, 1.0, 0.0)

#: In place of the views of a sample that has none: what the arrays' fill values read as.
NO_VIEW = np.array((-1,) * 7 + (np.nan,) * 4, VIEW)

#: VIEW records; the axes are (sample, view), or one of them.
Views = NDArray[np.void]


def no_views(num_samples: int, num_views: int) -> Views:
    """VIEW (sample, view), to be filled in: so far no sample has one."""
    return np.full((num_samples, num_views), NO_VIEW)


def columns(colors: bool) -> tuple[str, ...]:
    """The columns of `view_params`."""
    return BOX + COLOR_CHOICES if colors else BOX


def to_columns(views: Views, colors: bool) -> dict[str, NDArray[Any]]:
    """The arrays that are stored, by name: the records' axes and one for the columns."""
    arrays = {"view_params": np.stack([views[name] for name in columns(colors)], axis=-1)}
    if colors:
        arrays["view_colors"] = np.stack([views[name] for name in COLOR_FACTORS], axis=-1)
    return arrays


def from_columns(params: NDArray[np.int32], colors: NDArray[np.float32] | None) -> Views:
    """The records of `view_params` and, where the store has them, `view_colors`."""
    views = np.empty(params.shape[:-1], VIEW)
    for index, name in enumerate(columns(colors is not None)):
        views[name] = params[..., index]
    if colors is None:
        for name, value in zip(COLOR_CHOICES + COLOR_FACTORS, NO_COLOR, strict=True):
            views[name] = value
        views[views["height"] < 0] = NO_VIEW
    else:
        for index, name in enumerate(COLOR_FACTORS):
            views[name] = colors[..., index]
    return views
