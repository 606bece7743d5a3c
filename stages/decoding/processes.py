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
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ...pipeline import interrupt
from ...storage_schemas.errors import TeachonceError, WorkerLost
from . import worker
from .layout import carve, num_bytes
from .slabs import Slab, Slabs
from .work import Made, Opened, Work

#: Tasks that a process holds: the one at hand, and the next, so that it need not wait for it.
_HELD = 2

#: How the first process is started: with the modules of the program, found where it found them.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from {module} import main; main(int(sys.argv[1]), json.loads(sys.argv[3]))"
)

#: For what a process says that has nothing else to do.
_SECONDS_TO_ANSWER = 10


class Processes:
    """A number of processes that do tasks in the order in which they come.

    Starting takes the time that the imports take, in the background; tasks wait for it. A process that dies is an error of all
    tasks that are not done, and of all that come later. Memory: an open work has a slab of shared memory, of the size of its
    arrays, for each task that a process holds, two for each, and for each result that the caller has not let go; beyond some 64
    of those, results are copied into memory of their own.

    One thread sends and another receives: so a process that cannot go on before its result is taken never keeps that from happening.

    Args:
        count: of processes.
        modules: to import before they are forked: those of the works.
    """

    def __init__(self, count: int, modules: Sequence[str] = ()) -> None:
        self.ahead = count + 2
        self._count, self._modules = count, modules
        self._changed = threading.Condition()
        self._workers: list[_Worker] = []
        self._pending: deque[_Item | _Over] = deque()
        self._numbers = itertools.count()
        self._broken: TeachonceError | None = None
        self._closed = False
        self._first: _First | None = None
        self._wake, self._woken = socket.socketpair()
        self._sender = threading.Thread(target=self._send, name="tasks to decode", daemon=True)
        self._receiver = threading.Thread(target=self._run, name="decoded", daemon=True)
        self._receiver.start()

    def open(self, work: Work) -> Opened:
        number = next(self._numbers)
        return _InProcesses(self, number, work, bytes(ForkingPickler.dumps(work)), Slabs(_HELD * self._count + 8))

    def close(self) -> None:
        with interrupt.later():
            with contextlib.suppress(OSError):  # closed before
                self._wake.shutdown(socket.SHUT_RDWR)
            self._wake.close()
            if threading.current_thread() not in (self._receiver, self._sender):  # the collector may call from anywhere
                self._receiver.join()

    def submit(self, item: _Item) -> None:
        """Hand a task on, as soon as a process has room."""
        with interrupt.later(), self._changed:
            if not self._closed:
                self._pending.append(item)
                self._changed.notify()
                return
        if self._broken is None:
            item.future.cancel()
        else:
            item.future.set_exception(self._broken)

    def close_work(self, number: int) -> None:
        """Tell the processes that a work is over, once all of its tasks are done."""
        with interrupt.later(), self._changed:
            if not self._closed:
                self._pending.append(_Over(number))
                self._changed.notify()

    def _send(self) -> None:
        """Hand tasks out until the pool is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._is_sendable())
                if self._closed:
                    return
                job, to = self._pending.popleft(), self._least_busy()
                if isinstance(job, _Item):
                    if not job.future.set_running_or_notify_cancel():
                        continue
                    to.items.append(job)
            if isinstance(job, _Over):
                for each in self._workers:
                    each.close_work(job.number)
                continue
            try:
                job.slab = job.opened.slabs.take(num_bytes(job.opened.work.layout(job.task)))
                task = bytes(ForkingPickler.dumps(job.task))
            except Exception as error:
                with self._changed:
                    to.items.remove(job)
                job.future.set_exception(error)
            else:
                to.send(job, job.slab, task)
            del job  # what is done is kept by nobody but the caller

    def _is_sendable(self) -> bool:
        if not self._pending:
            return False
        return isinstance(self._pending[0], _Over) or len(self._least_busy().items) < _HELD

    def _least_busy(self) -> _Worker:
        return min(self._workers, key=lambda each: len(each.items))

    def _run(self) -> None:
        """Start the processes, then take in results until the pool is closed."""
        try:
            self._start()
            while not self._take_in():
                pass
        except BaseException as error:
            self._broken = error if isinstance(error, TeachonceError) else _died(str(error) or type(error).__name__)
        finally:
            self._end()

    def _start(self) -> None:
        self._first = _First(self._modules)
        for _ in range(self._count):
            self._workers.append(self._first.fork())
        self._sender.start()

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
            answer = each.connection.recv_bytes()
        except (EOFError, OSError) as error:
            assert self._first is not None
            raise _died(self._first.how_one_ended()) from error
        with self._changed:
            item = each.items.popleft()
            self._changed.notify()
        assert item.slab is not None
        memory = item.opened.slabs.lend(item.slab)
        try:
            done, value = ForkingPickler.loads(answer)
            arrays = carve(memory, item.opened.work.layout(item.task))
        except Exception as error:
            done, value = False, error
        del memory
        if done:
            item.future.set_result(Made(value, arrays))
        else:
            item.future.set_exception(value)

    def _end(self) -> None:
        """End the processes, and give up what they have not done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for each in self._workers:
            each.hang_up()
        if self._sender.ident is not None:
            self._sender.join()
        over = self._broken or CancelledError()
        for item in (item for each in self._workers for item in each.items):
            item.future.set_exception(over)
        for job in self._pending:
            if isinstance(job, _Item) and job.future.set_running_or_notify_cancel():
                job.future.set_exception(over)
        for each in self._workers:
            each.close()
        self._workers, self._pending = [], deque()
        if self._first is not None:
            self._first.end()
        self._woken.close()


