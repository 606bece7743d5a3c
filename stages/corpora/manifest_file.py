"""Owns opening the manifest in a folder of shards, and the corpus file beside it.

Where images are added or mended, the next manifest is written beside the present one, then the corpus file is replaced, which
counts, then the manifest. So for a moment, or since a kill in it, the manifest that belongs to the corpus file has the other name.
"""

from __future__ import annotations

import contextlib

import pyarrow.parquet as pq

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.manifest import Corpus, ManifestReader

#: Their names there.
MANIFEST = "manifest.parquet"
CORPUS = "corpus.json"

#: The next manifest.
NEXT_MANIFEST = "manifest.next.parquet"


def read_corpus(folder: Location) -> Corpus:
    """What is written beside the manifest.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: not a corpus file.
        MismatchError: of another version.
    """
    location = folder / CORPUS
    return Corpus.from_bytes(location.read_bytes(), where=location)


def open_manifest(folder: Location, corpus: Corpus | None, name: str = MANIFEST) -> ManifestReader:
    """Open a manifest.

    Args:
        folder: that it lies in.
        corpus: what was written beside it, now or before it grew; None compares nothing.
        name: of a draft.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: not a manifest, or not the corpus's.
    """
    location = folder / name
    try:
        return _opened(location, corpus)
    except DamagedError:
        later = folder / NEXT_MANIFEST
        if corpus is not None and later.exists():
            with contextlib.suppress(DamagedError, FileNotFoundError):
                return ManifestReader(later.open(), corpus, where=later)
        now = None if corpus is None or not (folder / CORPUS).exists() else read_corpus(folder)
        grown = now and corpus and now.manifest_footer != corpus.manifest_footer and now.as_of(corpus.corpus_id)
        if not grown:
            raise
        return open_manifest(folder, grown, name)  # it grew since this process read what lies beside it


#: The last footer that was read in this process, and what it is the footer of. It has an entry for each shard of the corpus, so that
#: reading it for each shard would take a time that grows with the square of their number.
_footer: tuple[tuple[object, ...], pq.FileMetaData] | None = None


def _opened(location: Location, corpus: Corpus | None) -> ManifestReader:
    """A manifest, with its footer from memory where the file is as it was then."""
    global _footer
    if corpus is None or corpus.manifest_footer is None:
        return ManifestReader(location.open(), corpus, where=location)
    stat, before = location.stat(), _footer
    key = (location.address, corpus.manifest_footer, stat)
    if before is not None and before[0] == key:
        return ManifestReader(location.open(), corpus, where=location, footer=before[1])
    reader = ManifestReader(location.open(), corpus, where=location)
    _footer = key, reader.footer
    return reader
