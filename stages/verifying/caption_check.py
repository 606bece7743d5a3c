"""Owns the check of one shard beside its captions: receipts and sizes; with every byte: its tar, its chunks, its counts and its values."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.caption_store import caption_chunks, captions_digest, stored_captions
from ...storage_schemas.caption_texts import TextsReader
from ...storage_schemas.errors import DamagedError, TeachonceError
from ...storage_schemas.held_store import HeldStore
from ...storage_schemas.plain_text import counted
from ...storage_schemas.receipt import Receipt
from ..pairs.caption_store import open_captions
from .captions_whole import CaptionsWhole, check_texts, texts_of
from .chunks import ChunkCheck, ChunksRead, wrong_sizes
from .finding import Findings
from .receipts import checked_receipt, digest_error, set_aside_told
from .repair_hint import repair_command
from .shard_seen import ShardSeen
from .tar_side import TarSide
from .values import ValuesSeen


@dataclass(kw_only=True)
class CaptionCheck:
    """Looks at one shard after another, in several threads at once.

    Attributes:
        whole: what belongs together.
        full: whether every byte is read.
    """

    whole: CaptionsWhole
    full: bool

    def __post_init__(self) -> None:
        store = self.whole.store
        self._held = HeldStore(store.zarr_store(read_only=True))
        self._root: Any = open_captions(self._held, store)
        self._tars = TarSide(shards=self.whole.shards, full=self.full)
        self._texts, self._reading = _texts_if_any(self.whole) if self.full else None, threading.Lock()
        self._mend = f"restore it from a copy, or {repair_command(self.whole.shards, store)}"

    def close(self) -> None:
        self._tars.close()

    def of_whole(self) -> Iterator[TeachonceError]:
        """The texts must be those that were embedded. That they are gone is found before."""
        if self._texts is None:
            return
        try:
            with self._reading:
                check_texts(self._texts, self.whole.spec)
        except DamagedError as error:
            yield error

    def look_at(self, shard: int) -> ShardSeen:
        """Everything that is wrong with one shard. What is wrong is returned, never raised."""
        seen, findings = ShardSeen(shard), Findings()
        with self._tars.one_more():
            self._tars.look_at(shard, seen, findings)
            try:
                self._store_side(shard, seen, findings)
            except TeachonceError as error:
                findings.note(error, shard=shard, mendable=isinstance(error, DamagedError))
        seen.findings = list(findings)
        return seen

    def _store_side(self, shard: int, seen: ShardSeen, findings: Findings) -> None:
        whole, paths = self.whole, caption_chunks(self.whole.spec, shard)
        ledger = whole.store_ledger
        with set_aside_told([ledger], shard, mend=self._mend):
            receipt = checked_receipt(ledger, shard, whole.rows(shard), paths)
        outputs = {output.path: output for output in receipt.outputs}
        if not self.full:
            for error in wrong_sizes(whole.store, outputs, self._mend):
                findings.note(error, shard=shard, mendable=True)
            return
        check = ChunkCheck(store=whole.store, ledgers=[ledger], receipt=receipt, outputs=outputs, hint=self._mend)
        read = ChunksRead()
        held = check.read(paths, read)
        seen.num_bytes += read.num_bytes
        if check.is_stale(read):
            findings.note(check.stale_error(), shard=shard, mendable=True)
            return
        for damage in read.damage:
            findings.note(damage, shard=shard, mendable=True)
        if read.damage:
            return
        where = f"{whole.store}, shard {shard}"
        with self._held.holding(held):
            embedding_RKD, count_R = stored_captions(self._root, whole.spec, shard, where)
        for wrong in self._of_rows(shard, receipt, embedding_RKD, count_R, where):
            findings.note(wrong, shard=shard, mendable=True)

    def _of_rows(
        self,
        shard: int,
        receipt: Receipt,
        embedding_RKD: NDArray[np.floating[Any]],
        count_R: NDArray[np.int32],
        where: str,
    ) -> Iterator[TeachonceError]:
        """`embedding_RKD`: (row of the chunk, caption, channel); `count_R`: (row of the chunk,)."""
        digest = captions_digest(embedding_RKD, count_R)
        if digest != receipt.digest:
            yield digest_error(receipt, digest, where=where, mend=self._mend)
        yield from self._counts(shard, count_R, where)
        start = self.whole.rows(shard).start
        for place in range(self.whole.spec.captions):
            values = ValuesSeen(f"caption {place}", start, unit=True)
            values.add(embedding_RKD[:, place : place + 1], count_R > place, 0)
            # Texts may well be the same, and what the text tower cuts off too.
            yield from values.errors(where, self._mend, alike_means_something=False)

    def _counts(self, shard: int, count_R: NDArray[np.int32], where: str) -> Iterator[DamagedError]:
        """A row has as many captions as there are texts of it, or where these are damaged, as there are places."""
        rows, most = self.whole.rows(shard), self.whole.spec.captions
        wrong_R = (count_R < 0) | (count_R > most)
        wrong_R[len(rows) :] |= count_R[len(rows) :] > 0
        expected = f"0 to {most}"
        texts_R = self._num_texts(shard, len(count_R))
        if texts_R is not None:
            wrong_R = count_R != texts_R
        wrong = np.flatnonzero(wrong_R)
        if len(wrong):
            first = int(wrong[0])
            yield DamagedError(
                f"counts of captions are wrong, at {counted(len(wrong), 'row')}",
                code="caption-counts-differ",
                where=f"{where}, row {rows.start + first}",
                expected=expected if texts_R is None else f"{texts_R[first]} (the texts)",
                found=int(count_R[first]),
                hint=self._mend,
            )

    def _num_texts(self, shard: int, num_rows: int) -> NDArray[np.int64] | None:
        """How many each row has, int64 (row of the chunk,); None where the texts are damaged."""
        if self._texts is None:
            return None
        try:
            with self._reading:
                offset_T = self._texts.shard(shard).rows_T - self.whole.rows(shard).start
        except DamagedError:
            return None
        if len(offset_T) and not 0 <= offset_T.min() <= offset_T.max() < num_rows:
            return None
        found: NDArray[np.int64] = np.bincount(offset_T, minlength=num_rows)
        return found


def _texts_if_any(whole: CaptionsWhole) -> TextsReader | None:
    try:
        texts = texts_of(whole.store)
    except TeachonceError:
        return None  # told of before
    return texts if texts.num_shards == whole.num_shards else None
