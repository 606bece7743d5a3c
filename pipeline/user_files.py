"""Owns what a user names on his own machine: images, lists, class files, weights. They are his, and no artefacts of ours.

They stay where they are and are only read, by path. What teachonce writes lies in places: see `storage.py`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from ..storage_schemas.errors import InputError
from ..storage_schemas.near_names import near_names
from ..storage_schemas.plain_text import typed
from .places.files import FileRanges, read_at, read_file, stat_of
from .places.files import kind_of_no_file as kind_of_no_file  # folders of images look at very many files
from .storage import LOOK_BESIDE, Location
from .storage import expand_home as expand_home
from .storage import is_url as is_url
from .web import read_url as read_url  # stages know what users name, and nothing of what is behind it


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
        text = str(file)
        if text.startswith("pipe:"):
            raise InputError("pipe: runs a command from data and is refused", where=text)
        if is_url(text):
            raise InputError("only local folders can be used here", where=text, hint="mount or copy it first")
        return UserFile(Path(expand_home(text)).absolute())

    def __truediv__(self, name: str) -> UserFile:
        return UserFile(self.path / name)

    def __str__(self) -> str:
        try:
            return str(self.path.relative_to(Path.cwd()))
        except ValueError:
            return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def location(self) -> Location:
        """The same, for questions about artefacts: whether it is a folder of ours."""
        return Location.of(self.path)

    def near(self) -> list[str]:
        """Names of what lies beside it and may have been meant, where there is nothing here."""
        try:
            beside = [path.name for path in islice(self.path.parent.iterdir(), LOOK_BESIDE)]
        except (OSError, ValueError):
            return []
        return [typed(UserFile(self.path.with_name(name))) for name in near_names(self.name, beside)]

    def exists(self) -> bool:
        return stat_of(self.path) is not None

    def is_dir(self) -> bool:
        found = stat_of(self.path)
        return found is not None and stat.S_ISDIR(found.st_mode)

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
        found = stat_of(self.path)
        return None if found is None else found.st_size

    def names(self) -> list[str]:
        """Names in this folder in bytewise order; none where there is no such folder."""
        try:
            return sorted(entry.name for entry in self.path.iterdir())
        except FileNotFoundError:
            return []

    def read_bytes(self) -> bytes:
        return self.path.read_bytes()

    def check_is_file(self) -> None:
        """Check, without opening it, that this is no pipe, device or socket.

        Raises:
            InputError: it is.
        """
        kind = kind_of_no_file(self.path.stat().st_mode)
        if kind is not None:
            raise InputError(f"{kind}, not a file", where=self)

    def read_file(self) -> bytes:
        """All bytes of this file, which must be one: pipes and devices give bytes for ever, or none and no end.

        Raises:
            InputError: a pipe, a device or a socket.
        """
        return read_file(self.path)

    def read_below(self, relative: str) -> bytes:
        """`read_file` of a file below this folder, without the cost of a new object for each of many.

        Its name is UTF-8, whatever the locale says.
        """
        return read_file(os.fsencode(self.path) + b"/" + relative.encode())

    def read_range(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, in one opening; shorter only where the file ends."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return read_at(descriptor, offset, size)
        finally:
            os.close(descriptor)

    def open(self) -> BinaryIO:
        """Open for reading."""
        return self.path.open("rb")

    def open_ranges(self) -> FileRanges:
        """Open for reading at any place, by any thread.

        Raises:
            StorageError: this process has as many files open as it may.
        """
        return FileRanges(self.path, where=self)
