"""Owns decoding ahead: items in order, with the pixels that threads made of them, or the reason why there are none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..corpora.images import BadImage

Item = TypeVar("Item")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Ready(Generic[Item]):
    """An item with its pixels (view, 3, size, size), or with the reason why it has none."""

    item: Item
    pixels: Pixels | None
    reason: str = ""


def prepare(
    items: Iterable[Item], work: Callable[[Item], Pixels], threads: int, ahead: int
) -> Iterator[Ready[Item]]:
    """Items in order with what `work` makes of them; at most `ahead` are prepared in advance.

    `work` runs in threads; Pillow decodes and resizes without holding the interpreter.
    """
    waiting: deque[tuple[Item, Future[Pixels]]] = deque()

    def settle() -> Ready[Item]:
        item, future = waiting.popleft()
        try:
            return Ready(item=item, pixels=future.result())
        except BadImage as bad:
            return Ready(item=item, pixels=None, reason=str(bad))

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > ahead:
                yield settle()
        while waiting:
            yield settle()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
