"""Owns the order of an epoch: a pure function of (seed, epoch, valid rows per shard), the same for every reader.

Shards are permuted, then read in windows of a few shards whose rows are shuffled together. Only the window at
hand is ever computed, so memory does not grow with the corpus and any step can be reached at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError

#: A window holds about this many rows: what a worker keeps in memory is this many rows of targets.
SHUFFLE_ROWS = 16_384

#: A window mixes at least this many shards, however large they are.
SHUFFLE_SHARDS = 4

Ints = NDArray[np.int64]


def check_batch(num_samples: int, batch_size: int, *, drop_last: bool, world_size: int = 1) -> None:
    """Refuse batches that cannot be.

    Raises:
        InputError: an epoch would have none, or ranks would get unequal shares.
    """
    if batch_size < 1:
        raise InputError("impossible batch size", code="setting-impossible", where="--batch-size", found=batch_size)
    if num_samples < 1:
        raise InputError(
            "no usable samples",
            code="images-none-usable",
            hint="see which images could not be used with `teachonce status`",
        )
    if drop_last and batch_size > num_samples:
        raise InputError(
            "a batch is larger than the corpus, and a last, shorter batch is dropped",
            code="batch-too-large",
            where="--batch-size",
            expected=f"at most {num_samples}",
            found=batch_size,
        )
    if batch_size % world_size:
        raise InputError(
            "a batch cannot be shared out equally among the workers",
            code="batch-not-divisible",
            where="--batch-size",
            expected=f"a multiple of {world_size}",
            found=batch_size,
        )
    if world_size > 1 and not drop_last:
        raise InputError(
            "workers need equal batches, so a last, shorter batch must be dropped",
            code="drop-last-needed",
            where="drop_last",
            expected=True,
            found=False,
        )


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Which samples of an epoch's order each batch holds, as (first, behind the last), one after another.

    Attributes:
        num_samples: in the epoch.
        batch_size: samples in a step, over all ranks.
        drop_last: whether a last, shorter batch is left out.
        first: sample to begin with, not necessarily the first of a batch.
        rank, world_size: of each batch, rank r holds the r-th of `world_size` equal parts.
    """

    num_samples: int
    batch_size: int
    drop_last: bool = True
    first: int = 0
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        left = max(0, self.num_samples - self.first)
        return left // self.batch_size if self.drop_last else -(-left // self.batch_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        share = self.batch_size // self.world_size
        for step in range(len(self)):
            start = self.first + step * self.batch_size + self.rank * share
            yield start, min(start + share, self.num_samples)


