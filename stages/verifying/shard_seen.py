"""Owns what was found in one shard, on both sides."""

from __future__ import annotations

from dataclasses import dataclass, field

from .finding import Finding
from .measured import Measured


@dataclass
class ShardSeen:
    """What a unit found.

    Attributes:
        num_bytes: that were read.
        measured: what the teacher gave beside what is stored, a `Measured`; None where it did not run.
    """

    shard: int
    findings: list[Finding] = field(default_factory=list)
    num_bytes: int = 0
    measured: Measured | None = None
