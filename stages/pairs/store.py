"""Owns opening a target store for reading: whatever is read of it is compared with what was written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import zarr
from numpy.typing import NDArray

from ...pipeline.contents import Kind, how_to_make, kind_of
from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors, read_class_vectors
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError, TeachonceError
from ...storage_schemas.receipt import Output, Receipt
from ...storage_schemas.samples import shard_name
from ...storage_schemas.store_description import ATTRIBUTE, StoreDescription, StoreSpec, lost_description
from ...storage_schemas.target_store import check_arrays, check_version, open_root
from ...storage_schemas.verified_store import VerifiedStore
from ..samples.pixel_sample import PixelSample
from ..views.spec import ViewSpec
from .store_root import refuse_lost_root


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """The facts of a store that a reader of pairs needs before it opens any row.

    Attributes:
        store: where it is.
        fingerprint: digest of everything that decided its bytes.
        corpus_id: of the samples.
        sample_kind: of the samples, as in `Corpus`.
        spec: shape of the rows.
        views: how the stored boxes were drawn, and the filter that renders them.
        valid_rows: number of usable rows of each shard, int64 (shard,).
        pixels: rendered views to compare with; None where the store recorded none.
    """

    store: Location
    fingerprint: str
    corpus_id: str
    sample_kind: str
    spec: StoreSpec
    views: ViewSpec
    valid_rows: NDArray[np.int64]
    pixels: PixelSample | None


@dataclass(frozen=True)
class _Receipts:
    """The chunks of a store by the receipts of its shards (see `StoreReceipts`).

    Attributes:
        chunks_per_shard: of arrays whose chunks hold less than the rows of a shard.
    """

    store: Location
    chunks_per_shard: dict[str, int] = field(default_factory=dict)

    def shard_of(self, array: str, chunk: int) -> int:
        return chunk // self.chunks_per_shard.get(array, 1)

    @property
    def _ledger(self) -> Ledger:
        return Ledger(self.store, "cache")

    def outputs(self, shard: int) -> Mapping[str, Output]:
        return {output.path: output for output in store_receipt(self.store, shard).outputs}

    def damaged(self, path: str, shard: int, found: str) -> DamagedError:
        return DamagedError(
            f"a chunk of the store is not the one that the receipt of shard {shard} vouches for",
            code="chunk-changed",
            where=self.store / path,
            found=found,
            hint="restore the store from a copy; or, to ask the teacher about "
            f"this shard again, {self._ledger.redo_hint(shard_name(shard))}",
        )


def store_receipt(store: Location, shard: int) -> Receipt:
    """What vouches for one shard's rows in a store.

    Raises:
        DamagedError: it is not there.
    """
    ledger = Ledger(store, "cache")
    receipt = ledger.receipt(shard_name(shard))
    if receipt is None:
        raise DamagedError(
            "rows of a shard that has no receipt",
            code="store-receipt-missing",
            where=f"{store}, shard {shard}",
            hint=ledger.again,
        )
    return receipt


def open_store(store: Location) -> zarr.Group:
    """The root group of a target store, for reading; every chunk of rows is compared with its shard's receipt.

    Raises:
        InputError: nothing there.
        MismatchError: not a target store of this schema version.
        DamagedError: its zarr.json is lost or cannot be read. Later, from arrays: a chunk is not the one that was written.
    """
    refuse_lost_root(store)
    if not (store / "zarr.json").exists():
        raise InputError(
            "no target store here",
            code="store-missing",
            where=store,
            expected=Kind.STORE,
            found=kind_of(store),
            hint=how_to_make(store, "teachonce cache SHARDS --teacher …"),
        )
    receipts = _Receipts(store)
    root = open_root(VerifiedStore(store.zarr_store(read_only=True), receipts), where=store)
    check_version(root, where=store)
    with contextlib.suppress(TeachonceError):  # where the description is needed, it is read again, with the error
        spec = StoreDescription.read(root, where=store).spec
        receipts.chunks_per_shard.update(
            {t.name: -(-spec.shard_size // spec.chunk_rows(t)) for t in spec.targets if spec.is_streamed(t)}
        )
    return root


def read_description(root: zarr.Group, store: Location) -> StoreDescription:
    """The store's description; it agrees with the run in its ledger, and with the arrays that are there.

    Raises:
        IncompleteError: nothing was cached here yet.
        DamagedError: the description is lost or changed, or the arrays are others.
        MismatchError: it is of another run than the ledger's; names the field.
    """
    plan = Ledger(store, "cache").plan()
    if plan is not None and ATTRIBUTE not in root.attrs:
        raise lost_description(store)
    description = StoreDescription.read(root, where=store)
    if plan is not None:
        description.check_planned(plan.fingerprint, where=store)
    check_arrays(root, description.spec, where=store)
    return description


def read_vectors(root: zarr.Group, store: Location) -> ClassVectors:
    """The store's class vectors; they are those that `teachonce vectors` wrote there.

    Raises:
        IncompleteError: there are none.
        DamagedError: they changed since, or are another store's.
    """
    vectors = read_class_vectors(root, where=store)
    receipt = Ledger(store, "vectors").receipt("class_vectors")
    if receipt is not None and receipt.digest != vectors.digest:
        raise DamagedError(
            "the class vectors are not those that `teachonce vectors` wrote here",
            code="vectors-changed",
            where=store,
            expected=receipt.digest,
            found=vectors.digest,
            hint="restore them from a copy",
        )
    return vectors


def vectors_if_any(root: zarr.Group, store: Location) -> ClassVectors | None:
    """`read_vectors`, or None where the store has none."""
    try:
        return read_vectors(root, store)
    except IncompleteError:
        return None


def store_facts(store: Location) -> StoreFacts:
    """The facts of a finished store.

    Raises:
        InputError: no store there.
        IncompleteError: `teachonce cache` has not finished.
        DamagedError: the store's receipts do not cover its shards, or its description is lost.
        MismatchError: its arrays are another run's than its ledger's.
    """
    description = read_description(open_store(store), store)
    ledger = Ledger(store, "cache")
    plan = ledger.require_complete(hint=ledger.again)
    return StoreFacts(
        store=store,
        fingerprint=plan.fingerprint.digest,
        corpus_id=description.corpus_id,
        sample_kind=description.sample_kind,
        spec=description.spec,
        views=ViewSpec.from_json(description.views, where=store),
        valid_rows=_valid_rows(ledger, description.spec),
        pixels=PixelSample.of_store(description, store),
    )


def _valid_rows(ledger: Ledger, spec: StoreSpec) -> NDArray[np.int64]:
    counts = []
    for shard, receipt in enumerate(ledger.receipts()):
        rows, valid = spec.rows(shard), receipt.rows - len(receipt.invalid_rows)
        if (receipt.key, receipt.rows) != (shard_name(shard), rows.stop - rows.start) or valid < 0:
            raise DamagedError(
                "a receipt does not fit the store",
                code="receipt-does-not-fit",
                where=ledger.folder,
                expected=f"{rows.stop - rows.start} rows of shard {shard}",
                found=f"{receipt.rows} rows of {receipt.key}, {len(receipt.invalid_rows)} of them unusable",
                hint=f"restore it from a copy, or {ledger.redo_hint(receipt.key)}",
            )
        counts.append(valid)
    if len(counts) != spec.num_shards:
        raise DamagedError(
            "the store's receipts do not cover its shards",
            code="store-receipts-incomplete",
            where=ledger.folder,
            expected=spec.num_shards,
            found=len(counts),
            hint=ledger.again,
        )
    return np.array(counts, np.int64)
