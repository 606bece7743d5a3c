"""Owns one target of one shard and view, for rows in any order: in memory, or read chunk by chunk where a row is large."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import Arrays, read_target


class TargetRows:
    """`rows[positions]`: fp32 (sample, …) of positions in the shard; one position gives one row.

    A target whose chunks hold a whole shard is read once. Of others the chunks of the positions are read each time, and the last
    one is kept: in the order of the shard each is read once, in any order a few rows are read for each one that is wanted.

    Raises:
        DamagedError: a chunk is damaged.
    """

    def __init__(self, root: Arrays, spec: StoreSpec, shard: int, name: str, view: int) -> None:
        self._root, self._spec, self._shard, self._name, self._view = root, spec, shard, name, view
        target = spec.target(name)
        self._shape, self._per_chunk = target.shape, spec.chunk_rows(target)
        self._kept: tuple[int, NDArray[np.float32]] | None = None
        if not spec.is_streamed(target):
            self._chunk(0)

    def __getitem__(self, positions: Any) -> NDArray[np.float32]:
        wanted = np.asarray(positions)
        if wanted.ndim == 0:
            chunk, place = divmod(int(wanted), self._per_chunk)
            row: NDArray[np.float32] = self._chunk(chunk)[place]
            return row
        chunks_N = wanted // self._per_chunk
        if len(wanted) and (chunks_N == chunks_N[0]).all():
            rows: NDArray[np.float32] = self._chunk(int(chunks_N[0]))[wanted - chunks_N[0] * self._per_chunk]
            return rows
        found = np.empty((len(wanted), *self._shape), np.float32)
        for chunk in np.unique(chunks_N).tolist():
            here = chunks_N == chunk
            found[here] = self._chunk(chunk)[wanted[here] - chunk * self._per_chunk]
        return found

    def _chunk(self, number: int) -> NDArray[np.float32]:
        if self._kept is None or self._kept[0] != number:
            part = slice(number * self._per_chunk, (number + 1) * self._per_chunk)
            values = read_target(self._root, self._spec, self._shard, self._name, self._view, part)
            self._kept = (number, values)
        return self._kept[1]
