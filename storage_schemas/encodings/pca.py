"""Owns principal components: coefficients along axes that were fitted to the teacher's outputs, in steps of one size.

Logits are taken minus the mean of their row, which changes no probability. With q the stored whole numbers of a row's view:

    values = mean + step * (q @ basis)        q = round(((values - mean) * weights²) @ basisᵀ / step)

Of a map (channel, y, x) the axes are those of its channels, and each place has coefficients of its own. `basis` (component, class) holds the principal axes of the values times `weights`, divided by these again: so that the error is as
small as wanted where the teacher's probabilities are, and larger for classes that hardly ever have any.
"""

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
PARTS = ("mean", "weights", "basis")


@dataclass(frozen=True, kw_only=True)
class Pca:
    """Coefficients of a row's view, int8 or int16.

    Attributes:
        step: between neighbouring coefficients: nats for logits, before weighting; in the values' own unit for others.
        dtype: of the coefficients.
        table: `mean` and `weights` float32 (class), `basis` float16 (component, class); channels in place of classes for embeddings.
    """

    step: float
    dtype: str
    table: Table
    name: str = "pca"
    kl_budget: None = None

    @property
    def text(self) -> str:
        return f"pca:{self.step:.10g}"

    def to_json(self) -> Any:
        return {"name": self.name, "step": self.step, "dtype": self.dtype, "table": self.table.digest}

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        missing = int(np.iinfo(self.dtype).min)
        return (
            EncodedArray(
                name=target.name,
                axes=("component", *target.axes[3:]),
                shape=(len(self.table.arrays["basis"]), *target.shape[1:]),
                dtype=self.dtype,
                fill=missing,
                codec="dense" if self.dtype == "int8" else "dense-shuffled",
                transposed=len(target.shape) == 1,
                meaning=f"values = mean + {self.step:.10g} * (this @ basis), with the arrays `encoding_{target.name}_mean` and "
                f"`encoding_{target.name}_basis`; {missing} where the row is not valid",
            ),
        )

    def encode(
        self, target: Target, values: Floats, *, keys: Sequence[str], first_view: int
    ) -> dict[str, NDArray[Any]]:
        # In fp64, so that no order of summation turns a coefficient into its neighbour.
        if len(target.shape) > 1:
            return {target.name: self._encoded_maps(values)}
        rows = values.reshape(-1, values.shape[2]).astype(np.float64)
        fine_N = np.isfinite(rows).all(axis=1)
        rows[~fine_N] = 0
        if target.name == "logits":
            rows -= rows.mean(axis=1, keepdims=True)
        mean, weights, basis = (self.table.arrays[part].astype(np.float64) for part in PARTS)
        limits = np.iinfo(self.dtype)
        codes = np.rint((rows - mean) @ (basis * weights**2).T / self.step)
        codes = np.clip(codes, limits.min + 1, limits.max).astype(self.dtype)
        codes[~fine_N] = limits.min
        return {target.name: codes.reshape(*values.shape[:2], len(basis))}

    def _encoded_maps(self, values: Floats) -> NDArray[Any]:
        """Codes (row, view, component, …) of maps (row, view, channel, …); one map at a time, which bounds memory."""
        mean, basis = (self.table.arrays[part].astype(np.float64) for part in ("mean", "basis"))
        limits = np.iinfo(self.dtype)
        codes = np.full((*values.shape[:2], len(basis), *values.shape[3:]), limits.min, self.dtype)
        for row, view in np.ndindex(*values.shape[:2]):
            map_CP = values[row, view].reshape(values.shape[2], -1).astype(np.float64)
            if np.isfinite(map_CP).all():
                found_KP = np.rint(basis @ (map_CP - mean[:, None]) / self.step)
                codes[row, view] = np.clip(found_KP, limits.min + 1, limits.max).reshape(codes.shape[2:])
        return codes

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        codes = stored[target.name]
        if len(target.shape) > 1:
            flat_NKP = codes.reshape(*codes.shape[:2], -1).astype(np.float32)
            maps: Floats = np.matmul(self._scaled_basis.T, flat_NKP)
            maps += self.table.arrays["mean"][:, None]
            maps[codes.reshape(len(codes), -1)[:, 0] == np.iinfo(self.dtype).min] = np.nan
            return maps.reshape(len(codes), *target.shape)
        values: Floats = codes.astype(np.float32) @ self._scaled_basis
        values += self.table.arrays["mean"]
        values[codes[:, 0] == np.iinfo(self.dtype).min] = np.nan
        return values

    @property
    def _scaled_basis(self) -> Floats:
        # Kept with the table, which all readers of a store share.
        kept: dict[float, Floats] = self.table.__dict__.setdefault("scaled", {})
        if self.step not in kept:
            kept[self.step] = self.table.arrays["basis"].astype(np.float32) * np.float32(self.step)
        return kept[self.step]
