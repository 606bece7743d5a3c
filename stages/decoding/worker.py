"""A process that does tasks. The first imports what they need, and forks one like it for each connection that it is sent.

It imports nothing of the program that started it, and ends with it: when that is gone, however it ended, nothing can be read
any more. Forking here is safe, where it is not in a program with threads: this process has one.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import TeachonceError
from .layout import carve
from .slabs import map_slab
from .work import Work

#: Signals that reach every process of a terminal (Ctrl-C), or of a batch job: the program decides what comes of them.
PROGRAM_DECIDES = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

#: Ends the first process while it imports.
END_EARLY = signal.SIGUSR2

#: What the first process is told: to fork one, to say how one ended, or to end all. So does the socket's end.
FORK, HOW_ENDED, END = b"f", b"?", b"e"

#: What a process is told: a name and what belongs to it.
OPEN, MAP, UNMAP, MAKE, CLOSE = "open", "map", "unmap", "make", "close"


def main(control: int, modules: Sequence[str]) -> None:
    """Import, then fork for each descriptor that comes over the socket `control`, until it ends. Then end them all."""
    for number in PROGRAM_DECIDES:
        signal.signal(number, signal.SIG_IGN)
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is there stays in pages that all share
    signal.signal(END_EARLY, signal.SIG_IGN)  # until here it may end at any moment; from now on it has to end others
    forked = set()
    with socket.socket(fileno=control) as requests:
        while True:
            what, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
            if what == FORK:
                if (child := os.fork()) == 0:
                    requests.close()
                    _be_forked(descriptors[0])
                os.close(descriptors[0])
                forked.add(child)
            elif what == HOW_ENDED:
                ended, status = os.waitpid(-1, 0)
                forked.discard(ended)
                requests.sendall(f"process {ended} {how_ended(os.waitstatus_to_exitcode(status))}".encode())
            else:
                break
    for child in forked:
        os.kill(child, signal.SIGKILL)  # not waited for so far, so nobody else has its number
    for _ in forked:
        os.wait()


def how_ended(code: int) -> str:
    """An exit code, or the negative number of a signal, in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _be_forked(descriptor: int) -> None:
    """Serve, and end where this process stands: what else is on the stack is the first process's."""
    code = 1
    try:
        _serve(descriptor)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(descriptor: int) -> None:
    """Do what comes over a connection until it ends. What cannot be had fails the tasks that need it."""
    works: dict[int, Work | Exception] = {}
    slabs: dict[tuple[int, int], NDArray[np.uint8] | Exception] = {}
    with socket.socket(fileno=os.dup(descriptor)) as beside, Connection(descriptor) as connection:
        while True:
            try:
                kind, number, *rest = connection.recv()
            except (EOFError, OSError):
                return
            if kind == OPEN:
                works[number] = _try(ForkingPickler.loads, *rest)
            elif kind == MAP:
                slabs[number, rest[0]] = _try(map_slab, beside, rest[1])
            elif kind == UNMAP:
                del slabs[number, rest[0]]
            elif kind == CLOSE:
                work = works.pop(number)
                if not isinstance(work, Exception):
                    _try(work.close)
                slabs = {name: memory for name, memory in slabs.items() if name[0] != number}
            else:
                answer = _made(works[number], slabs[number, rest[0]], rest[1])
                try:
                    connection.send_bytes(answer)
                except OSError:
                    return


def _made(work: Work | Exception, memory: NDArray[np.uint8] | Exception, task: bytes) -> bytes:
    """Whether the task was done, and what came of it, or the error: pickled."""
    try:
        if isinstance(work, Exception):
            raise RuntimeError(f"a work that cannot be read: {type(work).__name__}: {work}") from work
        if isinstance(memory, Exception):
            raise memory
        given = ForkingPickler.loads(task)
        made = work.make(given, carve(memory, work.layout(given)))
        return _packed(True, made)
    except Exception as error:
        if not isinstance(error, TeachonceError):
            error.add_note(f"in a process that decodes:\n{traceback.format_exc()}")
        try:
            packed = _packed(False, error)
            ForkingPickler.loads(packed)  # some are pickled and cannot be read again
        except Exception:
            plain = RuntimeError(f"{type(error).__name__}: {error}")
            for note in getattr(error, "__notes__", ()):
                plain.add_note(note)
            packed = _packed(False, plain)
        return packed


def _packed(done: bool, value: object) -> bytes:
    return bytes(ForkingPickler.dumps((done, value)))


def _try(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it gives, or raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return error
