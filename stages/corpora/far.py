"""Owns corpora that lie in a bucket: a folder of images there, and what a tar's reader needs of a file there."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ...pipeline.storage import Location, RangeReader, RangesInBlocks
from .images import image_extensions
from .ranged_tar import RangedTar
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


class FarFile(RangedTar):
    """A tar in a bucket, read as one on this machine."""

    def num_bytes(self) -> int:
        return self.location.size() or 0

    def open_ranges(self) -> RangeReader:
        return _blocks(self.location)


@functools.lru_cache(maxsize=_TARS_OPEN)
def _blocks(location: Location) -> RangesInBlocks:
    return RangesInBlocks(location.open_ranges())
