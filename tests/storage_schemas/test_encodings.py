"""Encodings keep the KL budget that they declare, on CLIP-like logits."""

from __future__ import annotations

import numpy as np
import pytest
from teachonce.storage_schemas.encodings import ENCODINGS, decode_logits, encode_logits


def clip_like_logits(seed: int, scale: float) -> np.ndarray:
    """Cosines around 0.2 with a few that stand out, times a logit scale of 100."""
    rng = np.random.default_rng(seed)
    cosines = rng.normal(0.18, 0.03, (64, 2, 500)) + 0.1 * (rng.random((64, 2, 500)) < 0.01)
    return (scale * cosines).astype(np.float32)


def kl(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p, q = log_softmax(p_logits), log_softmax(q_logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logits_stay_within_the_declared_budget(name, scale):
    encoding = ENCODINGS[name]
    logits = clip_like_logits(1, scale)
    stored, maxima = encode_logits(logits, encoding)
    assert stored.dtype == encoding.dtype
    divergence = kl(logits, decode_logits(stored, maxima))
    assert divergence.max() <= encoding.kl_budget + 1e-12


def test_rows_of_nan_stay_nan():
    logits = np.full((1, 1, 3), np.nan, np.float32)
    stored, maxima = encode_logits(logits, ENCODINGS["fp16"])
    assert np.isnan(decode_logits(stored, maxima)).all()
