"""Owns the order in which groups of rows are drawn evenly: in each step equally many of each group, with replacement.

A pure function of (seed, numbers of rows): not of batches, processes or ranks, nor of where it is entered. Draw t of a group is in
its pass t // R over the group's R rows. A pass permutes the shards and goes through them in windows, as `EpochOrder` does; a
window gives as many draws as it has rows of the group, each of any of these rows with the same probability. So rows are equally
likely, only a few shards are open at a time, and in a corpus of one window the draws are independent of each other.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from .order import Ints, permutation, window_shards

#: The windows of all groups together hold about this many rows: what a worker keeps in memory is twice as many rows of targets, at
#: most. A corpus of no more is one window.
BALANCED_ROWS = 65_536


def balanced_window(rows_SG: Ints) -> int:
    """Shards in a window of each group."""
    rows_S = rows_SG.sum(axis=1)
    if rows_S.sum() <= BALANCED_ROWS:
        return len(rows_S)
    return window_shards(rows_S, BALANCED_ROWS // rows_SG.shape[1])


class _Window(NamedTuple):
    """A few shards of one pass over a group.

    Attributes:
        shards: in the order of the pass, int64 (shard,).
        begin, end: the draws of the pass that lie in it.
    """

    shards: Ints
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True, eq=False)
class BalancedOrder:
    """The order of one epoch. Sample j of all is draw j // G of group j mod G.

    Attributes:
        seed: what draws depend on, beside the counts.
        epoch: from 0.
        rows_SG: rows of each group in each shard, int64 (shard, group); no group is empty.
        num_samples: of an epoch, a multiple of the groups; epochs go on where the one before ended.
        window: shards whose rows are drawn from together.
    """

    seed: int
    epoch: int
    rows_SG: Ints
    num_samples: int
    window: int

    def at(self, epoch: int) -> BalancedOrder:
        return replace(self, epoch=epoch)

    def samples(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Samples `start` to `stop`: (shards, positions among the rows of each, group after group), int64.

        Costs a window or two of each group, wherever they lie.
        """
        if not 0 <= start < stop <= self.num_samples:
            raise IndexError(f"samples {start} to {stop} of {self.num_samples}")
        shards_N, positions_N = np.empty(stop - start, np.int64), np.empty(stop - start, np.int64)
        for group, places, draws in self._draws(start, stop):
            for window, here in self._windows(group, draws):
                drawn_shards, drawn_positions = self._drawn(group, window.begin)
                offsets = draws[here] - window.begin
                shards_N[places[here]], positions_N[places[here]] = drawn_shards[offsets], drawn_positions[offsets]
        return shards_N, positions_N

    def open_shards(self, start: int, stop: int) -> set[int]:
        """The shards of the windows that samples `start` to `stop` lie in."""
        found: set[int] = set()
        for group, _, draws in self._draws(start, stop):
            for window, _ in self._windows(group, draws):
                found.update(window.shards.tolist())
        return found

    def place(self, sample: int) -> Hashable:
        """The beginnings of the windows that the groups are in."""
        return tuple(self._window_at(group, self._draw(group, sample)).begin for group in range(self._groups))

    def coming(self, sample: int) -> Iterator[int]:
        """The shards of the windows that the groups are in, then those of the next ones."""
        here = [self._window_at(group, self._draw(group, sample)) for group in range(self._groups)]
        after = [self._window_at(group, window.end) for group, window in enumerate(here)]
        yield from dict.fromkeys(itertools.chain.from_iterable(window.shards.tolist() for window in here + after))

    @property
    def _groups(self) -> int:
        return int(self.rows_SG.shape[1])

    @cached_property
    def _rows_G(self) -> Ints:
        return np.asarray(self.rows_SG.sum(axis=0))

    def _draw(self, group: int, sample: int) -> int:
        """The number of a group's draw at a sample of the epoch, or the next one behind it."""
        return (self.epoch * self.num_samples + sample + self._groups - 1 - group) // self._groups

    def _draws(self, start: int, stop: int) -> Iterator[tuple[int, Ints, Ints]]:
        """Of each group: places of its samples among `start` to `stop`, and the numbers of its draws."""
        everything = self.epoch * self.num_samples + np.arange(start, stop)
        for group in range(self._groups):
            places = np.flatnonzero(everything % self._groups == group)
            if len(places):
                yield group, places, everything[places] // self._groups

    def _windows(self, group: int, draws: Ints) -> Iterator[tuple[_Window, slice]]:
        """The windows that consecutive draws lie in, and which of the draws do."""
        place = 0
        while place < len(draws):
            window = self._window_at(group, int(draws[place]))
            stop = min(len(draws), place + window.end - int(draws[place]))
            yield window, slice(place, stop)
            place = stop

    @cached_property
    def _window_at(self) -> Callable[[int, int], _Window]:
        """The window that a draw of a group lies in; `begin` and `end` count from the first draw of all."""
        passes = lru_cache(maxsize=2 * self._groups)(self._pass)

        def found(group: int, draw: int) -> _Window:
            number, within = divmod(draw, int(self._rows_G[group]))
            shards, ends = passes(group, number)
            window = int(np.searchsorted(ends, within, side="right"))
            first = draw - within
            begin = int(ends[window - 1]) if window else 0
            own = shards[window * self.window : (window + 1) * self.window]
            return _Window(own, first + begin, first + int(ends[window]))

        return found

    def _pass(self, group: int, number: int) -> tuple[Ints, Ints]:
        """A pass over a group: its shards, and behind which of its draws each window ends."""
        shards = permutation(len(self.rows_SG), f"balanced shards/{self.seed}/{number}")
        shards = shards[self.rows_SG[shards, group] > 0]
        ends = np.cumsum(self.rows_SG[shards, group], dtype=np.int64)
        last = np.arange(self.window - 1, len(ends) + self.window - 1, self.window)
        return shards, ends[np.minimum(last, len(ends) - 1)]

    @cached_property
    def _drawn(self) -> Callable[[int, int], tuple[Ints, Ints]]:
        # A batch on the border of two windows needs both; neighbouring batches need the same ones.
        return lru_cache(maxsize=2 * self._groups)(self._draw_window)

    def _draw_window(self, group: int, begin: int) -> tuple[Ints, Ints]:
        window = self._window_at(group, begin)
        counts = self.rows_SG[window.shards, group]
        ends = np.cumsum(counts)
        # Philox (Salmon et al., SC 2011) keyed by a hash, as in `permutation`; 64 bits, so no row is favoured by more than 1e-10.
        key = hashlib.blake2b(f"balanced/{self.seed}/{group}/{begin}".encode(), digest_size=16).digest()
        numbers = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(window.end - window.begin)
        rows = (numbers % np.uint64(ends[-1])).astype(np.int64)
        places = np.searchsorted(ends, rows, side="right")
        shards = window.shards[places]
        within = rows - (ends - counts)[places]
        return shards, within + self.rows_SG[shards, :group].sum(axis=1)
