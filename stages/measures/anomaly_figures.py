"""Owns how well anomaly maps and scores tell defects from the rest: AUROC of images and of pixels, and AUPRO.

The area under the per-region overlap (Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021): the mean over all connected
defect regions of the share of a region's pixels that lie above a threshold, as a function of the false positive rate over all pixels
without a defect, integrated from 0 to 0.3 and divided by that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .regions import regions_of

#: Largest false positive rate of AUPRO.
FPR_LIMIT = 0.3

#: Steps in which values are counted. Of two pixels in one step neither ranks first: AUROC is off by half their share at most.
STEPS = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelCounts:
    """Pixels by their values, in `STEPS` equal steps from 0 to `most`. Counts of images add up, so memory does not grow.

    Attributes:
        most: the largest value that there can be.
        normal_S, defect_S: pixels without and with a defect, int64 (step,).
        overlap_S: pixels with a defect, each divided by the size of its region, fp64 (step,).
        regions: connected defect regions.
    """

    most: float
    normal_S: NDArray[np.int64]
    defect_S: NDArray[np.int64]
    overlap_S: NDArray[np.float64]
    regions: int = 0

    @staticmethod
    def none(most: float) -> PixelCounts:
        return PixelCounts(
            most=most,
            normal_S=np.zeros(STEPS, np.int64),
            defect_S=np.zeros(STEPS, np.int64),
            overlap_S=np.zeros(STEPS, np.float64),
        )

    def add(self, map_YX: NDArray[np.float32], mask_YX: NDArray[np.bool_] | None) -> PixelCounts:
        """With one more image; no mask for one without a defect."""
        steps_YX = np.clip(map_YX.astype(np.float64) * (STEPS / self.most), 0, STEPS - 1).astype(np.int64)
        if mask_YX is None:
            np.add.at(self.normal_S, steps_YX.ravel(), 1)
            return self
        np.add.at(self.normal_S, steps_YX[~mask_YX], 1)
        inside = steps_YX[mask_YX]
        np.add.at(self.defect_S, inside, 1)
        labels_YX, count = regions_of(mask_YX)
        sizes = np.bincount(labels_YX.ravel(), minlength=count + 1)
        np.add.at(self.overlap_S, inside, 1 / sizes[labels_YX[mask_YX]])
        return self.with_regions(self.regions + count)

    def with_regions(self, regions: int) -> PixelCounts:
        """The same counts, of so many regions."""
        return replace(self, regions=regions)

    def joined(self, other: PixelCounts) -> PixelCounts:
        """With the images of others of the same range."""
        for own, more in (
            (self.normal_S, other.normal_S),
            (self.defect_S, other.defect_S),
            (self.overlap_S, other.overlap_S),
        ):
            own += more
        return self.with_regions(self.regions + other.regions)

    @property
    def auroc(self) -> float | None:
        """Of pixels; None where there are none of one kind."""
        normal, defect = self.normal_S.sum(), self.defect_S.sum()
        if not normal or not defect:
            return None
        below_S = np.cumsum(self.normal_S) - self.normal_S
        return float((self.defect_S * (below_S + self.normal_S / 2)).sum() / normal / defect)

    @property
    def aupro(self) -> float | None:
        """None where there is no region, or no pixel without a defect."""
        if not self.regions or not self.normal_S.sum():
            return None
        fpr_S = np.concatenate([[0], np.cumsum(self.normal_S[::-1])]) / self.normal_S.sum()
        pro_S = np.concatenate([[0], np.cumsum(self.overlap_S[::-1])]) / self.regions
        behind = int(np.searchsorted(fpr_S, FPR_LIMIT, side="right"))
        at_limit = np.interp(FPR_LIMIT, fpr_S[behind - 1 : behind + 1], pro_S[behind - 1 : behind + 1])
        x, y = np.append(fpr_S[:behind], FPR_LIMIT), np.append(pro_S[:behind], at_limit)
        return float(np.trapezoid(y, x) / FPR_LIMIT)


def auroc(scores_N: NDArray[np.floating], defect_N: NDArray[np.bool_]) -> float | None:
    """The share of pairs of an image with a defect and one without in which the first has the larger score; equal ones count half.

    None where there are none of one kind.
    """
    defects, normal = int(defect_N.sum()), int((~defect_N).sum())
    if not defects or not normal:
        return None
    values, places_N = np.unique(scores_N, return_inverse=True)
    counts = np.bincount(places_N, minlength=len(values))
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of equal ones
    total = ranks[places_N[defect_N]].sum()
    return float((total - defects * (defects + 1) / 2) / defects / normal)
