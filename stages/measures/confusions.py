"""Owns which classes a teacher cannot tell apart, over all samples, and which of its class vectors are near each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .sample_block import SampleBlock
from .store_pass import Watcher


class Confusions(Watcher):
    """For every pair of classes that were first and second of some sample: samples, and the probability of the second, summed.

    Args:
        num_classes: C. At most C (C - 1) / 2 pairs are kept.
    """

    def __init__(self, num_classes: int) -> None:
        self._classes = num_classes
        self._codes = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._mass = np.zeros(0)

    def add(self, block: SampleBlock) -> None:
        second_N, probability_N = block.second_N
        low, high = np.minimum(block.first_N, second_N), np.maximum(block.first_N, second_N)
        codes, places = np.unique(np.concatenate([self._codes, low * self._classes + high]), return_inverse=True)
        old, new = places[: len(self._codes)], places[len(self._codes) :]
        counts: NDArray[np.int64] = np.bincount(new, minlength=len(codes))
        mass = np.asarray(np.bincount(new, probability_N, len(codes)), np.float64)
        counts[old] += self._counts
        mass[old] += self._mass
        self._codes, self._counts, self._mass = codes, counts, mass

    def most(self, count: int) -> list[tuple[int, int, int, float]]:
        """(class id, class id, samples, sum of the second one's probability), the largest sum first."""
        order = np.argsort(-self._mass, kind="stable")[:count].tolist()
        return [
            (*divmod(int(self._codes[i]), self._classes), int(self._counts[i]), float(self._mass[i])) for i in order
        ]  # type: ignore[misc]


def nearest_classes(vectors_CD: NDArray[np.float32], count: int) -> list[tuple[int, int, float]]:
    """(class id, class id, cosine) of the pairs of class vectors that are nearest, each class with its nearest only."""
    unit_CD = vectors_CD / np.maximum(np.linalg.norm(vectors_CD, axis=1, keepdims=True), 1e-12)
    pairs: dict[tuple[int, int], float] = {}
    for start in range(0, len(unit_CD), 1024):
        cosines = unit_CD[start : start + 1024] @ unit_CD.T
        own = np.arange(len(cosines))
        cosines[own, own + start] = -np.inf
        for i, j in enumerate(cosines.argmax(axis=1).tolist()):
            pairs[min(i + start, j), max(i + start, j)] = float(cosines[i, j])
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [(a, b, cosine) for (a, b), cosine in ordered[:count] if a != b]


def cosines_of(vectors_CD: NDArray[np.float32], ids: list[int]) -> tuple[list[int], NDArray[np.float32]]:
    """(the ids so ordered that alike classes are neighbours, cosines of their vectors (class, class))."""
    chosen = vectors_CD[ids]
    unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    if len(ids) > 2:
        # By the second eigenvector of the graph's Laplacian: Fiedler's order.
        weights = np.maximum(cosines - np.median(cosines), 0)
        laplacian = np.diag(weights.sum(axis=1)) - weights
        order = np.argsort(np.linalg.eigh(laplacian)[1][:, 1], kind="stable")
    else:
        order = np.arange(len(ids))
    return [ids[i] for i in order.tolist()], np.asarray(cosines[np.ix_(order, order)], np.float32)
