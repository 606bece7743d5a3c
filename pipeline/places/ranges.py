"""Owns ways to read a file by its ranges in any place: as a file for libraries that seek, and in blocks where each request takes long."""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

from .place import RangeReader

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


#: What lies one behind another is read in blocks of so many bytes, of which the last few are kept.
BLOCK_BYTES, BLOCKS_KEPT = 4 << 20, 6


class RangeFile(io.RawIOBase):
    """A file that is open for reading, of `size` bytes. Closed or forgotten, it closes its ranges.

    Raises:
        Unreachable: while reading: the place gives an error.
    """

    def __init__(self, ranges: RangeReader, size: int) -> None:
        super().__init__()
        self._ranges, self._size, self._at = ranges, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"no such place in a file: {start + offset}")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        data = self._ranges.read(self._at, left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._ranges.close()
        super().close()


class RangesOfFile:
    """Ranges of a file that is open already, of this process alone; it closes when it is forgotten."""

    def __init__(self, file: io.BufferedRandom) -> None:
        self._file = file
        self._close = weakref.finalize(self, file.close)
        self._turn = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        with self._turn:
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        """Nothing is read any more."""
        self._close()


class RangesInBlocks:
    """Ranges of one file, of which many are read near each other: one request a block."""

    def __init__(self, ranges: RangeReader) -> None:
        self._ranges = ranges
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._turn = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        first, last = offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES
        if size <= 0 or last - first >= BLOCKS_KEPT:
            return self._ranges.read(offset, size)
        with self._turn:
            data = b"".join(self._block(number) for number in range(first, last + 1))
        begin = offset - first * BLOCK_BYTES
        return data[begin : begin + size]

    def _block(self, number: int) -> bytes:
        if number not in self._kept:
            self._kept[number] = self._ranges.read(number * BLOCK_BYTES, BLOCK_BYTES)
            if len(self._kept) > BLOCKS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def close(self) -> None:
        """Nothing is read any more."""
        self._kept.clear()
        self._ranges.close()
