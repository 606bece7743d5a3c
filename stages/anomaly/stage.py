"""Owns the stage that computes anomaly maps: one unit a shard, from the maps in a store; no image is opened, and no teacher."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...pipeline.ledger import record_outputs
from ...pipeline.storage import Location
from ...pipeline.types import Resources, RunUnit, Timer, Unit
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.fingerprint import Fingerprint
from ...storage_schemas.manifest import Entry, ManifestReader
from ...storage_schemas.receipt import Receipt
from ...storage_schemas.samples import shard_name
from ...storage_schemas.target_store import OpenArrays
from ..corpora.shards import ShardSet
from ..measures.anomaly_figures import PixelCounts
from ..measures.anomaly_maps import anomaly_maps
from ..models.compute import Compute
from ..pairs.join import JoinedShard
from ..pairs.store import StoreFacts, open_store
from ..students.bundle import load_map_student
from ..students.map_student import MapStudent
from .shard_maps import ShardMaps, maps_file
from .truth import MaskReader, Truth, has_defect

#: The view whose maps are read: the only one that there usually is.
_VIEW = 0


@dataclass(frozen=True, kw_only=True)
class AnomalyStage:
    """Anomaly maps of all images of a corpus.

    Attributes:
        shards, facts: a pair that belongs together.
        bundle: of the student; `student` is the digest of its weights' file.
        image_size: pixels of a side of the images that the teacher saw.
        masks: where defects are; None where that is not known. `masks_digest` is of them.
        batch_size: images in a forward pass.
    """

    shards: ShardSet
    facts: StoreFacts
    bundle: Location
    student: str
    out: Location
    image_size: int
    masks: Truth | None
    masks_digest: str | None
    compute: Compute
    batch_size: int

    name = "anomalies"

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            fields={
                "version": 1,
                "corpus_id": self.facts.corpus_id,
                "store": self.facts.fingerprint,
                "student": self.student,
                "image_size": self.image_size,
                "masks": self.masks_digest,
                "compute": self.compute.to_json(),
                "batch_size": self.batch_size,
            }
        )

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.compute.threads, gpus=float(self.compute.device == "cuda"))

    def plan(self) -> Iterator[Unit]:
        for shard in range(self.facts.spec.num_shards):
            rows = self.facts.spec.rows(shard)
            yield Unit(key=shard_name(shard), rows=rows.stop - rows.start, inputs={"shard": shard})

    def open(self) -> RunUnit:
        student, _ = load_map_student(self.bundle, device=self.compute.device)
        return _Maps(
            stage=self,
            student=student,
            manifest=self.shards.manifest(),
            reader=None if self.masks is None else MaskReader(self.masks),
            arrays=OpenArrays(open_store(self.facts.store, self.facts.generation)),
        )


@dataclass(frozen=True, kw_only=True)
class _Maps:
    """Computes one shard after another."""

    stage: AnomalyStage
    student: MapStudent
    manifest: ManifestReader
    reader: MaskReader | None
    arrays: OpenArrays
    reading: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        stage, shard = self.stage, unit.inputs["shard"]
        with timer("read"), self.reading:
            entries = entries_by_row(self.manifest, stage.facts, shard)
            names = [level.target for level in self.student.head.levels]
            joined = JoinedShard(stage.shards, self.arrays, stage.facts, shard, names, with_images=False).show(_VIEW)
        found = _Found(2.0 * len(names), len(joined.rows), stage.image_size)
        for first in range(0, len(joined.rows), stage.batch_size):
            places = np.arange(first, min(first + stage.batch_size, len(joined.rows)))
            with timer("read"):
                maps = {name: torch.from_numpy(joined.targets[name][places]) for name in names}
            with timer("forward"):
                values_NYX = self._anomalies(maps)
            with timer("measure"):
                for place, map_YX in zip(places.tolist(), values_NYX, strict=True):
                    entry = entries[int(joined.rows[place])]
                    defect, mask_YX = has_defect(entry.label), None
                    if defect and self.reader is not None:
                        mask_YX = self.reader.mask(
                            entry.path,
                            joined.view_params[place],
                            stage.image_size,
                            replace(stage.facts.views, interpolation="bilinear"),
                        )
                    found.take(place, map_YX, defect=defect, mask_YX=mask_YX, counted=self.reader is not None)
            timer.advance(len(places))
        joined.close()
        with timer("write"):
            (stage.out / maps_file(shard)).write_bytes(found.finish(joined.rows).to_bytes())
            outputs = record_outputs(stage.out, [maps_file(shard)])
        digest = hashlib.blake2b("".join(output.sha256 for output in outputs).encode(), digest_size=16)
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=(),
            digest=digest.hexdigest(),
            fingerprint=stage.fingerprint.digest,
        )

    def _anomalies(self, maps: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """fp32 (N, Y, X).

        Raises:
            DamagedError: the student gives NaN or infinity.
        """
        with self.stage.compute.inference():
            there = {name: values.to(self.stage.compute.device) for name, values in maps.items()}
            student = self.student.outputs(there)
            with torch.autocast(self.stage.compute.device, enabled=False):
                values_NYX = anomaly_maps(there, student, self.stage.image_size).float().cpu().numpy()
        if not np.isfinite(values_NYX).all():
            raise DamagedError(
                "the student's anomaly maps are not finite",
                code="anomaly-not-finite",
                where=self.stage.bundle,
                found="NaN or infinity",
                hint="train it again with a smaller --lr",
            )
        found: NDArray[np.float32] = values_NYX
        return found


def entries_by_row(manifest: ManifestReader, facts: StoreFacts, shard: int) -> dict[int, Entry]:
    """What the manifest has of a shard's samples, by their rows."""
    return dict(enumerate(manifest.shard(shard), facts.spec.rows(shard).start))


class _Found:
    """The maps of one shard while they come."""

    def __init__(self, most: float, count: int, size: int) -> None:
        self._counts, self._without_mask = PixelCounts.none(most), 0
        self._maps_NYX = np.empty((count, size, size), np.float16)
        self._scores_N, self._medians_N = np.empty(count, np.float32), np.empty(count, np.float32)

    def take(
        self,
        place: int,
        map_YX: NDArray[np.float32],
        *,
        defect: bool | None,
        mask_YX: NDArray[np.bool_] | None,
        counted: bool,
    ) -> None:
        """One image; its pixels are counted where it is known which of them are defects."""
        self._maps_NYX[place] = map_YX
        self._scores_N[place], self._medians_N[place] = map_YX.max(), np.median(map_YX)
        if counted and defect is not None:
            if defect and mask_YX is None:
                self._without_mask += 1
            else:
                self._counts = self._counts.add(map_YX, mask_YX)

    def finish(self, rows_N: NDArray[np.int64]) -> ShardMaps:
        return ShardMaps(
            rows_N=rows_N,
            maps_NYX=self._maps_NYX,
            scores_N=self._scores_N,
            medians_N=self._medians_N,
            counts=self._counts,
            without_mask=self._without_mask,
        )
