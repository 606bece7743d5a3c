"""Owns the messages for what a local file system refuses."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import NamedTuple

from ...storage_schemas.errors import StorageError
from ...storage_schemas.plain_text import typed


class _Refusal(NamedTuple):
    what: str
    code: str
    hint: str


#: A file system with fewer free inodes has none for a command that has just removed what it could not finish, where so many bytes are free.
_FEW_INODES, _SOME_BYTES = 16, 1 << 20

_DENIED = _Refusal(
    "permission denied", code="permission-denied", hint="choose another --out, or change the folder's permissions"
)
_FAILED = _Refusal(
    "the disk, or the network behind it, gives an error",
    code="disk-error",
    hint="look into the system's log; then run the same command again: finished work is kept",
)
_NO_INODES = _Refusal(
    "the disk takes no more files, though it may have room (its inodes are used up)",
    code="disk-no-inodes",
    hint="see `df -i`; remove files there, then run the same command again; finished work is kept",
)
_DISK_ERRORS = {
    errno.EIO: _FAILED,
    errno.ESTALE: _FAILED,
    errno.ETIMEDOUT: _FAILED,
    errno.ENOSPC: _Refusal(
        "the disk is full",
        code="disk-full",
        hint="free some space, then run the same command again; finished work is kept",
    ),
    errno.EDQUOT: _Refusal(
        "the disk quota is used up",
        code="disk-quota-used-up",
        hint="free some space, then run the same command again",
    ),
    errno.EROFS: _Refusal("the file system is read-only", code="file-system-read-only", hint="choose another --out"),
    errno.ENAMETOOLONG: _Refusal(
        "a name is too long for a file or folder", code="name-too-long", hint="choose a shorter one"
    ),
    errno.ENOTDIR: _Refusal("a path that goes on below a file", code="path-below-file", hint="check the path"),
    errno.ELOOP: _Refusal("a link that leads to itself", code="link-loop", hint="check the path"),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
}


def as_storage_error(error: OSError) -> StorageError | None:
    """The clear error for a disk that is full, read-only or forbidden; None for any other OSError."""
    if error.errno not in _DISK_ERRORS:
        return None
    what, code, hint = _DISK_ERRORS[error.errno]
    if error.errno == errno.ENOSPC and error.filename and _has_no_inodes(Path(os.fsdecode(error.filename))):
        what, code, hint = _NO_INODES
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename:
        unreadable = _unreadable(Path(os.fsdecode(error.filename)))
        if unreadable is not None:
            return StorageError(
                "no permission to read",
                code="read-permission-denied",
                where=unreadable,
                hint=f"ask its owner, or: chmod u+rX {typed(str(unreadable))}",
            )
    return StorageError(what, code=code, where=error.filename or "while reading or writing", hint=hint)


def _unreadable(path: Path) -> Path | None:
    """The path, or the first folder on the way to it, that this process may not read; None where that is not what failed."""
    path = path.absolute()
    for place in reversed((path, *path.parents)):
        if not _may(place, os.F_OK):
            return None
        needs = os.X_OK if place != path else os.R_OK | (os.X_OK if place.is_dir() else 0)
        if not _may(place, needs):
            return place
    return None


def _has_no_inodes(path: Path) -> bool:
    """Whether the file system of a path has used up its inodes, but not its blocks. Some have no fixed number of inodes."""
    for at in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            found = os.statvfs(at)
            return found.f_files > 0 and found.f_favail < _FEW_INODES and found.f_bavail * found.f_frsize > _SOME_BYTES
    return False


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
