"""Owns what is read of a store that is recoded: shard by shard, its samples, views and targets as chosen, in fp32."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ...pipeline.storage import Location
from ...pipeline.types import Unit
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.kept_views import no_sizes
from ...storage_schemas.receipt import LEFT_OUT, InvalidRow, Receipt
from ...storage_schemas.samples import shard_name
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import OpenArrays, read_sizes, read_stored_views, read_target_views, read_views
from ...storage_schemas.view_params import Views
from ..corpora.images import BadImage, image_size
from ..corpora.shards import ShardSet
from ..measures.sample_block import softmax
from ..pairs.store import open_store, store_receipts
from .row_choice import RowChoice

#: Bytes of fp32 that one part of a shard may take, where targets are large.
_PART_BYTES = 16 << 20

#: Held by whoever limits the threads of BLAS.
_BLAS = threading.Lock()

LOGITS, EMBEDDING = "logits", "embedding"


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A finished store, and what is taken of it. Picklable; each worker opens it for itself.

    Attributes:
        store: where it is.
        generation: that is read.
        spec: of its rows.
        views: places of the views that are taken, in their new order.
        targets: names of the targets that are taken, in their new order.
        rows: which samples.
        vectors: what forms logits of embeddings; None where logits are read as they are stored, or there are none.
        images: where sizes of images are read, if they are wanted and the store does not have them.
    """

    store: Location
    generation: str
    spec: StoreSpec
    views: tuple[int, ...]
    targets: tuple[str, ...]
    rows: RowChoice
    vectors: ClassVectors | None
    images: ShardSet | None = None

    def width_of(self, name: str) -> tuple[int, ...]:
        """Shape of one row's view of a target that is taken."""
        if name == LOGITS and self.vectors is not None:
            return (self.vectors.num_classes,)
        return self.spec.target(name).shape

    def open(self) -> SourceReader:
        return SourceReader(self)


def shard_units(spec: StoreSpec) -> Iterator[Unit]:
    """One unit a shard."""
    for shard in range(spec.num_shards):
        rows = spec.rows(shard)
        yield Unit(key=shard_name(shard), rows=rows.stop - rows.start, inputs={"shard": shard})


class SourceReader:
    """An open source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.source_root = open_store(source.store, source.generation)
        self.root = OpenArrays(self.source_root)
        self.receipts = store_receipts(source.store, source.generation)

    def shard(self, number: int) -> SourceShard:
        """One shard, of which nothing but keys, marks and views is read yet.

        Raises:
            DamagedError: its receipt is missing or does not agree with its rows.
        """
        return SourceShard(self, number)

    def receipt(self, shard: int) -> Receipt:
        """The store's own receipt of a shard; the newest, where generations of a store have more than one."""
        receipt = self.receipts.receipt(shard)
        if receipt is None:
            raise DamagedError(
                "rows of a shard that has no receipt",
                code="store-receipt-missing",
                where=f"{self.source.store}, shard {shard}",
                hint=f"restore {self.source.store} from a copy",
            )
        return receipt

    def is_in_one(self, shard: int) -> bool:
        """Whether one receipt is of all that a shard holds: its digest is then of that."""
        return len(list(self.receipts.ledgers_of(shard))) == 1


