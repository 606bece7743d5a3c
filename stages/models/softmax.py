"""Owns the way from logits to probabilities, the same for a student's and a teacher's. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.settings import impossible

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats


def log_softmax(logits_NC: Floats) -> NDArray[np.float64]:
    """Log-probabilities in fp64."""
    shifted = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def probabilities(logits_NC: Floats, temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities (sample, class) in fp32 of logits divided by a temperature; rows of NaN stay so.

    Raises:
        InputError: a temperature that is not above 0 and finite.
    """
    if not 0 < temperature < float("inf"):
        raise impossible("temperature", "a finite number above 0", temperature)
    scaled: Any = logits_NC if temperature == 1 else logits_NC / np.float32(temperature)
    return np.exp(log_softmax(scaled)).astype(np.float32)
