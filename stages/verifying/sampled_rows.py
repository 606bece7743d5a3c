"""Owns the rows that a teacher runs on again: which ones, evenly from all shards; their images, their views and what is stored of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError
from ...storage_schemas.target_store import read_views
from ...storage_schemas.view_params import Views
from ..corpora.images import BadImage
from ..corpora.shards import ShardReader
from ..pairs.store import open_store
from ..pairs.target_rows import TargetRows
from ..samples.kind import SampleKind
from ..samples.registry import kind_named
from .stored_loss import is_comparable
from .whole import Whole

#: Views of a row that are compared at most.
MOST_VIEWS = 4


def rows_per_shard(count: int, num_shards: int, seed: int) -> list[int]:
    """How many of `count` rows each shard gives: as many as any other, or one more; which do depends on the seed."""
    share, more = divmod(count, num_shards)
    lucky = set(np.random.default_rng(seed).permutation(num_shards)[:more].tolist())
    return [share + (shard in lucky) for shard in range(num_shards)]


@dataclass(frozen=True, kw_only=True)
class SampledRows:
    """Some rows of one shard.

    Attributes:
        rows: of the corpus, ascending.
        views: numbers of those that are compared.
        images: decoded, as their kind has them; one a row.
        params_NV: VIEW (row, view), as they are stored.
        stored: by target, fp32 (row · view, …).
    """

    shard: int
    rows: Sequence[int]
    views: Sequence[int]
    keys: Sequence[str]
    files: Sequence[bytes]
    images: Sequence[Any]
    params_NV: Views
    stored: dict[str, NDArray[np.float32]]

    def only(self, places: Sequence[int]) -> SampledRows:
        """Some of these rows, by their places among them."""
        views = [place * len(self.views) + view for place in places for view in range(len(self.views))]
        return replace(
            self,
            rows=[self.rows[place] for place in places],
            keys=[self.keys[place] for place in places],
            files=[self.files[place] for place in places],
            images=[self.images[place] for place in places],
            params_NV=self.params_NV[list(places)],
            stored={name: values[views] for name, values in self.stored.items()},
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.stored)


class RowSampler:
    """Draws rows of shards, the same ones for the same seed; whatever it reads is compared with receipts and checksums."""

    def __init__(self, whole: Whole, seed: int) -> None:
        self._whole, self._seed = whole, seed
        self._root: Any = open_store(whole.store, whole.generation)
        self.kind: SampleKind = kind_named(whole.description.sample_kind, where=whole.store)

    def draw(self, shard: int, count: int) -> SampledRows | None:
        """So many of a shard's usable rows, or all of them; None where there is none, or nothing of them that can be compared. More rows are
        others besides.

        Raises:
            DamagedError: the tar or the store is damaged, or an image cannot be read any more.
        """
        spec, shards = self._whole.description.spec, self._whole.shards
        start = spec.rows(shard).start
        views = np.sort(np.random.default_rng([self._seed, shard, 1]).permutation(spec.num_views)[:MOST_VIEWS]).tolist()
        _, valid_N, params_NV = read_views(self._root, spec, shard, views)
        # In one order, so that a larger sample holds the smaller one.
        order = np.random.default_rng([self._seed, shard]).permutation(np.flatnonzero(valid_N))
        places = np.sort(order[:count])
        if not len(places) or not any(map(is_comparable, self._whole.lost.values())):
            return None
        rows = (places + start).tolist()
        reader = ShardReader(shards, shard)
        try:
            files = [reader.read(row) for row in rows]
            keys = [reader.key(row) for row in rows]
        finally:
            reader.close()
        return SampledRows(
            shard=shard,
            rows=rows,
            views=views,
            keys=keys,
            files=files,
            images=[self._decoded(data, row) for data, row in zip(files, rows, strict=True)],
            params_NV=params_NV[places],
            stored={
                target.name: self._stored(shard, target.name, views, places)
                for target in spec.targets
                if is_comparable(self._whole.lost[target.name])
            },
        )

    def _decoded(self, data: bytes, row: int) -> Any:
        try:
            return self.kind.decode(data, self._whole.shards.corpus.max_pixels)
        except BadImage as bad:
            raise DamagedError(
                "an image that the teacher saw cannot be read any more",
                code="image-no-longer-readable",
                where=f"{self._whole.shards.location}, row {row}",
                found=bad,
                hint="use the versions of the libraries that the store was made with",
            ) from bad

    def _stored(self, shard: int, name: str, views: Sequence[int], places: NDArray[np.int64]) -> NDArray[np.float32]:
        spec = self._whole.description.spec
        values = np.stack([TargetRows(self._root, spec, shard, name, view)[places] for view in views], axis=1)
        found: NDArray[np.float32] = values.reshape(-1, *values.shape[2:])
        return found

    def first_row(self, shard: int) -> int:
        """The first row of a shard."""
        return int(self._whole.description.spec.rows(shard).start)

    def stored_of_shard(self, shard: int, name: str, view: int) -> NDArray[np.float32]:
        """One view of a whole shard: fp32 (row, …)."""
        spec = self._whole.description.spec
        count = spec.rows(shard).stop - spec.rows(shard).start
        return TargetRows(self._root, spec, shard, name, view)[np.arange(count)]
