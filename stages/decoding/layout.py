"""Owns the layout of arrays that lie one behind the other in flat memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: (dtype, shape) of each array.
ArrayLayout = Sequence[tuple[str, tuple[int, ...]]]

_ALIGNMENT = 64


def num_bytes(layout: ArrayLayout) -> int:
    """Size of memory that holds arrays of this layout."""
    return sum(_padded(dtype, shape) for dtype, shape in layout)


def carve(memory: NDArray[np.uint8], layout: ArrayLayout) -> list[NDArray[Any]]:
    """The arrays of a layout, one behind the other in flat memory. They share it."""
    arrays, start = [], 0
    for dtype, shape in layout:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        arrays.append(memory[start : start + size].view(dtype).reshape(shape))
        start += _padded(dtype, shape)
    return arrays


def _padded(dtype: str, shape: tuple[int, ...]) -> int:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
