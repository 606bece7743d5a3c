"""Owns opening the manifest in a folder of shards."""

from __future__ import annotations

from ...pipeline.storage import Location
from ...storage_schemas.manifest import Corpus, ManifestReader

#: Its name there.
MANIFEST = "manifest.parquet"


def open_manifest(folder: Location, corpus: Corpus | None, name: str = MANIFEST) -> ManifestReader:
    """Open a manifest.

    Args:
        folder: that it lies in.
        corpus: what was written beside it; None compares nothing.
        name: of a draft.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: not a manifest, or not the corpus's.
    """
    location = folder / name
    return ManifestReader(location.open(), corpus, where=location)
