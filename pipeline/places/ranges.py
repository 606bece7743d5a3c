"""Owns a file for libraries that want to seek in one, over the ranges of any place."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from .place import RangeReader

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


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
