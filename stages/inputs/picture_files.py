"""Owns reading the files of pictures, in this process or in another one that decodes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ..corpora.images import BadImage
from ..corpora.open_shards import OpenShards
from ..corpora.reading import read_source_file
from ..corpora.shards import ShardSet
from ..corpora.source import Source, SourceFile


class PictureFiles(Protocol):
    """Reads files of one set of images. It is small, can be pickled, and is used by several threads at once."""

    def read(self, file: Any) -> bytes:
        """The bytes of a file, as its set names it.

        Raises:
            BadImage: it cannot be read, now or later.
            Unreachable: it cannot be read at the moment.
        """

    def is_far(self, file: Any) -> bool:
        """Whether it comes over the network: then reading one takes as long as decoding many."""

    def close(self) -> None:
        """Close what reading has opened. The next one may open it again."""


@dataclass(frozen=True)
class SourceFiles:
    """The files of a folder, a tar, a list or a data set: each is a `SourceFile` that its walk found."""

    source: Source

    def read(self, file: SourceFile) -> bytes:
        return read_source_file(self.source, file)

    def is_far(self, file: SourceFile) -> bool:
        return file.size < 0

    def close(self) -> None:
        pass  # nothing stays open


class ShardFiles:
    """The images in shards: each is a row of the corpus."""

    def __init__(self, shards: ShardSet) -> None:
        self._open, self._shard_size = OpenShards(shards, in_order=True), shards.corpus.shard_size
        self._are_far = shards.location.local_path() is None

    def read(self, file: int) -> bytes:
        """
        Raises:
            DamagedError: a tar is not what its receipt vouches for.
        """
        reader = self._open.reader(file // self._shard_size)
        if file in reader.invalid:
            raise BadImage(reader.invalid[file])
        return reader.read(file)

    def is_far(self, file: int) -> bool:
        return self._are_far

    def close(self) -> None:
        self._open.close()
