"""Owns decoding ahead: items in order, with what threads made of them, or the reason why there is nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from ..corpora.images import BadImage

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Views of one sample, as `kind.draw_views` gives them.
ViewArrays = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Ready(Generic[Item, Result]):
    """An item with what was made of it, or with the reason why nothing was."""

    item: Item
    result: Result | None
    reason: str = ""


def prepare(
    items: Iterable[Item], work: Callable[[Item], Result], threads: int, ahead: int
) -> Generator[Ready[Item, Result]]:
    """`in_order` with threads of its own."""
    with decoding_threads(threads) as pool:
        yield from in_order(items, work, pool, ahead)


def decoding_threads(count: int) -> ThreadPoolExecutor:
    """Threads to decode in; Pillow decodes and resizes without holding the interpreter."""
    return ThreadPoolExecutor(count, thread_name_prefix="decode")


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], pool: ThreadPoolExecutor, ahead: int
) -> Generator[Ready[Item, Result]]:
    """Items in order with what `work` makes of them; at most `ahead` are prepared in advance.

    `work` runs in the pool, which others may use too. What is left when the caller stops is given up.

    Raises:
        Exception: whatever `work` raised, but `BadImage`, which is the item's reason.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()

    def settle() -> Ready[Item, Result]:
        item, future = waiting[0]
        try:
            return Ready(item=item, result=future.result())
        except BadImage as bad:
            return Ready(item=item, result=None, reason=str(bad))
        finally:
            waiting.popleft()

    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > ahead:
                yield settle()
        while waiting:
            yield settle()
    finally:
        started = [future for _, future in waiting if not future.cancel()]
        for future in started:
            future.exception()  # waits: the files that it reads may be closed now
