"""Owns writing a shard's block of which a few rows are new: the others are as they are stored, without being encoded again."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...storage_schemas.block_part import WHOLE, BlockPart
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import (
    Arrays,
    BlockWriter,
    OpenArrays,
    decode_views,
    read_sizes,
    read_stored_views,
    read_views,
)
from ...storage_schemas.view_params import Views


class MendingWriter(BlockWriter):
    """Holds the new rows that are put, and writes the whole block in the end.

    Args:
        before: arrays of the generation that has the other rows.
        mended: rows of the store; those of them that are not put have no targets.
    """

    def __init__(
        self,
        arrays: Arrays,
        spec: StoreSpec,
        shard: int,
        keys: Sequence[str],
        part: BlockPart = WHOLE,
        *,
        before: Arrays,
        mended: Collection[int],
    ) -> None:
        super().__init__(arrays, spec, shard, keys, part)
        rows = spec.rows(shard)
        self._before = before
        self._mended = [row - rows.start for row in range(rows.start, rows.stop) if row in mended]
        self._new: dict[int, tuple[Views, dict[str, NDArray[np.float32]], ArrayLike | None]] = {}

    @staticmethod
    def of(
        root: Any, mended: Collection[int], *, copied: int = 0
    ) -> Callable[[Any, StoreSpec, int, Sequence[str], BlockPart], BlockWriter]:
        """What makes the writer of one shard after the other.

        Args:
            root: the store as of the generation before.
            copied: number of shards that it has, if those behind them are new as a whole; 0 where it has all of them.
        """
        before = OpenArrays(root)

        def writer(arrays: Any, spec: StoreSpec, shard: int, keys: Sequence[str], part: BlockPart) -> BlockWriter:
            if copied and shard >= copied:
                return BlockWriter(arrays, spec, shard, keys, part)
            return MendingWriter(arrays, spec, shard, keys, part, before=before, mended=mended)

        return writer

    def put(
        self,
        offset: int,
        params_V: Views,
        targets: Mapping[str, NDArray[np.float32]],
        size: ArrayLike | None = None,
    ) -> None:
        """A mended row, as `BlockWriter.put` takes it."""
        for name, values in targets.items():
            if not np.isfinite(values).all():
                self.nonfinite[name] = self.nonfinite.get(name, 0) + 1
        # Copies: the batch that they are part of may go.
        copies = {name: np.array(values, np.float32) for name, values in targets.items()}
        self._new[offset] = params_V.copy(), copies, size

    def settle(self, offset: int) -> None:
        """Rows are written in the end."""

    def finish(self, digest: str | None = None) -> tuple[list[str], str]:
        """See `BlockWriter.finish`."""
        spec = self._spec
        _, valid_N, params_NV = read_views(self._before, spec, self.shard, range(spec.num_views))
        sizes_N2 = read_sizes(self._before, spec, self.shard)
        valid_N, sizes_N2 = valid_N.copy(), None if sizes_N2 is None else sizes_N2.copy()
        for offset in self._mended:
            valid_N[offset] = offset in self._new
            if offset in self._new:
                params_NV[offset], _, size = self._new[offset]
                if sizes_N2 is not None:
                    sizes_N2[offset] = np.asarray(size)
        step = math.lcm(*(spec.chunk_rows(t) for t in spec.targets if spec.is_streamed(t)))
        step = step if step > 1 else self.num_rows
        for first in range(0, self.num_rows, step):
            part = slice(first, min(first + step, self.num_rows))
            stored = {target.name: self._stored(target.name, part) for target in spec.targets}
            values = {name: decode_views(spec, name, arrays) for name, arrays in stored.items()}
            for decoded in values.values():
                decoded[~valid_N[part]] = np.nan
            sizes = None if sizes_N2 is None else sizes_N2[part]
            self.put_rows(first, valid_N[part], params_NV[part], values, stored, sizes)
        return super().finish(digest)

    def _stored(self, name: str, part: slice) -> dict[str, NDArray[Any]]:
        """The arrays of a target, (row, view, …), with the new rows in them."""
        spec, target = self._spec, self._spec.target(name)
        found = read_stored_views(self._before, spec, self.shard, name, range(spec.num_views), part)
        found = {array: np.array(stored) for array, stored in found.items()}
        for offset in self._mended:
            if not part.start <= offset < part.stop:
                continue
            if offset in self._new:
                new = self.encoded(target, self._new[offset][1][name][None], offset)
                for array, stored in found.items():
                    stored[offset - part.start] = new[array][0]
            else:
                for described in spec.encoding_of(target).arrays(target):
                    found[described.name][offset - part.start] = described.fill
        return found
