"""Owns a manifest that was written, but not frozen: some images could not be read at the moment, or it was interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ...pipeline.storage import Location
from ...storage_schemas.errors import TeachonceError
from ...storage_schemas.manifest import Entry
from .manifest_file import open_manifest
from .reading import is_unreachable
from .source import SourceFile

#: Where it lies until it is frozen, in the sources' order. Where the rows are to have that, it is the manifest itself.
DRAFT = "manifest.draft.parquet"


class Draft:
    """URLs that it holds are not fetched again.

    Args:
        out: the folder that it lies in.
        names: by which it may go; empty, where none of them is there.
    """

    def __init__(self, out: Location, *names: str) -> None:
        drafts = [name for name in names if (out / name).exists()]
        self._entries = _draft_entries(out, drafts[:1])
        self._next = next(self._entries, None)

    def known(self, source: int, path: str, found: SourceFile) -> Entry | None:
        """The entry of a URL that was read; sources, and paths within each, must come in order."""
        place = source, path.encode()
        while self._next is not None and (self._next.source, self._next.path.encode()) < place:
            self._next = next(self._entries, None)
        entry = self._next
        if (
            entry is None
            or (entry.source, entry.path) != (source, path)
            or found.size >= 0
            or is_unreachable(entry.problem)
        ):
            return None  # a file here is read again: it may have changed since
        return entry


def _draft_entries(out: Location, drafts: list[str]) -> Iterator[Entry]:
    for name in drafts:
        # One that cannot be read is skipped: its images are read again.
        with contextlib.suppress(OSError, TypeError, TeachonceError):
            yield from open_manifest(out, None, name)
