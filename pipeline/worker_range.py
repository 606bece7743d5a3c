"""Owns a number of workers that changes during a run: from so many to so many, as nodes of a cluster come and go."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORDS = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class WorkerRange:
    """From `least` to `most` workers.

    Attributes:
        least: a run begins with these; 0 where the nodes come only when they are wanted.
        most: as many are taken, as soon as there is room for them.
    """

    least: int
    most: int

    @staticmethod
    def parse(text: str) -> WorkerRange | None:
        """From `MIN..MAX`; None for any other text, and where MAX is less than 1 or than MIN."""
        found = _WORDS.fullmatch(text.strip())
        if found is None or int(found[2]) < max(1, int(found[1])):
            return None
        return WorkerRange(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.least}..{self.most}"
