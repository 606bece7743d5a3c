"""Owns the guess at what a misspelt name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Names that are guessed, and the letters that a part of one must have.
_AT_MOST, _PART = 3, 3


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names that `name` may have meant, the nearest first; case and separators count little.

    Where none is spelled alike, those that contain it, if they are so few.
    """
    plain: dict[str, str] = {}
    for other in known:
        plain.setdefault(_plain(other), other)
    alike = difflib.get_close_matches(_plain(name), list(plain), n=_AT_MOST, cutoff=0.6)
    longer = [other for other in plain if len(name) >= _PART and _plain(name) in other]
    return [plain[near] for near in alike or (longer if len(longer) <= _AT_MOST else [])]


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A hint: the nearest names, or what to do where none is near."""
    near = near_names(name, known)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace("/", "-")
