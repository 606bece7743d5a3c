"""Owns a manifest that was written, but not frozen because some images could not be read at the moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ...pipeline.storage import Location
from ...storage_schemas.errors import TeachonceError
from ...storage_schemas.manifest import Entry, ManifestReader
from .reading import is_unreachable
from .source import Found


class Draft:
    """What it knows of URLs is not asked for again. Nothing, where there is no such manifest."""

    def __init__(self, location: Location) -> None:
        self._entries = _draft_entries(location)
        self._next = next(self._entries, None)

    def known(self, path: str, found: Found) -> Entry | None:
        """The entry of a URL that was read; paths must come in order."""
        while self._next is not None and self._next.path.encode() < path.encode():
            self._next = next(self._entries, None)
        entry = self._next
        if entry is None or entry.path != path or found.size >= 0 or is_unreachable(entry.problem):
            return None  # a file here is read again: it may have changed since
        return entry


def _draft_entries(location: Location) -> Iterator[Entry]:
    if location.exists():
        # One that cannot be read is no loss.
        with contextlib.suppress(OSError, TypeError, TeachonceError):
            yield from ManifestReader(location.path, None)