@dataclass(eq=False)
class _Item:
    """A task on its way."""

    opened: _InProcesses
    task: Any
    future: Future[Made] = field(default_factory=Future)
    slab: Slab | None = None


@dataclass(frozen=True)
class _Over:
    """No more tasks of a work."""

    number: int


@dataclass(eq=False)
class _InProcesses:
    pool: Processes
    number: int
    work: Work
    pickled: bytes
    slabs: Slabs

    def submit(self, task: Any) -> Future[Made]:
        item = _Item(self, task)
        self.pool.submit(item)
        return item.future

    def close(self) -> None:
        self.pool.close_work(self.number)


class _First:
    """The process that has imported what the others need, and forks them."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._socket, there = socket.socketpair()
        command = [sys.executable, "-c", _START.format(module=worker.__name__), str(there.fileno())]
        command += [json.dumps([str(path) for path in sys.path]), json.dumps(list(modules))]
        # Threads of a numeric library would not survive the fork. Until the process ignores them, Ctrl-C and its like are kept from
        # it: the mask of this thread is inherited.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, worker.PROGRAM_DECIDES)
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            there.close()

    def fork(self) -> _Worker:
        """Another process, which is there once all is imported."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._socket, [worker.FORK], [theirs.fileno()])
        return _Worker(Connection(ours.detach()))

    def how_one_ended(self) -> str:
        """How a process ended whose connection has ended."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(_SECONDS_TO_ANSWER)
            self._socket.sendall(worker.HOW_ENDED)
            if answer := self._socket.recv(1024):
                return answer.decode()
        self.end()
        return f"the process that starts them {worker.how_ended(self._process.wait())}"

    def end(self) -> None:
        """End all of them, and wait for it."""
        with contextlib.suppress(OSError):
            self._socket.sendall(worker.END)  # a process that this one has forked may hold the socket open
        self._socket.close()
        self._process.send_signal(worker.END_EARLY)
        self._process.wait()


class _Worker:
    """One process, from here.

    Attributes:
        items: what it has to do, in order.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.items: deque[_Item] = deque()
        self._known: dict[int, set[int]] = {}  # for each work that it has, the slabs that it has mapped
        self._beside = socket.socket(fileno=os.dup(connection.fileno()))

    def send(self, item: _Item, slab: Slab, task: bytes) -> None:
        """Have it do a task. A dead one is noticed by whoever receives."""
        opened, number = item.opened, item.opened.number
        with contextlib.suppress(OSError):
            if number not in self._known:
                self.connection.send((worker.OPEN, number, opened.pickled))
                self._known[number] = set()
            known = self._known[number]
            for dropped in known - opened.slabs.alive:
                self.connection.send((worker.UNMAP, number, dropped))
                known.remove(dropped)
            if slab.number not in known:
                self.connection.send((worker.MAP, number, slab.number, slab.size))
                socket.send_fds(self._beside, [b"m"], [slab.descriptor])
                known.add(slab.number)
            self.connection.send((worker.MAKE, number, slab.number, task))

    def close_work(self, number: int) -> None:
        """Have it close a work, if it has it."""
        if self._known.pop(number, None) is not None:
            with contextlib.suppress(OSError):
                self.connection.send((worker.CLOSE, number))

    def hang_up(self) -> None:
        """Let nobody wait for it any more, who sends or receives."""
        with contextlib.suppress(OSError):
            self._beside.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
        self._beside.close()


def _died(found: str) -> TeachonceError:
    return WorkerLost(
        "a process that decodes images died",
        code="loader-died",
        found=found,
        hint="if memory is short, use fewer --decode-workers (0 decodes in threads of the command)",
    )
