"""Owns how well clusters fit labels that nobody learned from: the share of images that lie right when each cluster is given one label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .votes import assign


def matched_accuracy(labels_N: NDArray[np.int64], true: Sequence[str | None]) -> tuple[int, int]:
    """Images whose cluster was given their label, and images that have one; each label goes to one cluster (Hungarian method).

    Args:
        labels_N: cluster of each image, by any number.
        true: its label, None for none.
    """
    known_N = np.array([label is not None for label in true], np.bool_)
    if not known_N.any():
        return 0, 0
    _, clusters_N = np.unique(labels_N[known_N], return_inverse=True)
    _, classes_N = np.unique(np.array([label for label in true if label is not None]), return_inverse=True)
    rows, columns = int(clusters_N.max()) + 1, int(classes_N.max()) + 1
    counts = np.bincount(clusters_N * columns + classes_N, minlength=rows * columns).reshape(rows, columns)
    counts = counts if rows <= columns else counts.T
    right = counts[np.arange(len(counts)), assign(counts.astype(np.float32))].sum()
    return int(right), int(known_N.sum())
