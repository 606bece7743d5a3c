"""Owns the search for images that are in a store more than once: equal files by their digests, near ones by their vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Principal components that vectors are compared in, and rows that are compared at once.
_COMPONENTS, _ROWS = 96, 1024


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


def by_pictures(pairs: list[Pair], picture: Callable[[int], NDArray[np.uint8] | None]) -> list[Pair]:
    """The pairs in the order of how alike their whole pictures are: correlation of the pixels, mirrored or not.

    Args:
        picture: of a row, whole and squashed: uint8 (height, width, 3), alike for all; None where there is none.
    """
    cache: dict[int, NDArray[np.float64] | None] = {}

    def values(row: int) -> NDArray[np.float64] | None:
        if row not in cache:
            found = picture(row)
            cache[row] = None if found is None else found.astype(np.float64) - found.mean()
        return cache[row]

    ranked = []
    for pair in pairs:
        a, b = values(pair.first), values(pair.second)
        if a is None or b is None:
            continue
        scale = max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-12)
        likeness = max(float((a * b).sum()), float((a * b[:, ::-1]).sum())) / scale
        ranked.append(Pair(pair.first, pair.second, likeness, pair.is_equal))
    return sorted(ranked, key=lambda pair: (-pair.likeness, pair.first, pair.second))
