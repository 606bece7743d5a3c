"""Owns the results of anomaly maps: figures of all shards together, and a score for each image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...pipeline.tables import section, table
from ..corpora.defects.defect_source import GOOD
from ..corpora.shards import ShardSet
from ..measures.anomaly_figures import PixelCounts, auroc
from .shard_maps import ShardMaps
from .stage import AnomalyStage, entries_by_row
from .truth import has_defect


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An image; its place is that in its shard's file."""

    path: str
    label: str | None
    score: float
    median: float
    shard: int
    place: int


@dataclass(frozen=True, kw_only=True)
class AnomalyResults:
    """All images, in the order of rows, and the pixels of those whose masks are known."""

    images: Sequence[Scored]
    counts: PixelCounts
    without_mask: int

    @staticmethod
    def of(stage: AnomalyStage) -> AnomalyResults:
        """Of a stage whose units are done; one shard's file is in memory at a time.

        Raises:
            DamagedError: a file is missing or damaged.
        """
        images: list[Scored] = []
        counts: PixelCounts | None = None
        without_mask, manifest = 0, stage.shards.manifest()
        for shard in range(stage.facts.spec.num_shards):
            found = ShardMaps.read(stage.out, shard)
            entries = entries_by_row(manifest, stage.facts, shard)
            for place, row in enumerate(found.rows_N.tolist()):
                entry = entries[row]
                images.append(
                    Scored(
                        path=entry.path,
                        label=entry.label,
                        score=float(found.scores_N[place]),
                        median=float(found.medians_N[place]),
                        shard=shard,
                        place=place,
                    )
                )
            counts = found.counts if counts is None else counts.joined(found.counts)
            without_mask += found.without_mask
        assert counts is not None  # a corpus has a shard
        return AnomalyResults(images=images, counts=counts, without_mask=without_mask)

    def to_json(self) -> dict[str, Any]:
        """Figures are shares of 1; None where there is nothing to tell apart."""
        known = [image for image in self.images if image.label is not None]
        scores_N = np.array([image.score for image in known])
        defect_N = np.array([bool(has_defect(image.label)) for image in known], bool)
        kinds = sorted({image.label for image in known if image.label is not None and image.label != GOOD})
        by_defect = {}
        for kind in kinds:
            own_N = np.array([image.label in (kind, GOOD) for image in known], bool)
            count = sum(image.label == kind for image in known)
            by_defect[kind] = {"images": count, "image_auroc": auroc(scores_N[own_N], defect_N[own_N])}
        return {
            "images": len(self.images),
            "with_defects": int(defect_N.sum()),
            "unlabelled": len(self.images) - len(known),
            "image_auroc": auroc(scores_N, defect_N),
            "pixel_auroc": self.counts.auroc,
            "aupro": self.counts.aupro,
            "regions": self.counts.regions,
            "defects_without_mask": self.without_mask,
            "by_defect": by_defect,
        }

    def to_csv(self) -> bytes:
        """path, label, score; in the order of rows."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label", "score"])
        writer.writerows([image.path, image.label or "", f"{image.score:.6g}"] for image in self.images)
        return text.getvalue().encode()


def results_text(facts: dict[str, Any]) -> str:
    """Tables for people."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.2%}"

    rows = [
        ("images", f"{facts['images']}, {facts['with_defects']} with defects"),
        ("AUROC of images", percent(facts["image_auroc"])),
        ("AUROC of pixels", percent(facts["pixel_auroc"])),
        ("AUPRO, to a rate of 0.3", f"{percent(facts['aupro'])}, {facts['regions']} regions"),
    ]
    if facts["unlabelled"]:
        rows.append(("without a label", str(facts["unlabelled"])))
    if facts["defects_without_mask"]:
        rows.append(("defects without a mask", f"{facts['defects_without_mask']}, left out of the figures of pixels"))
    kinds = [(kind, str(own["images"]), percent(own["image_auroc"])) for kind, own in facts["by_defect"].items()]
    parts = [section("Anomalies", table(rows))]
    if kinds:
        parts.append(section("Kinds of defect", table(kinds, head=("kind", "images", "AUROC of images"), align="lrr")))
    return "\n\n".join(parts)


def open_entries(shards: ShardSet) -> dict[str, str | None]:
    """Labels of all images, by their paths."""
    manifest = shards.manifest()
    return {entry.path: entry.label for shard in range(shards.corpus.num_shards) for entry in manifest.shard(shard)}
