"""Owns files of names: class lists, base classes and prompt templates, as lines, a JSON list, or a column of a CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from .label import label_of
from .text_file import json_value, read_text, read_user_json, text_lines

#: First lines of a CSV of one column that name the column.
_HEADS = {"class", "class_name", "classname", "label", "name"}


def with_indices(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with their index behind those that stand twice, as OpenAI's "missile" and "sunglasses" do."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(names))


def read_names(file: UserFile, *, what: str = "class name") -> list[str]:
    """The names in a file, in its order: of a `.json` a list, of a `.csv` the one column, of any other file its lines.

    Lines that are blank are no names. Whole numbers in JSON are names. Blanks around a name stay in JSON alone.

    Args:
        file: the file.
        what: what the names are, as an error calls them.

    Raises:
        InputError: not such a file; with what to do.
    """
    kind = file.path.suffix.lower()
    if kind == ".json":
        return _json_names(file, what)
    text = read_text(file)
    if kind == ".csv":
        return _csv_names(file, text, what)
    lines = [(number, line.strip()) for number, line in enumerate(text_lines(file, text), 1) if line.strip()]
    if lines:
        _refuse_json(file, text, lines[0][1])
    for number, line in lines:
        if "\t" in line:
            raise InputError(
                f"a {what} with a tab in it: this is a table",
                code="name-list-is-table",
                where=f"{file}, line {number}: {line}",
                expected="one name a line",
                found=f"{line.count(chr(9)) + 1} columns",
                hint="keep the column of the names alone, as with `cut -f 2`",
            )
    return [line for _, line in lines]


def _json_names(file: UserFile, what: str) -> list[str]:
    values = read_user_json(file)
    if not isinstance(values, list):
        raise InputError(
            "not a JSON list of names",
            code="json-list-expected",
            where=file,
            expected='["cat", "dog"]',
            found=f"a value of type {type(values).__name__}",
            hint="write the names alone as a list, in the order of their ids",
        )
    return [_name(value, f"{file}, entry {number}", what) for number, value in enumerate(values, 1)]


def _name(value: Any, where: str, what: str) -> str:
    label = label_of(value)
    if isinstance(value, str) and label.problem in ("", "empty text"):
        return value
    if label.text is None:
        raise InputError(
            f"not a {what}",
            code="name-malformed",
            where=where,
            expected="text or a whole number",
            found=label.problem or "null",
        )
    return label.text


def _csv_names(file: UserFile, text: str, what: str) -> list[str]:
    names: list[str] = []
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        for cells in reader:
            if len(cells) > 1:
                raise InputError(
                    f"a table of several columns, where one of {what}s is needed",
                    code="name-list-is-table",
                    where=f"{file}, line {reader.line_num}",
                    expected="one name a line",
                    found=f"{len(cells)} columns",
                    hint="keep the column of the names alone, in the order of their ids; quote names that hold commas",
                )
            names += [cell.strip() for cell in cells if cell.strip()]
    except csv.Error as error:
        raise InputError(
            "not a CSV table", code="csv-malformed", where=f"{file}, line {reader.line_num}", found=error
        ) from error
    return names[1:] if names and names[0].lower() in _HEADS else names


def _refuse_json(file: UserFile, text: str, first: str) -> None:
    """JSON in a file that is not named so would be names of braces."""
    for part, kind in ((text, "json"), (first, "jsonl")):
        try:
            if not isinstance(json_value(part), list | dict):
                continue
        except ValueError:
            continue
        raise InputError(
            "JSON in a file that is not named so",
            code="json-misnamed",
            where=file,
            hint=f"name it {file.path.stem}.json"
            if kind == "json"
            else "write it as one JSON list, in a file named .json",
        )
