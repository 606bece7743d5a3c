"""Owns the walk over the sources of a corpus: what it found, and the manifest's entries of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ...pipeline.progress import Progress
from ...storage_schemas.errors import Unreachable
from ...storage_schemas.fingerprint import canonical_json
from ...storage_schemas.manifest import Entry
from ...storage_schemas.plain_text import counted
from ...storage_schemas.samples import content_digest, sample_key
from .corpus_sources import CorpusSource
from .draft import Draft
from .images import BadImage
from .label import NoLabels
from .left_out import LeftOut
from .reading import is_unreachable, read_source_file, unreachable, unreachable_reason
from .source import SourceFile

#: Files that a reading thread takes at once.
_FILES_A_TASK = 64

#: An image that a walk found: its source, its path within the corpus, the file.
Found = tuple[CorpusSource, str, SourceFile]


class Listing:
    """Iterates over all images of some sources, hashing paths and sizes as they pass.

    Attributes:
        count: images so far.
        left_out, no_labels: what else there was.
        missed: the error of the first that cannot be read at the moment, as far as the walk shows.
    """

    def __init__(self, sources: Sequence[CorpusSource]) -> None:
        self._sources = sources
        self._state = hashlib.blake2b(digest_size=16)
        self.count = 0
        self.left_out = LeftOut()
        self.no_labels = NoLabels()
        self.missed: Unreachable | None = None

    @property
    def digest(self) -> str:
        return self._state.hexdigest()

    def __iter__(self) -> Iterator[Found]:
        for source in self._sources:
            yield from self.of(source)

    def of(self, source: CorpusSource) -> Iterator[Found]:
        """The images of one source."""
        for path, found in source.walk():
            if not found.is_image:
                self.left_out.add(found.left_out, path)
                continue
            self._state.update(canonical_json([path, found.size]))
            self.count += 1
            if self.missed is None and is_unreachable(found.problem):
                self.missed = unreachable(path, found.problem)
            if found.no_label:
                self.no_labels.add(found.no_label, path)
            yield source, path, found


class UnreachableCount:
    """Counts the entries that could not be read at the moment."""

    def __init__(self) -> None:
        self.count = 0
        self._first: Entry | None = None

    def watch(self, shards: Iterable[list[Entry]]) -> Iterator[list[Entry]]:
        """The same, counted."""
        for entries in shards:
            missed = [entry for entry in entries if is_unreachable(entry.problem)]
            self.count += len(missed)
            self._first = self._first or next(iter(missed), None)
            yield entries

    def error(self, total: int) -> Unreachable:
        """The error, of so many images, where there is one."""
        assert self._first is not None
        return Unreachable(
            f"{self.count} of {counted(total, 'image')} cannot be read at the moment",
            code="unreachable-now",
            where=f"the first is {self._first.path}",
            found=str(self._first.problem).partition(": ")[2],
            hint="run the same command again, or add --give-up-on-unreachable to leave such images out",
        )


def read_entry(item: Found, *, name: str, max_bytes: int, known: Entry | None = None) -> Entry:
    """The manifest's entry of an image, which is read for it.

    Args:
        name: of the corpus.
        max_bytes: longer files have a problem.
        known: what a URL gave before; it is not read again.
    """
    source, path, found = item
    size, digest, problem = max(found.size, 0), "", None
    try:
        if known is not None:
            size, digest, problem = known.size, known.digest, known.problem
        elif found.size > max_bytes:
            problem = f"file too large: {found.size} bytes, more than {max_bytes}"
        else:
            data = read_source_file(source.source, found)
            size, digest = len(data), content_digest(data)
    except BadImage as bad:
        problem = str(bad)
    except Unreachable as error:
        problem = unreachable_reason(error)
    return Entry(
        key=sample_key(name, path),
        path=path,
        source=source.index,
        offset=found.offset,
        size=size,
        digest=digest,
        label=found.label,
        problem=problem,
    )


def read_entries(
    listing: Iterable[Found], *, name: str, at_once: int, max_bytes: int, draft: Draft, bar: Progress
) -> Iterator[list[Entry]]:
    """Lists of `at_once` entries; files are read and hashed by a few threads (both release the interpreter lock)."""

    def entries_of(chunk: Sequence[tuple[Found, Entry | None]]) -> list[Entry]:
        return [read_entry(item, name=name, max_bytes=max_bytes, known=known) for item, known in chunk]

    items = ((item, draft.known(item[0].index, item[1], item[2])) for item in listing)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        while batch := list(islice(items, at_once)):
            # A task for each file would cost more than a small file's reading.
            chunks = [batch[i : i + _FILES_A_TASK] for i in range(0, len(batch), _FILES_A_TASK)]
            entries = [e for part in threads.map(entries_of, chunks) for e in part]
            bar.advance(len(entries))
            yield entries
