"""Owns the images that a student is measured on: a folder, a tar, a list, a data set, or finished shards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError, TeachonceError
from ...storage_schemas.samples import sample_key
from ..corpora.folder import FolderSource
from ..corpora.images import MAX_PIXELS
from ..corpora.left_out import LeftOut
from ..corpora.shards import ShardSet
from ..corpora.source import Source
from ..corpora.spelling import is_dataset, split_name
from ..samples.images import IMAGES
from ..samples.kind import SampleKind
from ..samples.registry import check_kind, kind_named
from .picture_files import PictureFiles, ShardFiles, SourceFiles
from .sources import open_source


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image.

    Attributes:
        path: within the set.
        key: the sample key that it has, or would have, in shards.
        label: class name, where the set has one.
        files: what reads it.
        file: its name there.
        place: its position in the set's own order, as in `SourceFile`; -1 where it has none. Shards keep none.
        no_label: what stands in the place of a label and is not one, as in `SourceFile`. Shards keep none.
        digest: of the original file, as in the manifest, where the set has it without reading; what is read may be reduced.
    """

    path: str
    key: str
    label: str | None
    files: PictureFiles
    file: Any
    place: int = -1
    digest: str | None = None
    no_label: str = ""

    def read(self) -> bytes:
        """Its bytes, in any thread.

        Raises:
            BadImage, Unreachable: as in `PictureFiles.read`.
        """
        return self.files.read(self.file)


class ImageSet(Protocol):
    """Images in a fixed order. `pictures` may be walked several times.

    Attributes:
        name: of the corpus, as in the keys.
        kind: of samples that they are.
        max_pixels: larger ones are not used.
        left_out: entries that the last walk passed over; shards have none.
        files: what reads the images.
    """

    name: str
    kind: SampleKind
    max_pixels: int
    left_out: LeftOut
    files: PictureFiles

    @property
    def shards(self) -> ShardSet | None:
        """The shards that the images are in; None where they are in none."""

    def pictures(self) -> Iterator[Picture]:
        """All images in order; nothing is read yet."""


def open_images(images: str, *, name: str | None = None, kind: SampleKind | None = None) -> ImageSet:
    """The images that IMAGES names.

    Args:
        images: a folder of shards (recognised by its corpus.json), or whatever `teachonce shard` takes.
        name: corpus name for the keys of what is no shards; default: the folder's or file's own name, as
            `shard` would take it.
        kind: of samples to look for, and that shards must hold; None takes shards as they are, and looks for images elsewhere.

    Raises:
        InputError: nothing there, or a name for shards, which have one.
        MismatchError: shards of another kind.
        IncompleteError: `teachonce shard` has not finished.
    """
    _, what = split_name(images)
    if not is_dataset(what) and (Location.of(what) / "corpus.json").exists():
        shards = ShardSet.open(Location.of(what))
        if name is not None:
            raise InputError(
                "shards carry their own corpus name",
                code="corpus-name-fixed",
                where="--name",
                found=name,
                hint="leave out --name",
            )
        if kind is not None:
            check_kind(shards.corpus.sample_kind, kind.name, where=shards.location, expected_by="wanted here")
        return _ShardImages(shards)
    kind = kind or IMAGES
    source = open_source(images, kind=kind)
    return _SourceImages(source, name or source.name, kind)


def shows_many(images: str, count: int) -> bool:
    """Whether there are `count` images or more, as far as that shows at once: in shards and in a folder, but for trouble."""
    _, what = split_name(images)
    with contextlib.suppress(OSError, TeachonceError):  # whoever opens them says what is wrong
        if not is_dataset(what) and (Location.of(what) / "corpus.json").exists():
            return ShardSet(Location.of(what)).corpus.num_samples >= count
        source = open_source(images)
        if isinstance(source, FolderSource):
            found = (file for file in source.walk() if file.is_image)
            return next(islice(found, count - 1, None), None) is not None
    return False


class _SourceImages:
    shards: ShardSet | None = None

    def __init__(self, source: Source, name: str, kind: SampleKind) -> None:
        self.name, self.kind, self.max_pixels, self._source = name, kind, MAX_PIXELS, source
        self.left_out = LeftOut()
        self.files: PictureFiles = SourceFiles(source)

    def pictures(self) -> Iterator[Picture]:
        self.left_out = LeftOut()
        for found in self._source.walk():
            if not found.is_image:
                self.left_out.add(found.left_out, found.path)
            else:
                yield Picture(
                    path=found.path,
                    key=sample_key(self.name, found.path),
                    label=found.label,
                    files=self.files,
                    file=found,
                    place=found.place,
                    no_label=found.no_label,
                )


class _ShardImages:
    def __init__(self, shards: ShardSet) -> None:
        self.name, self.max_pixels, self.shards = shards.corpus.name, shards.corpus.max_pixels, shards
        self.kind = kind_named(shards.corpus.sample_kind, where=shards.location)
        self.left_out = LeftOut()
        self.files: PictureFiles = ShardFiles(shards)

    def pictures(self) -> Iterator[Picture]:
        manifest = self.shards.manifest()
        for shard in range(self.shards.corpus.num_shards):
            self.shards.reader(shard).close()  # checks it
            rows = self.shards.corpus.rows(shard)
            for row, entry in zip(rows, manifest.shard(shard), strict=True):
                yield Picture(
                    path=entry.path,
                    key=entry.key,
                    label=entry.label,
                    files=self.files,
                    file=row,
                    digest=entry.digest,
                )
