"""Owns the stored targets of the images that a student is measured on, found by key."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError, IncompleteError, MismatchError
from ...storage_schemas.plain_text import typed
from ...storage_schemas.target_store import read_rows
from ...storage_schemas.view_params import Views
from ..corpora.shards import ShardSet
from ..samples.pixel_sample import PixelSample, check_sample
from ..views.spec import ViewSpec
from .gathered_rows import GatheredRows
from .stored import Stored

#: Agreement is measured on this stored view, at its stored box: both see the same part of the image.
VIEW = 0

#: Shards whose rows stay in memory, where images come in the order of the rows.
_SHARDS_KEPT = 4


class StoredTeacher:
    """The teacher's side of a comparison, from its store alone.

    Attributes:
        location: the store.
        views: how its views are drawn.

    Raises:
        InputError: no store or no such generation there, or one whose targets give no logits.
        IncompleteError: nothing is cached yet, or class vectors are missing.
        MismatchError: other classes than the student's, or in another order.
    """

    def __init__(self, store: Location | str, class_names: Sequence[str], generation: str | None = None) -> None:
        self._stored = Stored.open(store, generation=generation)
        self.location = self._stored.location
        self._spec = self._stored.rows
        if self._stored.no_logits:
            raise IncompleteError(
                "the store gives no logits to compare with",
                code="store-without-logits",
                where=self.location,
                found=self._stored.no_logits,
            )
        self._check_classes(class_names)
        self.views = ViewSpec.from_json(self._stored.description.views, self._stored.location)
        self._gathered: GatheredRows | None = None
        self._rows = functools.lru_cache(maxsize=_SHARDS_KEPT)(self._read_rows)
        self._logits = functools.lru_cache(maxsize=_SHARDS_KEPT)(self._read_logits)

    def _check_classes(self, class_names: Sequence[str]) -> None:
        if self._stored.vectors is None:
            raise IncompleteError(
                "the store does not say which classes its logits are of",
                code="store-classes-unknown",
                where=self.location,
                hint=f"teachonce vectors --teacher … --out {typed(self.location)}",
            )
        store_names = self._stored.vectors.names
        if store_names == tuple(class_names):
            return
        pairs = enumerate(zip(class_names, store_names, strict=False))
        index, student_name, store_name = next(((i, repr(a), repr(b)) for i, (a, b) in pairs if a != b), (-1, "", ""))
        field = f"class_names[{index}]" if index >= 0 else "number of classes"
        raise MismatchError(
            "the store's teacher knows other classes than the student, or in another order",
            code="store-other-classes",
            where=f"{self.location}: field '{field}'",
            expected=f"{student_name or len(class_names)} (the student)",
            found=f"{store_name or len(store_names)} (the store)",
            hint="compare with the store that the student was distilled from",
        )

    def check_pixels(self, measured: ShardSet | None, *, accept_other: bool) -> str:
        """Check that this machine renders the store's views as its teacher saw them.

        Args:
            measured: what is measured, where it is shards of the store's corpus; else its shards as `cache` found them.
            accept_other: only note that it renders them otherwise.

        Returns a line for people, or ''.

        Raises:
            MismatchError: see `pixels.check_pixels`.
            DamagedError: a tar that is measured is not what its receipt vouches for.
        """
        shards = self.shards if measured is None else measured
        assert shards is not None, "nothing is measured whose pictures are not known"
        sample = PixelSample.of_store(self._stored.description, self._stored.location)
        try:
            return check_sample(shards, sample, self.views, where=self.location, accept_other=accept_other)
        except DamagedError as error:
            if measured is not None:
                raise
            # Those tars are not what is measured.
            return f"whether this machine renders the store's views alike was not checked: {error}"

    def find(self, keys_N: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Rows of these keys (`S32`), int64 (sample,); -1 where the store has no usable sample of a key."""
        rows_N = np.full(len(keys_N), -1, np.int64)
        order = np.argsort(keys_N, kind="stable")
        ordered = keys_N[order]
        for shard in self._stored.shards_done():
            keys, valid = self._stored.keys_and_valid(shard)
            places = np.searchsorted(ordered, keys)
            places[places == len(ordered)] = 0
            hit = np.flatnonzero((ordered[places] == keys) & valid) if len(ordered) else np.array([], np.int64)
            rows_N[order[places[hit]]] = hit + self._spec.rows(shard).start
        return rows_N

    def expect(self, rows_N: NDArray[np.int64]) -> None:
        """Prepare to read these rows in this order, int64 (sample,); -1 where there is no row.

        Shards come in the order of their rows, and are read as they come. A folder comes in the order of its paths, which
        is any order of rows.
        """
        known_N = rows_N[rows_N >= 0]
        if (np.diff(known_N) < 0).any():
            self._gathered = GatheredRows(known_N, self._spec.shard_size, self._read_rows, self._read_logits)

    def box(self, row: int) -> np.void:
        """The stored box and colours of a row in the view that is compared, a VIEW record."""
        if self._gathered is not None:
            return self._gathered.view(row)
        shard, offset = divmod(row, self._spec.shard_size)
        view: np.void = self._rows(shard)[offset]
        return view

    def logits(self, rows_N: Sequence[int]) -> NDArray[np.float32]:
        """The teacher's logits of these rows in that view, fp32 (sample, class)."""
        if self._gathered is not None:
            return self._gathered.logits(rows_N)
        shards = [divmod(row, self._spec.shard_size) for row in rows_N]
        return np.stack([self._logits(shard)[offset] for shard, offset in shards])

    @property
    def corpus_id(self) -> str:
        """Of the corpus that was cached."""
        return self._stored.description.corpus_id

    @property
    def shards(self) -> ShardSet | None:
        """The shards that were cached, where they can still be found; else `no_shards` has the reason."""
        return self._stored.shards

    @property
    def no_shards(self) -> str:
        return self._stored.no_paths.partition(";")[0]

    def _read_rows(self, shard: int) -> Views:
        return read_rows(self._stored.root, self._spec, shard, VIEW)[2]

    def _read_logits(self, shard: int) -> NDArray[np.float32]:
        return self._stored.logits(shard, VIEW)
