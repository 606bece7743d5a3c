"""Owns corpora that lie in a bucket: a folder of images there, and what a tar's reader needs of a file there."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from ...pipeline.storage import Location, RangeReader, RangesInBlocks, file_over
from .images import image_extensions
from .source import SourceFile
from .tree import EnteredFolder, File, walk

#: Tars that are being read in this process.
_TARS_OPEN = 2


@dataclass(frozen=True, kw_only=True)
class FarFolderSource:
    """As `FolderSource`. The sizes of files are known only by reading them."""

    name: str
    root: Location
    extensions: Collection[str] = field(default_factory=image_extensions)

    def walk(self) -> Iterator[SourceFile]:
        """As in `tree.walk`.

        Raises:
            StorageError: the folder cannot be listed.
        """
        yield from walk(_FarTree(self.root), self.extensions)

    def read(self, path: str, offset: int, size: int) -> bytes:
        return (self.root / path).read_bytes()


@dataclass(frozen=True)
class _FarTree:
    """A folder is called by its path below the root with a slash, the root by nothing. There are no links."""

    root: Location

    def top(self) -> EnteredFolder[bytes]:
        return EnteredFolder(folder=b"", identity=b"")

    def enter(self, folder: bytes, name: bytes) -> EnteredFolder[bytes]:
        path = folder + name + b"/"
        return EnteredFolder(folder=path, identity=path)

    def names(self, folder: bytes) -> list[bytes]:
        # A bucket may have an object and a folder of one name: both are there.
        return [name.encode() for name in (self.root / folder.decode().rstrip("/")).entries()]

    def file(self, folder: bytes, name: bytes) -> File:
        return File(size=-1)

    def is_label(self, folder: bytes, name: bytes) -> bool:
        return False  # as in a folder


@dataclass(frozen=True)
class FarFile:
    """A tar in a bucket, read as one on this machine."""

    location: Location

    def __str__(self) -> str:
        return str(self.location)

    @property
    def name(self) -> str:
        return self.location.name

    def open(self) -> BinaryIO:
        """Open for reading."""
        return file_over(self.open_ranges(), self.location.size() or 0)

    def open_ranges(self) -> RangeReader:
        """Open for reading at any place, by any thread."""
        return _blocks(self.location)

    def read_range(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; shorter only where the file ends."""
        return _blocks(self.location).read(offset, size)


@functools.lru_cache(maxsize=_TARS_OPEN)
def _blocks(location: Location) -> RangesInBlocks:
    return RangesInBlocks(location.open_ranges())
