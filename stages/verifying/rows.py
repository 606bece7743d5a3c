"""Owns what a shard's rows must be: keys, usable rows and views that its tar and its manifest give; wrong ones by their causes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError, MismatchError, TeachonceError
from ...storage_schemas.plain_text import counted
from ...storage_schemas.receipt import Receipt
from ...storage_schemas.view_params import BOX, Views
from ..corpora.shards import ShardSet
from ..views.spec import ViewSpec
from .shard_rows import ShardRows

#: Seeds that are tried where a store's boxes are not those of its own.
_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class RowsCheck:
    """One shard's rows of the store, beside the manifest and the receipts of both sides.

    Attributes:
        where: the store and the shard, for errors.
        rows: of the shard, in the manifest.
        unusable: rows that the store's receipt has as such.
        hint: what to do where the store is wrong.
    """

    where: str
    rows: ShardRows
    unusable: frozenset[int]
    hint: str

    def keys(self, keys_N: NDArray[np.bytes_], shards: ShardSet, shard: int) -> Iterator[TeachonceError]:
        """Keys `S32` (sample,) must be the manifest's, row by row."""
        expected_N = self.rows.keys_N
        wrong = np.flatnonzero(keys_N != expected_N)
        if not len(wrong):
            return
        first = int(wrong[0])
        shift = next((by for by in (1, -1, 2, -2) if np.mean(np.roll(expected_N, by) == keys_N) > 0.5), None)
        if shift is not None and len(keys_N) > 2:
            yield MismatchError(
                f"the store's rows are shifted by {counted(abs(shift), 'row')} within the shard",
                code="rows-shifted",
                where=self.where,
                expected=f"key {self.rows.keys[first]} in row {self.rows.first_row + first}",
                found=keys_N[first].decode("ascii", "replace"),
                hint=self.hint,
            )
            return
        owner = _owner(keys_N, shards, shard)
        if owner is not None:
            yield MismatchError(
                "the store has another shard's rows in place of this one's",
                code="rows-of-another-shard",
                where=self.where,
                expected=f"those of shard {shard}",
                found=f"those of shard {owner}",
                hint=self.hint,
            )
            return
        known = set(expected_N.tolist())
        where, found = (
            f"{self.where}, row {self.rows.first_row + first}",
            keys_N[first].decode("ascii", "replace") or "no key",
        )
        if set(keys_N.tolist()) == known:
            yield MismatchError(
                "the store's rows are in another order than the shard's",
                code="rows-in-another-order",
                where=where,
                expected=self.rows.keys[first],
                found=found,
                hint=self.hint,
            )
            return
        yield DamagedError(
            f"the key in the store is not the key in the manifest, at {counted(len(wrong), 'row')}",
            code="keys-differ",
            where=where,
            expected=self.rows.keys[first],
            found=found,
            hint=self.hint,
        )

    def usable(self, valid_N: NDArray[np.bool_]) -> Iterator[TeachonceError]:
        """Rows with targets must be those that the receipt does not list."""
        rows_N = np.arange(self.rows.first_row, self.rows.first_row + len(valid_N))
        expected_N = ~np.isin(rows_N, list(self.unusable))
        wrong = np.flatnonzero(valid_N != expected_N)
        if len(wrong):
            yield DamagedError(
                "the store's valid rows are not those of its receipt",
                code="rows-not-of-receipt",
                where=f"{self.where}, row {self.rows.first_row + int(wrong[0])}",
                expected=f"{int(expected_N.sum())} valid rows",
                found=f"{int(valid_N.sum())}, {counted(len(wrong), 'row')} other than in the receipt",
                hint=self.hint,
            )

    def viewed(self, valid_N: NDArray[np.bool_], params: Views) -> Iterator[TeachonceError]:
        """Rows with targets, and no others, have views. `params`: VIEW (sample,)."""
        has_view_N = params["height"] > 0
        if (has_view_N != valid_N).any():
            row = self.rows.first_row + int(np.flatnonzero(has_view_N != valid_N)[0])
            yield DamagedError(
                "valid rows and rows with views differ",
                code="views-not-of-rows",
                where=f"{self.where}, row {row}",
                expected="a box for each valid row, and none for others",
                found="others",
                hint=self.hint,
            )


