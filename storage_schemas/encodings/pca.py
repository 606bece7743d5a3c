"""Owns principal components: coefficients along axes that were fitted to the teacher's outputs, in steps of one size.

Logits are taken minus the mean of their row, which changes no probability. With q the stored whole numbers of a row's view:

    values = mean + step * (q @ basis)        q = round(((values - mean) * weights²) @ basisᵀ / step)

Of a map (channel, y, x) the axes are those of its channels, and each place has coefficients of its own. `basis` (component, class)
holds the principal axes of the values times `weights`, divided by these again: so that the error is as small as wanted where the
teacher's probabilities are, and larger for classes that hardly ever have any.

One step for all components is what rate-distortion theory has for Gaussian sources ("reverse water-filling", Cover and Thomas, chapter
10): each component has the same error, and those of small deviation take few bits. The bits are saved by the codec, which gets the
coefficients of one component of all rows together, and the upper bytes of all numbers, which differ for large ones alone.
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

#: Types of stored numbers, and what is added to a coefficient. uint16 has one upper byte for -128 to 127, where most coefficients are; the
#: signed ones are of stores of earlier versions.
OFFSETS = {"uint16": 0x8080, "int16": 0, "int8": 0}


@dataclass(frozen=True, kw_only=True)
class Pca:
    """Coefficients of a row's view.

    Attributes:
        step: between neighbouring coefficients: nats for logits, before weighting; in the values' own unit for others.
        unit: of the step as a user writes it: of maps the standard deviation of the values that it was fitted to. It decides no bytes.
        dtype: of the stored numbers, one of `OFFSETS`.
        table: `mean` and `weights` float32 (class), `basis` float16 (component, class); channels in place of classes for embeddings.
    """

    step: float
    table: Table
    unit: float = 1.0
    dtype: str = "uint16"
    name: str = "pca"
    kl_budget: None = None

    @property
    def text(self) -> str:
        return f"pca:{self.step / self.unit:.10g}"

    def to_json(self) -> Any:
        unit = {} if self.unit == 1 else {"unit": self.unit}
        return {"name": self.name, "step": self.step, **unit, "dtype": self.dtype, "table": self.table.digest}

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        number = f"(this - {self._offset})" if self._offset else "this"
        return (
            EncodedArray(
                name=target.name,
                axes=("component", *target.axes[3:]),
                shape=(len(self.table.arrays["basis"]), *target.shape[1:]),
                dtype=self.dtype,
                fill=self._missing,
                codec="dense" if self.dtype == "int8" else "dense-shuffled",
                transposed=len(target.shape) == 1 or self.dtype == "uint16",
                meaning=f"values = mean + {self.step:.10g} * ({number} @ basis), with the arrays `encoding_{target.name}_mean` and "
                f"`encoding_{target.name}_basis`; {self._missing} where the row is not valid",
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
        codes = self._stored((rows - mean) @ (basis * weights**2).T)
        codes[~fine_N] = self._missing
        return {target.name: codes.reshape(*values.shape[:2], len(basis))}

    def _encoded_maps(self, values: Floats) -> NDArray[Any]:
        """Codes (row, view, component, …) of maps (row, view, channel, …); one map at a time, which bounds memory."""
        mean, basis = (self.table.arrays[part].astype(np.float64) for part in ("mean", "basis"))
        codes = np.full((*values.shape[:2], len(basis), *values.shape[3:]), self._missing, self.dtype)
        for row, view in np.ndindex(*values.shape[:2]):
            map_CP = values[row, view].reshape(values.shape[2], -1).astype(np.float64)
            if np.isfinite(map_CP).all():
                codes[row, view] = self._stored(basis @ (map_CP - mean[:, None])).reshape(codes.shape[2:])
        return codes

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        codes = stored[target.name]
        missing_N = codes.reshape(len(codes), -1)[:, 0] == self._missing
        numbers = np.subtract(codes, np.float32(self._offset), dtype=np.float32)
        values: Floats
        if len(target.shape) > 1:
            values = np.matmul(self._scaled_basis.T, numbers.reshape(*codes.shape[:2], -1))
            values += self.table.arrays["mean"][:, None]
        else:
            values = numbers @ self._scaled_basis
            values += self.table.arrays["mean"]
        values[missing_N] = np.nan
        return values.reshape(len(codes), *target.shape)

    def _stored(self, coefficients: NDArray[np.float64]) -> NDArray[Any]:
        """In whole steps; what is beyond all stored numbers as the last one."""
        limits = np.iinfo(self.dtype)
        codes: NDArray[Any] = np.rint(coefficients / self.step) + self._offset
        lowest, highest = (limits.min, limits.max - 1) if self._missing == limits.max else (limits.min + 1, limits.max)
        codes = codes.clip(lowest, highest).astype(self.dtype)
        return codes

    @property
    def _offset(self) -> int:
        return OFFSETS[self.dtype]

    @property
    def _missing(self) -> int:
        """Stands in all places of a row that is not valid: the number farthest from zero's."""
        limits = np.iinfo(self.dtype)
        return int(limits.max if self.dtype == "uint16" else limits.min)

    @property
    def _scaled_basis(self) -> Floats:
        # Kept with the table, which all readers of a store share.
        kept: dict[float, Floats] = self.table.__dict__.setdefault("scaled", {})
        if self.step not in kept:
            kept[self.step] = self.table.arrays["basis"].astype(np.float32) * np.float32(self.step)
        return kept[self.step]
