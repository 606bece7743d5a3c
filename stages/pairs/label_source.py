"""Owns labels that clusters gave as a target: a generation of a label store, joined to the rows of a target store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.label_store import LabelSpec
from ...storage_schemas.plain_text import counted
from ...storage_schemas.store_description import StoreDescription
from ..corpora.spelling import split_generation
from .label_store import OpenLabels
from .local_copies import LocalCache
from .sources import ShardRows

#: The target that labels are: int64 (sample,), the place of a name among the class vectors; -1 for none.
CLUSTER = "cluster"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    labels_N: NDArray[np.int64]

    def __getitem__(self, positions: Any) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.labels_N[positions]
        return found


@dataclass(frozen=True, kw_only=True)
class ClusterLabels:
    """`cluster` of every sample."""

    labels: OpenLabels

    layouts = {CLUSTER: ("i8", ())}  # noqa: RUF012

    @staticmethod
    def of(typed: str, about: StoreDescription, vectors: ClassVectors) -> ClusterLabels:
        """
        Args:
            typed: `LABELS` for the last generation, or `LABELS@2`.
            about: the target store that they are joined to.
            vectors: the class vectors of the training.

        Raises:
            InputError, IncompleteError, DamagedError: as `OpenLabels.of`.
            MismatchError: they are of another corpus, or of another vocabulary.
        """
        place, generation = split_generation(typed)
        labels = OpenLabels.of(Location.of(place), generation)
        spec = LabelSpec(
            corpus_id=about.corpus_id,
            num_rows=about.spec.num_rows,
            shard_size=about.spec.shard_size,
            vocabulary=vectors.digest,
            num_names=vectors.num_classes,
        )
        labels.check(spec, "this training")
        return ClusterLabels(labels=labels)

    @property
    def identity(self) -> Any:
        return {"labels": self.labels.digest}

    @property
    def note(self) -> str:
        names = counted(len(self.labels.about.names), "name")
        return f"labels of {self.labels.location}, generation {self.labels.generation}: {names}"

    def open(self, rows: ShardRows, names: Sequence[str]) -> Mapping[str, _Rows]:
        if CLUSTER not in names:
            return {}
        start = rows.shard * self.labels.spec.shard_size
        labels_N = self.labels.read(self.labels.open(), slice(start, start + len(rows.valid_N)))
        return {CLUSTER: _Rows(labels_N=labels_N.astype(np.int64))}

    def kept_in(self, cache: LocalCache, names: tuple[str, ...]) -> tuple[ClusterLabels, None]:
        return self, None
