"""Owns the seam between what is stored and where it lies: the Protocol of a place, and what its files are read and held by.

An *artefact* is whatever a command of teachonce writes and another one reads: manifests, tars, indexes, target stores, receipts,
prompts, bundles, checkpoints, logs. Each is a file with a text name in a place. A name is UTF-8 text with `/` between its
parts; a *folder* is what names before a `/` have in common. What a user brings from his own machine (images, lists, weights) is no
artefact: see `user_files.py`.

Who is responsible for what:

- *The place* for files that are whole or not there. A reader never sees a part of a write, and of two writers one wins with all its bytes.
  What is written durably outlasts the machine's loss of power from the moment that the call returns. It also turns what its own
  libraries raise into the errors below, retries what is worth it, and holds its credentials.
- *The caller* for the order of writing (a receipt last), for what existence means, and for every digest: a place is never
  trusted to give back what was written.
- *Nobody* renames or changes a part of a file. There is no verb for either, since object stores have none.

Errors, whatever the place: `FileNotFoundError` where there is no such file; `StorageError` where the place refuses (full, read-only,
forbidden); `Unreachable` where it does not answer at the moment. A local place raises the `OSError` of the system in place of
`StorageError`, and `as_storage_error` makes a clear message of it where it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from zarr.abc.store import Store


@dataclass(frozen=True, kw_only=True)
class Stat:
    """What a name is.

    Attributes:
        is_folder: files lie below it, or it was made by `make_folder`.
        size: bytes of a file; of no meaning for a folder.
        changed_at: when it was written last, as seconds since 1970.
        version: another one whenever it is written anew (an ETag); '' where the place has none.
    """

    is_folder: bool
    size: int
    changed_at: float
    version: str = ""


#: Bytes of a piece that `stream` gives, about.
PIECE_BYTES = 8 << 20


class RangeReader(Protocol):
    """One file that is read at any place, by any thread, until it is closed or forgotten."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; shorter only where the file ends.

        Raises:
            Unreachable: the place gives an error.
        """

    def close(self) -> None:
        """Nothing is read any more."""


class HeldLock(Protocol):
    """A name that this process alone holds."""

    def release(self) -> None:
        """Remove the file and let go of it; also remove folders that were made for it, as far as they are empty."""


class NoLocksError(Exception):
    """The place cannot hold a name for one process alone."""


class Place(Protocol):
    """Where artefacts lie. Picklable where several processes can reach it, and hashable; equal places are the same place.

    All names are complete: they start at the place's own root, not at a folder. Every method may be called from any thread.
    """

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `offset` on, in one request; shorter only where the file ends.

        Raises:
            FileNotFoundError: there is none.
        """

    def open_ranges(self, name: str, *, version: str = "") -> RangeReader:
        """For many ranges of one file. What one file needs once is done once: opening, credentials, size.

        Args:
            version: what `stat` showed a moment ago; a place that reads by versions need not look again.

        Raises:
            FileNotFoundError: there is none.
            StorageError: this process has as many files open as it may.
        """

    def stream(self, name: str) -> Iterator[bytes]:
        """All bytes of a file in pieces, in one request if nothing goes wrong.

        Raises:
            FileNotFoundError: there is none.
        """

    def stat(self, name: str) -> Stat | None:
        """What is there; None where there is nothing, and for a name that nothing can have."""

    def entries(self, folder: str, *, deep: bool = False) -> Iterator[str]:
        """Names below a folder, without the folder's own and the `/` behind it, streamed, in any order.

        Args:
            folder: a name that is not one has no names below it.
            deep: files at any depth, no folders. Else only what lies directly in it, files and folders; a folder ends with `/`.
        """

    def listing(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Stat]]:
        """The files of `entries`, without folders, each with what `stat` says of it; where a listing has that, in no more requests."""

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a whole file in place of whatever has the name, and the folders that it needs.

        `durable=False` is for notes that nothing relies on: whole or not there too, but the system decides when they are kept.
        """

    def write_if_absent(self, name: str, data: bytes) -> bool:
        """Write a whole file durably where nothing has the name. False: something has, and stays as it is.

        Of several writers at the same moment exactly one gets True.
        """

    def create(self, name: str, *, settle: bool = True) -> AbstractContextManager[BinaryIO]:
        """As `write`, for content that is made piece by piece: the file is there, durably, when the block ends, and not if it raises.

        `settle=False` is for all but the last of several files in one folder: where a folder has to be made durable too, the
        last one's serves them all.
        """

    def append(self, name: str) -> BinaryIO:
        """Open for appending: for logs, which no receipt vouches for. Readers see what was flushed, or less."""

    def sync(self, name: str) -> None:
        """Make durable what `zarr_store` wrote.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    def make_folder(self, name: str) -> None:
        """From now on this is a folder, also while nothing lies in it. (It marks that a command began to write there.)"""

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there. What cannot be removed stays."""

    def sweep(self, folder: str) -> None:
        """Remove what killed writers left below a folder. Only the driver calls this, before any work starts."""

    def hold(self, name: str, content: bytes) -> HeldLock | None:
        """Hold a name, with `content` in its file, for this process alone; None where another process holds it.

        A process that ends, however it does, holds nothing any more, at the latest after a time that the place states.

        Raises:
            NoLocksError: the place has no locks.
        """

    def is_held(self, name: str) -> bool:
        """Whether a process holds this name."""

    def zarr_store(self, name: str, *, read_only: bool = False) -> Store:
        """A Zarr store whose keys are names below this one. It writes each key whole; `sync` makes it durable.

        `PlaceStore` is one for any place, by way of the other verbs.
        """

    def local_path(self, name: str) -> Path | None:
        """The path by which other programs on this machine find it; None where they cannot reach it."""

    def address(self, name: str) -> str:
        """The name as it can be written down and given to `Location.of` anywhere: a full path or a URL. Never a secret in it."""

    def spell(self, name: str) -> str:
        """The name as a person would type it here, for messages."""

    def is_inside(self, name: str, folder: str) -> bool:
        """Whether a name is this folder, or lies in it, by whatever other names the two are reached."""

    def obstacle(self, folder: str) -> tuple[str, str] | None:
        """What is in the way of files below this folder, as (name, "a file"); None where they can be written."""
