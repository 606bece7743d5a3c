"""Owns locations: what a user types, or a file of ours holds, as a name in a place.

A location is passed as a string or path and becomes a `Location` here. What lies there is an artefact: see `places/place.py`. Files that
a user brings are `UserFile`s.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from ..storage_schemas.errors import InputError
from ..storage_schemas.near_names import near_names
from ..storage_schemas.plain_text import typed
from .places.addresses import handed_on as handed_on
from .places.addresses import s3_endpoint as s3_endpoint
from .places.copies import CopiedPlace, copied
from .places.copies import Copies as Copies
from .places.disk_errors import as_storage_error as as_storage_error
from .places.local import LOCAL
from .places.local import is_temporary as is_temporary
from .places.place import HeldLock, NoLocksError, Place, RangeReader, Stat
from .places.ranges import RangeFile
from .places.ranges import RangesInBlocks as RangesInBlocks
from .places.ranges import RangesOfFile as RangesOfFile
from .places.schemes import opener

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = [
    "Copies",
    "HeldLock",
    "Location",
    "NoLocksError",
    "RangeReader",
    "RangesInBlocks",
    "RangesOfFile",
    "Stat",
    "as_storage_error",
    "expand_home",
    "file_over",
    "handed_on",
    "is_temporary",
    "is_url",
    "missing_hint",
    "s3_endpoint",
    "scratch_file",
    "scratch_folder",
]

#: So many names of a folder are looked at for one that was meant.
_LOOK_BESIDE = 10_000


class Named(Protocol):
    """What a user named, there or not: a `Location` or a `UserFile`."""

    def exists(self) -> bool: ...

    def near(self) -> list[str]: ...


def missing_hint(location: Named, otherwise: str) -> str:
    """What to do where something was named that is not there: what lies beside it may have been meant."""
    near = [] if location.exists() else location.near()
    return f"did you mean {', '.join(near)}?" if near else otherwise


def is_url(text: str) -> bool:
    """True for `scheme://…`."""
    return "://" in text


def expand_home(text: str) -> str:
    """A path that begins with `~` or `~NAME` in full, as a shell has it; what names no home stays as it is."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        return text


def scratch_file(folder: Location | None = None) -> io.BufferedRandom:
    """A new file to write and read, without a name: it is gone with the process that holds it open.

    Args:
        folder: it takes the space of this folder's disk; None, or what is no local folder: of the system's for such files (`TMPDIR`).
    """
    return tempfile.TemporaryFile(dir=None if folder is None else folder.local_path())


def file_over(ranges: RangeReader, size: int) -> BinaryIO:
    """A file of this size for a library that reads and seeks. Closing it closes the ranges."""
    return cast("BinaryIO", RangeFile(ranges, size))


@contextlib.contextmanager
def scratch_folder() -> Iterator[Location]:
    """A new folder on this machine, where the system keeps such (`TMPDIR`); it is gone, with all in it, when the block ends."""
    with tempfile.TemporaryDirectory(prefix="teachonce-") as folder:
        yield Location.of(folder)


