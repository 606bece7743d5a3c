"""Owns the bytes of a shard's tar: plain ustar, byte for byte as webdataset's TarWriter with `mtime=0`."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from .samples import TAR_BLOCK

#: A tar ends with zeros up to a multiple of this.
_RECORD = 20 * TAR_BLOCK

#: Members are hashed and written in pieces of about this size.
_PIECE_BYTES = 1 << 20

_LARGEST = 8**11 - 1
_MODE_UID_GID = b"0000444\0" + b"0000000\0" * 2
_MTIME = b"00000000000\0"
_TYPE_TO_END = b"0" + bytes(100) + b"ustar\0" + b"00" + b"bigdata".ljust(32, b"\0") * 2 + bytes(8 + 8 + 155 + 12)
_CONSTANT_SUM = sum(_MODE_UID_GID) + sum(_MTIME) + sum(b" " * 8) + sum(_TYPE_TO_END)


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's content.

    tarfile builds the same bytes in about 40 microseconds, more than reading and hashing a small image costs.

    Raises:
        ValueError: a name or size that a plain ustar header cannot hold.
    """
    name_bytes, size_bytes = name.encode("ascii"), b"%011o\0" % size
    if len(name_bytes) > 99 or not 0 <= size <= _LARGEST:
        raise ValueError(f"no plain tar member: {name!r}, {size} bytes")
    checksum = _CONSTANT_SUM + sum(name_bytes) + sum(size_bytes)
    return b"".join(
        (name_bytes.ljust(100, b"\0"), _MODE_UID_GID, size_bytes, _MTIME, b"%06o\0 " % checksum, _TYPE_TO_END)
    )


def member_bytes(size: int) -> int:
    """Bytes that a member takes in the tar: its header, and its content in whole blocks."""
    return TAR_BLOCK + size + -size % TAR_BLOCK


def file_bytes(members: int) -> int:
    """Bytes of a tar whose members take so many: the end mark, and zeros up to a whole record."""
    size = members + 2 * TAR_BLOCK
    return size + -size % _RECORD


class TarFile:
    """Writes members one after another and keeps the sha256 and the number of the bytes written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.sha256 = hashlib.sha256()
        self.size = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its first byte of content."""
        self._put(member_header(name, len(data)))
        offset = self.size
        self._put(data)
        self._put(bytes(member_bytes(len(data)) - TAR_BLOCK - len(data)))
        return offset

    def finish(self) -> None:
        """Write the end mark and whatever is still held back."""
        self._put(bytes(file_bytes(self.size) - self.size))
        self._flush()

    def _put(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.size += len(data)
        if self._pending_bytes >= _PIECE_BYTES:
            self._flush()

    def _flush(self) -> None:
        piece = b"".join(self._pending)
        self.sha256.update(piece)
        self._file.write(piece)
        self._pending.clear()
        self._pending_bytes = 0
