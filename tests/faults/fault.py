"""Owns the fault: how it is provoked, what must happen, and the function that does both; and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .room import Room


class Unmet(Exception):
    """What must happen did not; the text says what did."""


class Lacking(Exception):
    """This machine cannot provoke it; the text says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table.

    Attributes:
        name: unique; options select by it.
        kind: heading of the table that it stands in.
        provoked: how it is provoked, for readers.
        must: what must happen.
        run: provokes it, and returns what happened. Raises `Unmet` or `Lacking`.
    """

    name: str
    kind: str
    provoked: str
    must: str
    run: Callable[[Room], str]


#: What must happen almost always.
SAME_BYTES = (
    "one line and exit code 1; what is finished stays; the same command then ends with the bytes of an undisturbed run"
)


def check(holds: bool, otherwise: str) -> None:
    """Raises `Unmet` with this text unless it holds. (Unlike an assertion it is there under `python -O` too.)"""
    if not holds:
        raise Unmet(otherwise)
