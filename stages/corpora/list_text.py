"""Owns lists of images that are text: one path or URL a line, and after a tab a label if wanted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from ...pipeline.user_files import UserFile, expand_home, is_url
from ...storage_schemas.errors import InputError
from .list_row import ListRow, is_utf8, row_of_text
from .list_tables import csv_rows, names_columns
from .names import is_image_name
from .text_file import beside, decode_text, json_value, no_text, not_utf8, read_user_file, text_lines

#: What may stand between a path and a label in lists that come from elsewhere.
_MARKS = (" ", ",", ";", "|")


def list_text(file: UserFile) -> str:
    """The text of a list. Bytes that are no UTF-8 become lone surrogates: they cost their line.

    Raises:
        InputError: an image, or more than half of the lines are no text.
    """
    if is_image_name(file.name):
        raise InputError(
            "an image is no corpus",
            code="corpus-is-one-image",
            where=file,
            hint="give the folder that it lies in, or a list of paths",
        )
    data = read_user_file(file)
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise not_utf8(file, 1, error) from error
        text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    if "\0" in text or not is_utf8(text):
        lines = [(number, line) for number, line in enumerate(text_lines(file, text), 1) if line.strip()]
        odd = [number for number, line in lines if "\0" in line or not is_utf8(line)]
        if 2 * len(odd) > len(lines):
            raise no_text(file, data) if b"\0" in data else not_utf8(file, odd[0])
    return text


def text_rows(file: UserFile, text: str) -> Iterator[ListRow]:
    """Rows of a text list; of a table, where its first line names columns with tabs between them.

    Raises:
        InputError: JSON, columns without names, another encoding.
    """
    lines = text_lines(file, text)
    first = next((line for line in lines if line.strip()), "")
    if names_columns(first, "\t"):
        yield from csv_rows(file, text, "\t")
        return
    _refuse_json(file, first.strip())
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        path, tab, label = line.partition("\t")
        if "\t" in label.strip():
            raise InputError(
                "a line with several tabs",
                code="list-line-many-tabs",
                where=f"{file}, line {number}",
                expected="path<TAB>label",
                found=f"{line.count(chr(9)) + 1} columns",
                hint="name the columns in a first line, one of them path and one label",
            )
        yield row_of_text(file, number, path, label, alone=not tab)


def refuse_joined_label(file: UserFile, row: ListRow) -> None:
    """Refuse `path label` and `path,label`, where the whole line is no file but its beginning is an image.

    Raises:
        InputError: it is such a line; with what to type.
    """
    marks = [mark for mark in _MARKS if mark in row.path]
    if not marks or is_image_name(row.path):
        return
    for mark in marks:
        for path in (row.path.partition(mark)[0], row.path.rpartition(mark)[0]):
            there = mark == " " if is_url(path) else UserFile(file.path.parent / expand_home(path)).exists()
            if is_image_name(path) and there:
                raise InputError(
                    "a line of a list is no file, but its beginning is",
                    code="list-separator-unclear",
                    where=f"{file}, line {row.line}: {row.path}",
                    expected="a path, or a path, a tab and a label",
                    found=f"'{mark}' between them",
                    hint=_split_hint(file, row.path, mark),
                )


def _split_hint(file: UserFile, line: str, mark: str) -> str:
    if mark == "," or mark == ";":
        return f"name it {file.path.stem}.csv, with a first line path{mark}label"
    if line.count(mark) > 1:
        return "write a tab between path and label, in all lines"
    return f"tr '{mark}' '\\t' < {shlex.quote(str(file))} > {beside(file, 'tabs')}"


def _refuse_json(file: UserFile, first: str) -> None:
    if not first.startswith(("{", "[")):
        return
    try:
        json_value(first)
    except ValueError:
        if len(first) > 1:
            return
    kind = "jsonl" if first.startswith("{") else "json"
    raise InputError(
        "JSON in a file that is not named so",
        code="json-misnamed",
        where=file,
        hint=f"name it {file.path.stem}.{kind}",
    )
