"""Owns locations: the only module that builds paths and opens files by name.

Local paths today. A location is passed as a string or path and becomes a `Location` here; bytes that are about to
be vouched for are written to a temporary name, flushed to the disk, and renamed into place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import stat
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from ..storage_schemas.errors import InputError, StorageError, Unreachable
from ..storage_schemas.near_names import near_names
from ..storage_schemas.plain_text import typed
from .web import read_url as read_url  # stages know locations, and nothing of what is behind them

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


#: Names of unfinished files: ours (`create`) and those of zarr's local store.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|.*\.[0-9a-f]{32}\.partial")

#: So many names of a folder are looked at for one that was meant.
_LOOK_BESIDE = 10_000

#: Nothing there, or a name that nothing can have: too long, below a file, a link to itself.
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EBADF}

#: What can be opened and is no file.
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def is_temporary(name: str) -> bool:
    """Whether this is a name of an unfinished file."""
    return _TEMPORARY.fullmatch(name) is not None


def missing_hint(location: Location, otherwise: str) -> str:
    """What to do where something was named that is not there: what lies beside it may have been meant."""
    near = [] if location.exists() else location.near()
    return f"did you mean {', '.join(near)}?" if near else otherwise


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


def kind_of_no_file(mode: int) -> str | None:
    """What the mode of something that can be opened says it is, such as "a pipe"; None for a file and a folder."""
    return _KINDS.get(stat.S_IFMT(mode))


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
        folder: it takes the space of this folder's disk; None: of the system's folder for such files (`TMPDIR`).
    """
    return tempfile.TemporaryFile(dir=None if folder is None else folder.path)


