"""Owns reading a list of images: what its rows name, and the bytes of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...pipeline.user_files import UserFile, expand_home, is_url, read_url
from ...storage_schemas.errors import InputError
from .images import MAX_BYTES
from .list_row import ListRow
from .list_tables import csv_rows, json_line_rows, json_rows, parquet_rows
from .list_text import list_text, refuse_joined_label, text_rows
from .reading import look_at
from .source import SourceFile

#: Archives and compressed files.
_PACKED = (".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, kw_only=True)
class ListSource:
    """Text (one path or URL a line, a tab and a label if wanted; # for comments), or CSV, JSON, JSON lines or Parquet with
    a column `path` or `url` and perhaps `label`. Relative paths start at the list's folder.

    Attributes:
        max_bytes: longer bodies of URLs are left before they are read whole.
    """

    name: str
    file: UserFile
    max_bytes: int = MAX_BYTES

    def walk(self) -> Iterator[SourceFile]:
        """
        Raises:
            InputError: not a list of a known form, an image that stands twice in it, or a `pipe:`.
        """
        previous = None
        for row in sorted(self._rows(), key=lambda row: row.path.encode()):
            if row.path == previous:
                raise InputError(
                    "a list names the same image twice",
                    code="list-image-twice",
                    where=f"{self.file}: {row.path}",
                )
            previous = row.path
            if row.path.startswith("pipe:"):
                raise InputError(
                    "pipe: runs a command from data and is refused",
                    code="pipe-refused",
                    where=f"{self.file}: {row.path}",
                )
            size, problem = (0, row.problem) if row.problem is not None else self._look_at(row.path)
            if row.line and (size < 0 or problem is not None):
                refuse_joined_label(self.file, row)
            if problem is not None and "\\" in row.path:
                self._refuse_backslashes(row.path)
            yield SourceFile(
                path=row.path,
                size=size,
                label=row.label.text,
                no_label=row.label.problem,
                problem=problem,
            )

    def _rows(self) -> Iterable[ListRow]:
        kind = self.file.path.suffix.lower()
        if kind == ".parquet":
            return parquet_rows(self.file)
        if kind == ".json":
            return json_rows(self.file)
        if kind in _PACKED:
            raise InputError(
                "a packed file is no list",
                code="list-packed",
                where=self.file,
                hint="unpack it, then give what was in it",
            )
        text = list_text(self.file)
        if kind == ".csv":
            return csv_rows(self.file, text)
        if kind in (".jsonl", ".ndjson"):
            return json_line_rows(self.file, text)
        return text_rows(self.file, text)

    def _look_at(self, path: str) -> tuple[int, str | None]:
        return (-1, None) if is_url(path) else look_at(str(self._resolve(path).path))

    def _refuse_backslashes(self, path: str) -> None:
        slashes = path.replace("\\", "/")
        if self._resolve(slashes).exists():
            raise InputError(
                "a list with the paths of Windows",
                code="list-windows-paths",
                where=f"{self.file}: {path}",
                expected=slashes,
                found="backslashes",
                hint="write all paths with slashes",
            )

    def _resolve(self, path: str) -> UserFile:
        return UserFile(self.file.path.parent / expand_home(path))

    def read(self, path: str, offset: int, size: int) -> bytes:
        if is_url(path):
            return read_url(path, max_bytes=self.max_bytes)
        return self._resolve(path).read_file()
