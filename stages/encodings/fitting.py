"""Owns fitting encodings to a teacher's outputs: principal components, and codebooks.

Steps of components are in nats for logits and in the embedding's own unit; of maps, whose levels differ by far, in standard deviations of
their values around the mean of each channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.encodings import Encoding, Target
from ...storage_schemas.encodings.pca import Pca
from ...storage_schemas.encodings.pq import CENTERS, Pq, in_parts
from ...storage_schemas.encodings.registry import unfitted
from ...storage_schemas.encodings.spelling import LOGITS, Spelled
from ...storage_schemas.encodings.table import Table
from ...storage_schemas.errors import InputError

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats

#: Power of a class's mean probability by which its logit is weighted. 0 and 0.5 cost 1 to 5 % more bytes at equal KL.
_POWER = 0.33

#: A component is kept whose coefficient is not zero in so large a share of the rows.
_LEAST_USED = 0.01

#: Places of maps that are looked at.
_MOST_PLACES = 32_768

#: Rounds of k-means.
_ROUNDS = 20


class Fits:
    """Encodings of one target, fitted to the same rows.

    Args:
        rows_NC: finite values fp32 (row, class or channel), of maps (row, channel, y, x); or None where no encoding that is fitted
            is wanted.
    """

    def __init__(self, target: Target, rows_NC: Floats | None) -> None:
        self.target, self._rows_NC = target, rows_NC
        self._axes: _Axes | None = None

    def encoding(self, spelled: Spelled) -> Encoding:
        """The encoding that was spelled.

        Raises:
            InputError: it has more parts than the target has channels.
        """
        if not spelled.known.fitted:
            return unfitted(spelled)
        assert self._rows_NC is not None
        if spelled.name == "pq":
            parts, width = int(spelled.numbers[0]), self._rows_NC.shape[1]
            if parts > width:
                raise InputError(
                    "more parts than channels",
                    code="encoding-unknown",
                    where=f"--encoding {self.target.name}={spelled.text}",
                    expected=f"at most {width}",
                    found=parts,
                )
            return Pq(table=Table({"codebook": _codebook(self._rows_NC, parts)}))
        is_map = self._rows_NC.ndim > 2
        if self._axes is None:
            rows_NC = _places(self._rows_NC) if is_map else self._rows_NC
            self._axes = _Axes(rows_NC, is_logits=self.target.name == LOGITS)
        return self._axes.pca(spelled.numbers[0], self._axes.deviation if is_map else 1.0)


class _Axes:
    """The principal axes of some rows."""

    def __init__(self, rows_NC: Floats, *, is_logits: bool) -> None:
        values = rows_NC.astype(np.float64)
        count, width = values.shape
        weights = np.ones(width)
        if is_logits:
            values -= values.mean(axis=1, keepdims=True)
            p_NC = np.exp(values - values.max(axis=1, keepdims=True))
            p_NC /= p_NC.sum(axis=1, keepdims=True)
            weights = (p_NC.mean(axis=0) + 0.01 / width) ** _POWER
            weights /= weights.mean()
        self._mean = values.mean(axis=0).astype(np.float32)
        weights32 = weights.astype(np.float32)
        centered = (values - self._mean) * weights32
        if count >= width:
            _, vectors = np.linalg.eigh(centered.T @ centered)
            axes_KC = vectors.T[::-1]
        else:
            _, _, axes_KC = np.linalg.svd(centered, full_matrices=False)
        self.deviation = float(np.sqrt(np.square(centered).mean()))
        self._weights, self._basis = weights32, axes_KC / weights32
        self._coefficients = centered @ axes_KC.T

    def pca(self, step_in_units: float, unit: float) -> Pca:
        step = step_in_units * unit
        used = (np.abs(self._coefficients) >= step / 2).mean(axis=0) >= _LEAST_USED
        count = int(np.flatnonzero(used).max(initial=0)) + 1
        table = Table(
            {"mean": self._mean, "weights": self._weights, "basis": self._basis[:count].astype(np.float16)},
        )
        return Pca(step=step, unit=unit, table=table)


def _places(maps_NCYX: Floats) -> Floats:
    """Places of maps, (place, channel): as many as `_MOST_PLACES`, spread evenly over all of them."""
    number, channels = maps_NCYX.shape[:2]
    flat_NCP = maps_NCYX.reshape(number, channels, -1)
    every = -(-number * flat_NCP.shape[2] // _MOST_PLACES)
    picked = np.arange(0, number * flat_NCP.shape[2], every)
    return np.ascontiguousarray(flat_NCP[picked // flat_NCP.shape[2], :, picked % flat_NCP.shape[2]])


def _codebook(rows_ND: Floats, parts: int) -> NDArray[np.float32]:
    """Lloyd's k-means of each part, from rows that are drawn with a fixed seed; float32 (part, 255, channel of the part)."""
    drawn = np.random.Generator(np.random.Philox(0))
    codebook = []
    for values in in_parts(rows_ND, parts):
        first = drawn.permutation(max(len(values), CENTERS))[:CENTERS] % len(values)
        codebook.append(_k_means(values, values[first]))
    return np.stack(codebook).astype(np.float32)


def _k_means(values: NDArray[np.float64], centers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centers that have no row stay where they are."""
    for _ in range(_ROUNDS):
        label_N = (np.square(centers).sum(axis=1) - 2 * values @ centers.T).argmin(axis=1)
        count = np.bincount(label_N, minlength=len(centers))
        total = np.stack([np.bincount(label_N, column, len(centers)) for column in values.T], axis=1)
        moved = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers
