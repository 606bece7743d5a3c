"""Owns the captions of a corpus as text: Parquet with a row for each caption, and one row group a shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .errors import DamagedError

_COLUMNS: list[Any] = [pa.field("row", pa.int64(), nullable=False), pa.field("caption", pa.string(), nullable=False)]

SCHEMA = pa.schema(_COLUMNS)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTexts:
    """Captions of a shard's rows, in the order of rows, and of a row in the order of the tables.

    Attributes:
        rows_T: of the corpus, int64 (caption,).
        texts: the captions.
    """

    rows_T: NDArray[np.int64]
    texts: list[str]


def write_texts(file: BinaryIO, shards: Iterable[ShardTexts]) -> None:
    """One row group a shard."""
    with pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for one in shards:
            table = pa.table({"row": one.rows_T, "caption": one.texts}, schema=SCHEMA)
            writer.write_table(table, row_group_size=max(len(one.texts), 1))


def texts_digest(shards: Iterable[ShardTexts]) -> str:
    """blake2b-128 (hexadecimal) over a line of JSON for each caption: its row and its text."""
    digest = hashlib.blake2b(digest_size=16)
    for one in shards:
        for row, text in zip(one.rows_T.tolist(), one.texts, strict=True):
            digest.update(msgspec.json.encode([row, text]) + b"\n")
    return digest.hexdigest()


class TextsReader:
    """Reads captions shard by shard.

    Args:
        file: open for reading and seeking.
        where: its name in errors.

    Raises:
        DamagedError: at once or while reading: no such file, or its bytes changed.
    """

    def __init__(self, file: IO[bytes], where: object) -> None:
        self._where = where
        try:
            self._file = pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise self.damaged(error) from error
        if not self._file.schema_arrow.equals(SCHEMA):
            raise self.damaged("other columns")

    @property
    def num_shards(self) -> int:
        return int(self._file.num_row_groups)

    def shard(self, shard: int) -> ShardTexts:
        """The captions of one shard."""
        try:
            table = self._file.read_row_group(shard)
            texts: list[Any] = table["caption"].to_pylist()
            return ShardTexts(rows_T=table["row"].to_numpy(), texts=texts)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self.damaged(error) from error

    def __iter__(self) -> Iterator[ShardTexts]:
        return (self.shard(shard) for shard in range(self.num_shards))

    def damaged(self, found: object) -> DamagedError:
        """The error for texts in which this was found."""
        return DamagedError(
            "the texts of the captions are damaged",
            code="caption-texts-damaged",
            where=self._where,
            found=" ".join(str(found).split()),
            hint="remove the file, and run the same `teachonce captions` command again",
        )
