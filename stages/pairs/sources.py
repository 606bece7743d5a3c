"""Owns the seam of targets that lie elsewhere than in the store: each source is joined to the store's rows, shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.view_params import Views
from ..corpora.shards import ShardSet
from .local_copies import LocalCache, SourceCopies


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardRows:
    """The rows of a shard, as the store has them in one view.

    Attributes:
        shards: the corpus that the store was made from.
        keys_N, valid_N: of the shard's rows; what is not valid is never asked for.
        params_N: their boxes and colours in this view.
    """

    shards: ShardSet
    shard: int
    view: int
    keys_N: NDArray[np.bytes_]
    valid_N: NDArray[np.bool_]
    params_N: Views


class Values(Protocol):
    """One target of a shard's rows."""

    def __getitem__(self, positions: Any) -> NDArray[Any]:
        """Those of rows of the shard, by their positions in it: int64 (sample,) to (sample, …)."""


class TargetSource(Protocol):
    """Targets of all rows of a corpus, beside the store's own. Small and picklable: each process opens it for itself.

    What it gives follows from the corpus, the class vectors and `identity` alone.
    """

    @property
    def layouts(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """By the targets' names: the type as numpy spells it (`f4`, `i8`), and the shape of one sample's."""

    @property
    def identity(self) -> Any:
        """What else decides its values, as JSON; None for nothing."""

    @property
    def note(self) -> str:
        """A line on it that a person should see before training; '' for none."""

    def open(self, rows: ShardRows, names: Sequence[str]) -> Mapping[str, Values]:
        """Some of its targets of a shard, in one view.

        Raises:
            MismatchError: it has not what the store has: other samples, or other views of them.
            DamagedError: bytes are damaged.
        """

    def kept_in(self, cache: LocalCache, names: tuple[str, ...]) -> tuple[TargetSource, SourceCopies | None]:
        """The same source, read by way of copies on this machine, and these copies; itself and None where it reads no store.

        Args:
            names: its targets that are read.
        """


def source_of(sources: Sequence[TargetSource], name: str) -> TargetSource | None:
    """The source that gives a target; None where the store does."""
    return next((source for source in sources if name in source.layouts), None)


def identities(sources: Sequence[TargetSource]) -> dict[str, Any]:
    """What fingerprints hold of sources, beside the targets' names: nothing where nothing else decides their values."""
    found = [source.identity for source in sources if source.identity is not None]
    return {"sources": found} if found else {}
