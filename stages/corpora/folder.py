"""Owns reading a folder of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.storage import Location
from .names import is_image_name, utf8
from .source import Found


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder of images; a file's label is the name of the folder that it lies in."""

    name: str
    root: Location

    def walk(self) -> Iterator[Found]:
        yield from self._walk(self.root.path, "", ())

    def _walk(self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
        stat = folder.stat()
        identity = (stat.st_dev, stat.st_ino)
        if identity in above:
            return  # a link to a folder above itself
        # Names alone, as bytes: a folder of millions of files is held at once, so that it can be sorted.
        # "a/" sorts where a walk of full paths would put it, so paths come out in bytewise order.
        with os.scandir(os.fsencode(folder)) as scan:
            entries = [e.name + b"/" if e.is_dir() else e.name for e in scan if not e.name.startswith(b".")]
        entries.sort(reverse=True)
        label = prefix.rstrip("/").rpartition("/")[2] or None
        while entries:
            name = os.fsdecode(entries.pop())
            if name.endswith("/"):
                yield from self._walk(folder / name[:-1], prefix + name, (*above, identity))
                continue
            try:
                size = (folder / name).stat().st_size
            except FileNotFoundError:
                size = 0  # a link to nothing: reading it will say so
            path = utf8(prefix + name, self.root)
            yield Found(path=path, size=size, label=label, is_image=is_image_name(name))

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.root.read_below(path)
