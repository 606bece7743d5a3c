"""Owns reading a list of images: text, one path or URL a line, or a Parquet table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...pipeline.storage import Location, is_url, read_url
from ...storage_schemas.errors import InputError
from .images import MAX_BYTES
from .source import Found


@dataclass(frozen=True, kw_only=True)
class ListSource:
    """A text file (one path or URL a line, a tab and a label if wanted; # for comments) or a Parquet table with a
    column `path` or `url` and perhaps `label`. Relative paths start at the list's folder.

    Attributes:
        max_bytes: longer bodies of URLs are left before they are read whole.
    """

    name: str
    file: Location
    max_bytes: int = MAX_BYTES

    def walk(self) -> Iterator[Found]:
        rows = self._parquet_rows() if self.file.name.endswith(".parquet") else self._text_rows()
        previous = None
        for path, label in sorted(rows, key=lambda row: row[0].encode()):
            if path == previous:
                raise InputError("a list names the same image twice", where=f"{self.file}: {path}")
            previous = path
            if path.startswith("pipe:"):
                raise InputError(
                    "pipe: runs a command from data and is refused", where=f"{self.file}: {path}"
                )
            size = -1 if is_url(path) else (self._resolve(path).size() or 0)
            yield Found(path=path, size=size, label=label)

    def _text_rows(self) -> list[tuple[str, str | None]]:
        try:
            lines = self.file.read_bytes().decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError("neither a folder, a tar nor a text list", where=self.file) from error
        rows = (line.partition("\t") for line in lines if line.strip() and not line.startswith("#"))
        return [(path.strip(), label.strip() or None) for path, _, label in rows]

    def _parquet_rows(self) -> list[tuple[str, str | None]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.file.path)
        except pa.ArrowInvalid as error:
            raise InputError("not a Parquet file", where=self.file) from error
        column = next((c for c in ("path", "url") if c in table.column_names), None)
        if column is None:
            raise InputError(
                "a Parquet list needs a column",
                where=self.file,
                expected="path or url",
                found=table.column_names,
            )
        paths = table[column].to_pylist()
        labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(paths)
        return [
            (str(p), None if label is None else str(label)) for p, label in zip(paths, labels, strict=True)
        ]

    def _resolve(self, path: str) -> Location:
        return Location(self.file.path.parent / path)

    def read(self, path: str, offset: int, size: int) -> bytes:
        if is_url(path):
            return read_url(path, max_bytes=self.max_bytes)
        return self._resolve(path).read_bytes()
