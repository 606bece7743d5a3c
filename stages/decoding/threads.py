"""Owns work in threads of this process, or in the thread that asks for it: for little work, and where cores are few."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from ...pipeline import interrupt
from .work import Made, Opened, Work


class Threads:
    """Threads of this process; with none of them each task is done at once, when it is submitted.

    Pillow decodes and resizes without holding the interpreter, so a few threads help; many wait for each other.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode") if count else None
        self.ahead = 2 * count

    def open(self, work: Work) -> Opened:
        return _InThreads(work, self._threads)

    def close(self) -> None:
        if self._threads is not None:
            with interrupt.later():
                self._threads.shutdown(cancel_futures=True)


class _InThreads:
    def __init__(self, work: Work, threads: ThreadPoolExecutor | None) -> None:
        self._work, self._threads = work, threads
        self._at_hand: set[Future[Made]] = set()

    def submit(self, task: Any) -> Future[Made]:
        with interrupt.later():
            return self._submit(task)

    def _submit(self, task: Any) -> Future[Made]:
        future: Future[Made] = Future()
        if self._threads is not None:
            try:
                future = self._threads.submit(self._make, task)
            except RuntimeError:  # they are closed
                future.cancel()
                return future
            self._at_hand.add(future)
            future.add_done_callback(self._at_hand.discard)
            return future
        try:
            future.set_result(self._make(task))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        with interrupt.later():
            wait(tuple(self._at_hand))
        self._work.close()

    def _make(self, task: Any) -> Made:
        arrays = [np.empty(shape, dtype) for dtype, shape in self._work.layout(task)]
        return Made(self._work.make(task, arrays), arrays)
