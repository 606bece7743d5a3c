"""Owns notes in this user's cache folder: what took long to find, is small, and may be lost at any time."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..storage_schemas.errors import TeachonceError
from ..storage_schemas.fingerprint import canonical_json
from ..storage_schemas.json_file import read_sealed, seal
from .storage import Location

Schema = TypeVar("Schema")


def cache_folder() -> Location | None:
    """This user's folder for what may be lost; None where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(root).is_absolute():  # such values are to be ignored: XDG Base Directory Specification
        try:
            root = str(Path.home() / ".cache")
        except RuntimeError:
            return None
    return Location.of(root) / "teachonce"


def recall(kind: str, key: str, schema: type[Schema]) -> Schema | None:
    """What was remembered; None where nothing was, or where it cannot be read or changed since.

    Args:
        kind: names a folder.
        key: a digest of all that decides it.
        schema: a dataclass.
    """
    note = _note(kind, key)
    if note is not None:
        with contextlib.suppress(OSError, TeachonceError):
            return read_sealed(
                note.read_bytes(),
                schema,
                what="a damaged note",
                code="description-changed",
                where=note,
                hint="it is written anew",
                strict=True,
            )
    return None


def remember(kind: str, key: str, entry: Any) -> None:
    """Keep a dataclass for `recall`. A cache that cannot be written is no error."""
    note = _note(kind, key)
    if note is not None:
        with contextlib.suppress(OSError, TeachonceError):
            note.write_note(canonical_json(seal(asdict(entry))))


def _note(kind: str, key: str) -> Location | None:
    folder = cache_folder()
    return None if folder is None else folder / kind / f"{key}.json"
