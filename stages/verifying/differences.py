"""Owns how far two teachers' values lie apart, row by row: cosine for any target, KL for logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Target whose values are compared as distributions too.
LOGITS = "logits"


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far stored values of some views lie from given ones.

    Attributes:
        cosine_M: 1 - cosine, float64 (view,). Of logits without their mean over the classes, which decides nothing.
        scale_M: length of the given ones over that of the stored ones.
        kl_M: of logits: KL(stored || given) in nats at T = 1; None for other targets.
    """

    cosine_M: NDArray[np.float64]
    scale_M: NDArray[np.float64]
    kl_M: NDArray[np.float64] | None = None


def apart(name: str, stored: NDArray[np.float32], given: NDArray[np.float32]) -> Apart:
    """Compare values of one target, fp32 (view, …)."""
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (stored, given))
    kl_M = None
    if name == LOGITS:
        kl_M = kl(a, b)
        a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    lengths_a, lengths_b = (np.maximum(np.linalg.norm(values, axis=-1), 1e-30) for values in (a, b))
    # By the distance of the unit vectors: 1 - a·b would lose what is smaller than 1e-16 / 2.
    distance = np.linalg.norm(a / lengths_a[:, None] - b / lengths_b[:, None], axis=-1)
    return Apart(cosine_M=distance**2 / 2, scale_M=lengths_b / lengths_a, kl_M=kl_M)


def kl(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(one || other) of logits (view, class), in nats."""
    p, q = _log_softmax(one), _log_softmax(other)
    found: NDArray[np.float64] = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
    return found


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def all_apart(stored: Mapping[str, NDArray[np.float32]], given: Mapping[str, NDArray[np.float32]]) -> dict[str, Apart]:
    """The same for every target."""
    return {name: apart(name, values, given[name]) for name, values in stored.items()}
