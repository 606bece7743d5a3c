"""Owns the causes for which stored values are not what the teacher gives: each with its code, its words, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # causes are named where no torch is
    from .rerun import Values


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One of them.

    Attributes:
        code, what, hint: of the error.
        expected, found: what should have been done, and what was.
    """

    code: str
    what: str
    hint: str
    expected: str = ""
    found: str = ""

    @property
    def of_shard(self) -> bool:
        """Whether one shard alone can be wrong in this way, so that caching it again is what to do."""
        return self.hint.startswith(SHARD_AGAIN)


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A cause that is tried: what the teacher gives if it is so. None where it cannot be so here."""

    cause: Cause
    values: Callable[[], Values | None]


#: How hints begin where a shard alone is wrong.
SHARD_AGAIN = "cache the shard again"

#: What mends a store whose shards were all made in the wrong way.
AGAIN = "cache into a new store, with that put right"
