"""Owns the settings of `teachonce shard`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ...storage_schemas.samples import ORDERS, Order
from ..corpora.limits import MAX_BYTES, MAX_PIXELS

UNUSUAL = "Unusual corpora"

#: Samples of a shard that nobody chose.
_SHARD_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """How a corpus becomes shards.

    Attributes:
        name: None for the sources' names.
        resize: None keeps the original bytes.
        order: None takes that of the shards in `out`, `hash` where there are none.
        shard_size: None for the default: 1000, or in place as many as the largest tar has.
        in_place: the sources are tars that stay where they are, each of them a shard: only their manifest and indexes are written.
        append: to finished shards in `out`, as new shards behind them, what the sources hold and the corpus does not.
        give_up_on_unreachable: images that cannot be read at the moment become unusable rows; else they fail their shard.
    """

    shard_size: int | None = setting(
        None,
        least=1,
        unit="SAMPLES",
        default_text="1000; with --in-place as many as the largest tar has",
        help="Samples per shard.",
    )
    name: str | None = setting(
        None,
        default_text="the sources' names; with --in-place that of their folder or bucket",
        help="Name of the corpus, part of every sample's key.",
    )
    resize: int | None = setting(
        None, least=1, unit="PIXELS", help="Reduce the shorter side to this many pixels (re-encodes as JPEG)."
    )
    in_place: bool = setting(
        False, help="Use the tars where they are, each as a shard: write a manifest and indexes, and copy nothing."
    )
    append: bool = setting(
        False, help="Add images that finished shards in --out do not have yet, as new shards behind them."
    )
    order: Order | None = setting(  # noqa: RUF009
        None,
        choices=ORDERS,
        default_text="hash; shards already begun keep their order",
        help="Order of rows: `hash` mixes classes and sources, `source` keeps the sources' own.",
    )
    max_pixels: int = setting(
        MAX_PIXELS,
        least=1,
        unit="PIXELS",
        default_text="89 million",
        group=UNUSUAL,
        help="Larger images are recorded as unusable.",
    )
    max_bytes: int = setting(
        MAX_BYTES,
        least=1,
        most=MAX_BYTES,
        unit="BYTES",
        default_text="1 GiB",
        group=UNUSUAL,
        help="Longer files are recorded as unusable; downloads stop there.",
    )
    give_up_on_unreachable: bool = setting(
        False,
        group=UNUSUAL,
        help="Record images that cannot be read at the moment as unusable; without it they fail, and are tried again.",
    )

    @property
    def samples_per_shard(self) -> int:
        """Of shards that are written."""
        return self.shard_size or _SHARD_SIZE
