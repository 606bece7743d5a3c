"""Owns the join of a shard's images with what the teacher said of them: tar and store, checked key by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError, InputError, MismatchError
from ...storage_schemas.samples import shard_name
from ...storage_schemas.target_store import (
    StoreSpec,
    check_version,
    open_root,
    read_rows,
    read_spec,
    read_target,
)
from ..corpora.shards import ShardReader, ShardSet
from ..views import ViewSpec


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """What a reader of pairs must know of a store before it opens any row.

    Attributes:
        store: where it is.
        spec: shape of the rows.
        views: how the stored boxes were drawn, and the filter that renders them.
        valid_rows: number of usable rows of each shard, int64 (shard,).
    """

    store: Location
    spec: StoreSpec
    views: ViewSpec
    valid_rows: NDArray[np.int64]


def check_pair(shards: ShardSet, store: Location, targets: Sequence[str]) -> StoreFacts:
    """Check that a finished store belongs to these shards and holds these targets.

    Raises:
        InputError: no store there, or one without a target of that name.
        IncompleteError: `teachonce cache` has not finished.
        MismatchError: the store is of another corpus; names the field.
        DamagedError: the store's receipts do not cover its shards.
    """
    root = open_store(store)
    spec = read_spec(root, where=store)
    description = root.attrs.asdict()["cache"]
    again = f"teachonce cache {shards.location} --teacher … --out ANOTHER_STORE"
    corpus = shards.corpus
    for field, expected, found in (
        ("corpus_id", corpus.corpus_id, description["fingerprint"]["corpus_id"]),  # type: ignore[call-overload,index]
        ("num_samples", corpus.num_samples, spec.num_samples),
        ("shard_size", corpus.shard_size, spec.shard_size),
    ):
        if expected != found:
            raise MismatchError(
                "the store was made from another corpus", where=f"{store}: field '{field}'",
                expected=f"{expected} (as in {shards.location})", found=found,
                hint=f"pass the shards that the store was made from, or run `{again}`",
            )  # fmt: skip
    stored = [target.name for target in spec.targets]
    for name in targets:
        if name not in stored:
            raise InputError(
                f"the store holds no target '{name}'", where=store, expected=name, found=", ".join(stored),
                hint=f"teachonce cache {shards.location} --targets {name} --teacher … --out ANOTHER_STORE",
            )  # fmt: skip
    ledger = Ledger(store, "cache")
    ledger.require_complete(hint="run the same `teachonce cache` command again")
    return StoreFacts(
        store=store,
        spec=spec,
        views=ViewSpec.from_json(description["views"]),  # type: ignore[call-overload,index]
        valid_rows=_valid_rows(ledger, spec),
    )


def open_store(store: Location) -> zarr.Group:
    """The root group of a target store, for reading.

    Raises:
        InputError: nothing there.
        MismatchError: not a target store of this schema version.
    """
    if not (store / "zarr.json").exists():
        raise InputError(
            "no target store here", where=store, hint=f"teachonce cache SHARDS --teacher … --out {store}"
        )
    root = open_root(str(store.path))
    check_version(root, where=store)
    return root


def _valid_rows(ledger: Ledger, spec: StoreSpec) -> NDArray[np.int64]:
    counts = [receipt.rows - len(receipt.invalid_rows) for receipt in ledger.receipts()]
    if len(counts) != spec.num_shards:
        raise DamagedError(
            "the store's receipts do not cover its shards", where=ledger.folder,
            expected=spec.num_shards, found=len(counts), hint="run the same `teachonce cache` command again",
        )  # fmt: skip
    return np.array(counts, np.int64)


class JoinedShard:
    """One shard's images and targets of one view, aligned. Opened once, then gathered from in memory.

    Attributes:
        rows: global row numbers of the usable samples, int64 (sample,), ascending.
        view_params: their boxes in the view at hand, int32 (sample, 5).
        targets: by name, fp32 (sample, width).

    Raises:
        DamagedError: tar and store disagree about a key or about who is usable, or bytes are damaged.
    """

    rows: NDArray[np.int64]
    view_params: NDArray[np.int32]
    targets: Mapping[str, NDArray[np.float32]]

    def __init__(
        self, shards: ShardSet, root: zarr.Group, facts: StoreFacts, shard: int, names: Sequence[str]
    ) -> None:
        self._root, self._facts, self._shard, self._names = root, facts, shard, names
        self._where = f"{facts.store}, shard {shard}"
        self._reader = ShardReader(shards, shard)
        self._view = -1

    def show(self, view: int) -> JoinedShard:
        """Load what belongs to `view`, unless it is there already. Returns self."""
        if view == self._view:
            return self
        spec = self._facts.spec
        keys_N, valid_N, params_N5 = read_rows(self._root, spec, self._shard, view)
        positions = np.flatnonzero(valid_N)
        self._check(keys_N, positions)
        self.rows = positions + spec.rows(self._shard).start
        self.view_params = params_N5[positions]
        targets = {name: read_target(self._root, spec, self._shard, name, view) for name in self._names}
        self.targets = {
            name: values if len(positions) == len(values) else values[positions]
            for name, values in targets.items()
        }
        self._check_presence()
        self._view = view
        return self

    def read(self, row: int) -> bytes:
        """The image bytes of a row (see `ShardReader.read`)."""
        return self._reader.read(row)

    def close(self) -> None:
        self._reader.close()

    def _check(self, keys_N: NDArray[np.bytes_], positions: NDArray[np.int64]) -> None:
        """Keys in the store's usable rows equal the keys in the tar's index, row by row."""
        expected = int(self._facts.valid_rows[self._shard])
        if len(positions) != expected:
            raise self._damaged(
                "the store's valid rows are not those of its receipt", expected, len(positions)
            )
        index = self._reader.index
        in_tar = np.zeros(len(keys_N), dtype=keys_N.dtype)
        in_tar[index["row"] - self._facts.spec.rows(self._shard).start] = index["key"]
        wrong = positions[in_tar[positions] != keys_N[positions]]
        if len(wrong):
            first = wrong[0]
            raise self._damaged(
                f"the key in the tar is not the key in the store, at {len(wrong)} rows, the first is {first}",
                keys_N[first].decode("ascii", "replace"),
                in_tar[first].decode("ascii", "replace") or "no image",
            )

    def _check_presence(self) -> None:
        """A chunk file that is gone reads as fill values: usable rows must hold none."""
        for name, values in self.targets.items():
            if np.isnan(values[:, 0]).any():
                raise self._damaged(f"usable rows without a value in '{name}'", "numbers", "NaN")
        if (self.view_params[:, 2] < 1).any():
            raise self._damaged("usable rows without a box in 'view_params'", "a height", "none")

    def _damaged(self, what: str, expected: object, found: object) -> DamagedError:
        receipt = f"ledger/cache/receipts/{shard_name(self._shard)}.json"
        return DamagedError(
            what, where=self._where, expected=expected, found=found,
            hint=f"delete {receipt} there and run `teachonce cache` again",
        )  # fmt: skip
