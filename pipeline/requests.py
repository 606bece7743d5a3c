"""Owns making many requests of a place at the same moment, since each waits most of its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

_AT_ONCE = 32


def together(do: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """What comes of each, in order."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(do, items))
