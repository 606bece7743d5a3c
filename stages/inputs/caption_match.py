"""Owns which captions belong to which rows of a corpus: paths of tables against paths of the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.caption_store import CaptionCounts
from ...storage_schemas.caption_texts import ShardTexts
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import counted
from ..corpora.shards import ShardSet
from .caption_table import CaptionEntry, CaptionFiles, split_key


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchedCaptions:
    """Captions by rows of a corpus.

    Attributes:
        shards: the corpus.
        rows_T, texts: int64 (caption,), ascending, and the captions; those of a row in the order in which they were found.
        counts: what became of the entries.
        most: captions of the row that has most.
        unknown: the path of the first entry that is none of the corpus; '' for none.
    """

    shards: ShardSet
    rows_T: NDArray[np.int64]
    texts: list[str]
    counts: CaptionCounts
    most: int
    unknown: str

    @staticmethod
    def of(shards: ShardSet, files: CaptionFiles, *, most: int, match: str | None) -> MatchedCaptions:
        """Read all entries. Memory grows with the corpus' paths and with the captions.

        Args:
            most: captions of a sample that count; further ones are left out.
            match: one of `caption_parts.MATCHES`; None for `path`, and for `stem` where the table has the keys of img2dataset.

        Raises:
            InputError: see `CaptionFiles`; no entry is of this corpus, or none has text; or a name that several images have.
        """
        how = match or ("stem" if files.are_keys else "path")
        places, several = _places(shards, how)
        keys, prefixes = _keys_of_tars(shards) if any(f.name.endswith(".tar") for _, f in files.files) else ({}, {})
        found: dict[int, list[str]] = {}
        entries = blank = unknown = beyond = 0
        first_unknown, first = "", ""
        for entry in files:
            entries += 1
            first = first or entry.path
            row = _row(entry, places, keys, prefixes, how)
            if row is None:
                unknown += 1
                first_unknown = first_unknown or entry.path or "an empty path"
            elif _part(entry.path, how) in several and entry.source is None:
                raise _ambiguous(entry.path, how)
            elif not entry.text:
                blank += 1
            elif len(own := found.setdefault(row, [])) < most:
                own.append(entry.text)
            else:
                beyond += 1
        if not found:
            raise _nothing(shards, files, entries=entries, unknown=unknown, example=first_unknown or first, how=how)
        rows = sorted(found)
        lengths = [len(found[row]) for row in rows]
        samples = shards.corpus.num_samples
        return MatchedCaptions(
            shards=shards,
            rows_T=np.repeat(np.array(rows, np.int64), lengths),
            texts=[text for row in rows for text in found[row]],
            counts=CaptionCounts(
                samples=len(rows),
                without=samples - len(rows),
                captions=sum(lengths),
                beyond=beyond,
                unknown=unknown,
                blank=blank,
            ),
            most=max(lengths),
            unknown=first_unknown,
        )

    def __iter__(self) -> Iterator[ShardTexts]:
        """Shard by shard."""
        corpus = self.shards.corpus
        for shard in range(corpus.num_shards):
            rows = corpus.rows(shard)
            first, last = np.searchsorted(self.rows_T, (rows.start, rows.stop)).tolist()
            yield ShardTexts(rows_T=self.rows_T[first:last], texts=self.texts[first:last])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know before training on them."""
        counts = self.counts
        lines = [
            f"{counted(counts.captions, 'caption')} of {counts.samples} of "
            f"{counted(counts.samples + counts.without, 'image')}"
        ]
        if counts.without:
            lines.append(f"{counted(counts.without, 'image')} without a caption: such images add nothing to a loss")
        if counts.unknown:
            lines.append(
                f"{counted(counts.unknown, 'caption')} of images that are not in the corpus, the first: {self.unknown}"
            )
        if counts.blank:
            lines.append(f"{counted(counts.blank, 'entry')} without text")
        if counts.beyond:
            lines.append(
                f"{counted(counts.beyond, 'caption')} left out: more than {self.most} of an image (--captions)"
            )
        return tuple(lines)


def _row(
    entry: CaptionEntry, places: dict[str, int], keys: dict[str, int], prefixes: dict[str, str], how: str
) -> int | None:
    if entry.source is None:
        return places.get(_part(entry.path, how))
    prefix = prefixes.get(entry.source, "" if len(prefixes) < 2 else None)
    return None if prefix is None else keys.get(prefix + entry.path)


def _part(path: str, how: str) -> str:
    if how == "path":
        return path
    name = path.rpartition("/")[2]
    return name if how == "name" else name.rpartition(".")[0] or name


def _paths(shards: ShardSet) -> Iterator[tuple[int, str]]:
    manifest = shards.manifest()
    for shard in range(shards.corpus.num_shards):
        yield from zip(shards.corpus.rows(shard), manifest.paths_of(shard), strict=True)


def _places(shards: ShardSet, how: str) -> tuple[dict[str, int], set[str]]:
    """Rows by that part of their paths, and parts that several rows have."""
    places: dict[str, int] = {}
    several: set[str] = set()
    for row, path in _paths(shards):
        part = _part(path, how)
        if places.setdefault(part, row) != row:
            several.add(part)
    return places, several


def _keys_of_tars(shards: ShardSet) -> tuple[dict[str, int], dict[str, str]]:
    """Rows by WebDataset's keys, and what keys begin with by the names of the corpus' sources."""
    keys = {split_key(path)[0]: row for row, path in _paths(shards)}
    return keys, {source.name: source.prefix for source in shards.corpus.sources}


def _ambiguous(path: str, how: str) -> InputError:
    return InputError(
        "several images have this name",
        code="caption-path-ambiguous",
        where=path,
        expected=f"one image by its {how}",
        found="several",
        hint="give whole paths in the table, as the corpus has them, and --match path",
    )


def _nothing(
    shards: ShardSet, files: CaptionFiles, *, entries: int, unknown: int, example: str, how: str
) -> InputError:
    where = ", ".join(str(file) for _, file in islice(files.files, 3))
    if entries and unknown < entries:
        return InputError(
            "no caption has text",
            code="captions-empty",
            where=where,
            expected="text in the column of captions",
            found=f"{counted(entries - unknown, 'entry')} without text",
            hint="name the column of captions: --caption-column NAME",
        )
    if not entries:
        return InputError(
            "no captions in it", code="captions-empty", where=where, expected="a row for each caption", found="no row"
        )
    _, own = next(_paths(shards))
    parts = Counter(_part(path, "stem") for _, path in islice(_paths(shards), 1000))
    stem = _part(example, "stem") in parts
    hint = "--match stem compares names without folders and endings, --match name whole names"
    return InputError(
        "no caption is of an image of this corpus",
        code="captions-of-other-paths",
        where=where,
        expected=f"paths such as {own}",
        found=example,
        hint=hint if stem or how == "path" else "name the column of paths: --path-column NAME",
    )
