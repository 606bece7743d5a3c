"""Owns what to type so that wrong shards of a store are made again."""

from __future__ import annotations

from ...pipeline.storage import Location
from ...storage_schemas.plain_text import typed
from ..corpora.shards import ShardSet


def repair_command(shards: ShardSet, store: Location) -> str:
    """The command that makes those shards of a store again that are wrong."""
    return f"teachonce verify {typed(shards.location)} {typed(store)} --repair"
