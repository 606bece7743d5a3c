"""Owns copies of far files on this machine's disk: verified as they come, shared by its processes, and no more bytes than allowed.

A copy is `FOLDER/NN/HASH`, the hash being that of what the file is and where it lies. It is there whole, or not at all. Which are removed
when there is no room: those that were wanted last the longest ago. A copy that is open stays readable while it is.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...storage_schemas.errors import DamagedError
from .local import LOCAL, is_temporary
from .place import HeldLock, Place, RangeReader, Stat

if TYPE_CHECKING:
    from zarr.abc.store import Store

#: Between two looks at whether another process has fetched a file.
LOOK_SECONDS = 0.01

#: When room is made, so much of the limit is left.
KEEP_SHARE = 0.9

#: Files of writers that are gone, after so long.
OLD_SECONDS = 3600.0

#: A file with the bytes of all copies.
_TOTAL = "total"

#: Copies whose bytes this process has compared with their digest.
_verified: set[tuple[str, int, int]] = set()


@dataclass(frozen=True, order=True)
class Copies:
    """Copies in a folder of this machine.

    Attributes:
        folder: its full path.
        limit: bytes.
        of: what the files are of: what it says decides their bytes, whatever their names.
    """

    folder: str
    limit: int
    of: str

    def path(self, address: str) -> str:
        """Where the copy of a file is, or would be."""
        name = hashlib.blake2b(f"{self.of}\0{address}".encode(), digest_size=16).hexdigest()
        return f"{self.folder}/{name[:2]}/{name}"

    def keep(self, place: Place, name: str, *, sha256: str | None, size: int | None, verify: bool = True) -> None:
        """Fetch a file unless its copy is there. Of several processes one does, and the others wait.

        Args:
            sha256, size: of its content; None where nothing is known of it, and its reader checks it.
            verify: compare a copy that is there with the digest, once in a process.

        Raises:
            DamagedError: the far file is not the one with this digest.
            FileNotFoundError: there is none.
        """
        path = self.path(place.address(name))
        if self._has(path, sha256, size, verify):
            return
        held = self._turn(f"{path}.lock")
        try:
            if self._has(path, sha256, size, verify):
                return
            if size is not None:
                if size > self.limit:
                    return  # it is read where it lies
                self._make_room(size)
            hasher, written = hashlib.sha256(), 0
            with LOCAL.create(path, settle=False) as file:
                for part in place.stream(name):
                    hasher.update(part)
                    written += file.write(part)
                if sha256 not in (None, found := hasher.hexdigest()):
                    raise DamagedError(
                        "a file is not the one that its receipt vouches for",
                        code="far-file-changed",
                        where=place.spell(name),
                        expected=f"sha256 {sha256}",
                        found=f"{found} of {written} bytes",
                        hint="restore it from a copy; teachonce verify says what else is damaged",
                    )
            self._count(written)
        finally:
            held.release()

    def forget(self, address: str) -> None:
        """Remove a copy that its reader cannot use."""
        LOCAL.remove(self.path(address))

    def _has(self, path: str, sha256: str | None, size: int | None, verify: bool) -> bool:
        found = LOCAL.stat(path)
        if found is None or (size is not None and found.size != size):
            return False
        key = (path, found.size, int(found.changed_at * 1e6))
        if verify and sha256 is not None and key not in _verified:
            hasher = hashlib.sha256()
            for part in LOCAL.stream(path):
                hasher.update(part)
            if hasher.hexdigest() != sha256:
                LOCAL.remove(path)
                return False
        try:
            os.utime(path)  # wanted now
        except FileNotFoundError:
            return False
        touched = LOCAL.stat(path)
        if verify and touched is not None:
            _verified.add((path, touched.size, int(touched.changed_at * 1e6)))
        return True

    def _turn(self, name: str) -> HeldLock:
        while True:
            held = LOCAL.hold(name, b"")
            if held is not None:
                return held
            time.sleep(LOOK_SECONDS)

    def _count(self, more: int) -> int:
        """Add to the bytes of all copies. Returns their sum."""
        held = self._turn(f"{self.folder}/{_TOTAL}.lock")
        try:
            total = self._total() + more
            LOCAL.write(f"{self.folder}/{_TOTAL}", b"%d" % total, durable=False)
            return total
        finally:
            held.release()

    def _total(self) -> int:
        try:
            return int(LOCAL.read(f"{self.folder}/{_TOTAL}"))
        except (FileNotFoundError, ValueError):
            return sum(size for _, size, _ in self._all())

    def _all(self) -> list[tuple[float, int, str]]:
        """When it was wanted last, bytes and path of each copy."""
        found = []
        for name in LOCAL.entries(self.folder, deep=True):
            path = f"{self.folder}/{name}"
            stat = LOCAL.stat(path) if "/" in name and not name.endswith(".lock") else None
            if stat is not None:
                found.append((stat.changed_at, stat.size, path))
        return found

    def _make_room(self, size: int) -> None:
        if self._count(0) + size <= self.limit:
            return
        held = self._turn(f"{self.folder}/{_TOTAL}.lock")
        try:
            copies = sorted(self._all())
            total = sum(bytes_ for _, bytes_, _ in copies)
            for wanted_at, bytes_, path in copies:
                is_old = wanted_at < time.time() - OLD_SECONDS
                if total + size > self.limit * KEEP_SHARE if not is_temporary(Path(path).name) else is_old:
                    LOCAL.remove(path)
                    total -= bytes_
            LOCAL.write(f"{self.folder}/{_TOTAL}", b"%d" % total, durable=False)
        finally:
            held.release()


@dataclass(frozen=True, order=True)
class CopiedPlace:
    """A place, for reading, some of whose files have copies here; what has none is read where it lies."""

    behind: Place
    copies: Copies

    def _copy(self, name: str) -> str | None:
        path = self.copies.path(self.behind.address(name))
        return path if LOCAL.stat(path) is not None else None

    def read(self, name: str) -> bytes:
        path = self._copy(name)
        if path is not None:
            try:
                return LOCAL.read(path)
            except FileNotFoundError:
                pass  # removed in between
        return self.behind.read(name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self._copy(name)
        if path is not None:
            try:
                return LOCAL.read_range(path, offset, size)
            except FileNotFoundError:
                pass
        return self.behind.read_range(name, offset, size)

    def open_ranges(self, name: str, *, version: str = "") -> RangeReader:
        path = self._copy(name)
        if path is not None:
            try:
                return LOCAL.open_ranges(path)
            except FileNotFoundError:
                pass
        return self.behind.open_ranges(name, version=version)

    def stat(self, name: str) -> Stat | None:
        path = self._copy(name)
        found = None if path is None else LOCAL.stat(path)
        return self.behind.stat(name) if found is None else found

    def zarr_store(self, name: str, *, read_only: bool = False) -> Store:
        from .zarr_store import PlaceStore

        return PlaceStore(copied(self.behind, self.copies), name, read_only=True)

    def __getattr__(self, verb: str) -> Any:
        if verb.startswith("__"):
            raise AttributeError(verb)  # of a copy that is being unpickled, `behind` is not there yet
        return getattr(self.behind, verb)  # all else is as it is there


def copied(place: Place, copies: Copies) -> Place:
    """The same place, read by way of copies."""
    return cast("Place", CopiedPlace(place, copies))
