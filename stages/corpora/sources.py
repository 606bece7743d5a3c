"""Owns what a user may bring as a corpus: folders, tars (plain or WebDataset), lists of paths or URLs, and data sets.

Nothing is ever extracted to disk, so names inside a tar cannot point anywhere.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ...pipeline.storage import Location, is_url, read_url
from ...storage_schemas.errors import InputError
from .images import MAX_BYTES, image_extensions

#: Sidecar members of a WebDataset sample that may carry its label are read up to this size.
_SIDECAR_BYTES = 1 << 16

#: What the spelling `coop:NAME/SPLIT=DATA` of a data set begins with.
DATASET_PREFIX = "coop:"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file in a source.

    Attributes:
        path: POSIX path relative to the source; unique within it.
        offset: first byte within a tar; -1 for a file of its own.
        size: bytes; -1 where only reading tells (URLs).
        label: class name, where the source says one.
        is_image: whether its name says that it is an image.
        place: its position, from 0 on, in the order that the source itself gives its images; -1 where it gives none.
    """

    path: str
    offset: int = -1
    size: int
    label: str | None
    is_image: bool = True
    place: int = -1


class Source(Protocol):
    """One thing that the user brought."""

    @property
    def name(self) -> str:
        """Short name; the first part of its samples' paths where there are several sources."""

    def walk(self) -> Iterator[Found]:
        """All files, in bytewise order of their paths."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """The bytes of one file that `walk` found."""


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
            path = _utf8(prefix + name, self.root)
            yield Found(path=path, size=size, label=label, is_image=is_image_name(name))

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.root.read_below(path)


@dataclass(frozen=True, kw_only=True)
class TarSource:
    """An uncompressed tar. Labels come from `.cls` or `.json` members beside the image, else from folders."""

    name: str
    file: Location

    def walk(self) -> Iterator[Found]:
        images: list[Found] = []
        labels: dict[str, str] = {}
        seen: set[str] = set()
        try:
            with self.file.open() as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all, a kilobyte each
                    if not member.isreg():
                        continue
                    path = _utf8(member.name, self.file)
                    if path in seen:
                        raise InputError("a tar holds the same name twice", where=f"{self.file}: {path}")
                    seen.add(path)
                    label = self._sidecar_label(tar, member)
                    if label is not None:
                        labels[_stem(path)] = label
                    folder = path.rpartition("/")[0].rpartition("/")[2]
                    images.append(Found(
                        path=path, offset=member.offset_data, size=member.size, label=folder or None,
                        is_image=is_image_name(path) and not member.issparse(),
                    ))  # fmt: skip
                raw.seek(tar.offset)
                if raw.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise InputError("a tar ends without its end mark: it was cut", where=self.file)
        except tarfile.TarError as error:
            hint = (
                "decompress it first"
                if self.file.name.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst"))
                else None
            )
            raise InputError(
                "not a whole, uncompressed tar", where=f"{self.file}: {error}", hint=hint
            ) from error
        images.sort(key=lambda f: f.path.encode())
        for found in images:
            label = labels.get(_stem(found.path), found.label)
            yield Found(
                path=found.path, offset=found.offset, size=found.size, label=label, is_image=found.is_image
            )

    def _sidecar_label(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
        if not member.name.endswith((".cls", ".json")) or member.size > _SIDECAR_BYTES:
            return None
        file = tar.extractfile(member)
        data = file.read() if file is not None else b""
        if member.name.endswith(".cls"):
            return data.decode("utf-8", "replace").strip() or None
        try:
            value = json.loads(data)
        except ValueError:
            return None
        label = value.get("label") if isinstance(value, dict) else None
        return str(label) if isinstance(label, str | int) else None

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.file.read_range(offset, size)


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


def open_sources(arguments: Sequence[str], *, max_bytes: int = MAX_BYTES) -> tuple[Source, ...]:
    """The sources that CORPUS arguments name, in bytewise order of their names.

    Args:
        arguments: each `PATH`, or `coop:NAME/SPLIT=DATA` for a split of a data set, or one of these after `NAME=`.
        max_bytes: what a URL of a list may hold.

    Raises:
        InputError: one is missing or of no known kind, or two have the same name.
    """
    sources: dict[str, Source] = {}
    for argument in arguments:
        source = _open_source(argument, max_bytes)
        if source.name in sources:
            raise InputError(
                "two sources have the same name", where=source.name,
                hint=f"name them apart: {source.name}-a=PATH {source.name}-b=PATH",
            )  # fmt: skip
        sources[source.name] = source
    return tuple(sources[name] for name in sorted(sources, key=lambda n: n.encode() + b"/"))


def split_name(argument: str) -> tuple[str, str]:
    """The two sides of `NAME=WHAT`; an argument without a name has an empty one."""
    given, equals, rest = argument.partition("=")
    if not equals or "/" in given or is_dataset(argument) or Path(argument).exists():
        return "", argument
    return given, rest


def is_dataset(what: str) -> bool:
    """Whether this is the spelling of a data set."""
    return what.startswith(DATASET_PREFIX)


def _open_source(argument: str, max_bytes: int) -> Source:
    given, rest = split_name(argument)
    if is_dataset(rest):
        from ..datasets.source import open_split  # it is made of sources itself

        return open_split(rest, name=given)
    location = Location.of(rest)
    if not location.exists():
        raise InputError("no such corpus", where=location, hint="check the path")
    if location.is_dir():
        return FolderSource(name=given or location.name, root=location)
    name = given or location.name.partition(".")[0]
    if ".tar" in location.name or location.name.endswith(".tgz"):
        return TarSource(name=name, file=location)
    return ListSource(name=name, file=location, max_bytes=max_bytes)


def is_image_name(name: str) -> bool:
    """Whether a file's name says that Pillow reads it as an image."""
    return PurePosixPath(name).suffix.lower() in image_extensions()


def _stem(path: str) -> str:
    """WebDataset's sample key: the path up to the first dot of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _utf8(path: str, where: Location) -> str:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError("a file name is not UTF-8", where=f"{where}: {path!r}", hint="rename it") from error
    return path
