"""Owns the connected regions of a mask: pixels that touch, corners included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def regions_of(mask_YX: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """The region of each pixel, int64 (Y, X) from 1 on, 0 where there is none; and how many there are.

    Runs of pixels in a row are joined to those of the row above that they touch (Rosenfeld and Pfaltz, 1966).
    """
    padded = np.pad(mask_YX, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(padded, axis=1)
    rows_R, starts_R = np.nonzero(edges == 1)
    ends_R = np.nonzero(edges == -1)[1]  # behind the last pixel
    parents = list(range(len(rows_R)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    first_of_row = np.searchsorted(rows_R, np.arange(len(mask_YX) + 1)).tolist()
    starts, ends = starts_R.tolist(), ends_R.tolist()
    for row in range(1, len(mask_YX)):
        above, stop = first_of_row[row - 1], first_of_row[row]
        for run in range(first_of_row[row], first_of_row[row + 1]):
            while above < stop and ends[above] < starts[run]:
                above += 1
            at = above
            while at < stop and starts[at] <= ends[run]:
                parents[root(run)] = root(at)
                at += 1
    roots = [root(run) for run in range(len(parents))]
    numbers = {found: number for number, found in enumerate(dict.fromkeys(roots), 1)}
    labels_YX = np.zeros(mask_YX.shape, np.int64)
    for run, found in enumerate(roots):
        labels_YX[rows_R[run], starts[run] : ends[run]] = numbers[found]
    return labels_YX, len(numbers)
