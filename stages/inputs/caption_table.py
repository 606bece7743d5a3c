"""Owns captions that a user brings: tables (Parquet, CSV, TSV, JSON lines) and the members of WebDataset tars."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...pipeline.storage import missing_hint
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean
from ..corpora.label import MOST_SIDECAR_BYTES
from ..corpora.names import plain_path
from ..corpora.patterns import is_pattern, matched
from ..corpora.tar_members import tar_members
from ..corpora.tars import is_tar
from ..corpora.text_file import json_value, not_utf8, read_text, text_lines

#: Columns of paths and of captions that are looked for, the first one first: those of lists of images, of data sets of the
#: hub, of open_clip and of img2dataset.
PATHS = ("path", "file_name", "filepath", "filename", "image", "key")
CAPTIONS = ("caption", "captions", "text", "title")

#: The column of img2dataset's tables: names of members without an ending.
KEY = "key"

_TABLES = {".csv": ",", ".tsv": "\t"}
_KINDS = ".parquet, .csv, .tsv, .jsonl or .tar"


@dataclass(frozen=True, kw_only=True)
class CaptionEntry:
    """One caption of one image.

    Attributes:
        path: as it stands there: of the image; of a tar, of the image without its ending, within the tar.
        text: the caption without blanks around it; '' where there is none.
        source: of a tar, the name that a corpus of several tars has it by; None of a table.
    """

    path: str
    text: str
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionFiles:
    """What `--from` names.

    Attributes:
        files: each with the name that a corpus of several tars has it by.
        paths, captions: names of columns; None for the first of `PATHS`, of `CAPTIONS`, that is there.
    """

    files: tuple[tuple[str, UserFile], ...]
    paths: str | None = None
    captions: str | None = None

    @staticmethod
    def of(given: Sequence[str], paths: str | None = None, captions: str | None = None) -> CaptionFiles:
        """
        Raises:
            InputError: a file that is not there, or of no known kind; or a pattern of none.
        """
        files: list[tuple[str, UserFile]] = []
        for one in given:
            for name, path in [(f.name, f.path) for f in matched(one)] if is_pattern(one) else [("", one)]:
                file = UserFile.of(path)
                if not file.exists():
                    raise InputError(
                        "no such file of captions",
                        code="captions-file-missing",
                        where=file,
                        hint=missing_hint(file, "check the path"),
                    )
                if not (_ending(file) in (".parquet", ".jsonl", ".ndjson", *_TABLES) or _is_tar(file)):
                    raise InputError(
                        "captions are read from tables and tars",
                        code="captions-file-kind",
                        where=file,
                        expected=_KINDS,
                        found="a folder" if file.is_dir() else _ending(file) or "no ending",
                        hint="name it by its kind, or quote a pattern of files: 'DIR/*.parquet'",
                    )
                files.append((name or file.name.partition(".")[0], file))
        return CaptionFiles(files=tuple(files), paths=paths, captions=captions)

    @property
    def are_keys(self) -> bool:
        """Whether the paths are names of members without an ending, as in tables of img2dataset."""
        first = self.files[0][1]
        return not _is_tar(first) and self._path_column(first) == KEY

    def __iter__(self) -> Iterator[CaptionEntry]:
        """
        Raises:
            InputError: not such a file, another encoding, or no such column.
        """
        for name, file in self.files:
            if _is_tar(file):
                yield from _tar_entries(file, name)
            else:
                for path, text in self._rows(file):
                    yield from _entries(path, text)

    def _path_column(self, file: UserFile) -> str:
        return self._columns(file, _names(file))[0]

    def _columns(self, file: UserFile, names: Sequence[str]) -> tuple[str, str]:
        found = []
        for given, known, option in (
            (self.paths, PATHS, "--path-column"),
            (self.captions, CAPTIONS, "--caption-column"),
        ):
            wanted = known if given is None else (given,)
            name = next((name for name in wanted if name in names), None)
            if name is None:
                raise InputError(
                    "a table of captions needs a column",
                    code="caption-column-missing",
                    where=file,
                    expected=" or ".join(wanted),
                    found=", ".join(names) or "nothing",
                    hint=did_you_mean(given or "", names, f"name it: {option} NAME"),
                )
            if list(names).count(name) > 1:
                raise InputError(
                    "two columns of a table have one name",
                    code="list-column-twice",
                    where=f"{file}: {name}",
                    hint="rename one of them",
                )
            found.append(name)
        return found[0], found[1]

    def _rows(self, file: UserFile) -> Iterator[tuple[Any, Any]]:
        """Path and caption, or captions, of each row."""
        ending = _ending(file)
        if ending == ".parquet":
            yield from _parquet(file, self._columns(file, _names(file)))
        elif ending in _TABLES:
            yield from self._separated(file, _TABLES[ending])
        else:
            yield from self._json_lines(file)

    def _separated(self, file: UserFile, delimiter: str) -> Iterator[tuple[str, str]]:
        reader = csv.reader(io.StringIO(read_text(file), newline=""), delimiter=delimiter)
        try:
            names = [cell.strip() for cell in next(reader, [])]
            path, caption = (names.index(name) for name in self._columns(file, names))
            for cells in reader:
                if len(cells) != len(names):
                    if not any(cell.strip() for cell in cells):
                        continue
                    raise InputError(
                        "a row of a table has more or fewer cells than its first line",
                        code="caption-row-malformed",
                        where=f"{file}, line {reader.line_num}",
                        expected=f"{len(names)} cells",
                        found=len(cells),
                        hint='put captions with a comma or a line break in quotes: "a cat, asleep"',
                    )
                yield cells[path], cells[caption]
        except csv.Error as error:
            raise InputError(
                "not a CSV table", code="csv-malformed", where=f"{file}, line {reader.line_num}", found=error
            ) from error

    def _json_lines(self, file: UserFile) -> Iterator[tuple[Any, Any]]:
        columns: tuple[str, str] | None = None
        for number, line in enumerate(text_lines(file, read_text(file)), 1):
            if not line.strip():
                continue
            try:
                value = json_value(line)
            except ValueError as error:
                raise _malformed(file, number, error) from error
            if not isinstance(value, dict):
                raise _malformed(file, number, f"a value of type {type(value).__name__}")
            columns = columns or self._columns(file, list(value))
            yield value.get(columns[0]), value.get(columns[1])


def _malformed(file: UserFile, line: int, found: object) -> InputError:
    return InputError(
        "not a line of a JSON object",
        code="caption-row-malformed",
        where=f"{file}, line {line}",
        expected='{"path": …, "caption": …}',
        found=found,
    )


def _ending(file: UserFile) -> str:
    return file.path.suffix.lower()


def _is_tar(file: UserFile) -> bool:
    return file.name.lower().endswith(".tar") and is_tar(file)


def _names(file: UserFile) -> list[str]:
    """Names of columns of a table, by its beginning."""
    ending = _ending(file)
    if ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.ParquetFile(file.path).schema_arrow.names)
        except (pa.ArrowException, OSError) as error:
            raise _not_parquet(file, error) from error
    lines = text_lines(file, read_text(file))
    first = next((line for line in lines if line.strip()), "")
    if ending in _TABLES:
        return [cell.strip() for cell in next(csv.reader([first], delimiter=_TABLES[ending]), [])]
    try:
        value = json_value(first)
    except ValueError as error:
        raise _malformed(file, 1, error) from error
    return list(value) if isinstance(value, dict) else []


def _parquet(file: UserFile, columns: tuple[str, str]) -> Iterator[tuple[Any, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file.path).iter_batches(columns=list(dict.fromkeys(columns))):
            paths, texts = (batch.column(name).to_pylist() for name in columns)
            yield from zip(paths, texts, strict=True)
    except UnicodeDecodeError as error:
        raise not_utf8(file, 1) from error
    except (pa.ArrowException, OSError) as error:
        raise _not_parquet(file, error) from error


def _not_parquet(file: UserFile, error: Exception) -> InputError:
    return InputError(
        "not a Parquet file that can be read", code="parquet-unreadable", where=file, found=str(error).splitlines()[0]
    )


def _entries(path: Any, texts: Any) -> Iterator[CaptionEntry]:
    """Of one row: a caption, or a list of them."""
    path = "" if path is None else str(path).strip().removeprefix("./")
    for text in texts if isinstance(texts, list) and texts else [texts]:
        yield CaptionEntry(path=path, text=text.strip() if isinstance(text, str) else "")


def _tar_entries(file: UserFile, name: str) -> Iterator[CaptionEntry]:
    """Of a WebDataset tar: what stands in the member `.txt`, and else as `caption` in the member `.json`, of each sample."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for member in tar_members(file):
        path = plain_path(member.name)
        key, ending = split_key(path)
        if member.isreg() and ending in ("txt", "json") and member.size <= MOST_SIDECAR_BYTES:
            found.setdefault(key, {})[ending] = (member.offset_data, member.size)
    for key, members in found.items():
        for text in _texts(file, members, key):
            yield CaptionEntry(path=key, text=text, source=name)


def _texts(file: UserFile, members: dict[str, tuple[int, int]], key: str) -> Iterable[str]:
    try:
        if "txt" in members:
            return [file.read_range(*members["txt"]).decode("utf-8").strip()]
        about = json.loads(file.read_range(*members["json"]))
    except UnicodeDecodeError as error:
        raise InputError(
            "a caption in a tar is not text in UTF-8",
            code="text-not-utf8",
            where=f"{file}: {key}",
            found=error.reason,
            hint="pack the tar again with captions in UTF-8",
        ) from error
    except (ValueError, RecursionError):
        return []
    value = about.get("caption") if isinstance(about, dict) else None
    return [text.strip() for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def split_key(path: str) -> tuple[str, str]:
    """A member's key and ending, as WebDataset has them: the key ends at the first dot of the name."""
    folder, slash, name = path.rpartition("/")
    key, _, ending = name.partition(".")
    return f"{folder}{slash}{key}", ending
