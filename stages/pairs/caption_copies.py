"""Owns the copies on this machine's disk of what is read of captions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ...pipeline.storage import Copies
from .caption_store import CaptionReceipts, OpenCaptions
from .local_copies import LocalCache


@dataclass(frozen=True)
class CaptionCopies:
    """The chunks of captions, as copies. Can be pickled: processes of one machine share them.

    Attributes:
        captions: read by way of the copies.
    """

    copies: Copies
    captions: OpenCaptions

    @staticmethod
    def of(cache: LocalCache, captions: OpenCaptions) -> CaptionCopies:
        copies = cache.copies(captions.spec.corpus_id, captions.fingerprint)
        return CaptionCopies(copies, captions.kept_in(copies))

    def keep(self, shard: int, *, verify: bool = False) -> None:
        """Fetch the captions of a shard that have no copy yet; see `ShardCopies.keep`."""
        for path, output in self._receipts.outputs(shard).items():
            chunk = self.captions.location / path
            chunk.keep_copy(self.copies, sha256=output.sha256, size=output.bytes, verify=verify)

    @cached_property
    def _receipts(self) -> CaptionReceipts:
        return self.captions.receipts
