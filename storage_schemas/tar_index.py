"""Owns the offset index of a shard: where each image's bytes lie in the tar, as a plain `.npy` table."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedError
from .samples import KEY_LENGTH

#: One record a sample that has an image in the tar, in row order. `offset` is the first byte of the image,
#: just behind its 512-byte member header; `crc32` is zlib's, over the image's bytes.
INDEX_DTYPE = np.dtype(
    [("key", f"S{KEY_LENGTH}"), ("row", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("crc32", "<u4")]
)


def encode_index(records: list[tuple[bytes, int, int, int, int]]) -> bytes:
    """The `.npy` bytes of (key, row, offset, length, crc32) records."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(records, dtype=INDEX_DTYPE), allow_pickle=False)
    return buffer.getvalue()


def decode_index(data: bytes, where: object) -> NDArray[np.void]:
    """The table, shape (images,), dtype `INDEX_DTYPE`.

    Raises:
        DamagedError: the bytes are no such table.
    """
    try:
        table = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DamagedError(
            "not an offset index",
            code="index-malformed",
            where=where,
            hint="restore it from a copy, or add .old to the name of its shard's receipt in ledger/shard/receipts and run the "
            "same `teachonce shard` command again",
        ) from error
    if table.dtype != INDEX_DTYPE or table.ndim != 1:
        raise DamagedError(
            "not an offset index",
            code="index-malformed",
            where=where,
            expected=INDEX_DTYPE,
            found=table.dtype,
        )
    return table  # type: ignore[no-any-return]
