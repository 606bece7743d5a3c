"""Owns the names of ways to mix several teachers' logits. Imports no library, since options are made of them."""

from __future__ import annotations

#: The mean of their probabilities, or of their logits; see `mixture.TargetLogits`.
MIXES = ("probabilities", "logits")
