"""Owns the join of a shard's images with the teacher's targets: tar and store, checked key by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Copies, Location
from ...storage_schemas.errors import DamagedError, InputError, MismatchError
from ...storage_schemas.plain_text import counted, typed
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import Arrays, read_marks, read_params
from ...storage_schemas.view_params import Views
from ..corpora.shards import ShardIndex, ShardReader, ShardSet
from ..samples.pixel_sample import check_sample
from .receipts import StoreReceipts
from .sources import ShardRows, TargetSource, Values, source_of
from .store import StoreFacts, store_facts, store_receipts
from .target_rows import TargetRows
from .training_rows import RowListing


def open_pair(
    shards: ShardSet,
    store: Location,
    generation: str | None = None,
    copies_of: Callable[[str, str], Copies] | None = None,
) -> tuple[ShardSet, StoreFacts]:
    """The facts of a finished store that was made from these shards, and the shards as they were then, if the corpus grew since.

    Args:
        generation: of the store; None for the current one.
        copies_of: as in `store_facts`.

    Raises:
        InputError, IncompleteError, DamagedError: see `store_facts`.
        MismatchError: the store is of another corpus, names the field; or an image that it has targets of was replaced since.
    """
    facts = store_facts(store, generation, copies_of)
    then = as_made(shards, store, facts)
    _refuse_replaced(then, facts)
    return then, facts


class OfCorpus(Protocol):
    """What says which corpus a store was made from: `StoreFacts`, or `StoreDescription`."""

    @property
    def corpus_id(self) -> str: ...
    @property
    def spec(self) -> StoreSpec: ...


def as_made(shards: ShardSet, store: Location, made_from: OfCorpus) -> ShardSet:
    """The shards as they were when a store was made from them.

    Raises:
        MismatchError: it was made from another corpus; names the field.
    """
    then = shards.as_of(made_from.corpus_id)
    corpus, spec = (then or shards).corpus, made_from.spec
    for field, expected, found in (
        ("corpus_id", corpus.corpus_id, made_from.corpus_id),
        ("num_samples", corpus.num_samples, spec.num_samples),
        ("shard_size", corpus.shard_size, spec.shard_size),
        ("parts", corpus.layout.parts, spec.layout.parts),
    ):
        if then is None or expected != found:
            raise MismatchError(
                "the store was made from another corpus",
                code="store-other-corpus",
                where=f"{store}: field '{field}'",
                expected=f"{expected} (as in {shards.location})",
                found=f"{found} (the store)",
                hint="pass the shards that the store was made from, or run "
                f"`teachonce cache {typed(shards.location)} --teacher … --out ANOTHER_STORE`",
            )
    assert then is not None
    return then


def _refuse_replaced(shards: ShardSet, facts: StoreFacts) -> None:
    """The store has no targets of an image that the shards have another one for by now."""
    _, replaced = shards.changed_since()
    receipts = store_receipts(facts.store, facts.generation) if replaced else StoreReceipts(facts.store)
    for shard in sorted({row // facts.spec.shard_size for row in replaced}):
        receipt = receipts.receipt(shard)
        unusable = set() if receipt is None else {bad.row for bad in receipt.invalid_rows}
        stale = [row for row in facts.spec.layout.rows(shard) if row in replaced and row not in unusable]
        if stale:
            raise MismatchError(
                "an image was replaced since the teacher saw it",
                code="image-replaced-since",
                where=f"{facts.store}, row {stale[0]}",
                expected=f"targets of the image that is in {shards.location} now",
                found="those of the image before",
                hint=f"teachonce cache {typed(shards.location)} --teacher … --out {typed(facts.store)} --grow",
            )


def targets_to_read(facts: StoreFacts, names: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Which targets to read for the requested ones, and whether logits must be formed from embeddings.

    Raises:
        InputError: the store lacks one.
    """
    stored = {target.name for target in facts.spec.targets}
    forms_logits = "logits" in names and "logits" not in stored and "embedding" in stored
    wanted = ("embedding" if name == "logits" and forms_logits else name for name in names)
    read = tuple(dict.fromkeys(wanted))
    for name in read:
        if name not in stored:
            found = ", ".join(target.name for target in facts.spec.targets)
            raise InputError(
                f"the store holds no target '{name}'",
                code="target-not-in-store",
                where=facts.store,
                expected=name,
                found=found,
                hint=f"teachonce cache SHARDS --targets {name} --teacher … --out ANOTHER_STORE",
            )
    return read, forms_logits


def check_views(facts: StoreFacts, views: int | None) -> int:
    """How many of the stored views are to be read: `views`, or all.

    Raises:
        InputError: the store does not have so many.
    """
    stored = facts.spec.num_views
    if views is not None and not 1 <= views <= stored:
        raise InputError(
            "the store does not have these views",
            code="views-not-in-store",
            where=facts.store,
            expected=f"1 to {counted(stored, 'view')} ({facts.views.kind})",
            found=f"--views {views}",
            hint=f"leave out --views, or teachonce cache SHARDS --views {views} --teacher … --out ANOTHER_STORE",
        )
    return views or stored


