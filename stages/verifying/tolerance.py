"""Owns how far a teacher's values may lie from stored ones: what rounding explains, measured on the very rows and the very model.

Another machine, batch size or number of threads moves the values of a model by as much as its precision allows, and how much that is
depends on the model: 1 - cosine of embeddings in bf16 against fp32 is 7e-4 for EfficientNet-Lite0 and 4e-5 for a ViT. So the teacher runs
in both, and what lies between is the measure. docs/verify.md has the table that the factors come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .differences import Apart
from .stored_loss import LostBefore

if TYPE_CHECKING:
    from ..models.compute import Compute

#: How many times what lies between bf16 and fp32, for the median and for any single row. Errors of two machines add up: twice.
_MEDIAN, _SINGLE = 4.0, 8.0

#: The share of bf16's rounding that fp32 on a GPU has: convolutions there have 3 bits more (TF32), and squares of errors 64 times less.
_TF32 = 1 / 16

#: Where all is fp32 on a processor: measured are 1e-12 at most.
_LEAST = 1e-7

#: Another length than the stored one, as a share.
SCALE = 0.03


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """For one target: what 1 - cosine, and KL for logits, may be: the median, and of any view; and by what share the median length may
    differ."""

    cosine: float
    cosine_single: float
    kl: float
    kl_single: float
    scale: float = SCALE

    def allows(self, found: Apart) -> bool:
        """Whether rounding explains it."""
        return self.allows_median(found) and not self.off(found).any()

    def allows_median(self, found: Apart) -> bool:
        """Whether it does for most views."""
        if float(np.median(found.cosine_M)) > self.cosine or abs(float(np.median(found.scale_M)) - 1) > self.scale:
            return False
        return found.kl_M is None or float(np.median(found.kl_M)) <= self.kl

    def off(self, found: Apart) -> np.ndarray:
        """Which views lie too far away, bool (view,)."""
        off: np.ndarray = found.cosine_M > self.cosine_single
        return off if found.kl_M is None else off | (found.kl_M > self.kl_single)


def other_precision(compute: Compute) -> Compute:
    """In bf16 what is in fp32, and the other way round."""
    return replace(compute, precision="bf16" if compute.precision == "fp32" else "fp32")


def rounding_share(recorded: Mapping[str, Any], here: Compute, *, known: bool = True) -> float:
    """Which share of what lies between bf16 and fp32 the rounding of a store and of a rerun may be.

    Args:
        recorded: how the store's teacher computed.
        here: how it does now.
        known: whether it is known what values had lost before they came into the store; else as much as bf16 may be.
    """
    if not known or recorded.get("precision", "fp32") != "fp32" or here.precision != "fp32":
        return 1.0
    return _TF32 if "cuda" in (recorded.get("device"), here.device) else 0.0


def tolerances(
    rounding: Mapping[str, Apart],
    stored_loss: Mapping[str, Apart],
    before: Mapping[str, LostBefore],
    share: Mapping[str, float],
) -> dict[str, Tolerance]:
    """For each target.

    Args:
        rounding: between the teacher in bf16 and in fp32, on these views; of no matter where `share` is 0.
        stored_loss: between its values and what is left of them once they are stored and read.
        before: what the values had lost before they came into the store.
        share: see `rounding_share`.
    """
    return {name: _tolerance(rounding[name], stored_loss[name], before[name], share[name]) for name in rounding}


def _tolerance(rounding: Apart, loss: Apart, before: LostBefore, share: float) -> Tolerance:

    def of(rounding_M: np.ndarray, loss_M: np.ndarray, mean: float, largest: float) -> tuple[float, float]:
        median = _LEAST + _MEDIAN * (share * float(np.median(rounding_M)) + float(np.median(loss_M)) + mean)
        single = max(4 * median, _SINGLE * (share * float(rounding_M.max()) + float(loss_M.max()) + largest))
        return median, single

    cosine, cosine_single = of(rounding.cosine_M, loss.cosine_M, before.cosine, before.cosine_max)
    zero = np.zeros(1)
    kl, kl_single = of(
        zero if rounding.kl_M is None else rounding.kl_M,
        zero if loss.kl_M is None else loss.kl_M,
        before.kl,
        before.kl_max,
    )
    # Lengths differ by as much as directions where that is by rounding, and by more where classes were merged, or levels are few.
    scale = SCALE + 2 * math.sqrt(2 * before.cosine_max)
    return Tolerance(cosine=cosine, cosine_single=cosine_single, kl=kl, kl_single=kl_single, scale=scale)
