"""Owns the one table of failed images: which images of a corpus cannot be used, why, and which stage found that out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.receipt import InvalidRow, Receipt
from ..corpora.shards import ShardSet


@dataclass(frozen=True, kw_only=True)
class FailedImage:
    """An image without targets.

    Attributes:
        row, path, reason: as in the receipt.
        key: empty where the manifest is not at hand.
        stage: `shard`, which has no image of it; or `cache`, where the teacher's pass could not use the one that there is.
        store: where `cache` recorded it; None for `shard`.
    """

    row: int
    key: str
    path: str
    reason: str
    stage: str
    store: str | None = None

    @property
    def kind(self) -> str:
        """The reason without what is this image's own (`InvalidRow.kind`)."""
        return InvalidRow(row=self.row, path=self.path, reason=self.reason).kind

    def to_json(self) -> Json:
        return {name: value for name, value in asdict(self).items() if value is not None}


def failed_in_shards(shards: ShardSet) -> Iterator[FailedImage]:
    """Images that the shards do not have, in row order."""
    manifest = shards.manifest()
    for shard, receipt in enumerate(shards.receipts()):
        entries = manifest.shard(shard) if receipt.invalid_rows else []
        start = shards.corpus.rows(shard).start
        for bad in receipt.invalid_rows:
            entry = entries[bad.row - start]
            yield FailedImage(row=bad.row, key=entry.key, path=entry.path, reason=bad.reason, stage="shard")


def failed_in_store(receipts: Iterable[Receipt], store: Location, shards: ShardSet | None) -> Iterator[FailedImage]:
    """Images that a store has no targets of, in the order of its receipts.

    Args:
        receipts: of the store's shards.
        shards: the store's; None where they are not at hand: then `cache` is said to have found all of them.
    """
    known = None if shards is None else shards.manifest()
    for receipt in receipts:
        if not receipt.invalid_rows:
            continue
        entries, in_shards, start = [], set(), 0
        if shards is not None and known is not None:
            shard = receipt.invalid_rows[0].row // shards.corpus.shard_size
            entries, start = known.shard(shard), shards.corpus.rows(shard).start
            in_shards = {bad.row for bad in shards.receipt(shard).invalid_rows}
        for bad in receipt.invalid_rows:
            entry = entries[bad.row - start] if entries else None
            is_cache = bad.row not in in_shards
            yield FailedImage(
                row=bad.row,
                key="" if entry is None else entry.key,
                path=bad.path or ("" if entry is None else entry.path),
                reason=bad.reason,
                stage="cache" if is_cache else "shard",
                store=str(store) if is_cache else None,
            )


class _HasKind(Protocol):
    @property
    def kind(self) -> str: ...


Failed = TypeVar("Failed", bound=_HasKind)


def by_kind(failed: Iterable[Failed]) -> list[tuple[str, Sequence[Failed]]]:
    """Unusable images by kind of reason, the most frequent first; within a kind in their order."""
    kinds: dict[str, list[Failed]] = {}
    for bad in failed:
        kinds.setdefault(bad.kind, []).append(bad)
    return sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
