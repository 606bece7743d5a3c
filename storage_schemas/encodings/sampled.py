"""Owns sampled logits: n draws from the teacher's distribution, so that gradients at T = 1 are right on average.

The draws of a view are evenly spaced in the cumulated distribution, with a random start u in [0, 1) (systematic sampling): class c
is drawn as often as there are whole numbers i with F(c - 1) < (i + u) / n <= F(c). The expected share of a class is its probability,
and cross entropy is linear in the targets, so its expected gradient is that of the whole distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .encoding import EncodedArray, Target

if TYPE_CHECKING:
    from .encoding import Floats

#: The logit of a class that was not drawn: its probability is 0 in fp32 beside any other, and no logarithm is infinite.
NOT_DRAWN = -100.0


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """`draws` classes a view, in order; stored are the first one and the differences.

    Attributes:
        seed: of the random starts, which are functions of (seed, key, view).
    """

    draws: int
    seed: int = 0
    name: str = "sampled"
    kl_budget: None = None
    table: None = None

    @property
    def text(self) -> str:
        return f"sampled:{self.draws}" + (f":{self.seed}" if self.seed else "")

    def to_json(self) -> Any:
        return {"name": self.name, "draws": self.draws, "seed": self.seed}

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        dtype, fill = self._type(target)
        return (
            EncodedArray(
                name=target.name,
                axes=("draw",),
                shape=(self.draws,),
                dtype=dtype,
                fill=fill,
                codec="dense-shuffled",
                meaning=f"classes that were drawn, in ascending order, each as the difference to the one before; {fill} where the row is "
                "not valid. The probability of a class is its share of the draws",
            ),
        )

    def encode(
        self, target: Target, values: Floats, *, keys: Sequence[str], first_view: int
    ) -> dict[str, NDArray[Any]]:
        dtype, fill = self._type(target)
        num_rows, num_views, num_classes = values.shape
        logits = values.reshape(-1, num_classes).astype(np.float64)
        fine_N = np.isfinite(logits).all(axis=1)
        logits[~fine_N] = 0
        mass_NC = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
        mass_NC /= mass_NC[:, -1:]
        starts = [start(self.seed, key, first_view + view) for key in keys for view in range(num_views)]
        below_NC = np.ceil(mass_NC * self.draws - np.array(starts)[:, None])  # draws up to and with each class
        counts_NC = np.diff(below_NC, axis=1, prepend=0).astype(np.int64)
        drawn = np.repeat(np.tile(np.arange(num_classes), len(counts_NC)), counts_NC.ravel())
        gaps = np.diff(drawn.reshape(-1, self.draws), axis=1, prepend=0).astype(dtype)
        gaps[~fine_N] = fill
        return {target.name: gaps.reshape(num_rows, num_views, self.draws)}

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        gaps = stored[target.name]
        _, fill = self._type(target)
        fine_N = gaps[:, 0] != fill
        num_rows, (num_classes,) = len(gaps), target.shape
        drawn = np.where(fine_N[:, None], gaps, 0).cumsum(axis=1, dtype=np.int64)
        drawn += np.arange(num_rows)[:, None] * num_classes
        counts = np.bincount(drawn.ravel(), minlength=num_rows * num_classes).reshape(num_rows, num_classes)
        logits_of = np.log(np.maximum(np.arange(self.draws + 1), 1) / self.draws).astype(np.float32)
        logits_of[0] = NOT_DRAWN
        logits: Floats = logits_of[counts]
        logits[~fine_N] = np.nan
        return logits

    @staticmethod
    def _type(target: Target) -> tuple[str, int]:
        """Of the differences, and the number that stands for rows that are not valid."""
        return ("uint16", 0xFFFF) if target.shape[0] < 0xFFFF else ("uint32", 0xFFFFFFFF)


def start(seed: int, key: str, view: int) -> float:
    """The random start of a view's draws, in [0, 1): the first 53 bits of blake2b-64 over `SEED/KEY/VIEW/draws`, times 2^-53."""
    name = hashlib.blake2b(f"{seed}/{key}/{view}/draws".encode(), digest_size=8).digest()
    return (int.from_bytes(name, "big") >> 11) * 2.0**-53
