"""Owns work in other processes: started once, kept, and fed in order; their arrays come back in shared memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from ...storage_schemas.errors import TeachonceError
from . import worker
from .layout import carve, num_bytes
from .slabs import Slab, Slabs
from .work import Made, Opened, Work

#: Tasks that a process holds: the one at hand, and the next, so that it need not wait for it.
_HELD = 2

#: How it is started: with the modules of the program, found where it found them.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from {module} import main; main(int(sys.argv[1]), json.loads(sys.argv[3]))"
)


class Processes:
    """A number of processes that do tasks in the order in which they come.

    Starting takes the time that the imports take, in the background; tasks wait for it. A process that dies is an error of all
    tasks that are not done. Memory: an open work has a slab of shared memory, of the size of its arrays, for each task that a process
    holds, two for each, and for each result that the caller has not let go.

    Args:
        count: of processes.
        modules: to import before they are forked: those of the works.
    """

    def __init__(self, count: int, modules: Sequence[str] = ()) -> None:
        self.ahead = count + 2
        self._count, self._modules = count, modules
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._pending: deque[_Item] = deque()
        self._numbers = itertools.count()
        self._broken: TeachonceError | None = None
        self._closed = False
        self._wake, self._woken = socket.socketpair()
        self._first: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="decode processes", daemon=True)
        self._thread.start()

    def open(self, work: Work) -> Opened:
        return _InProcesses(self, next(self._numbers), work)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.close()
        self._thread.join()

    def submit(self, item: _Item) -> None:
        """Hand a task on, at once where a process has room."""
        with self._lock:
            if self._broken is not None:
                item.future.set_exception(self._broken)
            elif self._closed:
                item.future.cancel()
            else:
                self._pending.append(item)
                self._hand_out()

    def close_work(self, number: int) -> None:
        """Tell the processes that a work is over."""
        with self._lock:
            for each in self._workers:
                each.known.pop(number, None)
                with contextlib.suppress(OSError):  # a dead one is noticed elsewhere
                    each.connection.send((worker.CLOSE, number))

    def _hand_out(self) -> None:
        """Send what waits to the processes that have room. With the lock held."""
        while self._pending:
            least = min(self._workers, key=lambda each: len(each.items), default=None)
            if least is None or len(least.items) >= _HELD:
                return
            item = self._pending.popleft()
            if not item.future.set_running_or_notify_cancel():
                continue
            try:
                item.slab = item.opened.slabs.take(num_bytes(item.opened.work.layout(item.task)))
                least.send(item)
            except OSError:
                least.items.append(item)  # it is dead, which its connection tells next
                return
            except Exception as error:
                item.future.set_exception(error)

    def _run(self) -> None:
        """Start the processes, then take in results until the pool is closed."""
        try:
            self._start()
            while not self._take_in():
                pass
        except BaseException as error:
            self._break(error)
        finally:
            self._end()

    def _end(self) -> None:
        """End the processes, and give up what they have not done."""
        with self._lock:
            self._closed = True
            begun = [item for each in self._workers for item in each.items]
            waiting, self._pending = self._pending, deque()
            for each in self._workers:
                each.close()
            self._workers.clear()
        self._woken.close()
        if self._first is not None:
            self._first.close()
        over = self._broken or CancelledError()
        for item in begun:
            item.future.set_exception(over)
        for item in waiting:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(over)

    def _start(self) -> None:
        self._first, there = socket.socketpair()
        command = [sys.executable, "-c", _START.format(module=worker.__name__), str(there.fileno())]
        command += [json.dumps(sys.path), json.dumps(list(self._modules))]
        # Threads of a numeric library would not survive the fork. Until the process ignores it, Ctrl-C is kept from it: the
        # mask of this thread is inherited.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            first = subprocess.Popen(
                command, env=environment, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        threading.Thread(target=first.wait, name="decode processes' end", daemon=True).start()
        there.close()
        workers = []
        for _ in range(self._count):
            ours, theirs = socket.socketpair()
            socket.send_fds(self._first, [b"f"], [theirs.fileno()])
            theirs.close()
            workers.append(_Worker(Connection(ours.detach())))
        with self._lock:
            self._workers = workers
            self._hand_out()

    def _take_in(self) -> bool:
        """Wait for results. Returns whether the pool was closed."""
        ready = wait([*(each.connection for each in self._workers), self._woken])
        if self._woken in ready:
            return True
        for each in self._workers:
            if each.connection in ready:
                self._result(each)
        return False

    def _result(self, each: _Worker) -> None:
        try:
            done, value = each.connection.recv()
        except (EOFError, OSError) as error:
            raise _died(error) from error
        with self._lock:
            item = each.items.popleft()
            self._hand_out()
        assert item.slab is not None
        memory = item.opened.slabs.lend(item.slab)
        if not done:
            item.future.set_exception(value)
            return
        arrays = carve(memory, item.opened.work.layout(item.task))
        del memory
        item.future.set_result(Made(value, arrays))

    def _break(self, error: BaseException) -> None:
        with self._lock:
            self._broken = error if isinstance(error, TeachonceError) else _died(error)


@dataclass(eq=False)
class _Item:
    """A task on its way."""

    opened: _InProcesses
    task: Any
    future: Future[Made] = field(default_factory=Future)
    slab: Slab | None = None


@dataclass(eq=False)
class _InProcesses:
    pool: Processes
    number: int
    work: Work
    slabs: Slabs = field(default_factory=Slabs)

    def submit(self, task: Any) -> Future[Made]:
        item = _Item(self, task)
        self.pool.submit(item)
        return item.future

    def close(self) -> None:
        self.pool.close_work(self.number)


class _Worker:
    """One process, from here.

    Attributes:
        items: what it has to do, in order.
        known: for each work that it has, the slabs that it has mapped.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.items: deque[_Item] = deque()
        self.known: dict[int, set[int]] = {}
        self._beside = socket.socket(fileno=os.dup(connection.fileno()))

    def close(self) -> None:
        """End it: nothing is left to read for it."""
        self.connection.close()
        self._beside.close()

    def send(self, item: _Item) -> None:
        """Have it do a task."""
        assert item.slab is not None
        number, slab = item.opened.number, item.slab
        if number not in self.known:
            self.connection.send((worker.OPEN, number, item.opened.work))
            self.known[number] = set()
        if slab.number not in self.known[number]:
            self.connection.send((worker.MAP, number, slab.number, slab.size))
            socket.send_fds(self._beside, [b"m"], [slab.descriptor])
            self.known[number].add(slab.number)
        self.connection.send((worker.MAKE, number, slab.number, item.task))
        self.items.append(item)


def _died(error: object) -> TeachonceError:
    return TeachonceError(
        "a process that decodes images died",
        code="loader-died",
        found=str(error) or type(error).__name__,
        hint="if memory is short, use fewer --decode-workers (0 decodes in threads of the command)",
    )
