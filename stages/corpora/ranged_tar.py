"""Owns a tar that is read by ranges, as the readers of tars take it, wherever it lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import BinaryIO

from ...pipeline.storage import Location, RangeReader, file_over


@dataclass(frozen=True)
class RangedTar(ABC):
    """
    Attributes:
        location: where it lies.
    """

    location: Location

    def __str__(self) -> str:
        return str(self.location)

    @property
    def name(self) -> str:
        return self.location.name

    @abstractmethod
    def num_bytes(self) -> int:
        """Of the whole tar."""

    @abstractmethod
    def open_ranges(self) -> RangeReader:
        """Open for reading at any place, by any thread."""

    def open(self) -> BinaryIO:
        """Open for reading."""
        return file_over(self.open_ranges(), self.num_bytes())

    def read_range(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; shorter only where the file ends."""
        return self.open_ranges().read(offset, size)
