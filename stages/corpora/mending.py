"""Owns reading failed images of a corpus again: those whose files are mended by now get an image in the corpus's next state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ...pipeline.progress import Progress
from ...storage_schemas.errors import Unreachable
from ...storage_schemas.manifest import Corpus, Entry, write_manifest
from .corpus import corpus_id, footer_of
from .corpus_sources import CorpusSource
from .generations import freeze, sweep
from .images import BadImage, one_image
from .listing import Found, Listing, read_entry
from .manifest_file import NEXT_MANIFEST
from .reading import unreachable_reason
from .shards import ShardSet

#: Images that are read again together.
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Retried:
    """A failed image that was looked at again.

    Attributes:
        row, path: its row, and its path in the corpus.
        entry: as its file is now; None where the sources do not have it any more.
        reason: why it cannot be used; empty where it can.
        same: whether its file is the one that the corpus has.
    """

    row: int
    path: str
    entry: Entry | None
    reason: str
    same: bool


def read_again(
    shards: ShardSet, sources: Sequence[CorpusSource], failed: Mapping[int, str], usable: Callable[[bytes], object]
) -> Iterator[Retried]:
    """Read failed images from their sources, which are walked once.

    Args:
        shards: finished.
        sources: those that are at hand; images of others are passed over.
        failed: paths in the corpus, by row.
        usable: tries an image's bytes; raises `BadImage` where it cannot be used.
    """
    corpus, manifest = shards.corpus, shards.manifest()
    old = {row: _entry_of(shards, manifest.shard(row // corpus.shard_size), row) for row in failed}
    wanted = {old[row].path: row for row in failed}
    given = {source.index for source in sources}
    seen: set[int] = set()

    def again(item: Found) -> Retried:
        row = wanted[item[1]]
        entry = read_entry(item, name=corpus.name, max_bytes=corpus.max_bytes)
        entry = replace(entry, label=old[row].label)
        reason = entry.problem or _fault(item[0], entry, usable)
        same = (entry.size, entry.digest) == (old[row].size, old[row].digest)
        return Retried(row=row, path=item[1], entry=entry, reason=reason, same=same)

    found = (item for item in Listing(sources) if item[1] in wanted and old[wanted[item[1]]].source == item[0].index)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads, Progress("retry-failed", len(failed)) as bar:
        for chunk in _chunks(found):
            for one in threads.map(again, chunk):
                seen.add(one.row)
                yield one
                bar.advance(1)
    for row in sorted(failed.keys() - seen):
        if old[row].source in given:
            yield Retried(row=row, path=old[row].path, entry=None, reason="not among the sources any more", same=False)


def freeze_mended(shards: ShardSet, retried: Iterable[Retried]) -> Corpus | None:
    """Freeze the state of the corpus in which images that can be used now have their rows' places in the shards.

    In shards that get one, rows that still fail have their files as they are now, too. None where no row gets an image.

    Raises:
        DamagedError: the tar or index of such a shard is not the one that its receipt vouches for.
    """
    corpus, out, size = shards.corpus, shards.location, shards.corpus.shard_size
    sweep(out, corpus)
    read = [one for one in retried if one.entry is not None and not one.same]
    mended = tuple(sorted(one.row for one in read if not one.reason))
    if not mended:
        return None
    rewritten = {row // size for row in mended}
    for shard in sorted(rewritten):
        shards.reader(
            shard
        ).close()  # its other images come from the tar that it has: refused before anything is frozen
    failing = {bad.row for shard in rewritten for bad in shards.receipt(shard).invalid_rows}
    new = {one.row: one.entry for one in read if one.row // size in rewritten}
    manifest = shards.manifest()

    def entries() -> Iterator[list[Entry]]:
        for shard in range(corpus.num_shards):
            rows = zip(corpus.rows(shard), manifest.shard(shard), strict=True)
            yield [new.get(row) or entry for row, entry in rows]

    with (out / NEXT_MANIFEST).create() as file:
        digest, _ = write_manifest(file, entries())
    following = replace(
        corpus,
        corpus_id=corpus_id(corpus.name, corpus.layout, digest, corpus.order, corpus.sample_kind),
        manifest_footer=footer_of(out / NEXT_MANIFEST),
        history=corpus.states,
        mended=mended,
        replaced=tuple(row for row in mended if row not in failing),
    )
    freeze(out, following)
    return following


def _entry_of(shards: ShardSet, entries: Sequence[Entry], row: int) -> Entry:
    return entries[row - shards.corpus.rows(row // shards.corpus.shard_size).start]


def _fault(source: CorpusSource, entry: Entry, usable: Callable[[bytes], object]) -> str:
    """Why an image whose file can be read cannot be used; empty where it can."""
    try:
        with one_image(entry.path):
            usable(source.read(entry))
    except BadImage as bad:
        return str(bad)
    except Unreachable as error:
        return unreachable_reason(error)
    return ""


def _chunks(found: Iterable[Found]) -> Iterator[list[Found]]:
    chunk: list[Found] = []
    for item in found:
        chunk.append(item)
        if len(chunk) == _AT_ONCE:
            yield chunk
            chunk = []
    yield chunk
