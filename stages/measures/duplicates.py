"""Owns the search for images that are in a store more than once: equal files by digest, like ones by vectors and by pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .picture_likeness import aligned_likeness, nearest_pictures

#: Principal components that vectors are compared in, and rows that are compared at once.
_COMPONENTS, _ROWS = 256, 1024


@dataclass(frozen=True)
class Pair:
    """Two rows that may show the same picture.

    Attributes:
        likeness: 1 for equal files, else a correlation of at most 1.
        is_equal: whether the files are equal.
    """

    first: int
    second: int
    likeness: float
    is_equal: bool = False


def equal_files(digests: Iterable[tuple[int, str]]) -> list[Pair]:
    """Rows of equal content, each with the first row that has it.

    Args:
        digests: (row, blake2b-128 of the content in hexadecimal); empty ones are left out. 24 bytes are held for each.
    """
    rows: list[int] = []
    words = bytearray()
    for row, digest in digests:
        if digest:
            rows.append(row)
            words += bytes.fromhex(digest[:32])
    if not rows:
        return []
    halves = np.frombuffer(bytes(words), ">u8").reshape(-1, 2)
    rows_N = np.array(rows, np.int64)
    order = np.lexsort((rows_N, halves[:, 1], halves[:, 0]))
    same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    pairs = []
    first = 0
    for i, is_same in enumerate(same.tolist(), 1):
        if is_same:
            pairs.append(Pair(int(rows_N[order[first]]), int(rows_N[order[i]]), 1.0, True))
        else:
            first = i
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def near_vectors(rows_N: NDArray[np.int64], vectors_ND: NDArray[np.float32], count: int) -> list[Pair]:
    """The pairs of rows whose vectors are most alike, by cosine in whitened principal components; each row with its nearest."""
    if len(rows_N) < 2:
        return []
    centred = vectors_ND - vectors_ND.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = min(_COMPONENTS, len(variances), max(1, len(rows_N) // 8))
    variances, axes = np.maximum(variances[-kept:], 0), axes[:, -kept:]
    points = np.asarray(centred @ (axes / np.sqrt(variances + 0.1 * variances.mean() + 1e-12)), np.float32)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(points), _ROWS):
        cosines = points[start : start + _ROWS] @ points.T
        own = np.arange(len(cosines))
        cosines[own, own + start] = -np.inf
        nearest = cosines.argmax(axis=1)
        for i, j, cosine in zip((own + start).tolist(), nearest.tolist(), cosines[own, nearest].tolist(), strict=True):
            found[min(i, j), max(i, j)] = cosine
    best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [Pair(int(rows_N[i]), int(rows_N[j]), float(cosine)) for (i, j), cosine in best]


def near_pictures(greys: Mapping[int, NDArray[np.uint8]], count: int) -> list[Pair]:
    """The pairs of rows whose whole pictures are most alike, mirrored or not; each row with its nearest.

    Args:
        greys: by row, uint8 (64, 64).
    """
    if len(greys) < 2:
        return []
    rows = list(greys)
    nearest, likeness = nearest_pictures(np.stack(list(greys.values())))
    found = {
        (min(row, rows[j]), max(row, rows[j])): value
        for row, j, value in zip(rows, nearest.tolist(), likeness.tolist(), strict=True)
    }
    best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [Pair(first, second, value) for (first, second), value in best]


def ranked(pairs: Iterable[Pair], greys: Mapping[int, NDArray[np.uint8]]) -> list[Pair]:
    """Pairs in the order of how alike their pictures are where they show the same (`aligned_likeness`).

    Of three rows that are alike there are two pairs, the likeliest: whatever follows from pairs before is left out, and so are
    pairs without a picture.
    """
    kept = sorted({(p.first, p.second) for p in pairs if p.first in greys and p.second in greys})
    if not kept:
        return []
    first, second = (np.stack([greys[pair[side]] for pair in kept]) for side in (0, 1))
    likeness = aligned_likeness(first, second)
    order = np.argsort(-likeness, kind="stable").tolist()
    return unconnected([Pair(kept[i][0], kept[i][1], float(likeness[i])) for i in order])


def unconnected(pairs: Iterable[Pair]) -> list[Pair]:
    """Those of the pairs, in their order, whose rows no pairs before them connect."""
    above: dict[int, int] = {}

    def root(row: int) -> int:
        while row in above:
            row = above[row]
        return row

    found = []
    for pair in pairs:
        first, second = root(pair.first), root(pair.second)
        if first != second:
            above[second] = first
            found.append(pair)
    return found
