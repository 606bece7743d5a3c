"""Owns the manifest: the frozen list of a corpus's samples, as Parquet with one row group a shard.

It holds no absolute paths, so a corpus that moves keeps its identity.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from .corpus_history import CorpusState, TarFacts, faults_of, parts_of
from .errors import DamagedError
from .fingerprint import Json, canonical_json
from .formats import SHARDS
from .json_file import Count, Positive, as_sealed, read_json, seal
from .plain_text import counted
from .row_layout import RowLayout
from .samples import IMAGE, Order

_COLUMNS: list[Any] = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("source", pa.int32(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("digest", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("problem", pa.string()),
]

MANIFEST_SCHEMA = pa.schema(_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample of the manifest.

    Attributes:
        key: 32 hexadecimal digits (see `samples.sample_key`).
        path: relative POSIX path within the corpus; first the source's name where there are several sources.
        source: index of the source that holds it.
        offset: first byte within a tar source; -1 for a file of its own.
        size: bytes.
        digest: blake2b-128 of the content, hexadecimal; empty where it could not be read.
        label: class name, where the corpus has one.
        problem: why the file could not be read at all, else None.
    """

    key: str
    path: str
    source: int
    offset: int
    size: int
    digest: str
    label: str | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class SourceName:
    """A source of a corpus, by the name that the user knows it by; the paths of its images begin with `prefix`."""

    name: str
    prefix: str = ""

    def to_json(self) -> Json:
        return {"name": self.name, **({"prefix": self.prefix} if self.prefix else {})}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The identity of a frozen manifest, kept beside it as `corpus.json`; written last, so it vouches for it.

    Attributes:
        name: part of every key.
        corpus_id: blake2b-128 over all entries, the shard size and the order: equal ids mean equal rows.
        listing_id: the same over paths and sizes only: shows cheaply whether a folder has changed.
        num_samples, shard_size, num_shards: row = shard * shard_size + offset; the last shard may be short, and in a corpus that grew
            the last one of each part (see `layout`).
        resize: shorter side in pixels that images were reduced to, or None for the original bytes.
        max_pixels: larger images are recorded as unusable.
        max_bytes: so are longer files; what came later is written only where it is not 1 GiB.
        sample_kind: of the samples, by the name that it has in `stages/samples/registry.py`; written only where they are no images.
        order: of the rows; written only where it is not `source`, that of early versions.
        manifest_footer: blake2b-128 (hexadecimal) of the manifest's footer; pages carry checksums of their own, so that the
            two cover all that is read of it. None for manifests of early versions, whose pages have no checksums.
        skipped: files in the sources that are no images by their names.
        left_out: what was left out, those too: kind, number of entries, path of the first; written only where there is any.
        no_labels: what stood where labels should and was none: kind, number of images, path of the first; written only
            where there is any.
        sources: by their numbers; early versions did not write them.
        history: states that the corpus was in before it grew or was mended, the first one first; written, as what follows, only where
            there is any.
        mended, replaced: rows that the last change mended, as in `CorpusState`.
        tars: where tars are used in place, each source's; written only there. Each that has samples is a shard.
    """

    name: str
    corpus_id: str
    listing_id: str
    num_samples: Positive
    shard_size: Positive
    num_shards: Positive
    resize: Positive | None
    max_pixels: Positive
    skipped: Count
    max_bytes: Positive = 1 << 30
    sample_kind: str = IMAGE
    order: Order = "source"
    manifest_footer: str | None = None
    no_labels: Sequence[Mapping[str, Json]] = ()
    left_out: Sequence[Mapping[str, Json]] = ()
    sources: tuple[SourceName, ...] = ()
    history: tuple[CorpusState, ...] = ()
    mended: tuple[Count, ...] = ()
    replaced: tuple[Count, ...] = ()
    tars: tuple[TarFacts, ...] = ()

    @property
    def version(self) -> int:
        """The version of the format that holds it."""
        return 3 if self.tars else 2 if self.history else 1

    def to_bytes(self) -> bytes:
        fields = {
            "schema_version": self.version,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
        }
        if self.max_bytes == 1 << 30:
            del fields["max_bytes"]
        if self.sample_kind == IMAGE:
            del fields["sample_kind"]
        if self.order == "source":
            del fields["order"]
        fields["history"] = [state.to_json() for state in self.history]
        fields["sources"] = [source.to_json() for source in self.sources]
        fields["tars"] = [tar.to_json() for tar in self.tars]
        for name in ("no_labels", "left_out", "sources", "history", "mended", "replaced", "tars"):
            if not fields[name]:
                del fields[name]
        if self.manifest_footer is None:
            del fields["manifest_footer"]
        return canonical_json(seal(fields)) + b"\n"

    @staticmethod
    def from_bytes(data: bytes, where: object) -> Corpus:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: not a corpus file.
            MismatchError: written by another schema version.
        """
        about: dict[str, Any] = {
            "what": "not a corpus file",
            "code": "corpus-file-malformed",
            "where": where,
            "hint": "restore it from a copy, or run `teachonce shard` with another --out",
        }
        fields = read_json(data, dict[str, Any], **about)
        # Before the seal: another version may seal in another way.
        SHARDS.check(fields.get("schema_version"), where=where, hint="run `teachonce shard` with another --out")
        corpus = as_sealed(fields, Corpus, **about)
        faults = faults_of(corpus.states, corpus.shard_size, corpus.tars)
        if faults or corpus.num_shards != corpus.layout.num_shards:
            raise DamagedError(
                **about,
                expected=f"{counted(corpus.layout.num_shards, 'shard')} for {counted(corpus.num_samples, 'sample')}",
                found=faults or corpus.num_shards,
            )
        return corpus

    @property
    def in_place(self) -> bool:
        """Whether its shards are tars that lie where their owner put them."""
        return bool(self.tars)

    @property
    def states(self) -> tuple[CorpusState, ...]:
        """Its states from the first to the present one, which are its generations 1, 2, …"""
        now = CorpusState(
            corpus_id=self.corpus_id,
            num_samples=self.num_samples,
            num_shards=self.num_shards,
            mended=tuple(self.mended),
            replaced=tuple(self.replaced),
        )
        return (*self.history, now)

    @cached_property
    def layout(self) -> RowLayout:
        """Which rows a shard holds."""
        if self.tars:
            shards = [tar.samples for tar in self.tars if tar.samples]
            return RowLayout.of(self.shard_size, shards[: self.num_shards])
        return RowLayout.of(self.shard_size, parts_of(self.states))

    @property
    def num_rows(self) -> int:
        """One more than the last row; more than there are samples, where a shard in the middle is short."""
        return self.layout.num_rows

    def rows(self, shard: int) -> range:
        """Rows of one shard."""
        return self.layout.rows(shard)

    def as_of(self, corpus_id: str) -> Corpus | None:
        """The corpus as it was when it had this id: of its present manifest, the rows that it had; None where it never had it."""
        for place, state in enumerate(self.states):
            if state.corpus_id == corpus_id:
                return replace(self, history=self.states[:place], **state.__dict__)
        return None


