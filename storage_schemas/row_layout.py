"""Owns which rows a shard holds: row = shard * shard size + offset, also where a corpus grew and shards in the middle are short."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class RowLayout:
    """Samples in parts: each part begins with a new shard, so that the last shard of the part before it may be short.

    Rows behind the samples of a short shard belong to no sample: arrays have `num_rows` rows, `num_samples` of them are samples'.

    Attributes:
        shard_size: rows from the beginning of a shard to that of the next.
        parts: samples of each part. Parts before a whole number of shards are joined: equal layouts are equal.
    """

    shard_size: int
    parts: tuple[int, ...]

    @staticmethod
    def of(shard_size: int, parts: Sequence[int]) -> RowLayout:
        """The layout of these parts, none of which is empty."""
        joined: list[int] = []
        for samples in parts:
            if joined and joined[-1] % shard_size == 0:
                joined[-1] += samples
            else:
                joined.append(samples)
        return RowLayout(shard_size, tuple(joined))

    @property
    def num_samples(self) -> int:
        return sum(self.parts)

    @cached_property
    def _ends(self) -> list[int]:
        """For each part the shard behind its last."""
        return list(accumulate(-(-samples // self.shard_size) for samples in self.parts))

    @property
    def num_shards(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def num_rows(self) -> int:
        """One more than the last sample's row: the length of arrays."""
        return self.rows(self.num_shards - 1).stop

    def rows(self, shard: int) -> range:
        """The rows of one shard's samples."""
        part = bisect_right(self._ends, shard)
        before = self._ends[part - 1] if part else 0
        start = shard * self.shard_size
        return range(start, start + min(self.shard_size, self.parts[part] - (shard - before) * self.shard_size))

    def has_row(self, row: int) -> bool:
        """Whether a row is a sample's."""
        shard = row // self.shard_size
        return 0 <= shard < self.num_shards and row in self.rows(shard)
