"""Owns what small pictures look like, in numbers: how strongly each of some patches learned from them occurs in each quarter.

A single layer of whitened patches as in Coates, Lee and Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature
Learning" (2011). It knows nothing of any teacher.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

#: Pixels of each side of the pictures, of a patch, and between two patches.
EDGE, _PATCH, _STRIDE = 32, 6, 2

#: Patches that are learned, from so many drawn at random.
_FILTERS, _DRAWN = 160, 20_000

#: Pictures at once.
_PICTURES = 128


def patch_features(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """fp32 (picture, 4 quarters x 160 patches) of uint8 (picture, 32, 32, 3)."""
    windows = sliding_window_view(pixels_NHWC, (_PATCH, _PATCH), (1, 2))[:, ::_STRIDE, ::_STRIDE]
    count, places = windows.shape[:2]
    rng = np.random.default_rng(0)
    at = (rng.integers(0, n, _DRAWN) for n in (count, places, places))
    drawn = _evened(windows[tuple(at)].reshape(_DRAWN, -1))
    mean = drawn.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov((drawn - mean).T))
    whiten = (axes / np.sqrt(variances + 0.1)) @ axes.T
    filters = _learn((drawn - mean) @ whiten, rng)
    weights = np.asarray(whiten @ filters.T, np.float32)
    offset = np.asarray(-mean @ weights, np.float32)
    features = np.empty((count, 2, 2, _FILTERS), np.float32)
    halves = slice(0, places // 2), slice(places // 2, places)
    for start in range(0, count, _PICTURES):
        part = windows[start : start + _PICTURES]
        found = _evened(part.reshape(len(part) * places * places, -1)) @ weights + offset
        found = np.maximum(found - 0.5, 0).reshape(len(part), places, places, _FILTERS)
        for i, rows in enumerate(halves):
            for j, columns in enumerate(halves):
                features[start : start + len(part), i, j] = found[:, rows, columns].mean(axis=(1, 2))
    return np.sqrt(features).reshape(count, -1)


def _evened(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Patches without their own brightness and contrast."""
    values: NDArray[np.float32] = patches.astype(np.float32) / np.float32(255)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.sqrt(np.einsum("np,np->n", values, values)[:, None] / values.shape[1] + 0.01)
    return values


def _learn(patches: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.floating]:
    """Spherical k-means of whitened patches: (filter, value), of length 1."""
    filters = patches[rng.choice(len(patches), _FILTERS, replace=False)]
    filters = np.asarray(filters / np.maximum(np.linalg.norm(filters, axis=1, keepdims=True), 1e-12))
    for _ in range(5):
        nearest = (patches @ filters.T).argmax(axis=1)
        sums = np.zeros_like(filters)
        np.add.at(sums, nearest, patches)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        filters = np.asarray(np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), filters))
    return filters
