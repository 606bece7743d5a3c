"""Owns plain numbers: fp32 as they are, or fp16 (logits minus their row maximum, kept in fp32)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .encoding import EncodedArray, Encoding, NoRoomError, Target

if TYPE_CHECKING:  # options are made of the names of encodings, and cost no import of numpy
    from numpy.typing import NDArray

    from .encoding import Floats


#: The array of maxima of logits.
LOGITS_MAX = "logits_max"


@dataclass(frozen=True, kw_only=True)
class FloatEncoding:
    """Numbers of one type.

    Attributes:
        dtype: Zarr data type of the target's array.
        kl_budget: measured on CLIP-like logits, with a margin of about ten.
        separate_max: whether each row of logits is stored minus its maximum, which is kept in fp32.
    """

    name: str
    dtype: str
    kl_budget: float
    separate_max: bool
    table: None = None

    @property
    def text(self) -> str:
        return self.name

    def to_json(self) -> str:
        return self.name

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        own = EncodedArray(
            name=target.name,
            axes=target.axes[2:],
            shape=target.shape,
            dtype=self.dtype,
            fill=float("nan"),
            codec="shuffled" if target.name == "logits" else "plain",
        )
        return (
            (own, logits_max("add to `logits` (both in fp32) for the teacher's logits"))
            if self._has_max(target)
            else (own,)
        )

    def encode(
        self, target: Target, values: Floats, *, keys: Sequence[str], first_view: int
    ) -> dict[str, NDArray[Any]]:
        if self._has_max(target):
            max_NV = values.max(axis=-1)
            return {target.name: (values - max_NV[..., None]).astype(self.dtype), LOGITS_MAX: max_NV}
        if self.dtype == "float16":
            return {target.name: in_fp16(values)}
        return {target.name: values.astype(self.dtype, copy=False)}

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        values: Floats = stored[target.name].astype("float32", copy=False)
        return values + stored[LOGITS_MAX][..., None] if self._has_max(target) else values

    def _has_max(self, target: Target) -> bool:
        return self.separate_max and target.name == "logits"


#: Encodings of which a store has one for all its targets, by name.
ENCODINGS = {
    "fp32": FloatEncoding(name="fp32", dtype="float32", kl_budget=0.0, separate_max=False),
    "fp16": FloatEncoding(name="fp16", dtype="float16", kl_budget=5e-6, separate_max=True),
}


def logits_max(meaning: str) -> EncodedArray:
    """The maximum of each row of logits, where their own array does not have it."""
    return EncodedArray(
        name=LOGITS_MAX, dtype="float32", fill=float("nan"), codec="plain", meaning=meaning, beside=True
    )


def in_fp16(values: Floats) -> NDArray[Any]:
    """The values in float16.

    Raises:
        NoRoomError: a finite number that it has no room for.
    """
    import numpy as np

    largest = float(np.finfo(np.float16).max)
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16)
    # The comparison is in fp32, where it is twenty times as fast; what is just above may still round to the largest.
    if (values > largest).any() or (values < -largest).any():
        without_room = np.isinf(stored)
        if np.isfinite(values[without_room]).any():
            raise NoRoomError("fp16", largest, float(np.nanmax(np.abs(values))))
    return stored


def is_exact(encoding: Encoding) -> bool:
    """Whether values are stored as they are."""
    return encoding == ENCODINGS["fp32"]
