"""Owns making batches of pairs, as work that is done ahead: whole batches, by epoch and samples.

So a batch is the same whatever the number of processes, and whichever of them makes it. Torch is not imported: processes need
nothing of it, and it would cost each command a second or two until its first batch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import as_storage_error
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.target_store import Arrays, OpenArrays
from ..corpora.images import BadImage
from ..corpora.shards import ShardSet
from ..decoding.layout import ArrayLayout
from ..samples.registry import kind_named
from ..views.anew import ViewAnew
from ..views.render import fill_planes
from .join import JoinedShard
from .order import Order
from .shard_copies import ShardCopies
from .sources import TargetSource
from .store import StoreFacts, open_store
from .training_rows import RowListing

#: The name of the view that the student gets, among those that are drawn anew.
IMAGE = "image"

#: A batch to make: epoch, its first sample in the epoch's order, and the one behind its last.
BatchSpan = tuple[int, int, int]


class Batches:
    """Whole batches. Files and store are opened where batches are made, and only then.

    In threads batches are made one at a time: they share the shards that are open.

    Args:
        shards, facts: a pair that belongs together, see `join.open_pair`.
        image_size: pixels of the square images; None makes batches without any: no image is opened, nor a tar.
        order: of some epoch.
        num_views: epoch e reads view e mod this.
        names: targets to read.
        sources: of those that the store does not give.
        listing: the rows of each shard that are read, which the order counts; None for all usable ones.
        anew: views that are drawn anew in each epoch, by name: `IMAGE` takes the place of the stored view, others lie behind the targets.
        seed: of these views.
        copies: of shards on this machine, by way of which `shards` and `facts` are read; None where they lie here, or are read from afar.

    Attributes:
        names: targets to read, in the order in which they lie in `layout`.
        also: views behind them, in their order.
    """

    def __init__(
        self,
        shards: ShardSet,
        facts: StoreFacts,
        *,
        image_size: int | None,
        order: Order,
        num_views: int,
        names: tuple[str, ...],
        sources: Sequence[TargetSource] = (),
        listing: RowListing | None = None,
        anew: Mapping[str, ViewAnew] | None = None,
        seed: int = 0,
        copies: ShardCopies | None = None,
    ) -> None:
        self._copies, self._sources, self._listing = copies, sources, listing
        self._anew, self._seed = dict(anew or {}), seed
        self.also = tuple(name for name in self._anew if name != IMAGE)
        self._shards, self._facts, self._num_views = shards, facts, num_views
        self._image_size, self._any_order, self.names = image_size, order.at(order.epoch), names
        self._limit = shards.corpus.max_pixels
        self._kind = kind_named(shards.corpus.sample_kind, where=shards.location)
        self._begin()

    def _begin(self) -> None:
        self._order: Order | None = None
        self._arrays: Arrays | None = None
        self._open: dict[int, JoinedShard] = {}
        self._making = threading.Lock()

    def __getstate__(self) -> Mapping[str, Any]:
        own = ("_order", "_arrays", "_open", "_making")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def layout(self, task: BatchSpan) -> ArrayLayout:
        """What a batch consists of: rows, images (without any, an array of no numbers), and the targets in their order."""
        _, start, stop = task
        count = stop - start
        layouts = {target.name: ("f4", target.shape) for target in self._facts.spec.targets}
        for source in self._sources:
            layouts |= source.layouts
        size = self._image_size
        shape = (0,) if size is None else self._kind.shape(size)
        images = (np.dtype(self._kind.dtype).str, (count, *shape))
        targets = (layouts[name] for name in self.names)
        values = [(dtype, (count, *shape)) for dtype, shape in targets]
        return [("i8", (count,)), images, *values, *(images for _ in self.also)]

    def make(self, task: BatchSpan, arrays: list[NDArray[Any]]) -> None:
        """Fill the arrays of these samples.

        Raises:
            DamagedError: tar and store disagree, or bytes changed; `where` names the place.
            StorageError: the disk or the mount gives an error.
        """
        try:
            with self._making:
                self._batch(*task, *arrays)
        except OSError as error:
            clear = as_storage_error(error)
            if clear is None:
                raise
            raise clear from error

    def close(self) -> None:
        """Close what is open in this process."""
        with self._making:
            for shard in self._open.values():
                shard.close()
            self._open.clear()

    def _batch(
        self,
        epoch: int,
        start: int,
        stop: int,
        rows_N: NDArray[np.int64],
        pixels_NCHW: NDArray[Any],
        *arrays: NDArray[Any],
    ) -> None:
        values, also = arrays[: len(self.names)], arrays[len(self.names) :]
        views = dict(zip(self.also, also, strict=True)) | ({IMAGE: pixels_NCHW} if IMAGE in self._anew else {})
        if self._order is None or self._order.epoch != epoch:
            self._order = self._any_order.at(epoch)
        shards_N, positions_N = self._order.samples(start, stop)
        self._keep_open(self._order.open_shards(start, stop))
        view, kind, spec = epoch % self._num_views, self._kind, self._facts.views
        targets = dict(zip(self.names, values, strict=True))
        for shard in np.unique(shards_N):
            joined = self._joined(int(shard), view)
            places = np.flatnonzero(shards_N == shard)
            positions = positions_N[places]
            rows_N[places] = joined.rows[positions]
            for name, rows in joined.targets.items():
                targets[name][places] = rows[positions]
            if self._image_size is None:
                continue
            boxes = joined.view_params[positions]
            for place, row, box in zip(places, rows_N[places].tolist(), boxes, strict=True):
                try:
                    sample = kind.decode(joined.read(row), self._limit)
                except BadImage as bad:
                    raise DamagedError(
                        "an image that the teacher saw cannot be read any more",
                        code="image-no-longer-readable",
                        where=f"{self._shards.location}, row {row}",
                        found=bad,
                        hint="restore the tar, or run `teachonce shard` again",
                    ) from bad
                if IMAGE not in self._anew:
                    kind.draw(pixels_NCHW[place], sample, box, self._image_size, spec)
                for name, out in views.items():
                    drawn = self._anew[name].draw(sample, self._image_size, seed=self._seed, row=row, epoch=epoch)
                    fill_planes(out[place], drawn)

    def _joined(self, shard: int, view: int) -> JoinedShard:
        if shard not in self._open:
            if self._arrays is None:
                self._arrays = OpenArrays(open_store(self._facts.store, self._facts.generation))
            if self._copies is not None:
                self._copies.keep(shard)
            self._open[shard] = JoinedShard(
                self._shards,
                self._arrays,
                self._facts,
                shard,
                self.names,
                self._sources,
                listing=self._listing,
                with_images=self._image_size is not None,
            )
        return self._open[shard].show(view)

    def _keep_open(self, wanted: set[int]) -> None:
        for shard in [s for s in self._open if s not in wanted]:
            self._open.pop(shard).close()
