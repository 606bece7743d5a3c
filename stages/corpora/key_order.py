"""Owns the order of rows by their keys: sorts a manifest of any length, holding a bounded number of rows.

Keys are hashes, so that this order mixes sources and classes, depends on nothing but the names, and the first bits of the keys
part the rows evenly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from io import BufferedRandom
from itertools import pairwise
from mmap import ACCESS_READ, MADV_DONTNEED, mmap

import pyarrow as pa

from ...storage_schemas.manifest import MANIFEST_SCHEMA, Entry, ManifestReader, entries_of

#: Rows that are sorted together, about: 30 MB.
_ROWS_AT_ONCE = 1 << 17

#: Rows that become Python objects together.
_ENTRIES_AT_ONCE = 100


def by_key(
    manifest: ManifestReader, count: int, scratch: BufferedRandom, *, rows_at_once: int = _ROWS_AT_ONCE
) -> Iterator[Entry]:
    """The entries of a manifest, bytewise by key; arguments as in `tables_by_key`."""
    for table in tables_by_key(manifest, count, scratch, rows_at_once=rows_at_once):
        for start in range(0, len(table), _ENTRIES_AT_ONCE):
            yield from entries_of(table.slice(start, _ENTRIES_AT_ONCE).to_pydict())


def tables_by_key(
    manifest: ManifestReader, count: int, scratch: BufferedRandom, *, rows_at_once: int = _ROWS_AT_ONCE
) -> Iterator[pa.Table]:
    """The rows of a manifest, bytewise by key, as one table after another.

    A stretch of the manifest after another is sorted and written to `scratch`, each as one record batch for every part of the
    range of keys; then part after part is read from all stretches, and sorted.

    Args:
        count: entries in the manifest.
        scratch: an empty file; it takes all entries, uncompressed.
        rows_at_once: how many rows may be held in memory, about.
    """
    bits = ((count - 1) // rows_at_once).bit_length()
    parts = 1 << bits
    bounds = [f"{part << (64 - bits):016x}" for part in range(1, parts)]
    with pa.ipc.new_file(scratch, MANIFEST_SCHEMA) as writer:
        for table in manifest.tables(rows_at_once):
            (stretch,) = table.sort_by("key").combine_chunks().to_batches()
            keys = stretch["key"]
            ends = [bisect_left(keys, bound, key=lambda key: key.as_py()) for bound in bounds]
            for start, end in pairwise([0, *ends, len(keys)]):
                writer.write_batch(stretch.slice(start, end - start))
    scratch.flush()
    mapped = mmap(scratch.fileno(), 0, access=ACCESS_READ)  # batches are views: the last one closes it
    with pa.ipc.open_file(pa.py_buffer(mapped)) as reader:
        for part in range(parts):
            batches = [reader.get_batch(i) for i in range(part, reader.num_record_batches, parts)]
            table = pa.Table.from_batches(batches, MANIFEST_SCHEMA).sort_by("key")
            yield table
            mapped.madvise(MADV_DONTNEED)  # else all of the file ends up in the process's resident memory
