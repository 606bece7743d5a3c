"""Owns text that a user brings in a file: its encoding, its lines, and the JSON in it."""

from __future__ import annotations

import codecs
import json
import shlex
from typing import Any

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError

#: Byte-order marks, and what reads what follows. UTF-32's little mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes) -> str:
    """Text in UTF-8, or in the encoding of its byte-order mark. The mark is not part of it.

    Raises:
        UnicodeDecodeError: something else.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


def text_lines(file: UserFile, text: str) -> list[str]:
    """The lines, which end at a newline or at carriage return and newline, and nowhere else.

    Files that were joined bring a byte-order mark in the middle; it is no part of its line.

    Raises:
        InputError: carriage returns alone, as Macintosh computers had them.
    """
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise InputError(
            "lines that end at carriage returns",
            code="text-carriage-returns",
            where=file,
            hint=f"tr '\\r' '\\n' < {shlex.quote(str(file))} > {beside(file, 'lines')}",
        )
    lines = text.split("\n")
    return [line.removesuffix("\r").removeprefix("\ufeff") for line in (lines if lines[-1] else lines[:-1])]


def read_user_file(file: UserFile) -> bytes:
    """All bytes of a small file, or of a pipe that ends.

    Raises:
        InputError: a folder, a device, or what cannot be read.
    """
    if file.is_device():
        raise InputError("a device, not a file", code="not-a-file", where=file)
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            "cannot be read",
            code="file-unreadable",
            where=file,
            found=error.strerror or error,
            hint="check its path and its permissions",
        ) from error


def read_text(file: UserFile) -> str:
    """A text file.

    Raises:
        InputError: as in `read_user_file`, or no text in UTF-8 and without a byte-order mark of another encoding.
    """
    data = read_user_file(file)
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise not_utf8(file, data[: error.start].count(b"\n") + 1, error) from error
    if "\0" in text:
        raise no_text(file, data)
    return text


def read_lines(file: UserFile) -> list[tuple[int, str]]:
    """(number from 1 on, text without blanks around it) of each line that is not blank.

    Raises:
        InputError: as in `read_text`.
    """
    lines = enumerate(text_lines(file, read_text(file)), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def not_utf8(file: UserFile, line: int, error: UnicodeDecodeError | None = None) -> InputError:
    """The error for a file in another encoding."""
    if error is not None and error.encoding != "utf-8":
        what = error.encoding.upper()
        return InputError(
            f"not text in {what}, as its byte-order mark says",
            code="text-not-as-marked",
            where=file,
            hint="save it as UTF-8",
        )
    return InputError(
        "not text in UTF-8",
        code="text-not-utf8",
        where=f"{file}, line {line}",
        hint=f"save it as UTF-8; if it is Latin-1: iconv -f LATIN1 -t UTF-8 {shlex.quote(str(file))} > {beside(file, 'utf8')}",
    )


def no_text(file: UserFile, data: bytes) -> InputError:
    """The error for a file with NUL bytes."""
    wide = next((name for name, first in (("UTF-16LE", 1), ("UTF-16BE", 0)) if not any(data[first:64:2])), None)
    if wide is None:
        return InputError(
            "not a text file: it holds NUL bytes",
            code="text-with-nul",
            where=file,
            hint="give a file with one entry a line",
        )
    return InputError(
        f"not text in UTF-8: it looks like {wide} without a byte-order mark",
        code="text-not-utf8",
        where=file,
        hint=f"iconv -f {wide} -t UTF-8 {shlex.quote(str(file))} > {beside(file, 'utf8')}",
    )


def beside(file: UserFile, what: str) -> str:
    """A name for another file of the same kind in the same folder, quoted for a shell."""
    return shlex.quote(str(UserFile(file.path.with_name(f"{file.path.stem}-{what}{file.path.suffix}"))))


def json_value(text: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_user_json(file: UserFile, *, hint: str | None = None) -> Any:
    """The value of a JSON file of the user's; files of ours have schemas.

    Raises:
        InputError: as in `read_text`, or no JSON.
    """
    try:
        return json_value(read_text(file))
    except ValueError as error:
        raise InputError("not JSON", code="json-malformed", where=file, found=error, hint=hint) from error
