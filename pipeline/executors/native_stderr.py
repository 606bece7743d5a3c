"""Owns what native code writes to this process's stderr: set aside while Ray is in use, whose own output fills pages.

Python's stderr stays what it was. What was set aside can be read, to report why Ray refuses.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from typing import BinaryIO, TextIO

_STDERR = 2

#: How Ray's native code begins a line: time, level, process, thread, place.
_BEGINNING = re.compile(r"\[[^]]*\] [\w.]+:\d+: ")

_file: BinaryIO | None = None
_kept: tuple[int, TextIO] | None = None


def set_aside() -> None:
    """From here on native code writes to a hidden file. Does nothing where stderr is not the process's own."""
    global _file, _kept
    if _kept is not None or not _is_own(sys.stderr):
        return
    sys.stderr.flush()
    _file = tempfile.TemporaryFile()  # noqa: SIM115
    visible = os.dup(_STDERR)
    _kept = visible, sys.stderr
    sys.stderr = os.fdopen(visible, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1)
    os.dup2(_file.fileno(), _STDERR)


def put_back() -> None:
    """Native code writes to stderr again."""
    global _file, _kept
    if _kept is None or _file is None:
        return
    visible, stderr = _kept
    sys.stderr.flush()
    os.dup2(visible, _STDERR)
    sys.stderr.close()
    sys.stderr = stderr
    _file.close()
    _file = _kept = None


def last_lines() -> str | None:
    """The last line that was set aside, without its time and place."""
    if _file is None:
        return None
    _file.seek(0)
    lines = [line for line in _file.read().decode(errors="replace").splitlines() if line.strip()]
    return _BEGINNING.sub("", lines[-1]) if lines else None


def _is_own(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _STDERR
    except (OSError, ValueError, AttributeError):
        return False
