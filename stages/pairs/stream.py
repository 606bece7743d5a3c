"""The stream of pairs: images and the teacher's targets, batch by batch, in a fixed order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Fingerprint
from ..corpora.shards import ShardSet
from ..decoding.work import Made, Pool
from ..views.anew import ViewAnew
from .ahead import BatchesAhead
from .batches import Batches
from .join import check_pixels, check_views, open_pair, targets_to_read
from .local_copies import LocalCache
from .order import EpochOrder, Order, Spans, check_batch, window_shards
from .shard_copies import ComingShards, ShardCopies
from .sources import TargetSource, identities, source_of
from .store import StoreFacts, open_store, read_vectors
from .training_rows import RowRule, TrainingRows


class Batch(NamedTuple):
    """One step's pairs. It may be kept: its memory is used again only when nothing shares it any more.

    Attributes:
        images_NCHW: uint8 (sample, 3, image_size, image_size), contiguous; normalisation happens in the model. Of a stream without
            images (sample, 0).
        targets: by name, fp32 (sample, …), of the epoch's view; those of sources in their own types.
        rows_N: int64 (sample,): row of each sample in the store.
    """

    images_NCHW: Tensor
    targets: dict[str, Tensor]
    rows_N: Tensor


class TargetStream(IterableDataset[Batch]):
    """Pairs of image and teacher targets from shards and a store that belong together.

    Epoch *e* reads view *e mod K* at the boxes that the store holds, each usable sample once, in an order
    that depends on (seed, epoch, valid rows per shard) alone: not on loader processes, ranks, batch size, nor
    on where an epoch is entered.

    Iterating gives whole batches, from where the stream stands to the end of the epoch; the next iteration is
    the next epoch. `state_dict` gives its position. A DataLoader around it, if a trainer insists on one,
    is `DataLoader(stream, batch_size=None)`; the processes are the stream's own.

    Processes start with the first epoch, which takes about a second, and stay until `close`. Before an epoch is at its end they
    begin with the next one. Memory: each holds the targets
    of two windows of some 16,000 rows; and with N processes there are at most N + 3 batches that are not handed over yet.

    Args:
        shards: finished shards.
        store: the finished target store that was made from them.
        image_size: pixels of the student's square input; the teacher's may differ, the boxes are the same. None reads targets alone:
            no image is opened, and of the shards only their index is read, for its keys.
        batch_size: samples in a step, over all ranks. Where domains are drawn evenly, that many of each domain count instead.
        seed: of the order.
        targets: names of the targets to read. `logits` are formed from embeddings and the store's class
            vectors where the store holds no logits.
        sources: of targets that the store does not hold, such as `ManifestLabels`.
        rows: which samples are read, and whether domains are drawn evenly; a rule looks for them, `TrainingRows` has them. None for
            each usable sample once an epoch.
        anew: views that are drawn anew in each epoch and need no stored target, by name: `image` takes the place of the stored view,
            others come as uint8 targets of these names.
        views: read the first so many views of the store's K only.
        drop_last: leave out the last batch of an epoch if it is shorter.
        rank: this process reads the rank-th of `world_size` equal parts of each batch. By default that of torch.distributed,
            where it was initialised, else 0.
        world_size: number of these parts. By default as `rank`, else 1.
        num_workers: processes that prepare batches ahead; 0 prepares each here, when it is needed.
        pool: processes or threads that others use too prepare them instead; whoever opened it closes it, after the stream.
        pin_memory: put batches into page-locked memory, for a model on a GPU.
        accept_other_pixels: read on even if this machine renders images otherwise than the teacher saw them.
        generation: the name of an older generation of a store that grew; None for the current one.
        local_cache: keep copies of the shards at hand, and of those that come next, on this machine's disk.

    Attributes:
        shards: as they were when the store was made, if the corpus grew since.
        epoch: which epoch the next iteration reads from.
        steps_per_epoch: batches in a whole epoch.
        batch_size: samples in a step.
        num_samples: usable samples in the corpus that are read.
        samples_per_epoch: those that an epoch reads; drawn with replacement, more or less.
        rows: those; None for all.
        num_views: K, or `views`.
        note: a line on pixels that differ and were accepted; '' where none do.

    Raises:
        InputError, IncompleteError, MismatchError, DamagedError: see `open_pair` and its neighbours.
    """

    def __init__(
        self,
        shards: ShardSet | Location | Path | str,
        store: Location | Path | str,
        *,
        image_size: int | None,
        batch_size: int,
        seed: int = 0,
        targets: Sequence[str] = ("logits",),
        sources: Sequence[TargetSource] = (),
        rows: RowRule | TrainingRows | None = None,
        anew: Mapping[str, ViewAnew] | None = None,
        views: int | None = None,
        drop_last: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int = 0,
        pool: Pool | None = None,
        pin_memory: bool = False,
        accept_other_pixels: bool = False,
        generation: str | None = None,
        local_cache: LocalCache | None = None,
    ) -> None:
        given = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        shard_set, facts = open_pair(
            given, Location.of(store), generation, None if local_cache is None else local_cache.copies
        )
        self.shards, self._facts = shard_set, facts
        self._targets = tuple(targets)
        elsewhere = tuple(name for name in self._targets if source_of(sources, name) is not None)
        read, self._forms_logits = targets_to_read(facts, [name for name in self._targets if name not in elsewhere])
        self.num_views = check_views(facts, views)
        self.note = "" if image_size is None else check_pixels(shard_set, facts, accept_other=accept_other_pixels)
        self.rows = TrainingRows.of(shard_set, facts, rows) if isinstance(rows, RowRule) and rows.chooses else None
        if isinstance(rows, TrainingRows):
            self.rows = rows
        order: Order
        if self.rows is None:
            window = window_shards(facts.valid_rows)
            order = EpochOrder(seed=seed, epoch=0, rows_per_shard=facts.valid_rows, window=window)
            self.num_samples = order.num_samples
        else:
            order, self.num_samples = self.rows.order(seed), self.rows.num_samples
            batch_size = self.rows.batch_size or batch_size
        self.batch_size = batch_size
        rank, world_size = _place(rank, world_size)
        check_batch(order.num_samples, batch_size, drop_last=drop_last, world_size=world_size)
        self._spans = Spans(
            num_samples=order.num_samples,
            batch_size=batch_size,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        self.steps_per_epoch, self.samples_per_epoch = len(self._spans), order.num_samples
        self.epoch = self._samples = 0
        self._identity = Fingerprint(
            fields={
                "corpus_id": shard_set.corpus.corpus_id,
                "store": facts.fingerprint,
                "seed": seed,
                "views": self.num_views,
                **identities(sources),
                **({} if self.rows is None else self.rows.listing.rule.to_json()),
                **({"anew": {name: view.to_json() for name, view in anew.items()}} if anew else {}),
            }
        )
        copies = (
            None
            if local_cache is None
            else ShardCopies.of(
                local_cache, shard_set, facts, read + elsewhere, sources, with_images=image_size is not None
            )
        )
        self._coming = None if copies is None else ComingShards(copies, order)
        self._pairs = Batches(
            shard_set if copies is None else copies.shards,
            facts if copies is None else copies.facts,
            image_size=image_size,
            order=order,
            num_views=self.num_views,
            names=read + elsewhere,
            sources=tuple(sources) if copies is None else copies.sources,
            listing=None if self.rows is None else self.rows.listing,
            anew=anew,
            seed=seed,
            copies=copies,
        )
        self._ahead = BatchesAhead(self._pairs, num_workers, pool)
        self._pin_memory = pin_memory
        self._reading: object = None  # the epoch that is being read has batches left
        weakref.finalize(self, self._ahead.stop)
        if self._coming is not None:
            weakref.finalize(self, self._coming.stop)

    @property
    def store(self) -> StoreFacts:
        """The facts of the store that it reads."""
        return self._facts

    @cached_property
    def class_vectors(self) -> ClassVectors:
        """The store's class vectors: names in the order of the logits, and what makes logits of embeddings.

        Raises:
            IncompleteError: it has none.
        """
        facts = self._facts
        return read_vectors(open_store(facts.store, facts.generation), facts.store)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches from where the stream stands to the end of the epoch; a batch counts once it is handed over.

        Raises:
            InputError: a DataLoader has copied the stream into processes of its own.
            DamagedError, WorkerLost: as in `batches`.
        """
        if get_worker_info() is not None:
            raise InputError(
                "the stream has processes of its own",
                code="stream-in-worker",
                where="DataLoader(num_workers=…)",
                expected=0,
                found="a worker process",
                hint="use num_workers=0 there, and TargetStream(num_workers=N)",
            )
        for batch in self.batches(self.epoch, self._samples):
            # Before it is handed over, and into the next epoch at once: a trainer that counts steps never reaches the end.
            self._go_to(self.epoch, self._samples + self._spans.batch_size)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self._go_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON: epoch, samples handed over, and what order and targets they are of.

        It holds for any batch size, number of ranks and of loader processes.
        """
        return {"epoch": self.epoch, "samples": self._samples, **self._identity.fields}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called; what lies before is neither read nor decoded.

        Raises:
            MismatchError: a state of other images, targets, seed or views; names the field.
            InputError: not a state.
        """
        fields = dict(state)
        epoch, samples = fields.pop("epoch", None), fields.pop("samples", None)
        self._identity.check(
            fields,
            what="the state of another stream",
            code="stream-state-other",
            where="load_state_dict",
            hint="open the stream as it was, or start anew without this state",
            whose=("this stream", "the state"),
        )
        if not isinstance(epoch, int) or not isinstance(samples, int) or epoch < 0 or samples < 0:
            raise InputError(
                "not a stream's state",
                code="stream-state-malformed",
                where="load_state_dict",
                found=f"{epoch=}, {samples=}",
            )
        self._go_to(epoch, samples)

    def batches(self, epoch: int, first_sample: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `first_sample` of its order on; what lies before costs nothing.

        Does not move where the stream stands. Only one epoch is read at a time.

        Raises:
            DamagedError: tar and store disagree, or bytes changed; `where` names the place.
            WorkerLost: a process that prepares batches died.
        """
        spans = replace(self._spans, first=first_sample)
        if not len(spans):
            return
        token = self._reading = object()
        self._ahead.start(epoch, spans)
        for step, left in enumerate(reversed(range(len(spans)))):
            if self._coming is not None:
                self._coming.go_to(epoch, first_sample + step * spans.batch_size)
            yield self._next(token, is_last=not left)

    def close(self) -> None:
        """End the processes and close files. The stream stays usable: the next epoch starts them again."""
        self._reading = None
        self._ahead.stop()
        if self._coming is not None:
            self._coming.stop()

    def __enter__(self) -> TargetStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _go_to(self, epoch: int, samples: int) -> None:
        """Stand there, or at the beginning of the next epoch where no batch is left."""
        left = len(replace(self._spans, first=samples))
        self.epoch, self._samples = (epoch, samples) if left else (epoch + 1, 0)

    def _next(self, token: object, *, is_last: bool) -> Batch:
        """The next batch of the epoch that is read under this token."""
        try:
            if self._reading is token:
                made = self._ahead.next()
        except BaseException as error:
            if self._reading is token:
                self.close()
                raise
            if not isinstance(error, Exception):
                raise
        if self._reading is not token:
            raise RuntimeError("the stream was closed, or another epoch was started, while this one was being read")
        if is_last:
            self._reading = None
        return self._received(made)

    def _received(self, made: Made) -> Batch:
        rows_N, images_NCHW, *values = (torch.from_numpy(array) for array in made.arrays)
        targets = dict(zip((*self._pairs.names, *self._pairs.also), values, strict=True))
        if self._forms_logits:
            logits_NC = torch.from_numpy(self.class_vectors.logits(targets["embedding"].numpy()))
            targets = {name: targets.get(name, logits_NC) for name in (*self._targets, *self._pairs.also)}
        batch = Batch(images_NCHW, targets, rows_N)
        return pinned(batch) if self._pin_memory else batch


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which copies to a GPU run beside its work."""
    targets = {name: values.pin_memory() for name, values in batch.targets.items()}
    return Batch(batch.images_NCHW.pin_memory(), targets, batch.rows_N.pin_memory())


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise InputError(
            "rank and world_size belong together",
            code="rank-without-world",
            where="TargetStream",
            found=f"{rank=}, {world_size=}",
        )
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    if not 0 <= rank < world_size:
        raise InputError(
            "no such rank",
            code="rank-impossible",
            where="TargetStream",
            expected=f"0 to {world_size - 1}",
            found=rank,
        )
    return rank, world_size
