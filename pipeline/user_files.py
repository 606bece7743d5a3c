"""Owns what a user names on his own machine: images, lists, class files, weights. They are his, and no artefacts of ours.

They stay where they are and are only read, by path. What teachonce writes lies in places: see `storage.py`.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Json
from .places.files import FileRanges, read_file, stat_of
from .places.files import kind_of_no_file as kind_of_no_file  # folders of images look at very many files
from .storage import Location
from .storage import expand_home as expand_home
from .storage import is_url as is_url
from .web import read_url as read_url  # stages see what users name, and nothing of what is behind it


@dataclass(frozen=True, kw_only=True)
class FileState:
    """What the file system has of a file. Writing it anew, whatever program does so, changes some of it.

    Attributes:
        path: with all links followed.
        modified_ns, changed_ns: when its bytes, and when they or its entry, changed last (`mtime`, `ctime`). A program can set
            the first back, not the second.
        seen: when it was looked at, as `time.time()`; it does not count when two states are compared.
    """

    path: str
    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int
    seen: float = field(compare=False)

    def to_json(self) -> Json:
        return {name: value for name, value in self.__dict__.items() if name != "seen"}

    def is_settled(self, seconds: float) -> bool:
        """Whether it had been left alone for so long when it was looked at."""
        return self.seen - max(self.modified_ns, self.changed_ns) / 1e9 >= seconds


@dataclass(frozen=True, order=True)
class UserFile:
    """A file or folder on this machine, there or not."""

    path: Path

    @staticmethod
    def of(file: UserFile | Path | str) -> UserFile:
        """Resolve what a user typed.

        Raises:
            InputError: a URL, which only image lists may hold, or a `pipe:`.
        """
        if isinstance(file, UserFile):
            return file
        path = Location.of(file).local_path()
        if path is None:
            raise InputError(
                "only local folders can be used here",
                code="place-not-local",
                where=file,
                hint="mount or copy it first",
            )
        return UserFile(path)

    def __truediv__(self, name: str) -> UserFile:
        return UserFile(self.path / name)

    def __str__(self) -> str:
        return str(self.location)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def location(self) -> Location:
        """The same file as a `Location`, for what works on artefacts too."""
        return Location.of(self.path)

    def near(self) -> list[str]:
        """Names of what lies beside it and may have been meant, where there is nothing here."""
        return self.location.near()

    def exists(self) -> bool:
        return self.location.exists()

    def is_dir(self) -> bool:
        return self.location.is_dir()

    def is_file(self) -> bool:
        """Neither a folder nor a pipe or a device, which would never end."""
        found = stat_of(self.path)
        return found is not None and stat.S_ISREG(found.st_mode)

    def is_device(self) -> bool:
        """Whether this is a terminal, a disk, or another device."""
        found = stat_of(self.path)
        return found is not None and kind_of_no_file(found.st_mode) == "a device"

    def size(self) -> int | None:
        """Bytes, or None where there is no such file."""
        return self.location.size()

    def state(self) -> FileState | None:
        """What changes whenever it is written; None where there is no file."""
        found, now = stat_of(self.path), time.time()
        if found is None or not stat.S_ISREG(found.st_mode):
            return None
        return FileState(
            path=str(self.path.resolve()),
            size=found.st_size,
            modified_ns=found.st_mtime_ns,
            changed_ns=found.st_ctime_ns,
            inode=found.st_ino,
            device=found.st_dev,
            seen=now,
        )

    def names(self) -> list[str]:
        """Names in this folder in bytewise order; none where there is no such folder."""
        return self.location.names()

    def read_bytes(self) -> bytes:
        return self.path.read_bytes()

    def check_is_file(self) -> None:
        """Check, without opening it, that this is no pipe, device or socket.

        Raises:
            InputError: it is.
        """
        kind = kind_of_no_file(self.path.stat().st_mode)
        if kind is not None:
            raise InputError(f"{kind}, not a file", code="not-a-file", where=self)

    def read_file(self) -> bytes:
        """All bytes of this file, which must be one: pipes and devices give bytes for ever, or none and no end.

        Raises:
            InputError: a pipe, a device or a socket.
        """
        return read_file(self.path)

    def read_below(self, relative: str) -> bytes:
        """`read_file` of a file below this folder, without the cost of a new object for each of many.

        Its name is UTF-8, whatever the locale is.
        """
        return read_file(os.fsencode(self.path) + b"/" + relative.encode())

    def read_range(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, in one opening; shorter only where the file ends."""
        return self.location.read_range(offset, size)

    def open(self) -> BinaryIO:
        """Open for reading."""
        return self.path.open("rb")

    def open_ranges(self) -> FileRanges:
        """Open for reading at any place, by any thread.

        Raises:
            StorageError: this process has as many files open as it may.
        """
        return FileRanges(self.path, where=self)