def window_shards(rows_per_shard: Ints, shuffle_rows: int = SHUFFLE_ROWS) -> int:
    """Shards in a window: as many as hold `shuffle_rows`, by the largest shard, but never just one or two."""
    largest = int(rows_per_shard.max(initial=1))
    return max(SHUFFLE_SHARDS, shuffle_rows // max(largest, 1))


def permutation(count: int, name: str) -> Ints:
    """A permutation of `count` that depends on `name` alone.

    Ranks of 64-bit numbers from Philox (Salmon et al., SC 2011), keyed by the blake2b hash of `name`: numpy
    keeps that stream stable, which it does not promise of `Generator.permutation`.
    """
    key = hashlib.blake2b(name.encode(), digest_size=16).digest()
    ranks = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.argsort(ranks, kind="stable").astype(np.int64, copy=False)


class Order(Protocol):
    """The order in which one epoch reads rows. Small, and picklable as long as nothing was asked of it."""

    @property
    def epoch(self) -> int:
        """From 0."""

    @property
    def num_samples(self) -> int:
        """In the epoch."""

    def at(self, epoch: int) -> Order:
        """That of another epoch."""

    def samples(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Samples `start` to `stop` of the epoch: (shards, positions among the rows of each that are read), int64."""

    def open_shards(self, start: int, stop: int) -> set[int]:
        """The shards that are worth keeping open while samples `start` to `stop` are read."""

    def place(self, sample: int) -> Hashable:
        """Where in the corpus a sample lies: samples of one place have the same shards at hand and coming."""

    def coming(self, sample: int) -> Iterator[int]:
        """The shards at hand there, then those that come next, maybe in the next epoch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochOrder:
    """The order in which one epoch reads every valid row exactly once.

    Attributes:
        seed, epoch: what the order depends on, beside the counts.
        rows_per_shard: valid rows of each shard, int64 (shard,).
        window: shards whose rows are shuffled together.
    """

    seed: int
    epoch: int
    rows_per_shard: Ints
    window: int

    @property
    def num_samples(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def _shards(self) -> Ints:
        """Shards in the order in which windows take them; those without valid rows are left out."""
        shards = permutation(len(self.rows_per_shard), f"shards/{self.seed}/{self.epoch}")
        return shards[self.rows_per_shard[shards] > 0]

    @cached_property
    def _ends(self) -> Ints:
        return np.cumsum(self.rows_per_shard[self._shards], dtype=np.int64)

    @cached_property
    def _window_ends(self) -> Ints:
        last = np.arange(self.window - 1, len(self._ends) + self.window - 1, self.window)
        return self._ends[np.minimum(last, len(self._ends) - 1)]

    def samples(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Samples `start` to `stop` of the epoch: (shards, positions among the valid rows of each), int64.

        Costs one or a few windows, wherever they lie.
        """
        if not 0 <= start < stop <= self.num_samples:
            raise IndexError(f"samples {start} to {stop} of {self.num_samples}")
        first, last = (int(w) for w in np.searchsorted(self._window_ends, [start, stop - 1], side="right"))
        begin = int(self._window_ends[first - 1]) if first else 0
        parts = [self._window(w) for w in range(first, last + 1)]
        shards_N = np.concatenate([shards for shards, _ in parts])[start - begin : stop - begin]
        positions_N = np.concatenate([positions for _, positions in parts])[start - begin : stop - begin]
        return shards_N, positions_N

    def open_shards(self, start: int, stop: int) -> set[int]:
        """The shards of the windows that samples `start` to `stop` lie in: those worth keeping open."""
        first, last = (int(w) for w in np.searchsorted(self._window_ends, [start, stop - 1], side="right"))
        return set(self._shards[first * self.window : (last + 1) * self.window].tolist())

    def at(self, epoch: int) -> EpochOrder:
        return replace(self, epoch=epoch)

    def place(self, sample: int) -> Hashable:
        """The window that a sample lies in, or would."""
        return self.epoch, self._window_of(sample)

    def coming(self, sample: int) -> Iterator[int]:
        """The shards of a window and of the next one, which may be the first of the next epoch."""
        here = self._shards_from(self._window_of(sample), 2)
        yield from here
        if len(here) <= self.window:
            yield from self.at(self.epoch + 1)._shards_from(0, 1)

    def _window_of(self, sample: int) -> int:
        return int(np.searchsorted(self._window_ends, sample, side="right"))

    def _shards_from(self, window: int, windows: int) -> list[int]:
        """The shards of so many windows, in order."""
        found: list[int] = self._shards[window * self.window : (window + windows) * self.window].tolist()
        return found

    @cached_property
    def _window(self) -> Callable[[int], tuple[Ints, Ints]]:
        # A batch on the border of two windows needs both; neighbouring batches need the same ones.
        return lru_cache(maxsize=2)(self._draw_window)

    def _draw_window(self, window: int) -> tuple[Ints, Ints]:
        shards = self._shards[window * self.window : (window + 1) * self.window]
        counts = self.rows_per_shard[shards]
        order = permutation(int(counts.sum()), f"window/{self.seed}/{self.epoch}/{window}")
        positions = np.concatenate([np.arange(count) for count in counts])
        return np.repeat(shards, counts)[order], positions[order]
