"""Owns folders for sockets: the system takes paths of some hundred bytes only, and `TMPDIR` may be longer."""

from __future__ import annotations

import os
import sys

from ..storage_schemas.errors import InputError

#: Bytes that a socket's path may have.
_LONGEST = 107 if sys.platform == "linux" else 103

#: Where paths are short.
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def folder_for_sockets(usual: str, below: int, variable: str) -> str:
    """The usual folder, or a short one if paths of `below` bytes below it would be too long.

    Args:
        usual: a folder.
        below: bytes of the longest path below it, with its first slash.
        variable: names what a user sets for another folder.

    Raises:
        InputError: there is none that can be written.
    """
    for folder in (usual, *_SHORT_FOLDERS):
        if len(os.fsencode(folder)) + below <= _LONGEST and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise InputError(
        "no folder for sockets",
        code="socket-path-too-long",
        where=usual,
        expected=f"a path of at most {_LONGEST - below} bytes",
        found=f"{len(os.fsencode(usual))}",
        hint=f"export {variable}=/short/folder",
    )
