"""Owns one row of a list of images, and what makes a row one that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...pipeline.user_files import UserFile, expand_home, is_url
from ...storage_schemas.errors import InputError
from .label import Label, label_of
from .names import is_image_name, shown
from .text_file import not_utf8

#: The columns or keys that may hold the path of an image; `label` may stand beside them.
PATHS = ("path", "url")

#: What Windows and Unix may have written where it is not UTF-8.
_OTHER_ENCODINGS = ("cp1252", "latin-1")

_NO_LABEL = Label()


@dataclass(frozen=True, kw_only=True, slots=True)
class ListRow:
    """One image that a list names.

    Attributes:
        path: as it stands there; where nothing can be made of it, what names the row.
        label: what stands beside it.
        problem: why it cannot be used; None where it may be.
        line: of a text file without columns, where nothing but this path stands in it; else 0.
    """

    path: str
    label: Label = _NO_LABEL
    problem: str | None = None
    line: int = 0


def row_of(place: str, path: object, label: object = None, *, line: int = 0) -> ListRow:
    """The row of a path and of what stands where a label may stand.

    Args:
        place: names the row: "line 3".
        path: text, where bytes that are not UTF-8 may be lone surrogates; or bytes; anything else is a problem.
        label: see `label_of`.
        line: as in `ListRow`.
    """
    if isinstance(path, bytes):
        path = path.decode("utf-8", "surrogateescape")
    if not isinstance(path, str):
        return bad_row(place, "no path" if path is None else f"a value of type {type(path).__name__}, not a path")
    path = path.strip()
    if not path:
        return bad_row(place, "no path")
    if not is_utf8(path):
        return ListRow(path=_shown(path), problem="a name that is not UTF-8")
    return ListRow(path=path, label=_NO_LABEL if label is None else label_of(label), line=line)


def row_of_text(file: UserFile, line: int, path: str, label: str, *, alone: bool = False) -> ListRow:
    """The row of a line of a text file.

    Args:
        file: the list.
        line: its number from 1 on.
        path, label: as they stand there, where bytes that are not UTF-8 are lone surrogates; no label may be empty.
        alone: whether nothing but the path stands in the line.

    Raises:
        InputError: the list is in another encoding: a label is not UTF-8, or a file is there under another reading of its name.
    """
    label = label.strip()
    if not is_utf8(label) or (not is_utf8(path) and _is_there_in_another_encoding(file, path.strip())):
        raise not_utf8(file, line)
    return row_of(f"line {line}", path, label or None, line=line if alone else 0)


def bad_row(place: str, problem: str) -> ListRow:
    """A row without a path of its own."""
    return ListRow(path=f"({place})", problem=problem)


def find_columns(file: UserFile, names: Sequence[str]) -> tuple[int, int | None]:
    """Where the paths stand among a table's columns, and where the labels do.

    Raises:
        InputError: no column of paths, or two of one name.
    """
    twice = next((name for name in (*PATHS, "label") if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            "two columns of a table have one name",
            code="list-column-twice",
            where=f"{file}: {twice}",
            hint="rename one of them",
        )
    found = next((names.index(name) for name in PATHS if name in names), None)
    if found is None:
        first = names[0] if names else ""
        headless = is_image_name(first) or is_url(first)
        raise InputError(
            "a table of images needs a column",
            code="list-column-missing",
            where=file,
            expected="path or url",
            found=", ".join(names) or "nothing",
            hint="write path,label above its first line" if headless else "name the column of the paths: path",
        )
    return found, names.index("label") if "label" in names else None


def is_utf8(text: str) -> bool:
    """Whether there are no lone surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_there_in_another_encoding(file: UserFile, path: str) -> bool:
    raw = path.encode("utf-8", "surrogateescape")
    names = (raw.decode(encoding, "replace") for encoding in _OTHER_ENCODINGS)
    return any(UserFile(file.path.parent / expand_home(name)).exists() for name in names)


def _shown(path: str) -> str:
    try:
        return shown(path.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # halves of characters, as JSON may have them
        return shown(path.encode("utf-8", "surrogatepass"))
