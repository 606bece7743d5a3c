"""Owns batches of pictures for a model, decoded ahead: always the same ones in the same order, wherever they are decoded."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..decoding.work import Made, Pool, in_order
from .picture_views import Outcome, PictureViews, Wanted

Item = TypeVar("Item")

#: Pictures of a task: enough that handing it over costs little of each, and so few that all their views take 8 MiB at most.
MOST_PICTURES = 32
_MOST_BYTES = 8 << 20

#: Of those that come over the network: whoever stops waits for the tasks that have begun.
_MOST_FAR = 4


class Rows:
    """Rows of arrays, one behind the other. Neighbours are one slice; nothing is copied."""

    def __init__(self) -> None:
        self._slices: list[tuple[NDArray[Any], int, int]] = []

    def add(self, array: NDArray[Any], row: int) -> None:
        """Add one row."""
        if self._slices and self._slices[-1][0] is array and self._slices[-1][2] == row:
            self._slices[-1] = (array, self._slices[-1][1], row + 1)
        else:
            self._slices.append((array, row, row + 1))

    def take(self) -> list[NDArray[Any]]:
        """All of them; afterwards there are none."""
        arrays = [array[start:stop] for array, start, stop in self._slices]
        self._slices.clear()
        return arrays


@dataclass(eq=False)
class Batch(Generic[Item]):
    """Pictures of which the usable ones go through a model together.

    Attributes:
        found: all of them in order, with what became of them.
        views: of the usable ones, arrays (picture, *shape of the kind) one behind the other.
        others: the second views of those that have one, likewise.
    """

    found: list[tuple[Item, Outcome]] = field(default_factory=list)
    views: Rows = field(default_factory=Rows)
    others: Rows = field(default_factory=Rows)
    num_usable: int = 0

    @property
    def usable(self) -> list[tuple[Item, Outcome]]:
        return [(item, outcome) for item, outcome in self.found if outcome.reason is None]

    @property
    def unusable(self) -> list[tuple[Item, str]]:
        """Those that are not, with the reason."""
        return [(item, outcome.reason) for item, outcome in self.found if outcome.reason is not None]


def picture_batches(
    pool: Pool,
    work: PictureViews,
    pictures: Iterable[tuple[Item, Wanted]],
    *,
    total: int,
    size: int,
    count_unusable: bool = False,
) -> Generator[Batch[Item]]:
    """Batches of `size` usable pictures in order, with the unusable ones among them; the last one may be shorter.

    Memory: the views of the tasks that are under way, of 32 pictures and 8 MiB each at most, of which there are one more than
    `pool.ahead`; and those of the batch.

    Args:
        total: of the pictures: what is left is spread over the pool.
        size: of a batch.
        count_unusable: whether they count too.

    Raises:
        Exception: whatever `PictureViews.make` raises.
    """
    batch: Batch[Item] = Batch()
    with closing(_made(pool, work, pictures, total)) as tasks:
        for items, task, made in tasks:
            views, others = made.arrays[0], made.arrays[-1]
            row = -1
            for place, (item, wanted, outcome) in enumerate(zip(items, task, made.info, strict=True)):
                row += wanted.box is not None
                batch.found.append((item, outcome))
                if outcome.reason is None:
                    batch.num_usable += 1
                    batch.views.add(views, place)
                    if wanted.box is not None and outcome.is_meant:
                        batch.others.add(others, row)
                if (len(batch.found) if count_unusable else batch.num_usable) == size:
                    yield batch
                    batch = Batch()
    if batch.found:
        yield batch


def _made(
    pool: Pool, work: PictureViews, pictures: Iterable[tuple[Item, Wanted]], total: int
) -> Generator[tuple[list[Item], tuple[Wanted, ...], Made]]:
    """The items of each task in order, with the task and what was made of it."""
    items: deque[list[Item]] = deque()
    most = max(1, min(MOST_PICTURES, _MOST_BYTES // _bytes_each(work)))

    def tasks() -> Iterator[tuple[Wanted, ...]]:
        for task in _tasks(pictures, work, total, most, max(1, pool.ahead)):
            items.append([item for item, _ in task])
            yield tuple(wanted for _, wanted in task)

    with closing(pool.open(work)) as opened, closing(in_order(opened, tasks(), pool.ahead)) as made:
        for task, done in made:
            yield items.popleft(), task, done


def _tasks(
    pictures: Iterable[tuple[Item, Wanted]], work: PictureViews, left: int, most: int, ahead: int
) -> Iterator[list[tuple[Item, Wanted]]]:
    """Pictures in tasks of at most `most`; smaller towards the end, so that all processes end at about the same time."""
    ordered = iter(pictures)
    while True:
        size = max(1, min(most, left // (2 * ahead)))
        task, far = [], 0
        for item, wanted in islice(ordered, size):
            task.append((item, wanted))
            far += work.files.is_far(wanted.file)
            if far == _MOST_FAR:
                break
        if not task:
            return
        left -= len(task)
        yield task


def _bytes_each(work: PictureViews) -> int:
    views = 1 if work.other is None else 2
    return views * math.prod(work.kind.shape(work.size)) * np.dtype(work.kind.dtype).itemsize
