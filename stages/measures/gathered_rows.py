"""Owns rows of a store that are needed in another order than the store's: copied once, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import scratch_file
from ...storage_schemas.view_params import Views


class GatheredRows:
    """Views and logits of some rows of a store, in a file without a name. Reading another row costs a whole shard.

    Args:
        rows_N: int64 (row,), in any order.
        shard_size: rows a shard.
        views: (sample,) of a shard.
        logits: fp32 (sample, class) of a shard.
    """

    def __init__(
        self,
        rows_N: NDArray[np.int64],
        shard_size: int,
        views: Callable[[int], Views],
        logits: Callable[[int], NDArray[np.float32]],
    ) -> None:
        self._rows_N = np.unique(rows_N)
        shards_N = self._rows_N // shard_size
        for shard in np.unique(shards_N).tolist():
            here = slice(*np.searchsorted(shards_N, [shard, shard + 1]))
            offsets = self._rows_N[here] - shard * shard_size
            views_N, logits_NC = views(shard), logits(shard)
            if here.start == 0:
                self._views_N = self._file(views_N)
                self._logits_NC = self._file(logits_NC)
            self._views_N[here], self._logits_NC[here] = views_N[offsets], logits_NC[offsets]

    def _file(self, like: NDArray[np.generic]) -> NDArray[np.generic]:
        with scratch_file() as file:  # the map holds it open
            return np.memmap(file, like.dtype, "w+", shape=(len(self._rows_N), *like.shape[1:]))

    def view(self, row: int) -> np.void:
        """The VIEW record of a row."""
        view: np.void = self._views_N[np.searchsorted(self._rows_N, row)]
        return view

    def logits(self, rows_N: Sequence[int]) -> NDArray[np.float32]:
        """The logits of some rows, fp32 (sample, class)."""
        return np.asarray(self._logits_NC[np.searchsorted(self._rows_N, rows_N)])
