"""Owns the words for what a local file system refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ...storage_schemas.errors import StorageError
from ...storage_schemas.plain_text import typed

_DISK_ERRORS = {
    errno.ENOSPC: (
        "the disk is full",
        "free some space, then run the same command again; finished work is kept",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again"),
    errno.EROFS: ("the file system is read-only", "choose another --out"),
    errno.EACCES: ("permission denied", "choose another --out, or change the folder's permissions"),
    errno.ENAMETOOLONG: ("a name is too long for a file or folder", "choose a shorter one"),
    errno.ENOTDIR: ("a path that goes on below a file", "check the path"),
    errno.ELOOP: ("a link that leads to itself", "check the path"),
    errno.EPERM: ("permission denied", "choose another --out, or change the folder's permissions"),
}


def as_storage_error(error: OSError) -> StorageError | None:
    """The clear error for a disk that is full, read-only or forbidden; None for any other OSError."""
    if error.errno not in _DISK_ERRORS:
        return None
    what, hint = _DISK_ERRORS[error.errno]
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename:
        unreadable = _unreadable(Path(os.fsdecode(error.filename)))
        if unreadable is not None:
            return StorageError(
                "no permission to read", where=unreadable, hint=f"ask its owner, or: chmod u+rX {typed(str(unreadable))}"
            )  # fmt: skip
    return StorageError(what, where=error.filename or "while writing", hint=hint)


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


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
