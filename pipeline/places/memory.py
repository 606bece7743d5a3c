"""Owns a place in the memory of this process, for tests: it has no folders but names, as object stores, and fails on demand."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ...storage_schemas.errors import StorageError
from .place import HeldLock, RangeReader, Stat
from .zarr_store import PlaceStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer
    from zarr.abc.store import Store


@dataclass(kw_only=True)
class Fault:
    """A write that goes wrong. Once, unless it is `always`.

    Attributes:
        nth: of the writes whose names match, from 1 on.
        name: full names that match, as the shell matches them (`*` is any text, `/` too).
        torn: so many bytes arrive under the name all the same: what a place does that breaks its promise. None: nothing arrives.
        error: makes the error that the writer sees; None: no error, as if all were well.
        always: every later match too, as on a disk that is full.
    """

    nth: int = 1
    name: str = "*"
    torn: int | None = None
    error: Callable[[str], BaseException] | None = lambda name: StorageError(
        "refused on demand", code="refused-on-demand", where=name
    )
    always: bool = False
    _seen: int = 0

    def matches(self, name: str) -> bool:
        """Whether this write is the one. Counts it."""
        if not fnmatchcase(name, self.name):
            return False
        self._seen += 1
        return self._seen == self.nth or (self.always and self._seen > self.nth)


class MemoryPlace:
    """Files in memory.

    Attributes:
        faults: writes that go wrong; may be changed at any time.
        written: full names of all writes that were tried, in order.
    """

    def __init__(self, label: str = "memory") -> None:
        self.faults: list[Fault] = []
        self.written: list[str] = []
        self._label = label
        self._files: dict[str, tuple[bytes, float]] = {}
        self._folders: set[str] = set()
        self._held: set[str] = set()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("what lies in the memory of one process is not there in another")

    def files(self) -> dict[str, bytes]:
        """All that is there, by full name."""
        with self._lock:
            return {name: data for name, (data, _) in sorted(self._files.items())}

    def read(self, name: str) -> bytes:
        try:
            return self._files[name][0]
        except KeyError:
            raise FileNotFoundError(2, "No such file", self.spell(name)) from None

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self.read(name)[offset : offset + size]

    def open_ranges(self, name: str, *, version: str = "") -> RangeReader:
        return _Ranges(self.read(name))

    def stream(self, name: str) -> Iterator[bytes]:
        yield self.read(name)

    def stat(self, name: str) -> Stat | None:
        with self._lock:
            found = self._files.get(name)
            if found is not None:
                return Stat(is_folder=False, size=len(found[0]), changed_at=found[1])
            below = [when for at, (_, when) in self._files.items() if at.startswith(_below(name))]
            if below or any(at == name or at.startswith(_below(name)) for at in self._folders):
                return Stat(is_folder=True, size=0, changed_at=max(below, default=0.0))
        return None

    def entries(self, folder: str, *, deep: bool = False) -> Iterator[str]:
        start = _below(folder)
        with self._lock:
            files = [name.removeprefix(start) for name in self._files if name.startswith(start)]
            made = [f"{name}/".removeprefix(start) for name in self._folders if f"{name}/".startswith(start)]
        if deep:
            yield from files
            return
        yield from sorted({_first(name) for name in (*files, *made) if name})

    def listing(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Stat]]:
        for name in self.entries(folder, deep=deep):
            found = self.stat(_below(folder) + name)
            if found is not None and not found.is_folder:
                yield name, found

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        with self._lock:
            self.written.append(name)
            matching = [fault for fault in self.faults if fault.matches(name)]
            if not matching:
                self._files[name] = (bytes(data), time.time())
                return
            fault = matching[0]
            if fault.torn is not None:
                self._files[name] = (bytes(data[: fault.torn]), time.time())
        if fault.error is not None:
            raise fault.error(self.spell(name))

    def write_if_absent(self, name: str, data: bytes) -> bool:
        with self._lock:
            if name in self._files:
                return False
            self.write(name, data)
            return True

    @contextlib.contextmanager
    def create(self, name: str, *, settle: bool = True) -> Iterator[BinaryIO]:
        content = io.BytesIO()
        yield content
        self.write(name, content.getvalue())

    def append(self, name: str) -> BinaryIO:
        return cast("BinaryIO", _Appended(self, name))

    def sync(self, name: str) -> None:
        self.read(name)

    def remove(self, name: str) -> None:
        with self._lock:
            self._files.pop(name, None)

    def make_folder(self, name: str) -> None:
        with self._lock:
            self._folders.add(name)

    def remove_folder(self, name: str) -> None:
        with self._lock:
            for at in [at for at in self._files if at.startswith(_below(name))]:
                del self._files[at]
            self._folders = {at for at in self._folders if at != name and not at.startswith(_below(name))}

    def sweep(self, folder: str) -> None:
        """There is nothing: a write that was not finished is nowhere."""

    def hold(self, name: str, content: bytes) -> HeldLock | None:
        with self._lock:
            if name in self._held:
                return None
            self.write(name, content)
            self._held.add(name)
        return _MemoryLock(self, name)

    def release(self, name: str) -> None:
        """Let go of a name that is held."""
        with self._lock:
            self._held.discard(name)
            self.remove(name)

    def is_held(self, name: str) -> bool:
        return name in self._held

    def zarr_store(self, name: str, *, read_only: bool = False) -> Store:
        return PlaceStore(self, name, read_only=read_only)

    def local_path(self, name: str) -> Path | None:
        return None

    def address(self, name: str) -> str:
        return f"{self._label}://{name}"

    def spell(self, name: str) -> str:
        return self.address(name)

    def is_inside(self, name: str, folder: str) -> bool:
        return name == folder or name.startswith(_below(folder))

    def obstacle(self, folder: str) -> tuple[str, str] | None:
        parts = folder.split("/")
        names = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        return next(((name, "a file") for name in names if name in self._files), None)


class _Ranges:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self) -> None:
        self._data = b""


class _Appended(io.RawIOBase):
    def __init__(self, place: MemoryPlace, name: str) -> None:
        super().__init__()
        self._place, self._name = place, name

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        new = bytes(data)
        there = self._place.stat(self._name)
        self._place.write(self._name, (b"" if there is None else self._place.read(self._name)) + new, durable=False)
        return len(new)


class _MemoryLock:
    def __init__(self, place: MemoryPlace, name: str) -> None:
        self._place, self._name = place, name

    def release(self) -> None:
        self._place.release(self._name)


def _below(folder: str) -> str:
    """What names in a folder begin with."""
    return f"{folder}/" if folder else ""


def _first(name: str) -> str:
    """The first part of a name, with a `/` where more follows."""
    head, slash, _ = name.partition("/")
    return head + slash
