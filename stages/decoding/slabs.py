"""Owns shared memory between processes: anonymous files, mapped by those that use them, and used again once they are free.

The pages of fresh shared memory cost about 100 µs an image of 224 pixels, a tenth of decoding and rendering. So memory is
kept, and used again when no array shares it any more. On Linux it lies in no file system: neither the size of /dev/shm, which
is 64 MiB in a container, nor a killed process matters.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import StorageError


class Slab:
    """Memory of one size, shared by file descriptor.

    Attributes:
        number: its name between the processes.
        size: in bytes.
    """

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        self.descriptor = _anonymous_file(size)
        self._mapped = mmap.mmap(self.descriptor, size)
        self._finalizer = weakref.finalize(self, os.close, self.descriptor)

    def memory(self) -> NDArray[np.uint8]:
        """All of it. What is cut from this very array keeps it alive, and no other call's."""
        return np.frombuffer(self._mapped, np.uint8)


class Slabs:
    """Slabs for one work: as many as are in use at once."""

    def __init__(self) -> None:
        self._free: deque[Slab] = deque()
        self._count = 0

    def take(self, size: int) -> Slab:
        """A slab of at least `size` bytes that is not in use.

        Raises:
            StorageError: there is not enough memory.
        """
        for _ in range(len(self._free)):
            slab = self._free.popleft()
            if slab.size >= size:
                return slab  # one that is too small is dropped: tasks became larger
        self._count += 1
        return Slab(self._count, max(1, size))

    def give_back(self, slab: Slab) -> None:
        """From any thread."""
        self._free.append(slab)

    def lend(self, slab: Slab) -> NDArray[np.uint8]:
        """The memory of a slab, which comes back by itself when no array shares it any more."""
        memory = slab.memory()
        weakref.finalize(memory, self.give_back, slab).atexit = False
        return memory


def map_slab(descriptor: int, size: int) -> NDArray[np.uint8]:
    """In the other process: the memory behind a descriptor, which is closed."""
    try:
        return np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
    finally:
        os.close(descriptor)


def _anonymous_file(size: int) -> int:
    try:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("teachonce")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        raise StorageError(
            "no shared memory for images that are decoded ahead",
            code="shared-memory-full",
            expected=f"{size:,} bytes",
            found=error.strerror,
            hint="use fewer --decode-workers (0 needs none)",
        ) from error
    return descriptor
