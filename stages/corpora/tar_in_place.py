"""Owns a tar that is used where it lies: what it was when it was looked at, and reading it as a source and once more as a whole.

A tar in a bucket is fetched into a file without a name, in one request, and is gone from this machine when the next one comes: walks
and reads in it would cost a request each otherwise. Nothing of a tar is kept.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ...pipeline.storage import Location, RangeReader, RangesOfFile, Stat, scratch_file
from ...storage_schemas.errors import DamagedError
from .images import image_extensions
from .ranged_tar import RangedTar
from .source import SourceFile
from .tars import TarSource

#: Bytes that are hashed at once.
_PIECE_BYTES = 8 << 20


#: What to do about a tar that is another one by now.
IN_PLACE_HINT = (
    "put the tar back as it was, or index the tars as they are now: teachonce shard … --in-place --out ANOTHER"
)

#: The same where it was written anew with the same length: copying an object in a bucket is enough for that.
WRITTEN_ANEW_HINT = (
    "run the same `teachonce shard … --in-place` command again: it takes the tar if its images are the same; "
    "else put it back as it was"
)


def refuse_changed_tar(tar: Location, found: Stat | None, *, size: int, version: str) -> None:
    """Compare what a look at a tar shows with what it was, as far as both are known.

    Raises:
        DamagedError: it is another one.
    """
    if found is None or found.size != size:
        raise tar_changed(tar, f"{size} bytes", None if found is None else f"{found.size} bytes")
    if version and found.version and found.version != version:
        raise tar_changed(tar, f"ETag {version}", found.version, WRITTEN_ANEW_HINT)


def tar_changed(tar: Location, expected: str, found: str | None, hint: str = IN_PLACE_HINT) -> DamagedError:
    """The error for a tar that is used in place and is not the one that was looked at, or indexed; None where nothing is there."""
    return DamagedError(
        "a tar that is used in place is gone" if found is None else "a tar that is used in place has changed",
        code="tar-in-place-changed",
        where=tar,
        expected=expected,
        found=found or "no file",
        hint=hint,
    )


@dataclass(frozen=True, kw_only=True)
class TarInPlace:
    """A `Source`.

    Attributes:
        location: where it lies.
        size, version: bytes and ETag ('' where there is none) when it was looked at.
    """

    name: str
    location: Location
    size: int
    version: str
    extensions: Collection[str] = field(default_factory=image_extensions)

    def walk(self) -> Iterator[SourceFile]:
        """As `TarSource.walk`, in the order of the tar: what lies one behind another is read so.

        Raises:
            InputError, Unreachable: as there.
            DamagedError: it is not the one that was looked at.
        """
        found = TarSource(name=self.name, file=self.at_hand(anew=True), extensions=self.extensions).walk()
        yield from sorted(found, key=lambda file: file.offset)

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.at_hand().read_range(offset, size)

    def at_hand(self, *, anew: bool = False) -> TarAtHand:
        """The tar, here.

        Args:
            anew: even if this process had it last.

        Raises:
            DamagedError: it is not the one that was looked at.
        """
        if anew:
            _at_hand.cache_clear()
        return _at_hand(self.location, self.size, self.version)

    def refuse_other(self, size: int) -> None:
        """
        Raises:
            DamagedError: it has not this size.
        """
        if self.size != size:
            raise tar_changed(self.location, f"{size} bytes", f"{self.size} bytes")


@dataclass(frozen=True)
class TarAtHand(RangedTar):
    """A tar on this machine, or a copy that nobody else sees."""

    ranges: RangeReader
    size: int

    def num_bytes(self) -> int:
        return self.size

    def open_ranges(self) -> RangeReader:
        return _Borrowed(self.ranges)

    def sha256(self) -> str:
        """Of all its bytes."""
        hasher = hashlib.sha256()
        for start in range(0, self.size, _PIECE_BYTES):
            hasher.update(self.ranges.read(start, _PIECE_BYTES))
        return hasher.hexdigest()


@dataclass(frozen=True)
class _Borrowed:
    """Ranges that stay open when their reader is done."""

    ranges: RangeReader

    def read(self, offset: int, size: int) -> bytes:
        return self.ranges.read(offset, size)

    def close(self) -> None:
        """They belong to `TarAtHand`."""


@functools.lru_cache(maxsize=1)
def _at_hand(location: Location, size: int, version: str) -> TarAtHand:
    """One tar a process: the one before it is closed, or gone, when its last reader is."""
    if location.local_path() is not None:
        ranges: RangeReader = location.open_ranges()
    else:
        scratch = scratch_file()
        for piece in location.stream():
            scratch.write(piece)
        ranges = RangesOfFile(scratch)
    refuse_changed_tar(location, location.stat(), size=size, version=version)
    return TarAtHand(location, ranges, size)
