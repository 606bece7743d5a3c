"""Owns the most probable classes of distributions, as exports keep them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top_classes(logits: NDArray[np.float32], top: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(ids (…, k) int32, logarithms of their probabilities (…, k) fp32) of logits (…, class) at temperature 1, the most probable first.

    Classes of one probability come in their own order. k is `top`, or the number of classes where these are fewer.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    ids = np.argsort(-logs, axis=-1, kind="stable")[..., :top]
    return ids.astype(np.int32), np.take_along_axis(logs, ids, axis=-1)
