"""Owns reading the members of an untrusted tar one after another, through all archives that stand one behind another in it.

Headers are hostile: none makes a read of more than `_LONGEST_HEADER`, and none leads back.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, Self

from ...pipeline.storage import RangeReader
from ...storage_schemas.errors import InputError, Unreachable
from ...storage_schemas.plain_text import typed

#: Bytes of what a header carries: a long name, attributes. Linux's attributes of one file take up to 64 KiB.
_LONGEST_HEADER = 1 << 18

#: `tarfile` searches a header in a time that grows with the square of the digits in a row. No part of a path has so many.
_MANY_DIGITS = b"0" * 1024
_DIGITS_AS_0 = bytes(ord("0") if byte in b"0123456789" else 1 for byte in range(256))

_PIECE_BYTES = 1 << 20

#: What compressed files and other archives begin with, with what is typed to get at the tar.
_NO_TARS = {
    b"\x1f\x8b": ("compressed by gzip", "gunzip"),
    b"BZh": ("compressed by bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("compressed by xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unzstd"),
    b"PK\3\4": ("a zip archive", "unzip"),
}


class TarFile(Protocol):
    """A tar, wherever it lies."""

    @property
    def name(self) -> str: ...

    def open(self) -> BinaryIO:
        """Open for reading."""

    def open_ranges(self) -> RangeReader:
        """Open for reading at any place, by any thread."""

    def read_range(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; shorter only where the file ends."""


def tar_members(file: TarFile) -> Iterator[tarfile.TarInfo]:
    """All members in the order of the file, those behind an end mark too; nothing is read but headers.

    Raises:
        InputError: no tar, a compressed one, one that was cut, or something that is no tar after an end mark.
        Unreachable: the disk or the mount gives an error.
    """
    try:
        with file.open() as raw:
            yield from _members(raw, file)
    except OSError as error:
        raise Unreachable(
            "a tar cannot be read at the moment",
            code="unreachable-now",
            where=file,
            found=error.strerror or error,
            hint="mend the cause, then run the same command again",
        ) from error


def _members(raw: BinaryIO, file: TarFile) -> Iterator[tarfile.TarInfo]:
    start: int | None = 0
    while start is not None:
        raw.seek(start)
        archive = _Archive(raw, file)
        while (member := archive.next()) is not None:
            yield member
        if archive.end == start > 0:
            raise InputError(
                "something that is no tar follows a tar's end mark",
                code="tar-trailing-data",
                where=f"{file}, byte {start}",
                hint=f"to keep what is before it: head -c {start} {typed(file.name)} > whole.tar",
            )
        start = _behind_end_mark(raw, archive.end, file)


class _Archive:
    """One archive in the file, from the file's position on."""

    def __init__(self, raw: BinaryIO, file: TarFile) -> None:
        self._raw, self._file = raw, file
        self.end = raw.tell()
        self._tar: tarfile.TarFile | None = None

    def next(self) -> tarfile.TarInfo | None:
        """The next member, or None at the first block that is not a header; `end` is where that lies."""
        try:
            if self._tar is None:
                headers: Any = _Headers(self._raw)  # it has all that tarfile needs of a file
                self._tar = tarfile.TarFile(
                    fileobj=headers, tarinfo=_Member, encoding="utf-8", errors="surrogateescape"
                )
            member = self._tar.next()
            self._tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all, a kilobyte each
            end = self._tar.offset
            if member is not None and (end <= self.end or member.size < 0):
                raise tarfile.ReadError("a header that leads back")
        except (OSError, MemoryError):
            raise
        except Exception as error:  # its parsers raise whatever they meet
            raise self._refusal(error) from error
        self.end = end
        return member

    def _refusal(self, error: Exception) -> InputError:
        self._raw.seek(0)
        begins = self._raw.read(8) if self._tar is None else b""
        for magic, (kind, command) in _NO_TARS.items():
            if begins.startswith(magic):
                return InputError(
                    "not an uncompressed tar",
                    code="tar-compressed",
                    where=self._file,
                    found=f"a file {kind}" if " by " in kind else kind,
                    hint=f"unpack it first: {command} {typed(self._file.name)}",
                )
        text = str(error) if isinstance(error, tarfile.TarError) else f"{type(error).__name__}: {error}"
        return InputError(
            "not a whole, uncompressed tar",
            code="tar-damaged",
            where=f"{self._file}, byte {self.end}: {text[:120]}",
            hint="get it again from where it came",
        )


class _Member(tarfile.TarInfo):
    """A member whose name is read by the format of its header."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if buf[257:263] == b"ustar ":
            # GNU's own header has times in it (of incremental archives) where POSIX's has the first part of a long name.
            name = bytes(buf[:100]).partition(b"\0")[0].decode(encoding, errors)
            member.name = name.rstrip("/") if member.isdir() else name
        return member


class _Headers:
    """A file of which `tarfile` may read headers alone."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.seek, self.tell = raw.seek, raw.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._raw.read(size)
        if size > tarfile.BLOCKSIZE and _MANY_DIGITS in data.translate(_DIGITS_AS_0):
            raise tarfile.ReadError(f"a header of more than {len(_MANY_DIGITS)} digits")
        return data


def _behind_end_mark(raw: BinaryIO, end: int, file: TarFile) -> int | None:
    """Where the next archive begins; None where only zeros follow.

    Raises:
        InputError: there is no end mark.
    """
    raw.seek(end)
    mark = raw.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise InputError(
            "a tar ends without its end mark: it was cut",
            code="tar-without-end",
            where=file,
            hint="get it again from where it came",
        )
    if any(mark):
        raise InputError(
            "a damaged header in a tar",
            code="tar-header-damaged",
            where=f"{file}, byte {end}",
            expected="a member or the end mark",
            found="neither",
            hint="get it again from where it came",
        )
    at = end + len(mark)
    while piece := raw.read(_PIECE_BYTES):
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        if zeros < len(piece):
            return at + zeros - zeros % tarfile.BLOCKSIZE
        at += len(piece)
    return None
