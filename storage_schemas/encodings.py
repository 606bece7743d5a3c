"""Owns how targets become bytes: fp32 as they are, or fp16 (logits minus their row maximum, kept in fp32)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # options are made of the names of encodings, and cost no import of numpy
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One way to store targets.

    Attributes:
        name: what `--encoding` takes.
        dtype: Zarr data type of the target arrays.
        kl_budget: largest KL divergence (nats, T = 1) to the fp32 logits on any sample that this encoding may
            cost; measured on CLIP-like logits, with a margin of about ten.
        separate_max: whether each row of logits is stored minus its maximum, which is kept in fp32.
    """

    name: str
    dtype: str
    kl_budget: float
    separate_max: bool


ENCODINGS = {
    "fp32": Encoding(name="fp32", dtype="float32", kl_budget=0.0, separate_max=False),
    "fp16": Encoding(name="fp16", dtype="float16", kl_budget=5e-6, separate_max=True),
}


def encode_logits(logits_NVC: Floats, encoding: Encoding) -> tuple[NDArray[np.floating], Floats | None]:
    """(stored logits, row maxima (sample, view) fp32 or None). Rows of NaN (invalid samples) stay NaN."""
    if not encoding.separate_max:
        return logits_NVC, None
    max_NV = logits_NVC.max(axis=-1)
    return (logits_NVC - max_NV[..., None]).astype(encoding.dtype), max_NV


def decode_logits(stored: NDArray[np.floating], max_NV: Floats | None) -> Floats:
    """fp32 logits from what `encode_logits` returned."""
    logits = stored.astype("float32")
    return logits if max_NV is None else logits + max_NV[..., None]
