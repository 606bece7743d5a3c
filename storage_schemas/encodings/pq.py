"""Owns product quantisation (Jégou et al., 2011): an embedding in equal parts, each replaced by the nearest of 255 fitted vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .encoding import EncodedArray, Target
from .table import Table

if TYPE_CHECKING:
    from .encoding import Floats

#: Arrays of the table.
PARTS = ("codebook",)

#: Vectors that a part may be replaced by; the byte after the last one stands for rows that are not valid.
CENTERS = 255


@dataclass(frozen=True, kw_only=True)
class Pq:
    """A byte for each part.

    Attributes:
        table: `codebook` float32 (part, 255, channel of the part); the last part's channels beyond the embedding's are 0.
    """

    table: Table
    name: str = "pq"
    kl_budget: None = None

    @property
    def text(self) -> str:
        return f"pq:{len(self.table.arrays['codebook'])}"

    def to_json(self) -> Any:
        return {"name": self.name, "table": self.table.digest}

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        return (
            EncodedArray(
                name=target.name,
                axes=("part",),
                shape=(len(self.table.arrays["codebook"]),),
                dtype="uint8",
                fill=CENTERS,
                codec="dense",
                meaning=f"index into `encoding_{target.name}_codebook` of each part; {CENTERS} where the row is not valid",
            ),
        )

    def encode(
        self, target: Target, values: Floats, *, keys: Sequence[str], first_view: int
    ) -> dict[str, NDArray[Any]]:
        rows = values.reshape(-1, values.shape[2])
        fine_N = np.logical_and.reduce(np.isfinite(rows), axis=1)
        codes = nearest(self.table.arrays["codebook"], np.where(fine_N[:, None], rows, 0))
        codes[~fine_N] = CENTERS
        return {target.name: codes.reshape(*values.shape[:2], -1)}

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        codes, codebook = stored[target.name], self.table.arrays["codebook"]
        missing_N = codes[:, 0] == CENTERS
        parts = codebook[np.arange(len(codebook)), np.where(missing_N[:, None], 0, codes)]
        values: Floats = np.ascontiguousarray(parts.reshape(len(codes), -1)[:, : target.shape[0]], np.float32)
        values[missing_N] = np.nan
        return values


def in_parts(rows_ND: Floats, parts: int) -> NDArray[np.float64]:
    """(part, row, channel of the part), fp64; zeros behind the last channel."""
    width = -(-rows_ND.shape[1] // parts)
    padded = np.zeros((len(rows_ND), parts * width))
    padded[:, : rows_ND.shape[1]] = rows_ND
    return np.ascontiguousarray(padded.reshape(len(rows_ND), parts, width).swapaxes(0, 1))


def nearest(codebook: NDArray[np.floating], rows_ND: Floats) -> NDArray[np.uint8]:
    """The nearest vector of each part's codebook, uint8 (row, part). In fp64, so that no order of summation decides."""
    codes = np.empty((len(rows_ND), len(codebook)), np.uint8)
    for part, values in enumerate(in_parts(rows_ND, len(codebook))):
        centers = codebook[part].astype(np.float64)
        codes[:, part] = (np.square(centers).sum(axis=1) - 2 * values @ centers.T).argmin(axis=1)
    return codes
