"""Owns the blocks of a store that are at hand: each is read whole, since rows alone cost many times as much, and kept for a while."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

Block = TypeVar("Block")


class Blocks:
    """What was read last, up to a number of bytes; the block that is asked for is kept in any case.

    One thread reads at a time, so several that want the same block read it once.

    Args:
        most_bytes: of all blocks that are kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()
        #: Held by whoever reads, or looks into a block that reads for itself.
        self.lock = threading.RLock()

    def get(self, key: tuple[Any, ...], read: Callable[[], Block], size: Callable[[Block], int]) -> Block:
        """The block of that key, read if it is not at hand.

        Args:
            size: its bytes.
        """
        with self.lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                block: Block = self._kept[key][0]
                return block
            block = read()
            self._kept[key] = block, size(block)
            self._bytes += self._kept[key][1]
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][1]
            return block
