"""Owns the loader processes: a DataLoader whose items are whole batches, started, kept over epochs, and stopped."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, Sampler

from ...pipeline.sockets import short_temporary_folder
from ...storage_schemas.errors import TeachonceError
from .batches import Batches, BatchSpan, SentBatch
from .order import Spans
from .slabs import SlabReader, shared_memory_full

#: Batches that each loader process prepares ahead. The stream's memory is bounded by it.
PREFETCH = 2

#: Bytes of /pymp-12345678/listener-12345678.
_SOCKET_BELOW = 32


class Loading:
    """A DataLoader and its processes, kept over epochs; stopped and started as needed.

    Attributes:
        slabs: tensors over what the processes wrote.
    """

    def __init__(self, pairs: Batches, workers: int) -> None:
        self._pairs, self._workers = pairs, workers
        self._requests = _BatchSpans()
        self._loader: DataLoader[Any] | None = None
        self._batches: Any = None
        self.slabs = SlabReader(())

    def start(self, epoch: int, spans: Spans) -> None:
        """Begin with the batches of an epoch that hold these samples."""
        self._requests.set(epoch, spans)
        try:
            if self._loader is None:
                self._loader = self._make_loader()
            with _without_main():
                self._batches = iter(self._loader)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # semaphores are there too
                raise shared_memory_full() from error
            raise

    def next(self) -> SentBatch:
        """The next batch.

        Raises:
            StopIteration: there is none.
            TeachonceError: it cannot be made, or a loader process died.
        """
        self.slabs.give_back()
        try:
            item: SentBatch | TeachonceError = next(self._batches)
        except (RuntimeError, EOFError, OSError) as error:
            # The DataLoader's own error, or a broken pipe from the process; not an error from within it.
            if self._workers and "Original Traceback" not in str(error):
                raise _died(error) from error
            raise
        if isinstance(item, TeachonceError):
            raise item
        return item

    def stop(self) -> None:
        """End the processes. A DataLoader ends them when its iterator is dropped."""
        self._loader = self._batches = None
        self.slabs = SlabReader(())
        self._pairs.close()

    def _make_loader(self) -> DataLoader[Any]:
        options: dict[str, Any] = {}
        if self._workers > 0:
            context = _context()
            self._pairs.queues = tuple(context.SimpleQueue() for _ in range(self._workers))
            self.slabs = SlabReader(self._pairs.queues)
            options = {
                "num_workers": self._workers,
                "prefetch_factor": PREFETCH,
                "persistent_workers": True,
                "worker_init_fn": _start_worker,
                "multiprocessing_context": context,
            }
        with warnings.catch_warnings():
            # More processes than cores is the user's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            return DataLoader(
                self._pairs,
                sampler=self._requests,
                batch_size=None,
                collate_fn=_as_it_is,
                # Without one of its own it draws from torch's global generator, which would change training.
                generator=torch.Generator(),
                **options,
            )


class _BatchSpans(Sampler[BatchSpan]):
    """The batches to come; persistent loaders keep it, so each epoch sets it again."""

    def __init__(self) -> None:
        self.set(0, Spans(num_samples=0, batch_size=1))

    def set(self, epoch: int, spans: Spans) -> None:
        self._epoch, self._spans = epoch, spans

    def __iter__(self) -> Iterator[BatchSpan]:
        return ((self._epoch, first, stop) for first, stop in self._spans)

    def __len__(self) -> int:
        return len(self._spans)


def _as_it_is(item: Any) -> Any:
    """Items are whole batches already."""
    return item


@contextmanager
def _without_main() -> Iterator[None]:
    """Loader processes need nothing of the program that starts them, so they do not import it.

    A script without a `__name__` guard would start over in each of them, and one with it would still cost its imports.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker(worker: int) -> None:
    """In a fresh loader process: it ends with its parent.

    A parent that is killed stops no process. torch's loaders watch the process that forked them, which here is
    the server, and the server lives as long as a loader does: so each loader watches the parent itself.
    """
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _context() -> Any:
    """How loader processes start: forked from a small server process that has imported what they need.

    Not forked from here: by now this process runs threads (torch's, Zarr's), and a lock that one of them
    holds at that moment stays locked in the child for ever; Python warns of it from 3.12 on. The server costs
    its imports (a few seconds) once; every process after that starts in milliseconds, as with a plain fork.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.server"])
    # Ctrl-C reaches every process of the terminal. The server and what it forks leave it to the parent from their first moment
    # on; while they import, there would be a traceback. The tracker comes first: it lets signals through as it starts.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with short_temporary_folder(_SOCKET_BELOW):
            multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _died(error: Exception) -> TeachonceError:
    return TeachonceError(
        "a loader process died",
        code="loader-died",
        found=str(error) or type(error).__name__,
        hint="use fewer or no --loader-workers; in a container, give it more shared memory (--shm-size)",
    )
