"""Owns reading a folder of images."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import Unreachable
from .images import image_extensions
from .reading import look_at
from .source import SourceFile
from .tree import EnteredFolder, File, walk


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder of images, or of what else `extensions` names; a file's label is the name of the folder that it lies in."""

    name: str
    root: UserFile
    extensions: Collection[str] = field(default_factory=image_extensions)

    def walk(self) -> Iterator[SourceFile]:
        """As in `tree.walk`.

        Raises:
            Unreachable: the folder cannot be listed at the moment.
        """
        try:
            yield from walk(_Disk(os.fsencode(self.root.path)), self.extensions)
        except OSError as error:
            raise Unreachable(
                "a folder cannot be read at the moment",
                code="unreachable-now",
                where=self.root,
                found=error.strerror or error,
                hint="mend the cause, then run the same command again",
            ) from error

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.root.read_below(path)


@dataclass(frozen=True)
class _Disk:
    """A folder's files and folders; a folder is called by its path. Nothing is opened but folders."""

    root: bytes

    def top(self) -> EnteredFolder[bytes]:
        return self._entered(self.root)

    def enter(self, folder: bytes, name: bytes) -> EnteredFolder[bytes]:
        return self._entered(folder + b"/" + name)

    def _entered(self, path: bytes) -> EnteredFolder[bytes]:
        there = os.stat(path)  # noqa: PTH116  # names are bytes
        by_link = stat.S_ISLNK(os.lstat(path).st_mode)
        return EnteredFolder(folder=path, identity=(there.st_dev, there.st_ino), by_link=by_link)

    def names(self, folder: bytes) -> list[bytes]:
        with os.scandir(folder) as entries:
            return [entry.name + b"/" if _leads_to_folder(entry) else entry.name for entry in entries]

    def file(self, folder: bytes, name: bytes) -> File:
        size, problem = look_at(folder + b"/" + name)
        return File(size=size, problem=problem)

    def is_label(self, folder: bytes, name: bytes) -> bool:
        return False  # in a folder, folders alone give labels


def _leads_to_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, or into a folder that may not be entered: the kind is then decided by a file's name
