"""Owns what a teacher gave for one shard, beside what is stored of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .differences import Apart
from .tolerance import Tolerance


@dataclass
class Measured:
    """How far a shard's values lie from the teacher's, by target: 1 - cosine and KL of each view, and what is allowed."""

    rows: int = 0
    by_target: dict[str, Apart] = field(default_factory=dict)
    allowed: dict[str, Tolerance] = field(default_factory=dict)