@dataclass(frozen=True, order=True)
class Location:
    """A file or folder."""

    path: Path

    @staticmethod
    def of(location: Location | Path | str) -> Location:
        """Resolve what a user typed.

        Raises:
            InputError: a URL, which only image lists may hold so far, or a `pipe:`.
        """
        if isinstance(location, Location):
            return location
        text = str(location)
        if text.startswith("pipe:"):
            raise InputError("pipe: runs a command from data and is refused", where=text)
        if is_url(text):
            raise InputError("only local folders can be used here", where=text, hint="mount or copy it first")
        return Location(Path(expand_home(text)).absolute())

    def near(self) -> list[str]:
        """Names of what lies beside it and may have been meant, where there is nothing here."""
        try:
            beside = [path.name for path in islice(self.path.parent.iterdir(), _LOOK_BESIDE)]
        except (OSError, ValueError):
            return []
        parent = Location(self.path.parent)
        return [typed(parent / name) for name in near_names(self.name, beside)]

    def __truediv__(self, name: str) -> Location:
        return Location(self.path / name)

    def __str__(self) -> str:
        try:
            return str(self.path.relative_to(Path.cwd()))
        except ValueError:
            return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        return self._stat() is not None

    def is_dir(self) -> bool:
        found = self._stat()
        return found is not None and stat.S_ISDIR(found.st_mode)

    def is_device(self) -> bool:
        """Whether this is a terminal, a disk, or another device."""
        found = self._stat()
        return found is not None and _KINDS.get(stat.S_IFMT(found.st_mode)) == "a device"

    def size(self) -> int | None:
        """Bytes, or None where there is no such file."""
        found = self._stat()
        return None if found is None else found.st_size

    def changed_at(self) -> float | None:
        """When it was written last, as seconds since 1970; None where there is no such file."""
        found = self._stat()
        return None if found is None else found.st_mtime

    def _stat(self) -> os.stat_result | None:
        """None where there is nothing, and for a name that nothing can have."""
        try:
            return self.path.stat()
        except ValueError:
            return None
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise

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
        return _read_file(self.path)

    def read_below(self, relative: str) -> bytes:
        """`read_file` of a file below this folder, without the cost of a new location for each of many.

        Its name is UTF-8, whatever the locale says.
        """
        return _read_file(os.fsencode(self.path) + b"/" + relative.encode())

    def read_range(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, in one opening; shorter only where the file ends."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return _read_at(descriptor, offset, size)
        finally:
            os.close(descriptor)

    def open(self) -> BinaryIO:
        """Open for reading."""
        return self.path.open("rb")

    def hold(self, content: bytes) -> Held | None:
        """Hold this file, with `content` in it, for this process alone; None where another process holds it.

        Raises:
            OSError: the file system knows no locks (ENOLCK, EOPNOTSUPP, ENOSYS), or whatever else it says.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who held it before may have removed it between these two lines: then this is a lock on no file.
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    os.truncate(descriptor, 0)
                    os.pwrite(descriptor, content, 0)
                    return Held(self.path, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def is_held(self) -> bool:
        """Whether a process holds this file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(descriptor)
        return False

    def open_ranges(self) -> RangeReader:
        """Open for reading at any place, by any thread."""
        return RangeReader(self)

    def append(self) -> BinaryIO:
        """Open for appending: for logs, which no receipt vouches for."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.open("ab")

    def remove(self) -> None:
        """Remove this file if it is there."""
        self.path.unlink(missing_ok=True)

    def remove_folder(self) -> None:
        """Remove this folder with all that is in it, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)

    def remove_empty_folders(self, above: Location) -> None:
        """Remove the folders that this file lay in, up to `above` and it too, as far as they are empty."""
        for folder in self.path.parents:
            try:
                folder.rmdir()
            except OSError:
                return
            if folder == above.path:
                return

    def make_dir(self) -> Location:
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    @contextlib.contextmanager
    def create(self, *, sync_folder: bool = True) -> Iterator[BinaryIO]:
        """Write a whole new file: temporary name, flush to disk, rename. Nothing is left behind on failure.

        `sync_folder=False` is for all but the last of several files in one folder: its sync serves them all.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if sync_folder:
            _sync_dir(self.path.parent)

    def write_bytes(self, data: bytes) -> None:
        """Write a whole file durably and atomically."""
        with self.create() as file:
            file.write(data)

    def write_note(self, data: bytes) -> None:
        """Write a whole file atomically; the system decides when it reaches the disk. Nothing may rely on it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def sync(self) -> None:
        """Flush a file that another library wrote, and its folder entry, to the disk."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_dir(self.path.parent)

    def remove_temporaries(self) -> None:
        """Remove what killed writers (ours and zarr's) left below this folder.

        Only the driver calls this, before any work starts.
        """
        for folder, _, names in os.walk(self.path):
            for name in names:
                if is_temporary(name):
                    (Path(folder) / name).unlink(missing_ok=True)


class Held:
    """A file that this process alone holds, by the kernel's lock on it (flock): a process that ends, however, holds nothing."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Remove the file, then let go."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class RangeReader:
    """An open file that is read at any place. A file that is cut meanwhile gives fewer bytes, where a mapped one ends the process.

    Raises:
        StorageError: this process has as many files open as it may.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        try:
            self._descriptor = os.open(location.path, os.O_RDONLY)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise StorageError(
                "too many files are open", where=location,
                hint="make larger shards, or raise the limit: ulimit -n 65536",
            ) from error  # fmt: skip
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; shorter only where the file ends. Thread-safe.

        Raises:
            Unreachable: the disk or the mount gives an error.
        """
        try:
            return _read_at(self._descriptor, offset, size)
        except OSError as error:
            raise Unreachable(
                "cannot be read at the moment", where=self._location, found=error.strerror or error,
                hint="check the disk or the mount, then run the same command again",
            ) from error  # fmt: skip

    def close(self) -> None:
        self._close()


def _read_file(path: bytes | Path) -> bytes:
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        kind = kind_of_no_file(os.fstat(file.fileno()).st_mode)
        if kind is not None:
            raise InputError(f"{kind}, not a file")
        return file.read()


def _open_at_once(path: bytes | str, flags: int) -> int:
    # Opening a pipe that nobody writes to waits, but for this flag; for files it means nothing.
    return os.open(path, flags | os.O_NONBLOCK)


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    # Linux reads at most 2 GiB at once.
    while 0 < len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _sync_dir(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
