"""Owns what the names of files say: which are images, and which no path can be made of."""

from __future__ import annotations

from pathlib import PurePosixPath

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from .images import image_extensions


def is_image_name(name: str) -> bool:
    """Whether a file's name says that Pillow reads it as an image."""
    return PurePosixPath(name).suffix.lower() in image_extensions()


def utf8(path: str, where: Location) -> str:
    """The path itself.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError("a file name is not UTF-8", where=f"{where}: {path!r}", hint="rename it") from error
    return path


def shown(raw: bytes) -> str:
    """A name's bytes as text; those that are no UTF-8 as `\\xNN`."""
    return raw.decode("utf-8", "backslashreplace")
