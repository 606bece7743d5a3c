"""Owns what the manifest has of one shard's rows, column by column: an object a sample would take longer than hashing a small image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.manifest import ManifestReader
from ...storage_schemas.samples import KEY_LENGTH, sample_metadata

_COLUMNS = ["key", "path", "digest", "label"]


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """Rows of the manifest, in their order; columns as in `manifest.Entry`.

    Attributes:
        first_row: number of the first one.
    """

    first_row: int
    keys: list[str]
    paths: list[str]
    digests: list[str]
    labels: list[str | None]

    @staticmethod
    def of(manifest: ManifestReader, shard: int, first_row: int) -> ShardRows:
        """
        Raises:
            DamagedError: the manifest cannot be read.
        """
        keys, paths, digests, labels = manifest.columns(shard, _COLUMNS)
        return ShardRows(first_row=first_row, keys=keys, paths=paths, digests=digests, labels=labels)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def keys_N(self) -> NDArray[np.bytes_]:
        """The keys as `S32` (row,)."""
        return np.array(self.keys, f"S{KEY_LENGTH}")

    def metadata(self, row: int) -> bytes:
        """What stands beside the image of a row in a tar."""
        at = row - self.first_row
        return sample_metadata(path=self.paths[at], row=row, digest=self.digests[at], label=self.labels[at])
