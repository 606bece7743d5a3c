"""Owns the batches of a stream that are made ahead: in a pool of its own, or in one that others use too."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import replace

from ..decoding.pool import make_pool
from ..decoding.work import Made, Opened, Pool, in_order
from . import batches
from .batches import Batches, BatchSpan
from .order import Spans

#: What the processes of a pool import that makes batches.
BATCHES_MODULE = batches.__name__


class BatchesAhead:
    """The batches of one epoch after another. Those of the next one are begun before an epoch is at its end.

    Args:
        work: makes them.
        num_workers: processes of a pool of its own, which starts with the first epoch and is kept until `stop`; 0 makes each batch
            in this thread when it is asked for.
        pool: another's instead, which stays open.
    """

    def __init__(self, work: Batches, num_workers: int, pool: Pool | None) -> None:
        self._work, self._num_workers, self._lent = work, num_workers, pool
        self._own: Pool | None = None
        self._opened: Opened | None = None
        self._made: Generator[tuple[BatchSpan, Made]] | None = None
        self._at: tuple[int, Spans] | None = None  # what it goes on with
        self._left = 0

    def start(self, epoch: int, spans: Spans) -> None:
        """Begin with the batches of an epoch that hold these samples, or go on with them if they are those that come next."""
        if self._at != (epoch, spans):
            self.give_up()
            self._begin(epoch, spans)
        self._at, self._left = None, len(spans)

    def _begin(self, epoch: int, spans: Spans) -> None:
        pool = self._lent or self._own
        if pool is None:
            pool = self._own = make_pool(self._num_workers, 0, [BATCHES_MODULE])
        if self._opened is None:
            self._opened = pool.open(self._work)
        self._whole = replace(spans, first=0)
        self._made = in_order(self._opened, _tasks(epoch, spans), pool.ahead)

    def next(self) -> Made:
        """The next batch: arrays as in `Batches.layout`.

        Raises:
            StopIteration: there is none, or it was stopped.
            TeachonceError: it cannot be made, or a process died (`WorkerLost`).
        """
        (epoch, _, _), made = next(self._made or iter(()))
        self._left -= 1
        if not self._left:
            self._at = epoch + 1, self._whole
        return made

    def give_up(self) -> None:
        """Leave the epoch at hand, with what is being made of it; processes stay."""
        made, self._made = self._made, None
        self._at = None
        if made is not None:
            with contextlib.suppress(ValueError):  # another thread waits in it, and will find that it is over
                made.close()

    def stop(self) -> None:
        """End what is its own, and close files. It can be started again."""
        own, self._own = self._own, None
        opened, self._opened = self._opened, None
        if own is not None:
            own.close()  # first: then nothing is waited for
        self.give_up()
        if opened is not None:
            opened.close()


def _tasks(epoch: int, spans: Spans) -> Iterator[BatchSpan]:
    """Of an epoch from some sample on, then of all that come after it."""
    for first, stop in spans:
        yield epoch, first, stop
    whole = replace(spans, first=0)
    for later in itertools.count(epoch + 1):
        for first, stop in whole:
            yield later, first, stop
