"""Owns summaries of a teacher's outputs, gathered shard by shard in memory that stays flat."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.fingerprint import Json
from .sample_block import SampleBlock

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats

#: Resolution of quartiles: this many equal parts of the range.
_BINS = 10_000


class Spread:
    """Mean, extremes and quartiles of numbers in a known range; quartiles to 1/10,000 of that range."""

    def __init__(self, low: float, high: float) -> None:
        self._edges = np.linspace(low, max(high, low + 1e-9), _BINS + 1)
        self._counts = np.zeros(_BINS, np.int64)
        self._sum = 0.0
        self._min, self._max = float("inf"), float("-inf")

    def add(self, values_N: NDArray[np.floating]) -> None:
        """Count values; rounding a little beyond the range counts as its end."""
        if not len(values_N):
            return
        low, high = self._edges[0], self._edges[-1]
        places_N = ((values_N.astype(np.float64) - low) * (_BINS / (high - low))).astype(np.int64)
        self._counts += np.bincount(np.clip(places_N, 0, _BINS - 1), minlength=_BINS)
        self._sum += float(values_N.sum(dtype=np.float64))
        self._min, self._max = min(self._min, float(values_N.min())), max(self._max, float(values_N.max()))

    def quantile(self, share: float) -> float:
        """The value below which `share` of the numbers lie, interpolated within its bin."""
        total = np.concatenate([[0], np.cumsum(self._counts)])
        value = float(np.interp(share * total[-1], total, self._edges))
        return min(max(value, self._min), self._max)

    def histogram(self, bins: int) -> tuple[list[float], list[int]]:
        """(edges, counts) in so many equal parts of the range; `bins` divides 10,000."""
        return self._edges[:: _BINS // bins].tolist(), self._counts.reshape(bins, -1).sum(axis=1).tolist()

    def to_json(self) -> Json:
        count = int(self._counts.sum())
        if count == 0:
            return None
        quartiles = {name: self.quantile(share) for name, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75))}
        return {"mean": self._sum / count, "min": self._min, **quartiles, "max": self._max}


class Values:
    """Range, mean and standard deviation of a target's values in valid rows, and how many are no numbers."""

    def __init__(self) -> None:
        self._count = 0
        self._first: np.float32 | None = None
        # Of differences to the first value: of the values themselves, squares leave nothing where they lie close together.
        self._sum = self._squares = 0.0
        self._min, self._max = float("inf"), float("-inf")
        self.nan = self.infinite = 0
        self.bad_shards: list[int] = []

    def add(self, values: Floats, shard: int) -> None:
        """Count the values of some valid rows."""
        finite = np.isfinite(values)
        numbers = values if finite.all() else values[finite]
        if numbers.size != values.size:
            nan = int(np.isnan(values).sum())
            self.nan += nan
            self.infinite += values.size - numbers.size - nan
            if self.bad_shards[-1:] != [shard]:
                self.bad_shards.append(shard)
        if numbers.size:
            self._count += numbers.size
            if self._first is None:
                self._first = numbers.flat[0]
            # Sums of one row's numbers in fp32, of rows in fp64.
            flat = numbers.reshape(-1, numbers.shape[-1] if numbers.ndim > 1 else 1) - self._first
            self._sum += float(flat.sum(axis=1).sum(dtype=np.float64))
            self._squares += float(np.einsum("nd,nd->n", flat, flat).sum(dtype=np.float64))
            self._min, self._max = min(self._min, float(numbers.min())), max(self._max, float(numbers.max()))

    def to_json(self) -> Json:
        facts: dict[str, Any] = {"nan": self.nan, "infinite": self.infinite}
        if self._count:
            off = self._sum / self._count
            deviation = max(self._squares / self._count - off * off, 0.0) ** 0.5
            facts |= {"min": self._min, "max": self._max, "mean": float(self._first or 0.0) + off, "std": deviation}
        return facts


class SoftLabels:
    """Confidence and entropy per view; top classes and extreme samples by the mean over views.

    Args:
        num_classes: C.
        keep: how many of the most and of the least confident samples to remember.
    """

    def __init__(self, num_classes: int, keep: int) -> None:
        self.confidence = Spread(0, 1)
        self.entropy = Spread(0, float(np.log(max(num_classes, 2))))
        self.top1_C = np.zeros(num_classes, np.int64)
        self.samples = self.samples_agreed = 0
        self._keep = keep
        # (probability, row, class), best first
        self.most: list[tuple[float, int, int]] = []
        self.least: list[tuple[float, int, int]] = []

    def add(self, block: SampleBlock) -> None:
        """Count the samples of one shard."""
        self.confidence.add(block.confidence_VN.ravel())
        self.entropy.add(block.entropy_VN.ravel())
        if not len(block):
            return
        self.top1_C += np.bincount(block.first_N, minlength=len(self.top1_C))
        self.samples += len(block)
        self.samples_agreed += int((block.top_VN == block.top_VN[0]).all(axis=0).sum())
        found = list(zip(block.confidence_N.tolist(), block.rows_N.tolist(), block.first_N.tolist(), strict=True))
        self.most = heapq.nsmallest(self._keep, [*self.most, *found], key=lambda s: (-s[0], s[1]))
        self.least = heapq.nsmallest(self._keep, [*self.least, *found], key=lambda s: (s[0], s[1]))