class SourceShard:
    """One shard of a source.

    Attributes:
        number: of the shard.
        keys: of all its rows.
        taken: places of the rows that are taken, ascending, int64 (row,).
        receipt: of the store.
        invalid: all rows that are not taken, with reasons.
        params: VIEW (row, view) of all rows, in the views that are taken.
    """

    number: int
    keys: list[str]
    taken: NDArray[np.int64]
    receipt: Receipt
    invalid: tuple[InvalidRow, ...]
    params: Views

    def __init__(self, reader: SourceReader, number: int) -> None:
        self._reader, self._source, self.number = reader, reader.source, number
        self._held: dict[tuple[str, int, int], NDArray[np.float32]] = {}
        source, spec = self._source, self._source.spec
        keys_N, valid_N, self.params = read_views(reader.root, spec, number, source.views)
        self.keys = [key.decode("ascii") for key in keys_N.tolist()]
        rows = spec.rows(number)
        self.receipt = reader.receipt(number)
        invalid = {bad.row: bad for bad in self.receipt.invalid_rows}
        if valid_N.sum() != len(keys_N) - len(invalid) or any(valid_N[row - rows.start] for row in invalid):
            raise DamagedError(
                "the store's valid rows are not those of its receipt",
                code="rows-not-of-receipt",
                where=f"{source.store}, shard {number}",
                expected=len(keys_N) - len(invalid),
                found=int(valid_N.sum()),
                hint="restore the store from a copy",
            )
        taken_N = valid_N & source.rows.marked(rows)
        if source.rows.confidence is not None:
            taken_N &= self._is_confident(taken_N, *source.rows.confidence)
        self.taken = np.flatnonzero(taken_N)
        for place in np.flatnonzero(valid_N & ~taken_N).tolist():
            row = rows.start + place
            invalid[row] = InvalidRow(row=row, path="", reason=LEFT_OUT)
        self.invalid = tuple(invalid[row] for row in sorted(invalid))

    def __len__(self) -> int:
        return len(self.keys)

    def sizes(self) -> NDArray[np.int32] | None:
        """Heights and widths of all images (row, 2), where they are wanted or stored; `NO_SIZE` of those that are not taken.

        Raises:
            DamagedError: an image of the shards cannot be read.
        """
        source = self._source
        if source.images is None:
            return read_sizes(self._reader.root, source.spec, self.number)
        found, start = no_sizes(len(self)), source.spec.rows(self.number).start
        reader = source.images.reader(self.number)
        try:
            for place in self.taken.tolist():
                try:
                    found[place] = image_size(reader.read(start + place), source.images.corpus.max_pixels)
                except BadImage as bad:
                    raise DamagedError(
                        "an image that the teacher saw cannot be read any more",
                        code="image-no-longer-readable",
                        where=f"{source.images.location}, row {start + place}",
                        found=bad,
                        hint="restore the shards from a copy",
                    ) from bad
        finally:
            reader.close()
        return found

    def parts(self, *others: StoreSpec) -> Iterator[slice]:
        """The rows in portions of whole chunks, of this store and of others, so that no chunk is read twice and little is held."""
        chunks, row_bytes = [], 0
        for spec in (self._source.spec, *others):
            streamed = [target for target in spec.targets if spec.is_streamed(target)]
            chunks += [spec.chunk_rows(target) for target in streamed]
            row_bytes = max(row_bytes, sum(4 * target.width * spec.num_views for target in streamed))
        whole = math.lcm(*chunks) if chunks else max(1, len(self))
        step = whole * max(1, _PART_BYTES // (whole * row_bytes)) if row_bytes else whole
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def stored(self, name: str, part: slice) -> dict[str, NDArray[Any]]:
        """The arrays of a target of some rows, as they are stored: (row, view, …) by name."""
        source = self._source
        return read_stored_views(self._reader.root, source.spec, self.number, name, source.views, part)

    def targets(self, part: slice) -> Mapping[str, NDArray[np.float32]]:
        """fp32 (row, view, …) of some rows, by name; NaN in rows that the store itself cannot use."""
        return {name: self.target(name, part) for name in self._source.targets}

    def target(self, name: str, part: slice) -> NDArray[np.float32]:
        """One target of some rows: fp32 (row, view, …)."""
        source = self._source
        if name == LOGITS and source.vectors is not None:
            embedding_NVD = self._read(EMBEDDING, part)
            # With several threads of BLAS, low bits depend on how many. The limit is the process's: one user of it at a time.
            with _BLAS, threadpool_limits(limits=1, user_api="blas"):
                flat_NC = source.vectors.logits(embedding_NVD.reshape(-1, embedding_NVD.shape[-1]))
            return flat_NC.reshape(*embedding_NVD.shape[:2], -1)
        return self._read(name, part)

    def _read(self, name: str, part: slice) -> NDArray[np.float32]:
        """As it is stored; the last portion of each target is kept, since others are formed of it."""
        key = (name, part.start, part.stop)
        if key not in self._held:
            self._held = {held: values for held, values in self._held.items() if held[0] != name}
            self._held[key] = read_target_views(
                self._reader.root, self._source.spec, self.number, name, self._source.views, part
            )
        return self._held[key]

    def _is_confident(self, wanted_N: NDArray[np.bool_], least: float, largest: float) -> NDArray[np.bool_]:
        """bool (row,): whether the mean of a row's distributions gives its first class a probability in this range."""
        fits_N = np.zeros(len(self), np.bool_)
        for part in self.parts():
            places = np.flatnonzero(wanted_N[part])
            if not len(places):
                continue
            logits_NVC: Any = self.target(LOGITS, part)[places]
            total_NC = sum(softmax(logits_NVC[:, view])[0] for view in range(logits_NVC.shape[1]))
            first_N = np.asarray(total_NC).max(axis=1) / logits_NVC.shape[1]
            fits_N[part.start + places] = (first_N >= least) & (first_N <= largest)
        return fits_N
