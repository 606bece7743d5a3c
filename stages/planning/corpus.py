"""Owns what a plan knows of a corpus: how many images, how large, and a sample of them, in one pass over names and sizes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...pipeline.progress import Progress
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import counted
from ...storage_schemas.samples import IMAGE, content_digest, sample_metadata
from ...storage_schemas.tar_file import member_bytes
from ..corpora.open_shards import OpenShards
from ..corpora.reading import read_source_file
from ..corpora.shards import ShardSet
from ..corpora.source import Source, SourceFile
from .figures import Basis, Figure
from .scratch import folder_bytes

#: Shards that a sample of finished shards is taken from, evenly spaced.
SAMPLED_SHARDS = 16

#: A digest in a sample's JSON, for its length.
_SOME_DIGEST = content_digest(b"")


class Picked(Protocol):
    """A file of a sample."""

    @property
    def path(self) -> str:
        """In the corpus: with its key it names the image."""

    @property
    def label(self) -> str | None: ...

    def read(self) -> bytes:
        """
        Raises:
            BadImage: it cannot be read.
            Unreachable: not at the moment.
        """


@dataclass(frozen=True, kw_only=True)
class PlannedCorpus:
    """A corpus before it is cached, and perhaps before it is sharded.

    Attributes:
        name: part of every key.
        num_samples: images.
        shard_size: samples of a shard.
        image_bytes: of an image file, in the mean; None where only reading tells.
        member_bytes: the same of its member in the tar, with header and padding.
        metadata_bytes: of a sample's JSON member in the tar, with its header and padding, in the mean.
        picked: a sample of the images.
        finished: what the shards take, where they are there already: files, and bytes.
        parts: samples of each part, as in `RowLayout`, where finished shards in the middle are short.
        unusable: images that are known to be unusable; None where nobody has looked.
        is_drawn: whether the sample is of drawn pictures: there is no corpus.
    """

    name: str
    num_samples: Figure
    shard_size: int
    image_bytes: Figure | None
    member_bytes: float | None
    metadata_bytes: float
    picked: Sequence[Picked]
    finished: tuple[int, int] | None = None
    parts: tuple[int, ...] = ()
    unusable: int | None = None
    sample_kind: str = IMAGE
    resize: int | None = None
    max_pixels: int
    is_drawn: bool = False

    @property
    def rows(self) -> int:
        return int(self.num_samples.value)


@dataclass(frozen=True)
class _InSource:
    source: Source
    found: SourceFile
    path: str

    @property
    def label(self) -> str | None:
        return self.found.label

    def read(self) -> bytes:
        return read_source_file(self.source, self.found)


@dataclass(frozen=True)
class _InShards:
    shards: OpenShards
    shard: int
    row: int
    path: str
    label: str | None

    def read(self) -> bytes:
        return self.shards.reader(self.shard).read(self.row)


@dataclass
class _Reservoir:
    """A random sample of files that come one after another, each with the same chance."""

    most: int
    picked: list[_InSource] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, file: _InSource, number: int) -> None:
        if len(self.picked) < self.most:
            self.picked.append(file)
        elif (place := self._random.randrange(number + 1)) < self.most:
            self.picked[place] = file


def look_at_sources(
    sources: Sequence[Source], *, shard_size: int, resize: int | None, max_pixels: int, most: int
) -> PlannedCorpus:
    """Count the images of sources, and pick some. Names and sizes are listed, no image is read.

    Raises:
        InputError: no images.
        Unreachable: a folder or a list cannot be read at the moment.
    """
    sample, count, metadata, sizes, members, known = _Reservoir(most), 0, 0, 0, 0, 0
    with Progress("looking at the corpus", None, brief=True) as bar:
        for source, path, found in _files(sources):
            sample.add(_InSource(source, found, path), count)
            about = sample_metadata(path=path, row=count, digest=_SOME_DIGEST, label=found.label)
            metadata += member_bytes(len(about))
            if found.size >= 0:
                sizes, members, known = sizes + found.size, members + member_bytes(found.size), known + 1
            count += 1
            bar.advance(1)
    if not count:
        raise InputError(
            "no images",
            code="images-missing",
            where=", ".join(source.name for source in sources),
            expected="at least one image file",
            found="none",
            hint="for a folder of tars, name the tars: teachonce plan FOLDER/*.tar …",
        )
    return PlannedCorpus(
        name="+".join(source.name for source in sources),
        num_samples=Figure(value=count, basis=Basis.COUNTED),
        shard_size=shard_size,
        image_bytes=Figure(value=sizes / known, basis=Basis.COUNTED) if known == count else None,
        member_bytes=members / known if known == count else None,
        metadata_bytes=metadata / count,
        picked=sample.picked,
        resize=resize,
        max_pixels=max_pixels,
    )


def _files(sources: Sequence[Source]) -> Iterator[tuple[Source, str, SourceFile]]:
    for source in sources:
        for found in source.walk():
            if found.is_image:
                yield source, found.path if len(sources) == 1 else f"{source.name}/{found.path}", found


def look_at_shards(shards: ShardSet, *, most: int) -> PlannedCorpus:
    """What finished shards hold, and some of their images: from some shards, evenly spaced, as many of each.

    Raises:
        DamagedError: a receipt or the manifest cannot be read.
    """
    corpus, manifest = shards.corpus, shards.manifest()
    chosen = sorted({i * corpus.num_shards // SAMPLED_SHARDS for i in range(SAMPLED_SHARDS)})
    reading, share, picked = OpenShards(shards), -(-most // len(chosen)), list[Picked]()
    sizes = members = metadata = looked_at = 0
    for shard in chosen:
        entries, start = manifest.shard(shard), corpus.rows(shard).start
        bad = {row.row for row in shards.receipt(shard).invalid_rows}
        usable = [(start + i, entry) for i, entry in enumerate(entries) if start + i not in bad]
        for row, entry in usable:
            about = sample_metadata(path=entry.path, row=row, digest=entry.digest, label=entry.label)
            sizes, members = sizes + entry.size, members + member_bytes(entry.size)
            metadata, looked_at = metadata + member_bytes(len(about)), looked_at + 1
        step = max(1, len(usable) // share)
        picked += [_InShards(reading, shard, row, entry.path, entry.label) for row, entry in usable[::step][:share]]
    invalid = sum(len(receipt.invalid_rows) for receipt in shards.receipts())
    if not looked_at:
        raise InputError(
            "not one image can be used",
            code="images-none-usable",
            where=shards.location,
            expected="at least one usable image",
            found=counted(invalid, "unusable image"),
        )
    return PlannedCorpus(
        name=corpus.name,
        num_samples=Figure(value=corpus.num_samples, basis=Basis.COUNTED),
        shard_size=corpus.shard_size,
        image_bytes=Figure(value=sizes / looked_at, basis=Basis.MEASURED),
        member_bytes=members / looked_at,
        metadata_bytes=metadata / looked_at,
        picked=picked[:most],
        finished=folder_bytes(shards.location),
        parts=corpus.layout.parts,
        unusable=invalid,
        sample_kind=corpus.sample_kind,
        max_pixels=corpus.max_pixels,
    )
