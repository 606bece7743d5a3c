"""Owns a figure of a plan: its value, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ...storage_schemas.fingerprint import Json


class Basis(IntEnum):
    """Where a figure comes from, the surest first. What is calculated from several is no surer than the least sure of them."""

    COUNTED = 0
    MEASURED = 1
    STATED = 2
    TABLE = 3

    @property
    def word(self) -> str:
        return self.name.lower()


#: What the words mean, for the end of a report.
MEANINGS = {
    Basis.COUNTED: "counted in the files, or exact by the formats",
    Basis.MEASURED: "measured here, on a sample",
    Basis.STATED: "stated by an option",
    Basis.TABLE: "from the tables in docs/plan.md",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of a plan.

    Attributes:
        value: its value, in the unit that its name says.
        basis: where it comes from.
    """

    value: float
    basis: Basis

    @staticmethod
    def of(value: float, *parts: Figure | Basis | None) -> Figure:
        """Calculated from others; None for parts that do not matter."""
        bases = [part.basis if isinstance(part, Figure) else part for part in parts if part is not None]
        return Figure(value=value, basis=max(bases, default=Basis.COUNTED))

    def to_json(self) -> Json:
        return {"value": self.value, "from": self.basis.word}


def total(parts: list[Figure]) -> Figure:
    """The sum; nothing is exactly 0."""
    return Figure.of(sum(part.value for part in parts), *parts)
