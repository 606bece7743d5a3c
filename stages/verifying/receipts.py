"""Owns the check of a shard's receipt on either side: that it is there, of this run and this shard, and names what it should."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from ...pipeline.ledger import Ledger
from ...storage_schemas.errors import DamagedError, IncompleteError
from ...storage_schemas.plain_text import counted
from ...storage_schemas.receipt import Receipt
from ...storage_schemas.samples import shard_name
from ..pairs.receipts import StoreReceipts


def checked_store_receipt(
    receipts: StoreReceipts, shard: int, rows: range, paths: Sequence[str], *, mend: str
) -> Receipt:
    """The newest receipt of a shard of a store; all of them, one a generation that wrote some of it, name its files together.

    Args:
        mend: what to type to have a shard cached again.

    Raises:
        IncompleteError, DamagedError: as `checked_receipt`; DamagedError also where a repair has set the receipt aside.
    """
    ledgers = list(receipts.ledgers_of(shard))
    *older, newest = ledgers
    with set_aside_told(ledgers, shard, mend=mend):
        for ledger in older:
            checked_receipt(ledger, shard, rows, paths, named=lambda _: paths)
        return checked_receipt(newest, shard, rows, paths, named=lambda _: receipts.outputs(shard))


@contextmanager
def set_aside_told(ledgers: Sequence[Ledger], shard: int, *, mend: str) -> Iterator[None]:
    """Inside, receipts of a shard are read. One that a repair has set aside is damage, and nothing that is left to do.

    Args:
        mend: what to type to have the shard made again.
    """
    try:
        yield
    except IncompleteError as error:
        if all(shard_name(shard) not in set_aside_keys(ledger) for ledger in ledgers):
            raise
        raise DamagedError(
            "a shard's receipt was set aside, and it has not been made again",
            code="repair-unfinished",
            where=error.where,
            hint=mend,
        ) from error


def set_aside_keys(ledger: Ledger) -> set[str]:
    """Units of which a receipt is kept under another name: they were to be done again, as by `verify --repair`."""
    names = (ledger.folder / "receipts").names()
    return {key for key, ending, _ in (name.partition(".json.old") for name in names) if ending}


def _own_files(receipt: Receipt) -> Collection[str]:
    return [output.path for output in receipt.outputs]


def checked_receipt(
    ledger: Ledger,
    shard: int,
    rows: range,
    paths: Sequence[str],
    *,
    named: Callable[[Receipt], Collection[str]] = _own_files,
) -> Receipt:
    """The receipt of a shard.

    Args:
        rows: of the shard.
        paths: of the files that it should name.
        named: those that it does, or that others do besides.

    Raises:
        IncompleteError: there is none.
        DamagedError: it is malformed, stale (of another run than the plan), of another shard, or names other rows or files.
    """
    receipt = ledger.receipt(shard_name(shard))
    where = ledger.folder / "receipts" / f"{shard_name(shard)}.json"
    if receipt is None:
        raise IncompleteError(
            "a shard has no receipt: it is not finished",
            code="shard-unfinished",
            where=where,
            hint=ledger.again,
        )
    bad = [row.row for row in receipt.invalid_rows]
    files = set(named(receipt))
    facts = (
        ("rows", counted(len(rows), "row"), counted(receipt.rows, "row")),
        ("unusable rows", "each once, in order, of this shard", _wrong_rows(bad, rows)),
        ("files", _listed(set(paths) - files), ""),
        ("files", "", _listed(files - set(paths))),
    )
    for name, expected, found in facts:
        if (name == "unusable rows" and found) or (name != "unusable rows" and expected != found):
            raise DamagedError(
                f"a receipt does not fit its shard: other {name}",
                code="receipt-does-not-fit",
                where=where,
                expected=expected or "no more files",
                found=found or "nothing",
                hint=f"restore it from a copy, or {ledger.redo_hint(shard_name(shard))}",
            )
    return receipt


def digest_error(receipt: Receipt, found: str, *, where: str, mend: str) -> DamagedError:
    """The error for rows that are not those of which the receipt has the digest.

    Args:
        found: their digest.
        where: the shard of the store.
        mend: what to type to have it made again.
    """
    return DamagedError(
        "a receipt's digest is not that of its rows",
        code="block-digest-differs",
        where=where,
        expected=receipt.digest,
        found=found,
        hint=mend,
    )


def _wrong_rows(bad: Sequence[int], rows: range) -> str:
    wrong = [row for row in bad if row not in rows]
    if wrong:
        return f"row {wrong[0]}"
    return "" if list(bad) == sorted(set(bad)) else "rows twice or out of order"


def _listed(paths: set[str]) -> str:
    first = sorted(paths)[:1]
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{first[0]}{more}" if first else ""


def other_files(ledger: Ledger, shard: int, ending: str) -> dict[str, str]:
    """Of all other shards: the sha256 of their files whose paths begin or end so, with whose they are. Read only where something is wrong."""
    found: dict[str, str] = {}
    for key in ledger.done_keys():
        if key == shard_name(shard):
            continue
        try:
            receipt = ledger.receipt(key)
        except DamagedError:
            continue
        for output in receipt.outputs if receipt is not None else ():
            if output.path.startswith(ending) or output.path.endswith(ending):
                found[output.sha256] = f"shard {int(key)}"
    return found
