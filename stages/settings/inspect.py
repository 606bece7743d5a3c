"""Owns the choices of `teachonce inspect`."""

from __future__ import annotations

#: Orders that samples can have: that of their rows, or by a score of `measures/rankings.py`.
ORDERS = ("row", "confidence", "unsure", "entropy", "disagreement")
