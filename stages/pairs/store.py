"""Owns opening a target store for reading: whatever is read of it is compared with what was written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from ...pipeline.contents import Kind, how_to_make, kind_of
from ...pipeline.ledger import Ledger
from ...pipeline.storage import Copies, Location
from ...storage_schemas.class_vectors import ClassVectors, read_class_vectors
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError, TeachonceError
from ...storage_schemas.fingerprint import digest_json
from ...storage_schemas.generation_store import GenerationStore
from ...storage_schemas.generations import Generations, no_generation
from ...storage_schemas.growth import FIRST
from ...storage_schemas.store_description import ATTRIBUTE, StoreDescription, StoreSpec, lost_description
from ...storage_schemas.target_store import check_arrays, check_version, open_root
from ...storage_schemas.verified_store import VerifiedStore
from ..samples.pixel_sample import PixelSample
from ..views.spec import ViewSpec
from .receipts import CACHE, VECTORS_UNIT, StoreReceipts, generation_ledger
from .store_root import refuse_lost_root


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """The facts of a store that a reader of pairs needs before it opens any row.

    Attributes:
        store: where it is.
        generation: the name of the one that they are of.
        fingerprint: digest of everything that decided its bytes.
        corpus_id: of the samples.
        sample_kind: of the samples, as in `Corpus`.
        spec: shape of the rows.
        views: how the stored boxes were drawn, and the filter that renders them.
        valid_rows: number of usable rows of each shard, int64 (shard,).
        pixels: rendered views to compare with; None where the store recorded none.
    """

    store: Location
    generation: str
    fingerprint: str
    corpus_id: str
    sample_kind: str
    spec: StoreSpec
    views: ViewSpec
    valid_rows: NDArray[np.int64]
    pixels: PixelSample | None


def open_store(store: Location, generation: str | None = None) -> zarr.Group:
    """The root group of a target store, for reading; every chunk of rows is compared with its shard's receipt.

    Args:
        generation: the name of the generation to show; None for the current one.

    Raises:
        InputError: nothing there, or no such generation.
        MismatchError: not a target store of this schema version.
        DamagedError: its zarr.json is lost or cannot be read. Later, from arrays: a chunk is not the one that was written.
    """
    return open_root(VerifiedStore(*shown_store(store, generation)), where=store)


def shown_store(store: Location, generation: str | None = None) -> tuple[Store, StoreReceipts]:
    """The files of a store as of a generation, as they lie there, and the receipts that vouch for them; see `open_store`."""
    plain, root = _whole(store)
    generations = Generations.read(root, store)
    shown = plain
    if generations is not None:
        name = generations.one(generation, store).generation
        shown = GenerationStore(plain, generations, name)
        receipts = StoreReceipts.of(store, generations.chain(name))
    else:
        if generation not in (None, FIRST):
            raise no_generation(str(generation), [FIRST], store)
        receipts = StoreReceipts(store)
        with contextlib.suppress(TeachonceError):  # where the description is needed, it is read again, with the error
            receipts = StoreReceipts.of(store, [StoreDescription.read(root, where=store)])
    return shown, receipts


def _whole(store: Location) -> tuple[Store, zarr.Group]:
    """The files of a store, and its root, as they lie there: of all generations together."""
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
    plain: Store = store.zarr_store(read_only=True)
    root = open_root(plain, where=store)
    check_version(root, where=store)
    return plain, root


def read_generations(store: Location) -> Generations:
    """The generations of a store; the first one alone where it never grew.

    Raises:
        InputError, MismatchError, DamagedError: as `open_store`.
        IncompleteError: nothing was cached here yet.
    """
    _, root = _whole(store)
    return Generations.read(root, store) or Generations.of(StoreDescription.read(root, store))


def store_receipts(store: Location, generation: str | None = None) -> StoreReceipts:
    """The receipts of a store as of a generation; None for the current one.

    Raises:
        InputError: no such generation.
        DamagedError: the generations cannot be read.
    """
    generations = read_generations(store)
    return StoreReceipts.of(store, generations.chain(generations.one(generation, store).generation))


def generation_of(store: Location, fingerprint: str) -> str | None:
    """The name of the generation that a run read, by the fingerprint's digest; None where the store has none of it."""
    generations = read_generations(store)
    for name in generations.finished:
        if digest_json(dict(generations.described[name].fingerprint)) == fingerprint:
            return name
    return None


def read_description(root: zarr.Group, store: Location) -> StoreDescription:
    """The description of the generation that a root shows; it agrees with the run in its ledger, and with the arrays that are there.

    Raises:
        IncompleteError: nothing was cached here yet.
        DamagedError: the description is lost or changed, or the arrays are others.
        MismatchError: it is of another run than the ledger's; names the field.
    """
    if ATTRIBUTE not in root.attrs and Ledger(store, CACHE).plan() is not None:
        raise lost_description(store)
    description = StoreDescription.read(root, where=store)
    plan = generation_ledger(store, description.generation).plan()
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
    receipt = vectors_ledger(root, store).receipt(VECTORS_UNIT)
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


def vectors_ledger(root: zarr.Group, store: Location) -> Ledger:
    """The one with the receipt of the class vectors that a root shows."""
    if ATTRIBUTE in root.attrs:
        growth = StoreDescription.read(root, where=store).growth
        place = growth.arrays.get("class_vectors") if growth is not None else None
        if place is not None:
            return generation_ledger(store, place.split("/")[1])
    return Ledger(store, "vectors")


def vectors_if_any(root: zarr.Group, store: Location) -> ClassVectors | None:
    """`read_vectors`, or None where the store has none."""
    try:
        return read_vectors(root, store)
    except IncompleteError:
        return None


def store_facts(
    store: Location, generation: str | None = None, copies_of: Callable[[str, str], Copies] | None = None
) -> StoreFacts:
    """The facts of a finished store.

    Args:
        generation: the name of one; None for the current one.
        copies_of: where receipts are kept on this machine, by corpus id and fingerprint; None keeps none.

    Raises:
        InputError: no store there, or no such generation.
        IncompleteError: `teachonce cache` has not finished.
        DamagedError: the store's receipts do not cover its shards, or its description is lost.
        MismatchError: its arrays are another run's than its ledger's.
    """
    description = read_description(open_store(store, generation), store)
    receipts = store_receipts(store, description.generation)
    receipts.require_complete()
    fingerprint = digest_json(dict(description.fingerprint))
    if copies_of is not None:
        receipts = receipts.kept_in(copies_of(description.corpus_id, fingerprint))
    return StoreFacts(
        store=store,
        generation=description.generation,
        fingerprint=fingerprint,
        corpus_id=description.corpus_id,
        sample_kind=description.sample_kind,
        spec=description.spec,
        views=ViewSpec.from_json(description.views, where=store),
        valid_rows=receipts.valid_rows(description.spec),
        pixels=PixelSample.of_store(description, store),
    )
