"""Owns the way in which a local file comes to be whole and durable under its name: beside it, flushed, renamed, the folder flushed."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def created(name: str, *, settle: bool = True) -> Iterator[BinaryIO]:
    """A file that is there once the block ends, as `Place.create`."""
    with beside(name) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(name)
    if settle:
        sync_folder(Path(name).parent)


@contextlib.contextmanager
def beside(name: str) -> Iterator[Path]:
    """A temporary name beside a file, in a folder that is there. What has it is removed if the block raises."""
    path = Path(name)
    with naming(name):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            yield temporary
        except BaseException:
            with contextlib.suppress(OSError):  # a disk that failed may refuse this too
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors of reading, writing and flushing an open file say which it was, as those of opening it do."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = name
        raise


def sync_folder(folder: Path) -> None:
    """Names in it are durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(str(folder)):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