def write_manifest(file: BinaryIO, shards: Iterable[list[Entry]]) -> tuple[str, int]:
    """Write one row group a shard. Returns (digest over all entries, number of entries)."""
    digest = hashlib.blake2b(digest_size=16)
    count = 0
    with pq.ParquetWriter(file, MANIFEST_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for entries in shards:
            columns = {name: [getattr(e, name) for e in entries] for name in MANIFEST_SCHEMA.names}
            writer.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), row_group_size=max(len(entries), 1))
            add_to_digest(digest, entries)
            count += len(entries)
    return digest.hexdigest(), count


def add_to_digest(digest: hashlib.blake2b, entries: Iterable[Entry]) -> None:
    """Let entries, in row order, enter the digest over all of them: a line of JSON each."""
    add_rows_to_digest(digest, ([e.path, e.size, e.digest, e.label] for e in entries))


def add_rows_to_digest(digest: hashlib.blake2b, rows: Iterable[Sequence[str | int | None]]) -> None:
    """`add_to_digest` of their paths, sizes, digests and labels."""
    digest.update(msgspec.json.Encoder().encode_lines(list(rows)))


def entries_of(columns: Mapping[str, list[Any]]) -> list[Entry]:
    """The entries that columns of `MANIFEST_SCHEMA` hold."""
    rows = zip(*(columns[name] for name in MANIFEST_SCHEMA.names), strict=True)
    return [  # by name: half the time of a dictionary for each
        Entry(key=key, path=path, source=source, offset=offset, size=size, digest=digest, label=label, problem=problem)
        for key, path, source, offset, size, digest, label, problem in rows
    ]


