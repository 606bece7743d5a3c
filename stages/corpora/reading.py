"""Owns reading an image's file, and the difference between a fault of the image and an error that may pass.

The first is recorded, and the image keeps its row as unusable. The second is no fault of the image: it fails the work
at hand, and the same command tries again.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Protocol

from ...pipeline.user_files import kind_of_no_file
from ...storage_schemas.errors import InputError, TeachonceError, Unreachable
from .images import BadImage, out_of_memory
from .source import SourceFile

#: Errors that a name itself brings about: nothing there, no file, no possible name. All others (permissions, an input or
#: output error, a mount that is gone, too many open files) may pass.
_OF_THE_IMAGE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENXIO,
}

_UNREACHABLE = "unreachable: "


class Readable(Protocol):
    """What images are read from: a `Source`."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """The bytes of one file."""


def read_image(source: Readable, path: str, offset: int, size: int) -> bytes:
    """The bytes of one image's file.

    Raises:
        BadImage: it cannot be read, now or later.
        Unreachable: it cannot be read at the moment.
    """
    try:
        return source.read(path, offset, size)
    except OSError as error:
        if error.errno in _OF_THE_IMAGE:
            raise BadImage(reason_of(error)) from error
        raise _unreachable(path, error.strerror or error) from error
    except InputError as error:
        raise BadImage(f"cannot be read: {error}") from error
    except TeachonceError:
        raise
    except MemoryError as error:
        raise out_of_memory(path) from error
    except Exception as error:  # a name that no file can have, an address that no client takes
        text = " ".join(str(error).split())[:120]
        raise BadImage(f"cannot be read: {type(error).__name__}: {text}") from error


def read_source_file(source: Readable, found: SourceFile) -> bytes:
    """The bytes of an image's file, or what its walk knew already.

    Raises:
        BadImage, Unreachable: as in `read_image`.
    """
    if found.problem is None:
        return read_image(source, found.path, found.offset, found.size)
    if is_unreachable(found.problem):
        raise unreachable(found.path, found.problem)
    raise BadImage(found.problem)


def unreachable(path: str, reason: object) -> Unreachable:
    """The error of an image for which `unreachable_reason` was recorded."""
    return _unreachable(path, str(reason).removeprefix(_UNREACHABLE))


def look_at(path: str | bytes) -> tuple[int, str | None]:
    """The size of a file, and why it cannot be read where that shows without reading; nothing is opened."""
    try:
        there = os.stat(path)  # noqa: PTH116  # names of folders are bytes
    except OSError as error:
        return 0, reason_of(error)
    except ValueError:
        return 0, "cannot be read: a name with a NUL character"
    kind = "a folder" if stat.S_ISDIR(there.st_mode) else kind_of_no_file(there.st_mode)
    return (there.st_size, None) if kind is None else (0, f"cannot be read: {kind}, not a file")


def reason_of(error: OSError) -> str:
    """What is recorded of an image, or a folder of images, that cannot be read."""
    if error.errno in _OF_THE_IMAGE:
        return f"cannot be read: {error.strerror}"
    return unreachable_reason(_unreachable(None, error.strerror or error))


def _unreachable(path: str | None, found: object) -> Unreachable:
    return Unreachable(
        "cannot be read at the moment",
        code="unreachable-now",
        where=path,
        found=found,
        hint="mend the cause, then run the same command again",
    )


def unreachable_reason(error: Unreachable) -> str:
    """The reason that is recorded where an image is given up on that may have no fault."""
    return f"{_UNREACHABLE}{' '.join(str(error.found or error.what).split())}"


def is_unreachable(reason: str | None) -> bool:
    """Whether a recorded reason is one of `unreachable_reason`."""
    return reason is not None and reason.startswith(_UNREACHABLE)
