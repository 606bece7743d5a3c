"""Owns lists of images that are tables: CSV, JSON, JSON lines, Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from .list_row import PATHS, ListRow, bad_row, find_columns, is_utf8, row_of, row_of_text
from .text_file import json_value, read_user_json, text_lines

if TYPE_CHECKING:
    import pyarrow as pa

_NOT_JSON = object()


def names_columns(line: str, delimiter: str) -> bool:
    """Whether this line names the columns of a table of images."""
    cells = _cells(line, delimiter)
    return len(cells) > 1 and any(name in cells for name in PATHS)


def csv_rows(file: UserFile, text: str, delimiter: str = "") -> Iterator[ListRow]:
    """Rows of a table whose first line names its columns; without a delimiter, the one that stands there.

    Raises:
        InputError: no column of paths, another encoding, or no CSV.
    """
    if not delimiter:
        first = next((line for line in text_lines(file, text) if line.strip()), "")
        delimiter = next((mark for mark in (",", ";", "\t") if names_columns(first, mark)), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        names = [cell.strip() for cell in next((row for row in reader if row), [])]
        paths, labels = find_columns(file, names)
        line = reader.line_num + 1
        for cells in reader:
            number, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) == len(names):
                yield row_of_text(file, number, cells[paths], "" if labels is None else cells[labels])
            else:
                yield bad_row(f"line {number}", f"{len(cells)} cells, where the first line has {len(names)}")
    except csv.Error as error:
        raise InputError(
            "not a CSV table", code="csv-malformed", where=f"{file}, line {reader.line_num}", found=error
        ) from error


def json_rows(file: UserFile) -> Iterator[ListRow]:
    """Rows of a JSON list.

    Raises:
        InputError: no JSON list of images.
    """
    values = read_user_json(file, hint=f"JSON lines are {file.path.stem}.jsonl")
    if not isinstance(values, list):
        raise InputError(
            "not a JSON list of images",
            code="json-list-expected",
            where=file,
            expected='[{"path": …, "label": …}, …]',
            found=f"a value of type {type(values).__name__}",
            hint="write such a list, or a .csv with the columns path and label",
        )
    return _value_rows(file, ((f"entry {number}", value) for number, value in enumerate(values, 1)))


def json_line_rows(file: UserFile, text: str) -> Iterator[ListRow]:
    """Rows of JSON lines.

    Raises:
        InputError: objects without a path.
    """
    lines = ((f"line {number}", line) for number, line in enumerate(text_lines(file, text), 1) if line.strip())
    return _value_rows(file, ((place, _json_or_none(line)) for place, line in lines))


def parquet_rows(file: UserFile) -> Iterator[ListRow]:
    """Rows of a Parquet table.

    Raises:
        InputError: no Parquet, or no column of paths.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file.path)
        names = table.schema_arrow.names
        paths, labels = find_columns(file, names)
        columns = table.read(columns=[names[i] for i in (paths, labels) if i is not None])
        values = _values(columns.column(names[paths]))
        beside = _values(columns.column("label")) if labels is not None else [None] * len(values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            "not a Parquet file that can be read", code="parquet-unreadable", where=file, found=error
        ) from error
    for number, (path, label) in enumerate(zip(values, beside, strict=True), 1):
        yield row_of(f"row {number}", path, label)


def _values(column: pa.ChunkedArray[Any]) -> list[Any]:
    """The values of a column. Text is bytes: that it is UTF-8 has not been checked."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _value_rows(file: UserFile, values: Iterable[tuple[str, Any]]) -> Iterator[ListRow]:
    """Rows of paths, and of objects with a path and perhaps a label.

    Raises:
        InputError: the first object has no path.
    """
    looked = False
    for place, value in values:
        if isinstance(value, dict):
            if not looked:
                find_columns(file, list(value))
            looked = True
            yield row_of(place, next((value[name] for name in PATHS if name in value), None), value.get("label"))
        elif value is _NOT_JSON:
            yield bad_row(place, "not JSON in UTF-8")
        else:
            yield row_of(place, value)


def _json_or_none(line: str) -> Any:
    try:
        return json_value(line) if is_utf8(line) else _NOT_JSON
    except ValueError:
        return _NOT_JSON


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for row in csv.reader([line], delimiter=delimiter, skipinitialspace=True) for cell in row]
    except csv.Error:
        return []
