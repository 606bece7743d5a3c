"""Owns the contract of work that is done ahead, and its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from ...pipeline import interrupt
from .layout import ArrayLayout

Task = TypeVar("Task")


class Work(Protocol):
    """What is done with each task. It can be pickled, small, before its first task; each process has a copy of its own.

    In threads one object does several tasks at once.
    """

    def layout(self, task: Any) -> ArrayLayout:
        """The arrays that `make` fills. Computed on both sides, so cheap."""

    def make(self, task: Any, arrays: list[NDArray[Any]]) -> Any:
        """Fill the arrays, whatever they hold before. Returns what else is to be known: small, and it can be pickled.

        What it raises is raised where the result is taken.
        """

    def close(self) -> None:
        """Close what `make` has opened. The next task may open it again."""


@dataclass(frozen=True)
class Made:
    """What became of a task.

    Attributes:
        info: what `Work.make` returned.
        arrays: filled. They may be kept, and cut into views, as long as needed: their memory is used again only when nothing
            shares it any more.
    """

    info: Any
    arrays: list[NDArray[Any]]


class Opened(Protocol):
    """A work that was opened in a pool. Ctrl-C waits for the end of whatever hands work over or waits for it: see `interrupt.later`."""

    def submit(self, task: Any) -> Future[Made]:
        """Have a task done. From any thread."""

    def close(self) -> None:
        """No more tasks: once those that have begun are done, what they hold open is closed. Results at hand stay.

        Threads are waited for; processes close their files by themselves.
        """


class Pool(Protocol):
    """Where work is done: `processes.Processes` or `threads.Threads`.

    Attributes:
        ahead: tasks to keep submitted beside the one that is waited for, so that nobody idles.
    """

    @property
    def ahead(self) -> int: ...

    def open(self, work: Work) -> Opened:
        """Begin with a work. Several may be open at once; tasks start in the order in which they come."""

    def close(self) -> None:
        """End processes or threads. What is not done yet raises `CancelledError` where it is waited for."""


def in_order(opened: Opened, tasks: Iterable[Task], ahead: int) -> Generator[tuple[Task, Made]]:
    """Tasks in order with their results; at most `ahead` are submitted beside the one that is waited for.

    What is left when the caller stops is given up; what has begun goes on, and its result is dropped.

    Raises:
        Exception: whatever `Work.make` raised.
    """
    waiting: deque[_Waiting[Task]] = deque()
    try:
        for task in tasks:
            waiting.append(_Waiting(task, opened.submit(task)))
            if len(waiting) > ahead:
                yield waiting.popleft().settle()
        while waiting:
            yield waiting.popleft().settle()
    finally:
        with interrupt.later():
            for each in waiting:
                each.future.cancel()


class _Waiting(Generic[Task]):
    """A task that is submitted."""

    __slots__ = ("_done", "future", "task")

    def __init__(self, task: Task, future: Future[Made]) -> None:
        self.task, self.future = task, future
        self._done: SimpleQueue[object] = (
            SimpleQueue()
        )  # its wait takes no lock that Ctrl-C could leave taken, as the future's may
        with interrupt.later():
            future.add_done_callback(self._done.put)

    def settle(self) -> tuple[Task, Made]:
        self._done.get()
        with interrupt.later():
            return self.task, self.future.result()
