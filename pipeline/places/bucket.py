"""Owns buckets of object stores (S3 and what speaks its language, Google's, Azure's) as places, through obstore.

Names are keys. A PUT is whole or not there, so there are no temporary names and nothing to sweep; what an object store was told
is kept when it answers. Two kinds of names are this module's own, and no listing here shows them: the mark of a folder that was
made (`NAME/.folder`), and the lease of a lock (`.NAME.lease`, see `bucket_lease.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ...storage_schemas.errors import StorageError
from .bucket_client import client, knows_conditions
from .bucket_errors import ask, asking, is_condition_unknown, is_past_the_end, is_taken
from .bucket_lease import check_leases, hold, is_held, is_lease
from .bucket_log import BucketLog
from .bucket_name import Bucket
from .place import PIECE_BYTES, HeldLock, RangeReader, Stat

if TYPE_CHECKING:
    from zarr.abc.store import Store

#: Lies in a folder that was made and may be empty.
FOLDER_MARK = ".folder"

#: A file up to this size is made in memory, a larger one in a temporary file; then it is sent, in parts of this size at least.
PART_BYTES = 8 << 20

#: Parts that are on the way at once, and how many one object may have.
PARTS_AT_ONCE, MOST_PARTS = 4, 9_000

#: Who wrote an object, in its metadata: tells a first writer whose answer was lost that it was the first.
_WRITER = "teachonce-writer"


@dataclass(frozen=True, order=True)
class BucketPlace(Bucket):
    """A bucket as a place. It goes to other processes as it is: they take their own credentials from where they run."""

    def read(self, name: str) -> bytes:
        return ask(self.spell(name), "read", lambda: bytes(_obstore().get(self._client, name).bytes()))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self.read_version(name, offset, size, None)

    def read_version(self, name: str, offset: int, size: int, version: str | None) -> bytes:
        """`read_range` of an object that must still be of this ETag.

        Raises:
            StorageError: it has been written anew since.
        """
        if size <= 0:
            self._head(name)
            return b""
        options: Any = {"range": (offset, offset + size)}
        if version is not None:
            options["if_match"] = version

        def read() -> bytes:
            try:
                return bytes(_obstore().get(self._client, name, options=options).bytes())
            except Exception as error:
                if is_past_the_end(error):
                    return b""
                raise

        return ask(self.spell(name), "read", read)

    def open_ranges(self, name: str, *, version: str = "") -> RangeReader:
        return _Ranges(self, name, version or self._head(name)["e_tag"])

    def version(self, name: str) -> str | None:
        return cast("str | None", self._head(name)["e_tag"])

    def stream(self, name: str) -> Iterator[bytes]:
        done, version = 0, None
        with asking(self.spell(name), "read") as asked:
            while True:
                options: Any = {"range": {"offset": done}, "if_match": version} if done else {}
                try:
                    found = _obstore().get(self._client, name, options=options)
                    version = found.meta["e_tag"]
                    for piece in found.stream(min_chunk_size=PIECE_BYTES):
                        yield bytes(piece)
                        done += len(piece)
                    if done >= found.meta["size"]:
                        return
                except Exception as error:
                    asked.again(error)

    def stat(self, name: str) -> Stat | None:
        if name:
            try:
                found = self._head(name)
            except (FileNotFoundError, ValueError):
                pass
            else:
                changed_at = found["last_modified"].timestamp()
                return Stat(is_folder=False, size=found["size"], changed_at=changed_at, version=found["e_tag"] or "")
        try:
            first = next(self._below(name), None)
        except ValueError:  # a name that nothing can have
            return None
        if first is None:
            return None
        return Stat(is_folder=True, size=0, changed_at=first["last_modified"].timestamp())

    def entries(self, folder: str, *, deep: bool = False) -> Iterator[str]:
        start = f"{folder}/" if folder else ""
        if deep:
            for found in self._below(folder):
                if not _is_ours(found["path"]):
                    yield found["path"].removeprefix(start)
            return
        found = self._in(folder)
        for name in found["common_prefixes"]:
            yield f"{name.removeprefix(start)}/"
        for one in found["objects"]:
            if one["path"].startswith(start) and not _is_ours(one["path"]):
                yield one["path"].removeprefix(start)

    def listing(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Stat]]:
        start = f"{folder}/" if folder else ""
        for found in self._below(folder) if deep else self._in(folder)["objects"]:
            if found["path"].startswith(start) and not _is_ours(found["path"]):
                changed_at, version = found["last_modified"].timestamp(), found["e_tag"] or ""
                stat = Stat(is_folder=False, size=found["size"], changed_at=changed_at, version=version)
                yield found["path"].removeprefix(start), stat

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        check_leases(self)
        whole = {"use_multipart": False} if len(data) <= PART_BYTES else {"chunk_size": _part_bytes(len(data))}
        ask(self.spell(name), "write", lambda: _obstore().put(self._client, name, data, **whole))

    def write_if_absent(self, name: str, data: bytes) -> bool:
        check_leases(self)
        if knows_conditions(self) is False:
            # Writers at the same moment are kept apart by nothing; who comes later sees what is there.
            if self.stat(name) is not None:
                return False
            self.write(name, data)
            return True
        writer = uuid.uuid4().hex
        with asking(self.spell(name), "write") as asked:
            while True:
                try:
                    _obstore().put(self._client, name, data, mode="create", attributes={_WRITER: writer})
                except Exception as error:
                    if is_taken(error):
                        return self._writer(name) == writer
                    if is_condition_unknown(error):
                        knows_conditions(self, False)
                        return self.write_if_absent(name, data)
                    asked.again(error)  # it may have arrived: then the next one finds it there
                else:
                    return True

    def _writer(self, name: str) -> str | None:
        try:
            found = _obstore().get(self._client, name, options={"head": True})
        except FileNotFoundError:
            return None
        return next((value for key, value in found.attributes.items() if key == _WRITER), None)

    @contextlib.contextmanager
    def create(self, name: str, *, settle: bool = True) -> Iterator[BinaryIO]:
        check_leases(self)
        with tempfile.SpooledTemporaryFile(max_size=PART_BYTES) as content:
            yield cast("BinaryIO", content)
            size = content.tell()
            check_leases(self)

            def put() -> None:
                content.seek(0)
                parts = {"chunk_size": _part_bytes(size), "max_concurrency": PARTS_AT_ONCE}
                _obstore().put(self._client, name, content, **parts)

            ask(self.spell(name), "write", put)

    def append(self, name: str) -> BinaryIO:
        return cast("BinaryIO", BucketLog(self, name))

    def sync(self, name: str) -> None:
        self._head(name)

    def remove(self, name: str) -> None:
        check_leases(self)
        with contextlib.suppress(FileNotFoundError):
            ask(self.spell(name), "delete", lambda: _obstore().delete(self._client, name))

    def make_folder(self, name: str) -> None:
        self.write(f"{name}/{FOLDER_MARK}", b"")

    def remove_folder(self, name: str) -> None:
        check_leases(self)
        with contextlib.suppress(StorageError, FileNotFoundError):
            names = [found["path"] for found in self._below(name)]
            if names:
                ask(self.spell(name), "delete", lambda: _obstore().delete(self._client, names))

    def sweep(self, folder: str) -> None:
        """There is nothing: an upload that was not finished is nowhere among the names."""

    def hold(self, name: str, content: bytes) -> HeldLock | None:
        return hold(self, name, content)

    def is_held(self, name: str) -> bool:
        return is_held(self, name)

    def zarr_store(self, name: str, *, read_only: bool = False) -> Store:
        from .zarr_store import PlaceStore

        return PlaceStore(self, name, read_only=read_only)

    def local_path(self, name: str) -> Path | None:
        return None

    def spell(self, name: str) -> str:
        return self.address(name)

    def is_inside(self, name: str, folder: str) -> bool:
        return not folder or name == folder or name.startswith(f"{folder}/")

    def obstacle(self, folder: str) -> tuple[str, str] | None:
        parts = folder.split("/")
        for count in range(len(parts), 0, -1):
            name = "/".join(parts[:count])
            try:
                self._head(name)
            except (FileNotFoundError, ValueError):
                continue
            except StorageError:
                if count == len(parts):
                    raise
                continue  # who may write below a name need not be allowed to look above it
            return name, "a file"
        return None

    @property
    def _client(self) -> Any:
        return client(self)

    def _head(self, name: str) -> Any:
        with asking(self.spell(name), "read") as asked:
            while True:
                try:
                    return _obstore().head(self._client, name)
                except (FileNotFoundError, ValueError):
                    raise
                except Exception as error:
                    # The answer to HEAD has no body, and so no reason; that to GET has one.
                    asked.explain(error, lambda: _obstore().get(self._client, name).meta)
                    asked.again(error)

    def _in(self, folder: str) -> Any:
        """What a store knows of what lies directly in a folder."""
        return ask(self.spell(folder), "list", lambda: _obstore().list_with_delimiter(self._client, folder or None))

    def _below(self, folder: str) -> Iterator[Any]:
        """What a store knows of each object below a folder, in pages."""
        last = None
        with asking(self.spell(folder), "list") as asked:
            while True:
                try:
                    for page in _obstore().list(self._client, folder or None, offset=last):
                        for found in page:
                            yield found
                            last = found["path"]
                    return
                except Exception as error:
                    asked.again(error)


class _Ranges:
    """An object as it was when it was opened."""

    def __init__(self, place: BucketPlace, name: str, version: str | None) -> None:
        self._place, self._name, self._version = place, name, version

    def read(self, offset: int, size: int) -> bytes:
        return b"" if size <= 0 else self._place.read_version(self._name, offset, size, self._version)

    def close(self) -> None:
        """There is nothing to close."""


def _part_bytes(size: int) -> int:
    """Of an object of this size that is sent in parts."""
    return max(PART_BYTES, size // MOST_PARTS)


def _is_ours(name: str) -> bool:
    """Whether this is a mark of this module's own."""
    last = name.rpartition("/")[2]
    return last == FOLDER_MARK or is_lease(last)


def _obstore() -> Any:
    import obstore

    return obstore
