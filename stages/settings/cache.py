"""Owns the settings of `teachonce cache`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ...storage_schemas.encodings import ENCODINGS
from ..models.settings import COMPUTING


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What is stored, and how.

    Attributes:
        targets: see `teachers.offers.choose_offers`.
        chunk_views: decides low bits, as `batch_size` does.
        batch_size: its composition decides low bits. None: 64 on the CPU, 256 on CUDA.
    """

    targets: str = setting(
        "auto",
        unit="NAMES",
        known=("auto", "both", "embedding", "logits", "tokens"),
        help="What to store, with commas: embedding, logits, tokens, features.LAYER. auto: logits where there are class vectors "
        "and no more classes than channels, else the embedding; both: embedding,logits.",
    )
    encoding: str = setting(
        "fp16", choices=tuple(ENCODINGS), help="How targets are stored. fp16 keeps logits relative to their maximum."
    )
    chunk_views: int | None = setting(
        None,
        least=1,
        unit="VIEWS",
        default_text="all",
        group=COMPUTING,
        help="Most views in a chunk, and of an image in a forward pass. A store grows by whole chunks of views, so one that is made at once "
        "equals a grown one if this is the number that the other began with.",
    )
    batch_size: int | None = setting(
        None,
        least=1,
        unit="VIEWS",
        default_text="64 on the CPU, 256 on CUDA",
        group=COMPUTING,
        help="Views in a forward pass. Decides low bits, so it is fingerprinted.",
    )

    def batch_on(self, device: str) -> int:
        """Views in a forward pass on this device."""
        return self.batch_size or (64 if device == "cpu" else 256)
