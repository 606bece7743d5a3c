"""Owns counting by kind, with the first of each kind as an example."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tally:
    """How many of each kind, and the path of the first."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, path: str) -> None:
        count, first = self.kinds.get(kind, (0, path))
        self.kinds[kind] = (count + 1, first)
