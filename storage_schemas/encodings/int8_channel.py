"""Owns int8 with a scale for each channel of a row's map: channels of small values lose no more than those of large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .encoding import EncodedArray, Target

if TYPE_CHECKING:
    from .encoding import Floats


@dataclass(frozen=True, kw_only=True)
class Int8Channel:
    """A byte a number, and fp32 scales (row, view, channel): value = code × the scale of its channel."""

    name: str = "int8-channel"
    kl_budget: None = None
    table: None = None

    @property
    def text(self) -> str:
        return "int8-channel"

    def to_json(self) -> Any:
        return {"name": self.name}

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        own = EncodedArray(
            name=target.name,
            axes=target.axes[2:],
            shape=target.shape,
            dtype="int8",
            fill=0,
            codec="dense",
            meaning=f"times `{target.name}_scale` of the channel",
        )
        scale = EncodedArray(
            name=f"{target.name}_scale",
            axes=target.axes[2:3],
            shape=target.shape[:1],
            dtype="float32",
            fill=float("nan"),
            codec="plain",
            meaning=f"of a step in `{target.name}`, for each channel; NaN where the row is not valid",
            beside=True,
        )
        return own, scale

    def encode(
        self, target: Target, values: Floats, *, keys: Sequence[str], first_view: int
    ) -> dict[str, NDArray[Any]]:
        places = values.reshape(*values.shape[:3], -1)
        fine_NV = np.logical_and.reduce(np.isfinite(places), axis=(2, 3))
        places = np.where(fine_NV[..., None, None], places, 0)
        scale_NVC = np.abs(places).max(axis=3) / np.float32(127)
        codes = np.rint(places / np.where(scale_NVC > 0, scale_NVC, 1)[..., None]).astype(np.int8)
        scales = np.where(fine_NV[..., None], scale_NVC, np.float32("nan"))
        return {target.name: codes.reshape(values.shape), f"{target.name}_scale": scales}

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        codes, scale_NC = stored[target.name], stored[f"{target.name}_scale"]
        values: Floats = codes * scale_NC.reshape(*scale_NC.shape, *(1,) * (codes.ndim - 2))
        return values
