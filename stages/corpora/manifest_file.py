"""Owns opening the manifest in a folder of shards, and the corpus file beside it.

Where images are added or mended, the next manifest is written beside the present one, then the corpus file is replaced, which
counts, then the manifest. So for a moment, or since a kill in it, the manifest that belongs to the corpus file has the other name.
"""

from __future__ import annotations

import contextlib

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
        return ManifestReader(location.open(), corpus, where=location)
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