def footer_digest(file: IO[bytes], where: object) -> str:
    """blake2b-128 (hexadecimal) of a Parquet file's footer: schema, and where each page lies.

    A Parquet file ends with the footer, its length in four bytes (little-endian), and `PAR1`.

    Raises:
        DamagedError: no Parquet file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if len(end) < 8 or end[4:] != b"PAR1" or length > size - 12:
        raise _damaged(where, "no Parquet footer")
    file.seek(size - 8 - length)
    return hashlib.blake2b(file.read(length), digest_size=16).hexdigest()


def _damaged(where: object, found: object) -> DamagedError:
    return DamagedError(
        "the manifest is damaged",
        code="manifest-damaged",
        where=where,
        found=" ".join(str(found).split()),
        hint="restore it from a copy",
    )


class ManifestReader:
    """Reads a manifest shard by shard; never more than one row group in memory.

    Args:
        file: the Parquet file, open for reading and seeking; it stays open for as long as it is read.
        where: its name in errors.
        corpus: what was written beside it: the footer's digest is compared, and rows that came later are left out. None compares
            nothing, and gives all.
        footer: of this file, as `footer` of another reader gave it; None reads it from the file.

    Raises:
        DamagedError: at once or while reading: not a manifest, or bytes of it changed since it was written.
    """

    def __init__(
        self, file: IO[bytes], corpus: Corpus | None, *, where: object, footer: pq.FileMetaData | None = None
    ) -> None:
        self._where = where
        if footer is None and corpus is not None and corpus.manifest_footer is not None:
            found = footer_digest(file, where)
            if found != corpus.manifest_footer:
                raise _damaged(where, f"a footer of {found}, not of {corpus.manifest_footer}")
        with self._readable():
            self._file = pq.ParquetFile(file, metadata=footer, page_checksum_verification=True)
            if not self._file.schema_arrow.equals(MANIFEST_SCHEMA):
                raise _damaged(where, "other columns than a manifest's")
            self._num_shards = int(self._file.num_row_groups) if corpus is None else corpus.num_shards
            if self._num_shards > self._file.num_row_groups:
                raise _damaged(
                    where, f"{counted(self._file.num_row_groups, 'row group')} for {self._num_shards} shards"
                )

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
            raise _damaged(self._where, error) from error

    @property
    def footer(self) -> pq.FileMetaData:
        """Where each page lies: some hundred bytes a shard and column, whose digest was compared."""
        return self._file.metadata

    def _columns(self, shard: int, columns: list[str] | None = None) -> dict[str, list[Any]]:
        with self._readable():
            return self._file.read_row_group(shard, columns=columns).to_pydict()  # type: ignore[no-any-return]

    def columns(self, shard: int, names: list[str]) -> tuple[list[Any], ...]:
        """Some columns of one shard, in row order, without reading the others."""
        found = self._columns(shard, names)
        return tuple(found[name] for name in names)

    def shard(self, shard: int) -> list[Entry]:
        """The entries of one shard, in row order."""
        return entries_of(self._columns(shard))

    @property
    def num_shards(self) -> int:
        """Row groups that are read."""
        return self._num_shards

    def __iter__(self) -> Iterator[Entry]:
        """All entries in row order."""
        for shard in range(self._num_shards):
            yield from self.shard(shard)

    def tables(self, rows: int) -> Iterator[pa.Table]:
        """All entries in row order: tables of whole row groups, which hold so many or a few more.

        (`iter_batches` keeps what it has read of all row groups.)
        """
        groups: list[int] = []
        held = 0
        for group in range(self._num_shards):
            groups.append(group)
            held += self._file.metadata.row_group(group).num_rows
            if held >= rows or group == self._num_shards - 1:
                with self._readable():
                    yield self._file.read_row_groups(groups)
                groups, held = [], 0

    def digests(self, shard: int) -> list[str]:
        """The content digests of one shard's samples in row order, without reading the other columns."""
        return self._columns(shard, ["digest"])["digest"]

    def labels_of(self, shard: int) -> list[str | None]:
        """The labels of one shard's samples in row order, without reading the other columns."""
        return self._columns(shard, ["label"])["label"]

    def paths_of(self, shard: int) -> list[str]:
        """The paths of one shard's samples in row order, without reading the other columns."""
        return self._columns(shard, ["path"])["path"]

    def source_paths(self) -> Iterator[tuple[int, str]]:
        """(source, path) of every sample in row order, without reading the other columns."""
        for shard in range(self._num_shards):
            table = self._columns(shard, ["source", "path"])
            yield from zip(table["source"], table["path"], strict=True)

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """(key, label) of every sample in row order, without reading the other columns."""
        for shard in range(self._num_shards):
            table = self._columns(shard, ["key", "label"])
            yield from zip(table["key"], table["label"], strict=True)