@dataclass(frozen=True, order=True)
class Location:
    """A name in a place: a file, a folder, or nothing yet.

    Attributes:
        place: where it lies.
        full_name: from the place's root on.
    """

    place: Place
    full_name: str

    @staticmethod
    def of(location: Location | Path | str) -> Location:
        """Resolve what a user typed, or what `address` returned.

        Raises:
            InputError: a URL of no place that there is, or a `pipe:`.
        """
        if isinstance(location, Location):
            return location
        text = str(location)
        if text.startswith("pipe:"):
            raise InputError("pipe: runs a command from data and is refused", code="pipe-refused", where=text)
        if is_url(text):
            scheme, _, rest = text.partition("://")
            open_place = opener(scheme)
            if open_place is None:
                raise InputError(
                    "only local folders and s3://, gs://, az:// and file:// can be used here",
                    code="place-not-local",
                    where=text,
                    hint="mount or copy it first",
                )
            return Location(*open_place(rest))
        return Location(LOCAL, str(Path(expand_home(text)).absolute()))

    def __truediv__(self, name: str) -> Location:
        if not name:
            return self
        return Location(self.place, f"{self.full_name.rstrip('/')}/{name}" if self.full_name else name)

    def __str__(self) -> str:
        return self.place.spell(self.full_name)

    @property
    def address(self) -> str:
        """What `of` takes anywhere: a full path or a URL."""
        return self.place.address(self.full_name)

    @property
    def name(self) -> str:
        """The last part of the full name."""
        return self.full_name.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The name's ending with its dot, in lower case; '' where there is none."""
        return Path(self.name).suffix.lower()

    @property
    def parents(self) -> list[Location]:
        """The folders that it lies in, from the nearest on."""
        names = [self.full_name[:i] or "/" for i, letter in enumerate(self.full_name) if letter == "/"]
        return [Location(self.place, name) for name in reversed(names) if name != self.full_name]

    @property
    def folder(self) -> Location:
        """The folder that it lies in."""
        folder, slash, _ = self.full_name.rpartition("/")
        return Location(self.place, folder or slash)

    def sibling(self, name: str) -> Location:
        """Another name in the same folder."""
        return self.folder / name

    def way_to(self, other: Location) -> str:
        """How a file in this folder names another file: by its path from here where that lies below this folder or beside it,
        so that they can be moved together; else by its address.
        """
        for folder, begins in ((self, ""), (self.folder, "../")):
            start = f"{folder.full_name.rstrip('/')}/" if folder.full_name else ""
            path = other.full_name.removeprefix(start)
            is_below = other.place == self.place and start != "/" and other.full_name == start + path
            if is_below and folder.full_name != other.full_name and not is_url(path):
                return begins + path
        return other.address

    def reach(self, way: str) -> Location:
        """What `way_to` of this folder named; read by way of the same copies on this machine as the folder."""
        if way.startswith("/") or is_url(way):
            there = Location.of(way)
            return there.copied(self.place.copies) if isinstance(self.place, CopiedPlace) else there
        folder = self
        while way.startswith("../"):
            folder, way = folder.folder, way.removeprefix("../")
        return folder / way

    def local_path(self) -> Path | None:
        """The path by which other programs find it; None where they cannot reach it."""
        return self.place.local_path(self.full_name)

    @property
    def path(self) -> Path:
        """The same, for what works with local folders alone: nothing that may meet another place.

        Raises:
            InputError: it lies elsewhere.
        """
        path = self.local_path()
        if path is None:
            raise InputError(
                "only local folders can be used here",
                code="place-not-local",
                where=self,
                hint="choose a local folder",
            )
        return path

    def near(self) -> list[str]:
        """Names of what lies beside it and may have been meant, where there is nothing here."""
        try:
            beside = [name.rstrip("/") for name in islice(self.folder.entries(), _LOOK_BESIDE)]
        except (OSError, ValueError):
            return []
        return [typed(self.sibling(name)) for name in near_names(self.name, beside)]

    def stat(self) -> Stat | None:
        """What is there, in one look; None where there is nothing, and for a name that nothing can have."""
        return self.place.stat(self.full_name)

    def exists(self) -> bool:
        return self.stat() is not None

    def is_dir(self) -> bool:
        found = self.stat()
        return found is not None and found.is_folder

    def is_file(self) -> bool:
        found = self.stat()
        return found is not None and not found.is_folder

    def size(self) -> int | None:
        """Bytes, or None where there is no such file."""
        found = self.stat()
        return None if found is None else found.size

    def changed_at(self) -> float | None:
        """When it was written last, as seconds since 1970; None where there is no such file."""
        found = self.stat()
        return None if found is None else found.changed_at

    def entries(self, *, deep: bool = False) -> Iterator[str]:
        """Names below this folder, streamed, in any order; see `Place.entries`."""
        return self.place.entries(self.full_name, deep=deep)

    def listing(self, *, deep: bool = False) -> Iterator[tuple[str, Stat]]:
        """Files below this folder with what is known of each, in any order; see `Place.listing`."""
        return self.place.listing(self.full_name, deep=deep)

    def names(self) -> list[str]:
        """Names in this folder in bytewise order; none where there is no such folder."""
        return sorted(name.rstrip("/") for name in self.entries())

    def folders(self) -> list[Location]:
        """The folders in this folder, in bytewise order of their names."""
        return [self / name for name in sorted(name[:-1] for name in self.entries() if name.endswith("/"))]

    def read_bytes(self) -> bytes:
        return self.place.read(self.full_name)

    def read_range(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, in one request; shorter only where the file ends."""
        return self.place.read_range(self.full_name, offset, size)

    def stream(self) -> Iterator[bytes]:
        """All bytes in pieces."""
        return self.place.stream(self.full_name)

    def copied(self, copies: Copies) -> Location:
        """The same, read by way of copies on this machine."""
        return Location(copied(self.place, copies), self.full_name)

    def keep_copy(
        self, copies: Copies, *, sha256: str | None = None, size: int | None = None, verify: bool = True
    ) -> None:
        """Fetch a copy unless there is one; see `Copies.keep`."""
        copies.keep(self.place, self.full_name, sha256=sha256, size=size, verify=verify)

    def open_ranges(self, version: str = "") -> RangeReader:
        """Open for reading at any place, by any thread; `version` as in `Place.open_ranges`."""
        return self.place.open_ranges(self.full_name, version=version)

    def open(self) -> BinaryIO:
        """Open for a library that reads and seeks.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return file_over(self.open_ranges(), self.size() or 0)

    def write_bytes(self, data: bytes) -> None:
        """Write a whole file durably and atomically."""
        self.place.write(self.full_name, data)

    def write_note(self, data: bytes) -> None:
        """Write a whole file atomically; the system decides when it is kept. Nothing may rely on it."""
        self.place.write(self.full_name, data, durable=False)

    def write_if_absent(self, data: bytes) -> bool:
        """Write a whole file durably, unless there is one; False where there is."""
        return self.place.write_if_absent(self.full_name, data)

    def create(self, *, settle: bool = True) -> AbstractContextManager[BinaryIO]:
        """Write a whole new file piece by piece, as `write_bytes` does. Nothing is left behind on failure.

        `settle=False` is for all but the last of several files in one folder.
        """
        return self.place.create(self.full_name, settle=settle)

    def append(self) -> BinaryIO:
        """Open for appending: for logs, which no receipt vouches for."""
        return self.place.append(self.full_name)

    def sync(self) -> None:
        """Make durable what Zarr wrote."""
        self.place.sync(self.full_name)

    def remove(self) -> None:
        """Remove this file if it is there."""
        self.place.remove(self.full_name)

    def make_dir(self) -> Location:
        self.place.make_folder(self.full_name)
        return self

    def remove_folder(self) -> None:
        """Remove this folder with all that is in it, if it is there."""
        self.place.remove_folder(self.full_name)

    def remove_temporaries(self) -> None:
        """Remove what killed writers (ours and zarr's) left below this folder.

        Only the driver calls this, before any work starts and when none is left.
        """
        self.place.sweep(self.full_name)

    def hold(self, content: bytes) -> HeldLock | None:
        """Hold this file, with `content` in it, for this process alone; None where another process holds it.

        Raises:
            NoLocksError: the place has no locks.
        """
        return self.place.hold(self.full_name, content)

    def is_held(self) -> bool:
        """Whether a process holds this file."""
        return self.place.is_held(self.full_name)

    def zarr_store(self, *, read_only: bool = False) -> Store:
        """This folder as Zarr takes it."""
        return self.place.zarr_store(self.full_name, read_only=read_only)

    def is_inside(self, folder: Location) -> bool:
        """Whether it is this folder or lies in it, by whatever names the two are reached."""
        return self.place == folder.place and self.place.is_inside(self.full_name, folder.full_name)

    def obstacle(self) -> tuple[Location, str] | None:
        """What is in the way of files below this folder, with a message for it; None where they can be written."""
        found = self.place.obstacle(self.full_name)
        return None if found is None else (Location(self.place, found[0]), found[1])
