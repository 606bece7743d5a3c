"""Owns the file of one shard's anomaly maps: maps and scores of its usable images, and its pixels counted by their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ..measures.anomaly_figures import PixelCounts


def maps_file(shard: int) -> str:
    """The name of a shard's file, below the output folder."""
    return f"maps/{shard:06d}.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardMaps:
    """What the file holds; `counts` as steps that are not empty.

    Attributes:
        rows_N: int64 (sample,), of the store.
        maps_NYX: float16, smoothed anomaly maps.
        scores_N: float32, the largest value of each map before it was rounded.
        medians_N: float32, of each map.
        counts: of the pixels of images whose masks are known, and of those without a defect.
        without_mask: images with a defect that have no mask: their pixels are not counted.
    """

    rows_N: NDArray[np.int64]
    maps_NYX: NDArray[np.float16]
    scores_N: NDArray[np.float32]
    medians_N: NDArray[np.float32]
    counts: PixelCounts
    without_mask: int

    def to_bytes(self) -> bytes:
        counts = self.counts
        steps = np.flatnonzero((counts.normal_S > 0) | (counts.defect_S > 0))
        arrays = {
            "rows": self.rows_N,
            "maps": self.maps_NYX,
            "scores": self.scores_N,
            "medians": self.medians_N,
            "steps": steps,
            "normal": counts.normal_S[steps],
            "defect": counts.defect_S[steps],
            "overlap": counts.overlap_S[steps],
            "of": np.array([counts.most, counts.regions, self.without_mask], np.float64),
        }
        return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    @staticmethod
    def read(out: Location, shard: int) -> ShardMaps:
        """
        Raises:
            DamagedError: the file is not there, or not such a file.
        """
        where = out / maps_file(shard)
        try:
            arrays = safetensors.numpy.load(where.read_bytes())
            most, regions, without_mask = arrays["of"].tolist()
            counts = PixelCounts.none(most)
            for whole_S, part in (
                (counts.normal_S, arrays["normal"]),
                (counts.defect_S, arrays["defect"]),
                (counts.overlap_S, arrays["overlap"]),
            ):
                whole_S[arrays["steps"]] = part
            return ShardMaps(
                rows_N=arrays["rows"],
                maps_NYX=arrays["maps"],
                scores_N=arrays["scores"],
                medians_N=arrays["medians"],
                counts=counts.with_regions(int(regions)),
                without_mask=int(without_mask),
            )
        except (FileNotFoundError, safetensors.SafetensorError, KeyError, ValueError, IndexError) as error:
            raise DamagedError(
                "a file of anomaly maps is missing or damaged",
                code="anomaly-maps-damaged",
                where=where,
                found=str(error),
                hint="give another --out",
            ) from error
