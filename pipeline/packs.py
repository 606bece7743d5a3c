"""Owns packs: copies of many receipts and their timings in one file, where each file that is read costs a request.

A pack is a note: the receipts stay, and nothing depends on it. A copy counts only where the listing of the receipts has its file as it
was when it was copied, so that a receipt which is gone or new is never taken from a pack.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from ..storage_schemas.errors import DamagedError, StorageError, Unreachable
from ..storage_schemas.json_file import read_json
from .requests import together
from .storage import Location

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Receipts from which on there are packs, and new ones for which a pack is written anew.
LEAST, LEAST_NEW = 64, 16

#: Letters of a unit's key that the names of packs leave out: a thousand shards are in each.
_LEFT_OUT = 3

_FOLDER = "packs"

#: Size, time and version of a file.
_Listed = tuple[int, float, str]


@dataclass(frozen=True, kw_only=True)
class UnitNotes:
    """What is kept of a unit that is done.

    Attributes:
        receipt: the bytes of its file.
        seconds: the bytes of its timings; empty where there are none.
    """

    receipt: bytes
    seconds: bytes


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """Of a receipt, with what a listing says of its file, and of its timings."""

    size: int = 0
    changed_at: float = 0.0
    version: str = ""
    receipt: str
    seconds: str


@dataclass(frozen=True, kw_only=True)
class _Pack:
    units: dict[str, _Copy] = field(default_factory=dict)


@dataclass(frozen=True)
class Packs:
    """The packs of a ledger in a place that is far: `packs/NNN.json` has copies of units NNN000 to NNN999.

    Receipts are listed once, when they are asked for first: it is for one look at them.

    Attributes:
        folder: of the ledger, with `receipts`, `timings` and `packs`.
    """

    folder: Location

    def notes(self, *, seconds: bool) -> Iterator[tuple[str, UnitNotes]]:
        """Of all units that have a receipt, in order of their keys: never more than one pack's in memory.

        Args:
            seconds: whether timings are wanted too.
        """
        for key, notes in self.notes_of(sorted(self._listed), seconds=seconds):
            if notes is not None:
                yield key, notes

    def notes_of(self, keys: Iterable[str], *, seconds: bool = False) -> Iterator[tuple[str, UnitNotes | None]]:
        """Of these units in their order, which should be that of their keys; None where there is no receipt."""
        listed = self._listed
        for group, its in groupby(keys, key=_group):
            wanted = list(its)
            copies = self._copies(group, listed) if len(listed) >= LEAST else {}
            fresh = [key for key in wanted if key in listed and key not in copies]
            read = dict(zip(fresh, together(partial(self._read, seconds=seconds), fresh), strict=True))
            for key in wanted:
                found = copies.get(key) or read.get(key)
                notes = (
                    None if found is None else UnitNotes(receipt=found.receipt.encode(), seconds=found.seconds.encode())
                )
                yield key, notes

    def write(self) -> None:
        """Pack what is not packed yet, where it is worth it. The driver's work. Nothing where the place refuses."""
        listed = self._listed
        if len(listed) < LEAST:
            return
        with contextlib.suppress(StorageError, Unreachable, OSError):
            for group, keys in groupby(sorted(listed), key=_group):
                copies = self._copies(group, listed)
                fresh = [key for key in keys if key not in copies]
                if len(fresh) < max(LEAST_NEW, len(copies) // 4):
                    continue
                for key, notes in zip(fresh, together(partial(self._read, seconds=True), fresh), strict=True):
                    if notes is not None:
                        size, changed_at, version = listed[key]
                        copies[key] = _Copy(
                            size=size,
                            changed_at=changed_at,
                            version=version,
                            receipt=notes.receipt,
                            seconds=notes.seconds,
                        )
                fields = {"units": {key: asdict(copies[key]) for key in sorted(copies)}}
                self._file(group).write_note(msgspec.json.encode(fields))

    @cached_property
    def _listed(self) -> dict[str, _Listed]:
        """Of each receipt, by the unit's key."""
        return {
            name.removesuffix(".json"): (stat.size, stat.changed_at, stat.version)
            for name, stat in (self.folder / "receipts").listing()
            if name.endswith(".json") and not name.startswith(".")
        }

    def _copies(self, group: str, listed: Mapping[str, _Listed]) -> dict[str, _Copy]:
        """Those of a pack that count; none where it is not there, or damaged."""
        try:
            data = self._file(group).read_bytes()
            pack = read_json(
                data, _Pack, what="not a pack", code="ledger-note-malformed", where=self._file(group), hint=""
            )
        except (FileNotFoundError, DamagedError):
            return {}
        return {
            key: copy
            for key, copy in pack.units.items()
            if listed.get(key) == (copy.size, copy.changed_at, copy.version)
        }

    def _read(self, key: str, *, seconds: bool) -> _Copy | None:
        """From the files themselves; None where the receipt is gone by now."""
        try:
            receipt = (self.folder / "receipts" / f"{key}.json").read_bytes()
        except FileNotFoundError:
            return None
        timings = b""
        with contextlib.suppress(FileNotFoundError):
            timings = (self.folder / "timings" / f"{key}.json").read_bytes() if seconds else b""
        # What is no text is no receipt: its reader says so.
        return _Copy(receipt=receipt.decode(errors="replace"), seconds=timings.decode(errors="replace"))

    def _file(self, group: str) -> Location:
        return self.folder / _FOLDER / f"{group or 'all'}.json"


def _group(key: str) -> str:
    return key[:-_LEFT_OUT]


class FilesThere:
    """Which files of an output are there, with which sizes: by listings of its folders, each listed once when it is asked for.

    Keeps eight bytes for each file: blake2b-64 of its name and size.
    """

    def __init__(self, out: Location) -> None:
        self._out = out
        self._listed: dict[str, NDArray[np.uint64]] = {}

    def have(self, files: Iterable[tuple[str, int]]) -> bool:
        """Whether these paths below the output are all files of these sizes."""
        wanted = [(_top(path), _mark(path, size)) for path, size in files]
        new = sorted({top for top, _ in wanted} - self._listed.keys())
        self._listed.update(zip(new, together(self._list, new), strict=True))
        return all(_contains(self._listed[top], mark) for top, mark in wanted)

    def _list(self, top: str) -> NDArray[np.uint64]:
        """Marks of what lies in a folder at any depth; of the output itself what lies directly in it. Sorted, uint64."""
        import numpy as np

        below = (self._out / top).listing(deep=bool(top))
        start = f"{top}/" if top else ""
        marks = np.fromiter((_mark(start + name, stat.size) for name, stat in below), np.uint64)
        marks.sort()
        return marks


def _top(path: str) -> str:
    """The first folder of a path; '' for a file of its own."""
    head, slash, _ = path.partition("/")
    return head if slash else ""


def _mark(path: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{path}\0{size}".encode(), digest_size=8).digest(), "little")


def _contains(marks: NDArray[np.uint64], mark: int) -> bool:
    import numpy as np

    place = int(np.searchsorted(marks, np.uint64(mark)))
    return place < len(marks) and int(marks[place]) == mark
