"""Owns what split files list: classes, and images with their classes; and what is refused in any of them.

Split files come from elsewhere, so nothing in them is trusted: no path may leave the images' folder.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....storage_schemas.errors import InputError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The content of the split files of one data set.

    Attributes:
        class_names: C different names in the order of their label ids.
        images: for each split, (path below the images' folder, class name) in the files' own order.
    """

    class_names: tuple[str, ...]
    images: Mapping[str, Sequence[tuple[str, str]]]


def shown(value: object) -> str:
    """A value of a split file for an error: on one line, not long, and nothing in it that a terminal acts on."""
    return _SHORT.repr(value)


def image_path(value: object, where: str) -> str:
    """The path, if it is one in plain form that stays below the images' folder.

    Raises:
        InputError: it is not.
    """
    if (
        isinstance(value, str)
        and value.isprintable()
        and "\\" not in value
        and not {"", ".", ".."} & set(value.split("/"))
    ):
        return value
    raise InputError(
        "not a plain path below the images' folder", code="split-path-unsafe", where=where, found=shown(value)
    )


def class_name(value: object, where: str) -> str:
    """The name, if it is a string that one can see.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value
    raise InputError("not a class name", code="class-name-malformed", where=where, found=shown(value))


def check_each_once(paths: Sequence[str], where: str) -> None:
    """Check that no split names an image twice.

    Raises:
        InputError: one does.
    """
    seen: set[str] = set()
    for number, path in enumerate(paths, 1):
        if path in seen:
            raise InputError(
                "an image stands twice in a split",
                code="split-image-twice",
                where=f"{where}, entry {number}",
                found=shown(path),
            )
        seen.add(path)
