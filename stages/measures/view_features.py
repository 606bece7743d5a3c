"""Owns what small pictures of views look like, in numbers: learned patches, where which colours are, and directions of edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .patch_features import patch_features

#: Parts of each side in which colours and edges are counted, and directions of edges.
_CELLS, _DIRECTIONS = 4, 8

Floats = NDArray[np.float32]


def view_features(pixels_NHWC: NDArray[np.uint8]) -> Floats:
    """fp32 (picture, feature) of uint8 (picture, 32, 32, 3); the three kinds of features weigh the same. No teacher is needed."""
    kinds = (patch_features(pixels_NHWC), colors(pixels_NHWC), edges(pixels_NHWC))
    return np.concatenate([_weighed(kind) for kind in kinds], axis=1)


def colors(pixels_NHWC: NDArray[np.uint8]) -> Floats:
    """fp32 (picture, 2 x 16 cells x 3): mean and spread of each channel in each cell."""
    cells = _cells(pixels_NHWC.astype(np.float32))
    both = [cells.mean(axis=(2, 4)), cells.std(axis=(2, 4))]
    return np.concatenate([values.reshape(len(cells), -1) for values in both], axis=1)


def edges(pixels_NHWC: NDArray[np.uint8]) -> Floats:
    """fp32 (picture, 16 cells x 8): how strong edges of each direction are in each cell, as shares of the picture's, by their roots.

    Histograms of oriented gradients as in Dalal and Triggs (2005), over the whole picture.
    """
    down, across = np.gradient(pixels_NHWC.astype(np.float32).mean(axis=3), axis=(1, 2))
    strength = np.hypot(down, across)
    place = np.mod(np.arctan2(down, across), np.pi) / np.pi * _DIRECTIONS
    lower = np.floor(place)
    share = place - lower
    found = []
    for direction in range(_DIRECTIONS):
        here = np.where(np.mod(lower, _DIRECTIONS) == direction, 1 - share, 0)
        here += np.where(np.mod(lower + 1, _DIRECTIONS) == direction, share, 0)
        found.append(_cells((strength * here)[..., None]).sum(axis=(2, 4)).reshape(len(strength), -1))
    edges_NF = np.concatenate(found, axis=1)
    return np.asarray(np.sqrt(edges_NF / np.maximum(edges_NF.sum(axis=1, keepdims=True), 1e-6)), np.float32)


def _cells(values_NHWC: NDArray[np.floating]) -> NDArray[np.floating]:
    """(picture, cell, pixel, cell, pixel, channel)."""
    count, height, width, channels = values_NHWC.shape
    return values_NHWC.reshape(count, _CELLS, height // _CELLS, _CELLS, width // _CELLS, channels)


def _weighed(values_NF: Floats) -> Floats:
    """Less their mean, and of a mean square of 1 a picture."""
    centred = values_NF - values_NF.mean(axis=0)
    return np.asarray(centred / np.sqrt(max(float((centred * centred).sum(axis=1).mean()), 1e-12)), np.float32)
