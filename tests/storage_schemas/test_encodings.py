"""Encodings keep the KL budget that they declare, on CLIP-like logits."""

from __future__ import annotations

import numpy as np
import pytest
from teachonce.storage_schemas.encodings import ENCODINGS, Encoding
from teachonce.storage_schemas.store_description import TargetSpec


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


def there_and_back(encoding: Encoding, logits_NVC: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(the arrays, what they are decoded to) of logits."""
    target = TargetSpec(name="logits", axes=("sample", "view", "class"), shape=logits_NVC.shape[2:])
    keys = [f"{row:032x}" for row in range(len(logits_NVC))]
    arrays = encoding.encode(target, logits_NVC, keys=keys, first_view=0)
    views = range(logits_NVC.shape[1])
    decoded = [encoding.decode(target, {name: array[:, view] for name, array in arrays.items()}) for view in views]
    return arrays, np.stack(decoded, axis=1)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logits_stay_within_the_declared_budget(name, scale):
    encoding = ENCODINGS[name]
    logits = clip_like_logits(1, scale)
    arrays, decoded = there_and_back(encoding, logits)
    assert arrays["logits"].dtype == encoding.dtype
    divergence = kl(logits, decoded)
    assert divergence.max() <= encoding.kl_budget + 1e-12


def test_rows_of_nan_stay_nan():
    logits = np.full((1, 1, 3), np.nan, np.float32)
    assert np.isnan(there_and_back(ENCODINGS["fp16"], logits)[1]).all()
