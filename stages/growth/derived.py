"""Owns making logits of a store's embeddings: the class vectors suffice, and no teacher is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...pipeline.ledger import record_outputs
from ...pipeline.storage import Location
from ...pipeline.types import Resources, RunUnit, Timer, Unit
from ...storage_schemas.block_part import BlockPart
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.fingerprint import Fingerprint, Json
from ...storage_schemas.growth import Growth
from ...storage_schemas.receipt import Receipt
from ...storage_schemas.samples import shard_name
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import BlockWriter, OpenArrays, open_root, read_keys, read_target
from ...storage_schemas.view_params import no_views
from ..pairs.receipts import VECTORS_UNIT, ledger_name
from ..pairs.store import open_store, store_receipts
from .class_arrays import write_vectors
from .room import arrays_of, show_generation

_PART = BlockPart(targets=("logits",), rows=False, params=False)


@dataclass(frozen=True, kw_only=True)
class DerivedStage:
    """Shard *i* of the embeddings becomes shard *i* of the logits.

    Attributes:
        spec: of the rows, with the logits.
        growth: of the generation that gets them.
        vectors: the class vectors.
        origin: where they come from, if the generation gets them too; None where they are there.
        batch_size: views in a product of matrices, as in a forward pass of the teacher.
    """

    store: Location
    spec: StoreSpec
    growth: Growth
    vectors: ClassVectors
    fingerprint: Fingerprint
    batch_size: int
    threads: int
    origin: Json = None

    @property
    def name(self) -> str:
        """What makes it."""
        return "vectors --grow" if self.origin is not None else "cache --grow"

    @property
    def ledger(self) -> str:
        """The name of its ledger."""
        return ledger_name(self.growth.name)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.threads)

    def plan(self) -> Iterator[Unit]:
        if self.origin is not None:
            yield Unit(key=VECTORS_UNIT, rows=0)
        for shard in self.growth.all_shards:
            rows = self.spec.rows(shard)
            yield Unit(key=shard_name(shard), rows=rows.stop - rows.start, inputs={"shard": shard})

    def commit(self) -> None:
        """Let readers have the generation."""
        show_generation(self.store, self.growth.name)

    def open(self) -> RunUnit:
        import torch

        torch.set_num_threads(self.threads)
        root = open_root(self.store.zarr_store(), mode="a", where=self.store)
        return _Deriving(self, root)


class _Deriving:
    """Reads embeddings, and writes logits."""

    def __init__(self, stage: DerivedStage, root: Any) -> None:
        from ..models.class_head import ClassHead

        self._stage, self._root = stage, root
        self._head = ClassHead(stage.vectors)
        self._before = OpenArrays(open_store(stage.store, stage.growth.parent))
        self._receipts = store_receipts(stage.store, stage.growth.parent)

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        if unit.key == VECTORS_UNIT:
            return self._write_vectors(timer)
        stage, shard = self._stage, unit.inputs["shard"]
        receipt = self._receipts.receipt(shard)
        assert receipt is not None  # the generation before is finished
        start = stage.spec.rows(shard).start
        unusable = {bad.row - start for bad in receipt.invalid_rows}
        usable = np.array([row for row in range(unit.rows) if row not in unusable], np.int64)
        writer = BlockWriter(
            arrays_of(self._root, stage.growth), stage.spec, shard, read_keys(self._before, stage.spec, shard), _PART
        )
        params_V = no_views(1, stage.spec.num_views)[0]
        step = max(1, stage.batch_size // stage.spec.views_together)
        for first in range(0, len(usable), step):
            rows = usable[first : first + step]
            logits_NVC = self._logits(shard, rows, timer)
            with timer("write"):
                for row, values in zip(rows.tolist(), logits_NVC, strict=True):
                    writer.put(row, params_V, {"logits": values})
                writer.settle(int(rows[-1]) + 1)
            timer.advance(len(rows))
        timer.advance(len(unusable))
        with timer("write"):
            paths, digest = writer.finish()
            outputs = record_outputs(stage.store, paths)
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=receipt.invalid_rows,
            digest=digest,
            fingerprint=stage.fingerprint.digest,
        )

    def _write_vectors(self, timer: Timer) -> Receipt:
        stage = self._stage
        with timer("write"):
            outputs = write_vectors(stage.store, self._root, stage.vectors, stage.origin, stage.growth.folder)
        return Receipt(
            key=VECTORS_UNIT,
            outputs=outputs,
            rows=0,
            invalid_rows=(),
            digest=stage.vectors.digest,
            fingerprint=stage.fingerprint.digest,
        )

    def _logits(self, shard: int, rows: Any, timer: Timer) -> Any:
        """fp32 (sample, view, class), in the products of matrices that a forward pass of the teacher is followed by."""
        import torch

        spec = self._stage.spec
        found = []
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        for first in range(0, spec.num_views, spec.views_together):
            views = range(first, min(first + spec.views_together, spec.num_views))
            with timer("read"):
                read = [read_target(self._before, spec, shard, "embedding", view, part) for view in views]
                embedding_NVD = np.stack([values[rows - part.start] for values in read], axis=1)
            with timer("forward"), torch.inference_mode():
                flat = torch.from_numpy(embedding_NVD).flatten(0, 1)
                found.append(self._head(flat).numpy().reshape(*embedding_NVD.shape[:2], -1))
        return np.concatenate(found, axis=1)
