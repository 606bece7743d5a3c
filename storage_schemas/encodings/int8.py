"""Owns int8 with a scale a row: embeddings and maps around zero, logits below their maximum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .encoding import EncodedArray, Target
from .floats import LOGITS_MAX, logits_max

if TYPE_CHECKING:
    from .encoding import Floats


@dataclass(frozen=True, kw_only=True)
class Int8:
    """A byte a number, and fp32 numbers a row's view: value = code × scale; logits = maximum - code × scale."""

    name: str = "int8"
    kl_budget: None = None
    table: None = None

    @property
    def text(self) -> str:
        return "int8"

    def to_json(self) -> Any:
        return {"name": self.name}

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        is_logits = target.name == "logits"
        own = EncodedArray(
            name=target.name,
            axes=target.axes[2:],
            shape=target.shape,
            dtype="uint8" if is_logits else "int8",
            fill=0,
            codec="dense",
            meaning="subtract, times `logits_scale`, from `logits_max`"
            if is_logits
            else f"times `{target.name}_scale`",
        )
        scale = EncodedArray(
            name=f"{target.name}_scale",
            dtype="float32",
            fill=float("nan"),
            codec="plain",
            meaning=f"of a step in `{target.name}`; NaN where the row is not valid",
            beside=True,
        )
        return (own, scale, logits_max("fp32 maximum of each row's logits")) if is_logits else (own, scale)

    def encode(
        self, target: Target, values: Floats, *, keys: Sequence[str], first_view: int
    ) -> dict[str, NDArray[Any]]:
        rows = values.reshape(*values.shape[:2], -1)
        fine_NV = np.logical_and.reduce(np.isfinite(rows), axis=2)
        rows = np.where(fine_NV[..., None], rows, 0)
        if target.name == "logits":
            max_NV = rows.max(axis=2)
            scale_NV = (max_NV - rows.min(axis=2)) / np.float32(255)
            codes = _divided(max_NV[..., None] - rows, scale_NV).astype(np.uint8)
        else:
            scale_NV = np.abs(rows).max(axis=2) / np.float32(127)
            codes = _divided(rows, scale_NV).astype(np.int8)
        nan = np.float32("nan")
        arrays = {target.name: codes.reshape(values.shape), f"{target.name}_scale": np.where(fine_NV, scale_NV, nan)}
        return arrays | ({LOGITS_MAX: np.where(fine_NV, max_NV, nan)} if target.name == "logits" else {})

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        codes = stored[target.name]
        scale_N = stored[f"{target.name}_scale"].reshape(-1, *(1,) * (codes.ndim - 1))
        values: Floats = codes * scale_N
        if target.name == "logits":
            np.subtract(stored[LOGITS_MAX][:, None], values, out=values)
        return values


def _divided(values: Floats, scale_NV: Floats) -> Floats:
    """Rounded to whole steps; rows of equal numbers have a scale of 0, and codes of 0."""
    safe = np.where(scale_NV > 0, scale_NV, 1)[..., None]
    return np.rint(values / safe)
