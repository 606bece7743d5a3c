"""Owns the local file system as a place: atomic renames, syncs, locks of the kernel, and clear messages for its errors.

Names are absolute paths. What is about to be vouched for is written to a temporary name, flushed to the disk, and renamed into
place; then the folder is flushed. With `durable.py`, `files.py` and `user_files.py` the only module that opens local files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .durable import beside, created, naming, sync_folder
from .files import FileRanges, read_at, stat_of
from .place import PIECE_BYTES, HeldLock, NoLocksError, RangeReader, Stat

if TYPE_CHECKING:
    from zarr.abc.store import Store

#: Names of unfinished files: ours (`create`) and those of zarr's local store.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|.*\.[0-9a-f]{32}\.partial")

#: Errors of file systems without locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

#: Errors of file systems without hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}


def is_temporary(name: str) -> bool:
    """Whether this is a name of an unfinished file."""
    return _TEMPORARY.fullmatch(name) is not None


@dataclass(frozen=True, order=True)
class LocalPlace:
    """The file systems of this machine. A process that ends holds no name; on NFS once its lease has run out (90 seconds on Linux)."""

    def read(self, name: str) -> bytes:
        with naming(name):
            return Path(name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            with naming(name):
                return read_at(descriptor, offset, size)
        finally:
            os.close(descriptor)

    def open_ranges(self, name: str, *, version: str = "") -> RangeReader:
        return FileRanges(name, where=self.spell(name))

    def stream(self, name: str) -> Iterator[bytes]:
        ranges = self.open_ranges(name)
        try:
            for offset in itertools.count(0, PIECE_BYTES):
                piece = ranges.read(offset, PIECE_BYTES)
                if piece:
                    yield piece
                if len(piece) < PIECE_BYTES:
                    return
        finally:
            ranges.close()

    def stat(self, name: str) -> Stat | None:
        found = stat_of(name)
        if found is None:
            return None
        return Stat(is_folder=stat.S_ISDIR(found.st_mode), size=found.st_size, changed_at=found.st_mtime)

    def entries(self, folder: str, *, deep: bool = False) -> Iterator[str]:
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                if not entry.is_dir():
                    yield entry.name
                elif not deep:
                    yield f"{entry.name}/"
                elif not entry.is_symlink():  # it may lead to where we come from
                    yield from (f"{entry.name}/{below}" for below in self.entries(entry.path, deep=True))

    def listing(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Stat]]:
        for name in self.entries(folder, deep=deep):
            found = None if name.endswith("/") else self.stat(f"{folder}/{name}")
            if found is not None and not found.is_folder:
                yield name, found

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        if durable:
            with self.create(name) as file:
                file.write(data)
            return
        with beside(name) as temporary:
            temporary.write_bytes(data)
            temporary.replace(name)

    def write_if_absent(self, name: str, data: bytes) -> bool:
        with beside(name) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            is_first = _link(temporary, name)
            temporary.unlink(missing_ok=True)
        sync_folder(Path(name).parent)
        return is_first

    @contextlib.contextmanager
    def create(self, name: str, *, settle: bool = True) -> Iterator[BinaryIO]:
        with created(name, settle=settle) as file:
            yield file

    def append(self, name: str) -> BinaryIO:
        _make_folder_of(name)
        return Path(name).open("ab")

    def sync(self, name: str) -> None:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            with naming(name):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(Path(name).parent)

    def remove(self, name: str) -> None:
        Path(name).unlink(missing_ok=True)

    def make_folder(self, name: str) -> None:
        Path(name).mkdir(parents=True, exist_ok=True)

    def remove_folder(self, name: str) -> None:
        shutil.rmtree(name, ignore_errors=True)

    def sweep(self, folder: str) -> None:
        for path, _, names in os.walk(folder):
            for name in names:
                if is_temporary(name):
                    (Path(path) / name).unlink(missing_ok=True)

    def hold(self, name: str, content: bytes) -> HeldLock | None:
        """By flock. Besides the errors of the Protocol it raises whatever `OSError` the file system has."""
        made = _make_folder_of(name)
        while True:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who held it before may have removed it between these two lines: then this is a lock on no file.
                if os.path.samestat(os.fstat(descriptor), Path(name).stat()):
                    os.truncate(descriptor, 0)
                    os.pwrite(descriptor, content, 0)
                    return _FileLock(name, descriptor, made)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass
            except BaseException as error:
                os.close(descriptor)
                if isinstance(error, OSError) and error.errno in _NO_LOCKS:
                    raise NoLocksError(str(error)) from error
                raise
            os.close(descriptor)

    def is_held(self, name: str) -> bool:
        try:
            descriptor = os.open(name, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(descriptor)
        return False

    def zarr_store(self, name: str, *, read_only: bool = False) -> Store:
        """Zarr's own, which writes to a temporary name and renames; what describes arrays and groups is durable at once."""
        from .local_store import DescribedStore

        return DescribedStore(name, read_only=read_only)

    def local_path(self, name: str) -> Path | None:
        return Path(name)

    def address(self, name: str) -> str:
        return name

    def spell(self, name: str) -> str:
        try:
            return str(Path(name).relative_to(Path.cwd()))
        except ValueError:
            return str(Path(name))

    def is_inside(self, name: str, folder: str) -> bool:
        path, identity = Path(name), _identity(Path(folder))
        # A link in the folder would be replaced, and so would what a link elsewhere leads to.
        for real in (path.resolve(), path.absolute().parent.resolve() / path.name):
            if any(_identity(at) == identity for at in (real, *real.parents)):
                return True
        return False

    def obstacle(self, folder: str) -> tuple[str, str] | None:
        path = Path(folder)
        for at in (path, *path.parents):
            if at.is_dir():
                return None
            if at.exists() or at.is_symlink():
                return str(at), "a file" if at.exists() else "a link to nothing"
        return None


#: There is one.
LOCAL = LocalPlace()


class _FileLock:
    """A file that this process alone holds, by the kernel's lock on it (flock): a process that ends, however, holds nothing."""

    def __init__(self, name: str, descriptor: int, made: list[Path]) -> None:
        self._name, self._descriptor, self._made = name, descriptor, made

    def release(self) -> None:
        Path(self._name).unlink(missing_ok=True)
        os.close(self._descriptor)
        with contextlib.suppress(OSError):  # something lies in it by now
            for folder in self._made:
                folder.rmdir()


def _make_folder_of(name: str) -> list[Path]:
    """Make the folder that a name lies in. Returns those that were not there, the deepest first."""
    folder = Path(name).parent
    made = [at for at in (folder, *folder.parents) if not at.exists()] if not folder.exists() else []
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _link(temporary: Path, name: str) -> bool:
    """Give a file this name, unless something has it."""
    try:
        os.link(temporary, name)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links, writers at the same moment are kept apart by the driver's lock alone.
        if stat_of(name) is not None:
            return False
        temporary.replace(name)
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of what is there; the same for all names that it has."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
