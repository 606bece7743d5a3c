"""Owns which rows and views of a store a caller means: one or several, by number or by key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError

#: One row, by number or key.
Row = int | str

#: Several rows: numbers, keys, a slice, a mask of all rows; None for all of them.
Rows = slice | Sequence[int] | Sequence[str] | NDArray[Any] | None


@dataclass(frozen=True)
class Selection:
    """Rows in the order in which they are wanted.

    Attributes:
        numbers: a range where they follow each other, else int64 (row,).
        is_one: whether a single one was meant: then results have no axis for rows.
    """

    numbers: range | NDArray[np.int64]
    is_one: bool

    def by_shard(self, shard_size: int) -> Iterable[tuple[int, Any, Any]]:
        """(shard, places among these rows, offsets in the shard) of each shard that they lie in."""
        if isinstance(self.numbers, range) and self.numbers.step == 1:
            start = self.numbers.start
            while start < self.numbers.stop:
                shard, offset = divmod(start, shard_size)
                stop = min(self.numbers.stop, (shard + 1) * shard_size)
                place = start - self.numbers.start
                yield shard, slice(place, place + stop - start), np.arange(offset, offset + stop - start)
                start = stop
            return
        numbers_N = np.asarray(self.numbers, np.int64)
        shards_N, offsets_N = np.divmod(numbers_N, shard_size)
        for shard in np.unique(shards_N).tolist():
            places = np.flatnonzero(shards_N == shard)
            yield shard, places, offsets_N[places]


def select(rows: Row | Rows, num_rows: int, find_keys: Callable[[Sequence[str]], NDArray[np.int64]]) -> Selection:
    """The rows that are meant. Negative numbers count from the end, as everywhere in Python.

    Args:
        rows: as the caller gave them.
        num_rows: of the store.
        find_keys: rows of some keys.

    Raises:
        InputError: a number out of range, a key that no row has, or something else.
    """
    if rows is None:
        return Selection(range(num_rows), False)
    if isinstance(rows, slice):
        return Selection(range(num_rows)[rows], False)
    if isinstance(rows, range) and rows.step == 1 and rows.start >= 0 and rows.stop <= num_rows:
        return Selection(rows, False)
    if isinstance(rows, str):
        return Selection(find_keys([rows]), True)
    if isinstance(rows, Sequence) and rows and isinstance(rows[0], str):
        return Selection(find_keys([str(key) for key in rows]), False)
    wanted = np.asarray(rows)
    if wanted.dtype.kind == "b" and wanted.shape == (num_rows,):
        return Selection(np.flatnonzero(wanted), False)
    if wanted.dtype.kind in "US" and wanted.ndim == 1:
        return Selection(find_keys(wanted.astype(str).tolist()), False)
    if wanted.size == 0 and wanted.ndim == 1:
        return Selection(range(0), False)
    if wanted.dtype.kind not in "iu" or wanted.ndim > 1:
        raise InputError(
            "not rows of a store",
            code="rows-malformed",
            where="rows",
            expected="a row, a key, several of either, a slice, or a mask of all rows",
            found=f"{type(rows).__name__} of {wanted.dtype}, shape {wanted.shape}",
        )
    numbers_N = np.atleast_1d(wanted).astype(np.int64)
    numbers_N = np.where(numbers_N < 0, numbers_N + num_rows, numbers_N)
    outside = (numbers_N < 0) | (numbers_N >= num_rows)
    if outside.any():
        found = int(np.atleast_1d(wanted)[outside][0])
        raise _no_such("row", f"a row from 0 to {num_rows - 1}", found)
    return Selection(numbers_N, wanted.ndim == 0)


def select_views(view: int | Sequence[int] | None, num_views: int) -> tuple[list[int], bool]:
    """Numbers of the views that are meant, and whether a single one was.

    Raises:
        InputError: the store has no such view.
    """
    if view is None:
        return list(range(num_views)), False
    wanted = np.asarray(view)
    is_whole = wanted.dtype.kind in "iu" and wanted.ndim < 2
    if not is_whole or ((wanted < 0) | (wanted >= num_views)).any():
        raise _no_such("view", f"a view from 0 to {num_views - 1}", view)
    return [int(number) for number in np.atleast_1d(wanted)], wanted.ndim == 0


def _no_such(what: str, expected: str, found: object) -> InputError:
    return InputError(f"the store has no such {what}", code="store-place-missing", expected=expected, found=found)
