"""Owns shared memory between loader processes and trainer: written by one, used again once it is free.

The pages of fresh shared memory cost about 100 µs an image of 224 pixels, a tenth of decoding and rendering.
So a loader process writes whole batches into slabs that it keeps, and learns from a queue which are free again.
"""

from __future__ import annotations

import math
import os
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage_schemas.errors import StorageError

#: What a batch consists of: (dtype, shape) of each array.
ArrayLayout = Sequence[tuple[str, tuple[int, ...]]]

_ALIGNMENT = 64

#: Where Linux keeps it; a container's has 64 MiB by default.
_SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Slab:
    """Names a slab on its way to the trainer; `memory` (uint8, flat) travels the first time only."""

    worker: int
    number: int
    memory: torch.Tensor | None


def num_bytes(layout: ArrayLayout) -> int:
    """Size of a slab that holds arrays of this layout."""
    return sum(_padded(dtype, shape) for dtype, shape in layout)


def carve(memory: NDArray[np.uint8], layout: ArrayLayout) -> list[NDArray[Any]]:
    """The arrays of a layout, one behind the other in flat memory."""
    arrays, start = [], 0
    for dtype, shape in layout:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        arrays.append(memory[start : start + size].view(dtype).reshape(shape))
        start += _padded(dtype, shape)
    return arrays


def _padded(dtype: str, shape: tuple[int, ...]) -> int:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def shared_memory_full(needed: int | None = None) -> StorageError:
    """The error where there is no room in shared memory; `needed` is the room of one more batch, in bytes."""
    try:
        room = os.statvfs(_SHARED_MEMORY)
        found = f"{room.f_bavail * room.f_frsize:,} bytes free of {room.f_blocks * room.f_frsize:,}"
    except OSError:
        found = "no room"
    return StorageError(
        "shared memory is full, which loader processes need",
        code="shared-memory-full",
        where=_SHARED_MEMORY,
        expected=None if needed is None else f"{needed:,} bytes for one more batch",
        found=found,
        hint="use fewer --loader-workers (0 needs none); in a container, give it more: docker run --shm-size=2g …",
    )


class SlabWriter:
    """In a loader process: slabs of one size, as many as are in use at once."""

    def __init__(self, worker: int, slab_bytes: int, released: SimpleQueue[int]) -> None:
        self._worker, self._slab_bytes, self._released = worker, slab_bytes, released
        self._slabs: list[NDArray[np.uint8]] = []
        self._free: list[int] = []

    def take(self) -> tuple[Slab, NDArray[np.uint8]]:
        """A slab that is not in use, and its memory (flat)."""
        while not self._released.empty():
            self._free.append(self._released.get())
        if self._free:
            number = self._free.pop()
            return Slab(self._worker, number, None), self._slabs[number]
        try:
            storage = torch.UntypedStorage._new_shared(self._slab_bytes)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "No space left" not in str(error):
                raise
            raise shared_memory_full(self._slab_bytes) from error
        memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        self._slabs.append(memory.numpy())
        return Slab(self._worker, len(self._slabs) - 1, memory), self._slabs[-1]


class SlabReader:
    """In the trainer: tensors over slabs. A slab goes back when no tensor shares its memory any more."""

    def __init__(self, queues: Sequence[SimpleQueue[int]]) -> None:
        self._queues = queues
        self._slabs: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._held: Counter[tuple[int, int]] = Counter()
        self._dropped: deque[tuple[int, int]] = deque()

    def tensors(self, slab: Slab, layout: ArrayLayout) -> list[torch.Tensor]:
        """The arrays in a slab. They may be kept, and cut into views, as long as needed."""
        name = (slab.worker, slab.number)
        if slab.memory is not None:
            self._slabs[name] = slab.memory.numpy()
        arrays = carve(self._slabs[name], layout)
        self._held[name] = len(arrays)
        for array in arrays:
            # A tensor's storage holds this very array, whatever views are made of it: both end together.
            weakref.finalize(array, self._dropped.append, name).atexit = False
        return [torch.from_numpy(array) for array in arrays]

    def give_back(self) -> None:
        """Send the numbers of free slabs to the loader processes. Not done on dropping: that may be in any thread."""
        while self._dropped:
            name = self._dropped.popleft()
            self._held[name] -= 1
            if not self._held[name]:
                self._queues[name[0]].put(name[1])