def check_pixels(shards: ShardSet, facts: StoreFacts, *, accept_other: bool = False) -> str:
    """`check_sample` of what a store records."""
    return check_sample(shards, facts.pixels, facts.views, where=facts.store, accept_other=accept_other)


class UsableRows:
    """A target of the usable samples of a shard, by their place among these."""

    def __init__(self, rows: Values, positions: NDArray[np.int64]) -> None:
        self._rows, self._positions = rows, positions

    def __getitem__(self, places: Any) -> NDArray[Any]:
        return self._rows[self._positions[places]]


class JoinedShard:
    """One shard's images and targets of one view, aligned. Opened once, then gathered from in memory.

    Attributes:
        rows: global row numbers of the usable samples, int64 (sample,), ascending; or of those that a listing has, as it lists them.
        view_params: their boxes and colours in the view at hand, VIEW (sample,).
        targets: by name; `targets[name][positions]` is (sample, …) of some usable samples, by their place among these: fp32, but
            for what sources give.

    Raises:
        DamagedError: tar and store disagree about a key or about which samples are usable, or bytes are damaged.
        MismatchError: a source has not what the store has.
    """

    rows: NDArray[np.int64]
    view_params: Views
    targets: Mapping[str, UsableRows]

    def __init__(
        self,
        shards: ShardSet,
        root: Arrays,
        facts: StoreFacts,
        shard: int,
        names: Sequence[str],
        sources: Sequence[TargetSource] = (),
        *,
        listing: RowListing | None = None,
        with_images: bool = True,
    ) -> None:
        """
        Args:
            names: targets to read.
            sources: of those that the store does not give.
            listing: the usable samples that are read; None for all of them.
            with_images: whether images will be read; without them the tar is not opened, and may be gone.
        """
        self._shards, self._root, self._facts, self._shard, self._names = shards, root, facts, shard, names
        self._sources, self._listing = sources, listing
        self._where = f"{facts.store}, shard {shard}"
        self._reader = ShardReader(shards, shard) if with_images else None
        self._index = self._reader.index if self._reader is not None else ShardIndex(shards, shard).index
        self._view = -1

    def show(self, view: int) -> JoinedShard:
        """Load what belongs to `view`, unless it is there already. Returns self."""
        if view == self._view:
            return self
        spec = self._facts.spec
        keys_N, valid_N = read_marks(self._root, spec, self._shard)
        positions = np.flatnonzero(valid_N)
        self._check(keys_N, positions)
        if self._listing is not None:
            positions = positions[self._listing.positions(self._shards, self._shard, keys_N, valid_N)]
        params_N = read_params(self._root, spec, self._shard, (view,), (keys_N, valid_N))[:, 0]
        self.rows = positions + spec.rows(self._shard).start
        self.view_params = params_N[positions]
        values: dict[str, Values] = {
            name: TargetRows(self._root, spec, self._shard, name, view)
            for name in self._names
            if source_of(self._sources, name) is None
        }
        rows = ShardRows(
            shards=self._shards, shard=self._shard, view=view, keys_N=keys_N, valid_N=valid_N, params_N=params_N
        )
        for source in self._sources:
            values |= source.open(rows, [name for name in self._names if name in source.layouts])
        self.targets = {name: UsableRows(values[name], positions) for name in self._names}
        self._view = view
        return self

    def read(self, row: int) -> bytes:
        """The image bytes of a row (see `ShardReader.read`)."""
        assert self._reader is not None
        return self._reader.read(row)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _check(self, keys_N: NDArray[np.bytes_], positions: NDArray[np.int64]) -> None:
        """Keys in the store's usable rows equal the keys in the tar's index, row by row."""
        expected = int(self._facts.valid_rows[self._shard])
        if len(positions) != expected:
            raise self._damaged(
                "the store's valid rows are not those of its receipt",
                expected,
                len(positions),
                code="rows-not-of-receipt",
            )
        index = self._index
        in_tar = np.zeros(len(keys_N), dtype=keys_N.dtype)
        in_tar[index["row"] - self._facts.spec.rows(self._shard).start] = index["key"]
        wrong = positions[in_tar[positions] != keys_N[positions]]
        if len(wrong):
            first = wrong[0]
            raise self._damaged(
                f"the key in the tar is not the key in the store, at {counted(len(wrong), 'row')}, the first is {first}",
                keys_N[first].decode("ascii", "replace"),
                in_tar[first].decode("ascii", "replace") or "no image",
                code="keys-differ",
            )

    def _damaged(self, what: str, expected: object, found: object, *, code: str) -> DamagedError:
        return DamagedError(
            what,
            code=code,
            where=self._where,
            expected=expected,
            found=found,
            hint="restore the tar or the store from a copy; or, to ask the teacher about this shard again, "
            + store_receipts(self._facts.store, self._facts.generation).redo_hint(self._shard),
        )
