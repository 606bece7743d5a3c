"""Owns finding the receipt of any chunk of a target store: each generation has receipts of what it added."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from ...pipeline.ledger import Ledger, Plan
from ...pipeline.requests import together
from ...pipeline.storage import Copies, Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.growth import FIRST, Growth
from ...storage_schemas.receipt import Output, Receipt
from ...storage_schemas.samples import shard_name
from ...storage_schemas.store_description import StoreDescription, StoreSpec

#: The stage whose ledgers have the receipts of rows.
CACHE = "cache"

#: Receipts that are fetched for keeping at a time.
_KEPT_AT_ONCE = 1000

#: The unit of a ledger that wrote class vectors, beside those of shards.
VECTORS_UNIT = "class_vectors"


def chunks_per_shard(spec: StoreSpec) -> dict[str, int]:
    """Of the arrays whose chunks hold less than the rows of a shard: how many a shard has along the rows."""
    return {t.name: -(-spec.shard_size // spec.chunk_rows(t)) for t in spec.targets if spec.is_streamed(t)}


def generation_ledger(store: Location, name: str) -> Ledger:
    """The ledger of what a generation of a store added."""
    return Ledger(store, ledger_name(name))


def ledger_name(generation: str) -> str:
    """The name of the ledger of a generation of a store."""
    return CACHE if generation == FIRST else f"{CACHE}.{generation}"


def keep_receipt(ledger: Ledger, shard: int, copies: Copies) -> None:
    """Fetch a copy of a shard's receipt unless there is one. No digest is known of it, but it is sealed.

    Raises:
        FileNotFoundError: there is none.
    """
    receipt = ledger.folder / "receipts" / f"{shard_name(shard)}.json"
    receipt.keep_copy(copies)
    try:
        Receipt.from_bytes(receipt.read_bytes(), where=receipt)
    except DamagedError:
        copies.forget(receipt.address)
        receipt.keep_copy(copies)


@dataclass(frozen=True)
class StoreReceipts:
    """The receipts of a store's rows, as of one generation.

    Attributes:
        store: where it is.
        growths: how the generation came of the first one, the oldest first; none for the first one itself.
        chunks_per_shard: of arrays whose chunks hold less than the rows of a shard.
        copies: where receipts are kept on this machine as they are read; `store` is then read by way of them.
    """

    store: Location
    growths: Sequence[Growth] = ()
    chunks_per_shard: dict[str, int] = field(default_factory=dict)
    copies: Copies | None = None

    @staticmethod
    def of(store: Location, chain: Sequence[StoreDescription]) -> StoreReceipts:
        """Of the last generation of a chain (see `Generations.chain`)."""
        return StoreReceipts(
            store,
            [one.growth for one in chain if one.growth is not None],
            chunks_per_shard(chain[-1].spec),
        )

    @property
    def generation(self) -> str:
        """The name of the generation."""
        return self.growths[-1].name if self.growths else FIRST

    @cached_property
    def ledgers(self) -> list[Ledger]:
        """Of the first generation, and of each behind it that has a ledger."""
        return [generation_ledger(self.store, name) for name in (FIRST, *(growth.name for growth in self.growths))]

    @cached_property
    def _plans(self) -> dict[str, Plan]:
        """By ledger. They do not change once they are there."""
        return {ledger.stage: plan for ledger in self.ledgers if (plan := ledger.plan()) is not None}

    def kept_in(self, copies: Copies) -> StoreReceipts:
        """The same, which lets each receipt be fetched once."""
        return replace(self, store=self.store.copied(copies), copies=copies)

    def _receipt(self, ledger: Ledger, shard: int) -> Receipt | None:
        if self.copies is not None:
            with contextlib.suppress(FileNotFoundError):
                keep_receipt(ledger, shard, self.copies)
        return ledger.receipt(shard_name(shard), self._plans.get(ledger.stage))

    def ledgers_of(self, shard: int) -> Iterator[Ledger]:
        """Those that have a receipt of a shard once it is done, the oldest first."""
        first, *later = self.ledgers
        images = next((growth for growth in self.growths if growth.what == "images"), None)
        # Where more images took arrays of their own, they are written anew from shard 0 on: all that there was before.
        if images is None or shard < (min(images.all_shards, default=shard + 1) or 1):
            yield first
        for ledger, growth in zip(later, self.growths, strict=True):
            if growth.wrote(shard):
                yield ledger

    def receipt(self, shard: int) -> Receipt | None:
        """The newest receipt of a shard: it says which of its rows are unusable. None where there is none."""
        *_, ledger = self.ledgers_of(shard)
        return self._receipt(ledger, shard)

    def receipts(self, shards: int) -> Iterator[Receipt]:
        """The newest receipt of each of so many shards that has one, in order."""
        return (receipt for _, _, receipt in self._newest(shards) if receipt is not None)

    def _newest(self, shards: int) -> Iterator[tuple[int, Ledger, Receipt | None]]:
        """Each of so many shards with the ledger that should have its newest receipt, and that, in order; many with few requests."""
        if self.copies is not None:  # each is fetched once, and kept
            for start in range(0, shards, _KEPT_AT_ONCE):
                numbers = range(start, min(start + _KEPT_AT_ONCE, shards))
                ledgers = [[*self.ledgers_of(shard)][-1] for shard in numbers]
                receipts = together(lambda one: self._receipt(*one), zip(ledgers, numbers, strict=True))
                yield from zip(numbers, ledgers, receipts, strict=True)
            return
        readers = {ledger.stage: ledger.reader() for ledger in self.ledgers}
        for ledger, its in groupby(range(shards), key=lambda shard: [*self.ledgers_of(shard)][-1]):
            its_numbers = list(its)
            for shard, receipt in zip(its_numbers, readers[ledger.stage](map(shard_name, its_numbers)), strict=True):
                yield shard, ledger, receipt

    def shards_done(self, shards: int) -> list[int]:
        """Which of so many shards are done, in order."""
        done = {ledger.stage: set(ledger.done_keys()) for ledger in self.ledgers}
        return [
            shard
            for shard in range(shards)
            if all(shard_name(shard) in done[ledger.stage] for ledger in self.ledgers_of(shard))
        ]

    def redo_hint(self, *shards: int) -> str:
        """What to type so that some shards are done anew, and no others."""
        hints = []
        for ledger in self.ledgers:
            its = [shard for shard in shards if ledger in self.ledgers_of(shard)]
            hints += [ledger.redo_hint(*map(shard_name, its))] if its else []
        return "; and ".join(hints)

    def shard_of(self, array: str, chunk: int) -> int:
        """See `storage_schemas.verified_store.StoreReceipts`."""
        return chunk // self.chunks_per_shard.get(array, 1)

    def outputs(self, shard: int) -> Mapping[str, Output]:
        """The files of one shard, by path as readers of the generation get them; where they lie in the store is in the output.

        Raises:
            DamagedError: a receipt is missing.
        """
        return {path: output for path, (_, output) in self._found(shard).items()}

    def _found(self, shard: int) -> dict[str, tuple[Ledger, Output]]:
        """The same, with the ledger that has each."""
        places = self.growths[-1].arrays if self.growths else {}
        names = {place: name for name, place in places.items()}
        overlays = {growth.name: f"{growth.overlay}/" for growth in self.growths if growth.overlay}
        found: dict[str, tuple[Ledger, Output]] = {}
        for ledger in self.ledgers_of(shard):
            receipt = self._receipt(ledger, shard)
            if receipt is None:
                raise DamagedError(
                    "rows of a shard that has no receipt",
                    code="store-receipt-missing",
                    where=f"{self.store}, shard {shard}",
                    hint=ledger.again,
                )
            for output in receipt.outputs:
                path = output.path.removeprefix(overlays.get(str(ledger.generation), ""))
                array, _, chunk = path.partition("/c/")
                if array in names or array not in places:  # else another array has its name in this generation
                    found[f"{names.get(array, array)}/c/{chunk}"] = ledger, output
        return found

    def damaged(self, path: str, shard: int, found: str) -> DamagedError:
        """The error for a chunk that is not as its receipt has it."""
        *_, newest = self.ledgers_of(shard)
        known = self._found(shard).get(path)
        ledger, place = (newest, path) if known is None else (known[0], known[1].path)
        return DamagedError(
            f"a chunk of the store is not the one that the receipt of shard {shard} vouches for",
            code="chunk-changed",
            where=self.store / place,
            found=found,
            hint="restore the store from a copy; or, to ask the teacher about "
            f"this shard again, {ledger.redo_hint(shard_name(shard))}",
        )

    def require_complete(self) -> None:
        """
        Raises:
            IncompleteError: the first generation is not finished, or a later one has lost receipts.
        """
        for ledger in self.ledgers:
            if ledger == self.ledgers[0] or ledger.plan() is not None:
                ledger.require_complete(hint=ledger.again)

    def valid_rows(self, spec: StoreSpec) -> NDArray[np.int64]:
        """Usable rows of each shard, int64 (shard,).

        Raises:
            DamagedError: a receipt is missing, or does not fit the spec.
        """
        counts: list[int] = []
        for shard, ledger, receipt in self._newest(spec.num_shards):
            rows = spec.rows(shard)
            if receipt is None:
                raise DamagedError(
                    "the store's receipts do not cover its shards",
                    code="store-receipts-incomplete",
                    where=ledger.folder,
                    expected=spec.num_shards,
                    found=len(counts),
                    hint=ledger.again,
                )
            valid = receipt.rows - len(receipt.invalid_rows)
            if receipt.rows != rows.stop - rows.start or valid < 0:
                raise DamagedError(
                    "a receipt does not fit the store",
                    code="receipt-does-not-fit",
                    where=ledger.folder,
                    expected=f"{rows.stop - rows.start} rows of shard {shard}",
                    found=f"{receipt.rows} rows of {receipt.key}, {len(receipt.invalid_rows)} of them unusable",
                    hint=f"restore it from a copy, or {ledger.redo_hint(receipt.key)}",
                )
            counts.append(valid)
        return np.array(counts, np.int64)
