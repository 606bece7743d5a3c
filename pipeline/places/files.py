"""Owns the reading of local files: by ranges, and none that is a pipe or a device."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from pathlib import Path

from ...storage_schemas.errors import InputError, StorageError, Unreachable

#: Nothing there, or a name that nothing can have: too long, below a file, a link to itself.
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EBADF}

#: What can be opened and is no file.
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind_of_no_file(mode: int) -> str | None:
    """What the mode of something that can be opened says it is, such as "a pipe"; None for a file and a folder."""
    return _KINDS.get(stat.S_IFMT(mode))


def stat_of(path: str | Path) -> os.stat_result | None:
    """None where there is nothing, and for a name that nothing can have."""
    try:
        return os.stat(path)  # noqa: PTH116  # for every file that there is a question about
    except ValueError:
        return None
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise


class FileRanges:
    """An open file that is read at any place. A file that is cut meanwhile gives fewer bytes, where a mapped one ends the process.

    Args:
        where: the file's name in errors.

    Raises:
        StorageError: this process has as many files open as it may.
    """

    def __init__(self, path: str | Path, *, where: object) -> None:
        self._where = where
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise StorageError(
                "too many files are open",
                code="open-files-too-many",
                where=where,
                hint="make larger shards, or raise the limit: ulimit -n 65536",
            ) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; shorter only where the file ends. Thread-safe.

        Raises:
            Unreachable: the disk or the mount gives an error.
        """
        try:
            return read_at(self._descriptor, offset, size)
        except OSError as error:
            raise Unreachable(
                "cannot be read at the moment",
                code="unreachable-now",
                where=self._where,
                found=error.strerror or error,
                hint="check the disk or the mount, then run the same command again",
            ) from error

    def close(self) -> None:
        self._close()


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset` on; shorter only where the file ends."""
    data = os.pread(descriptor, size, offset)
    # Linux reads at most 2 GiB at once.
    while 0 < len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_file(path: bytes | Path) -> bytes:
    """All bytes of a file, which must be one: pipes and devices give bytes for ever, or none and no end.

    Raises:
        InputError: a pipe, a device or a socket.
    """
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        kind = kind_of_no_file(os.fstat(file.fileno()).st_mode)
        if kind is not None:
            raise InputError(f"{kind}, not a file", code="not-a-file")
        return file.read()


def _open_at_once(path: bytes | str, flags: int) -> int:
    # Opening a pipe that nobody writes to waits, but for this flag; for files it means nothing.
    return os.open(path, flags | os.O_NONBLOCK)
