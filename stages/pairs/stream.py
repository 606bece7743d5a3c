"""Owns the stream of pairs: images and what the teacher said of them, batch by batch, in a fixed order."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, Sampler

from ...pipeline.storage import Location
from ...storage_schemas.errors import TeachonceError
from ..corpora.shards import ShardSet
from .batches import Batches, Item
from .join import check_pair
from .order import steps_per_epoch
from .slabs import Slab, SlabReader

#: Batches that each loader process prepares ahead. The stream's memory is bounded by it.
PREFETCH = 2


@dataclass(frozen=True)
class Batch:
    """One step's pairs. It may be kept: its memory is used again only when nothing shares it any more.

    Attributes:
        images_NCHW: uint8 (sample, 3, size, size), contiguous; normalisation happens in the model.
        rows_N: int64 (sample,): row of each sample in the store.
        targets: by name, fp32 (sample, width), of the epoch's view.
    """

    images_NCHW: torch.Tensor
    rows_N: torch.Tensor
    targets: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.rows_N)


class PairStream:
    """Pairs of image and teacher targets from shards and a store that belong together.

    Epoch *e* reads view *e mod K* at the boxes that the store holds, each usable sample once, in an order
    that depends on (seed, epoch, valid rows per shard) alone: not on loader processes, nor on where an epoch
    is entered.

    Args:
        shards: finished shards.
        store: the finished target store that was made from them.
        size: pixels of the student's square input; the teacher's may differ, the boxes are the same.
        batch_size: samples in a step.
        seed: of the order.
        targets: names of the targets to read.
        drop_last: leave out the last batch of an epoch if it is shorter.
        loader_workers: processes that prepare batches ahead; 0 prepares each here, when it is asked for.
        pin_memory: put batches into page-locked memory, for a model on a GPU.

    Attributes:
        steps_per_epoch: batches in each epoch.
        num_samples: usable samples in the corpus.
        num_views: K.

    Raises:
        InputError, IncompleteError, MismatchError, DamagedError: see `check_pair` and `steps_per_epoch`.
    """

    def __init__(
        self,
        shards: ShardSet,
        store: Location,
        *,
        size: int,
        batch_size: int,
        seed: int,
        targets: Sequence[str],
        drop_last: bool,
        loader_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        facts = check_pair(shards, store, targets)
        self.num_samples = int(facts.valid_rows.sum())
        self.num_views = facts.spec.num_views
        self.steps_per_epoch = steps_per_epoch(self.num_samples, batch_size, drop_last=drop_last)
        self._pairs = Batches(
            shards, facts, size=size, batch_size=batch_size, seed=seed, names=tuple(targets)
        )
        self._loading = _Loading(self._pairs, loader_workers)
        self._pin_memory = pin_memory
        self._reading: object = None
        # Loader processes that outlive their stream make a noise when the interpreter goes down.
        weakref.finalize(self, self._loading.stop)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on; what lies before costs nothing.

        Raises:
            DamagedError: tar and store disagree, or bytes changed; where says which.
            TeachonceError: a loader process died.
        """
        if self._reading is not None:
            self.close()  # an epoch was left half-way, with batches under way
        token = self._reading = object()
        self._loading.start(epoch, first_step, self.steps_per_epoch)
        while self._reading is token:
            try:
                item = self._loading.next()
            except StopIteration:
                self._reading = None
                return
            except BaseException:
                self.close()
                raise
            yield self._received(item)
            del item
        raise RuntimeError(
            "the stream was closed, or another epoch was started, while this one was being read"
        )

    def close(self) -> None:
        """Stop the loader processes and close files. The stream stays usable: the next epoch starts anew."""
        self._reading = None
        self._loading.stop()

    def __enter__(self) -> PairStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _received(self, item: Item) -> Batch:
        count, sent = item
        if isinstance(sent, Slab):
            tensors = self._loading.slabs.tensors(sent, self._pairs.layout(count))
        else:
            tensors = [torch.from_numpy(array) for array in sent]
        if self._pin_memory:
            tensors = [tensor.pin_memory() for tensor in tensors]
        rows_N, images_NCHW, *targets = tensors
        return Batch(images_NCHW, rows_N, dict(zip(self._pairs.names, targets, strict=True)))


class _Loading:
    """A DataLoader and its processes, kept over epochs; stopped and started as needed."""

    def __init__(self, pairs: Batches, workers: int) -> None:
        self._pairs, self._workers = pairs, workers
        self._steps = _Steps()
        self._loader: DataLoader[Any] | None = None
        self._batches: Any = None
        self.slabs = SlabReader(())

    def start(self, epoch: int, first: int, stop: int) -> None:
        """Begin with the steps `first` to `stop` of an epoch."""
        self._steps.range = (epoch, first, stop)
        if self._loader is None:
            self._loader = self._make_loader()
        self._batches = iter(self._loader)

    def next(self) -> Item:
        """The next batch.

        Raises:
            StopIteration: there is none.
            TeachonceError: it cannot be made, or a loader process died.
        """
        self.slabs.give_back()
        try:
            item: Item | TeachonceError = next(self._batches)
        except (RuntimeError, EOFError, OSError) as error:
            # The loader's own word for it, or a broken pipe from the process; not an error from within it.
            if self._workers and "Original Traceback" not in str(error):
                raise _died(error) from error
            raise
        if isinstance(item, TeachonceError):
            raise item
        return item

    def stop(self) -> None:
        """End the processes. Dropping the iterator is how a DataLoader is told."""
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
                "num_workers": self._workers, "prefetch_factor": PREFETCH, "persistent_workers": True,
                "worker_init_fn": _start_worker, "multiprocessing_context": context,
            }  # fmt: skip
        with warnings.catch_warnings():
            # More processes than cores is the user's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            return DataLoader(
                self._pairs,
                sampler=self._steps,
                batch_size=None,
                collate_fn=_as_it_is,
                # Without one of its own it draws from torch's global generator, and training would notice.
                generator=torch.Generator(),
                **options,
            )


class _Steps(Sampler[tuple[int, int]]):
    """(epoch, step) of the batches to come; persistent loaders keep it, so each epoch sets its range."""

    range: tuple[int, int, int] = (0, 0, 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, first, stop = self.range
        return ((epoch, step) for step in range(first, stop))

    def __len__(self) -> int:
        return max(0, self.range[2] - self.range[1])


def _as_it_is(item: Any) -> Any:
    """An item is a batch already."""
    return item


def _start_worker(worker: int) -> None:
    """In a fresh loader process: Ctrl-C is the parent's business, which then stops its loaders.

    A parent that is killed stops nobody. torch's loaders watch the process that forked them, which here is
    the server, and the server lives as long as a loader does: so each loader watches the parent itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    context.set_forkserver_preload([Batches.__module__])
    return context


def _died(error: Exception) -> TeachonceError:
    return TeachonceError(
        "a loader process died", found=str(error) or type(error).__name__,
        hint="use fewer or no --loader-workers; in a container, give it more shared memory (--shm-size)",
    )  # fmt: skip
