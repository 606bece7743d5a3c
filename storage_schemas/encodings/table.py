"""Owns what an encoding was fitted to: arrays that lie in the store once, for all its rows, and their digest."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Names of a target's tables begin so: they hold no rows.
PREFIX = "encoding_"


@dataclass(frozen=True, eq=False)
class Table:
    """Arrays by their names; equal where their digests are."""

    arrays: Mapping[str, NDArray[np.floating]]

    @functools.cached_property
    def digest(self) -> str:
        """blake2b-128, in hexadecimal: for each array, by name, `NAME TYPE SHAPE` and a newline, then its bytes (little-endian)."""
        hasher = hashlib.blake2b(digest_size=16)
        for name, array in sorted(self.arrays.items()):
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            hasher.update(f"{name} {array.dtype.name} {'x'.join(map(str, array.shape))}\n".encode())
            hasher.update(little.tobytes())
        return hasher.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


#: Gives the table of a target, of which these arrays are expected.
TableOf = Callable[[tuple[str, ...]], Table]


def array_name(target: str, part: str) -> str:
    """The name in the store of one array of a target's table."""
    return f"{PREFIX}{target}_{part}"
