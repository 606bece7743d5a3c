"""Owns the count of a ledger's receipts beside the shards that there are: some are left to do, or one is of no shard."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.errors import IncompleteError, MismatchError, TeachonceError
from ...storage_schemas.plain_text import counted
from .receipts import set_aside_keys


def unfinished(
    ledger: Ledger, keys: Collection[str], *, where: Location, command: str, hint: str
) -> Iterator[TeachonceError]:
    """Units without a receipt. Those that a killed repair has set aside are told of one by one, with their shards.

    Args:
        keys: of the units that there are.
        where: the store.
        command: that does them.
    """
    there = set(ledger.done_keys())
    if set(keys) - there - set_aside_keys(ledger):
        yield IncompleteError(
            f"{command} has not finished",
            code="stage-unfinished",
            where=where,
            found=f"{len(there & set(keys))} of {counted(len(keys), 'unit')}",
            hint=hint,
        )


def strangers(ledger: Ledger, keys: Collection[str], *, beside: Collection[str] = ()) -> Iterator[TeachonceError]:
    """A receipt of a unit that there is not.

    Args:
        keys: of the shards that there are.
        beside: of units that are no shards.
    """
    known = {*keys, *beside}
    found = [key for key in ledger.done_keys() if key not in known]
    if found:
        yield MismatchError(
            "a receipt of a shard that there is not",
            code="receipt-of-no-shard",
            where=ledger.folder / "receipts" / f"{found[0]}.json",
            expected=f"shards 0 to {len(keys) - 1}",
            found=found[0],
            hint="move it away",
        )
