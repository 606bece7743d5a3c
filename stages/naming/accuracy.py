"""Owns how well clusters fit labels that nobody learned from: the share of images that lie right when each cluster is given one label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clusters import renumbered
from .votes import assign


class LabelNumbers:
    """Labels as numbers, in the order in which they come; -1 for None. So labels of many images take 4 bytes each."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, labels: Iterable[str | None]) -> NDArray[np.int32]:
        """int32 (sample,)."""
        known = self._numbers
        return np.array([-1 if one is None else known.setdefault(one, len(known)) for one in labels], np.int32)


def matched_accuracy(labels_N: NDArray[Any], true_N: NDArray[Any]) -> tuple[int, int]:
    """Images whose cluster was given their label, and images that have one; each label goes to one cluster (Hungarian method).

    Args:
        labels_N: cluster of each image, by any number.
        true_N: its label, by any number; -1 for none.
    """
    known_N = true_N >= 0
    if not known_N.any():
        return 0, 0
    clusters_N, classes_N = renumbered(labels_N[known_N]), renumbered(true_N[known_N])
    rows, columns = int(clusters_N.max()) + 1, int(classes_N.max()) + 1
    counts = np.bincount(clusters_N * columns + classes_N, minlength=rows * columns).reshape(rows, columns)
    counts = counts if rows <= columns else counts.T
    right = counts[np.arange(len(counts)), assign(counts.astype(np.float32))].sum()
    return int(right), int(known_N.sum())
