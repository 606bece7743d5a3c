"""Owns shared memory between processes: anonymous files, mapped by those that use them, and used again once they are free.

The pages of fresh shared memory cost about 100 µs an image of 224 pixels, a tenth of decoding and rendering. So memory is
kept, and used again when no array shares it any more. On Linux it lies in no file system: neither the size of /dev/shm, which
is 64 MiB in a container, nor a killed process matters.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import tempfile
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import StorageError

#: Results that the caller keeps in shared memory. Each takes two of the files that a process may have open: often 1,024.
_MOST_KEPT = 64


class Slab:
    """Memory of one size, shared by file descriptor.

    Attributes:
        number: its name between the processes.
        size: in bytes.
    """

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        try:
            self.descriptor = _anonymous_file()
            weakref.finalize(self, os.close, self.descriptor).atexit = False
            os.ftruncate(self.descriptor, size)
            self._mapped = mmap.mmap(self.descriptor, size)
        except OSError as error:
            raise _no_memory(size, error) from error

    def memory(self) -> NDArray[np.uint8]:
        """All of it. What is cut from this very array keeps it alive, and no other call's."""
        return np.frombuffer(self._mapped, np.uint8)


class Slabs:
    """Slabs for one work: as many as are in use at once. What the caller keeps beyond some 64 results is copied instead.

    Args:
        needed: as many as may be in use without the caller keeping any: so many are kept when they are free.

    Attributes:
        alive: numbers of those that there are.
    """

    def __init__(self, needed: int) -> None:
        self._needed = needed
        self._free: deque[Slab] = deque()
        self._count = 0
        self.alive: set[int] = set()

    def take(self, size: int) -> Slab:
        """A slab of at least `size` bytes that is not in use. One that is too small is dropped: tasks became larger.

        Raises:
            StorageError: there is not enough memory.
        """
        while self._free:
            slab = self._free.pop()  # the last one that was used: its pages are in the caches
            if slab.size >= size:
                return slab
        self._count += 1
        slab = Slab(self._count, max(1, size))
        self.alive.add(slab.number)
        weakref.finalize(slab, self.alive.discard, slab.number).atexit = False
        return slab

    def give_back(self, slab: Slab) -> None:
        """From any thread."""
        if len(self._free) < self._needed:
            self._free.append(slab)

    def lend(self, slab: Slab) -> NDArray[np.uint8]:
        """The memory of a slab, which comes back by itself when no array shares it any more."""
        if len(self.alive) > self._needed + _MOST_KEPT:
            copy = slab.memory().copy()
            self.give_back(slab)
            return copy
        memory = slab.memory()
        weakref.finalize(memory, self.give_back, slab).atexit = False
        return memory


def map_slab(connection: socket.socket, size: int) -> NDArray[np.uint8]:
    """In the other process: the memory behind the descriptor that comes over a connection.

    Raises:
        StorageError: there is not enough memory, or too many files are open.
    """
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    try:
        if not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return np.frombuffer(mmap.mmap(descriptors[0], size), np.uint8)
    except OSError as error:
        raise _no_memory(size, error) from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _no_memory(size: int, error: OSError) -> StorageError:
    return StorageError(
        "no shared memory for images that are decoded ahead",
        code="shared-memory-full",
        expected=f"{size:,} bytes",
        found=error.strerror,
        hint="use fewer --decode-workers (0 needs none)",
    )


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("teachonce")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
