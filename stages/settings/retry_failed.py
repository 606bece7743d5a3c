"""Owns the settings of `teachonce retry-failed`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting


@dataclass(frozen=True, kw_only=True)
class RetrySettings:
    """Which failed images are read again.

    Attributes:
        source: sources of the corpus that are read, each `PATH` or `NAME=PATH`, as for `shard`.
    """

    source: tuple[str, ...] = setting(
        (),
        unit="CORPUS",
        help="A folder, tar or list that the shards were made of, as for `shard`; several times for several.",
    )
