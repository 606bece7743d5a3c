"""Owns computing a block's digest again from what a store holds: the same number as `BlockWriter.finish` gave, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.view_params import Views


class BlockDigest:
    """Takes the rows first, then every target in the order of their names."""

    def __init__(self) -> None:
        self._hasher = hashlib.blake2b(digest_size=16)
        self._parts: list[Any] = []

    def rows(self, keys: Sequence[str], valid_N: NDArray[np.bool_], params_NV: Views) -> None:
        """Keys, valid (sample,), and VIEW (sample, view)."""
        self._hasher.update("\n".join(keys).encode())
        for array in (valid_N, params_NV):
            self._hasher.update(np.ascontiguousarray(array).tobytes())

    def target(self, *, streamed: bool) -> Callable[[NDArray[np.float32]], None]:
        """A function that takes a target's values, fp32 (row, view, …), some rows after others. A streamed target has a digest of its own."""
        own = hashlib.blake2b(digest_size=16) if streamed else self._hasher
        if streamed:
            self._parts.append(own)
        else:
            self._settle()

        def take(values: NDArray[np.float32]) -> None:
            own.update(np.ascontiguousarray(values).tobytes())

        return take

    def hexdigest(self) -> str:
        self._settle()
        return self._hasher.hexdigest()

    def _settle(self) -> None:
        """Let the digests of streamed targets that are over enter, in their order."""
        for part in self._parts:
            self._hasher.update(part.digest())
        self._parts.clear()