def unusable_rows_error(shards: Receipt, store: Receipt, where: str, hint: str) -> TeachonceError | None:
    """The error where the teacher had an image that the shard has not: rows unusable in the shard must be so in the store."""
    missing = sorted({bad.row for bad in shards.invalid_rows} - {bad.row for bad in store.invalid_rows})
    if not missing:
        return None
    return MismatchError(
        "the store has targets for rows without an image in the shard",
        code="rows-without-image",
        where=f"{where}, row {missing[0]}",
        expected=f"{counted(len(shards.invalid_rows), 'unusable row')} at least (the shard's receipt)",
        found=f"{counted(len(store.invalid_rows), 'unusable row')} (the store's)",
        hint=hint,
    )


def views_error(
    stored_V: Views, drawn_V: Views, spec: ViewSpec, *, key: str, size: tuple[int, int], where: str, hint: str
) -> TeachonceError | None:
    """The error where a row's stored views, VIEW (view,), are not those that its spec draws; None where they are.

    Args:
        size: width and height of the image.
    """
    if stored_V.tobytes() == drawn_V.tobytes():
        return None
    view = next(v for v in range(len(stored_V)) if stored_V[v] != drawn_V[v])
    boxes = [name for name in BOX if name != "flip"]
    same_boxes = all((stored_V[name] == drawn_V[name]).all() for name in boxes)
    seed = _seed_of(stored_V, spec, key, size)
    order = sorted(map(bytes, stored_V)) == sorted(map(bytes, drawn_V))
    facts = {"where": f"{where}, view {view}", "hint": hint}
    if seed is not None:
        return MismatchError(
            "the store's views are drawn with another seed than it says",
            code="views-other-seed",
            expected=f"seed {spec.seed}",
            found=f"seed {seed}",
            **facts,
        )
    if order:
        return MismatchError(
            "the store's views are in another order",
            code="views-in-another-order",
            expected=_box(drawn_V[view]),
            found=_box(stored_V[view]),
            **facts,
        )
    if same_boxes and (stored_V["flip"] != drawn_V["flip"]).any():
        return MismatchError(
            "a view is recorded as mirrored that is not, or the other way round",
            code="views-mirrored",
            expected=_box(drawn_V[view]),
            found=_box(stored_V[view]),
            **facts,
        )
    return MismatchError(
        "the store's views are not those that its description draws",
        code="views-differ",
        expected=_box(drawn_V[view]),
        found=_box(stored_V[view]),
        **facts,
    )


def _seed_of(stored_V: Views, spec: ViewSpec, key: str, size: tuple[int, int]) -> int | None:
    """A seed that draws the stored views."""
    if not spec.is_random:
        return None
    one = replace(spec, count=1)
    for seed in range(_SEEDS):
        if replace(one, seed=seed).params(key, *size)[0] == stored_V[0]:
            return seed if seed != spec.seed else None
    return None


def _box(view: np.void) -> str:
    top, left, height, width, flip, *_ = view.item()
    mirrored = ", mirrored" if flip else ""
    return f"{height}x{width} at {top}, {left}{mirrored}"


def _owner(keys_N: NDArray[np.bytes_], shards: ShardSet, shard: int) -> int | None:
    """Another shard, most of whose keys these are."""
    found = set(keys_N.tolist())
    manifest = shards.manifest()
    for other in range(shards.corpus.num_shards):
        if other == shard:
            continue
        theirs = {key.encode() for key in manifest.columns(other, ["key"])[0]}
        if len(found & theirs) > len(found) / 2:
            return other
    return None
