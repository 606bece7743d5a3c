"""A process that does tasks. The first imports what they need, and forks one like it for each connection that it is sent.

It imports nothing of the program that started it, and ends with it: when that is gone, however it ended, nothing can be read
any more. Forking here is safe, where it is not in a program with threads: this process has one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import TeachonceError
from .layout import carve
from .slabs import map_slab
from .work import Work

#: What a process is told: a name and what belongs to it.
OPEN, MAP, MAKE, CLOSE = "open", "map", "make", "close"


def main(control: int, modules: Sequence[str]) -> None:
    """Import, then fork for each descriptor that comes over the socket `control`, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the program decides
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked ones
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is there stays in pages that all share
    with socket.socket(fileno=control) as requests:
        while True:
            data, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
            if not data:
                break
            if os.fork() == 0:
                requests.close()
                _serve(descriptors[0])
                return
            os.close(descriptors[0])
    with contextlib.suppress(ChildProcessError):
        os.wait()  # for all of them: so none is left without a parent, which is to clear it away


def _serve(descriptor: int) -> None:
    """Do what comes over a connection until it ends."""
    works: dict[int, Work] = {}
    slabs: dict[tuple[int, int], NDArray[np.uint8]] = {}
    with socket.socket(fileno=os.dup(descriptor)) as beside, Connection(descriptor) as connection:
        while True:
            try:
                kind, number, *rest = connection.recv()
                if kind == OPEN:
                    (works[number],) = rest
                elif kind == MAP:
                    slab, size = rest
                    _, (memory,), _, _ = socket.recv_fds(beside, 1, 1)
                    slabs[number, slab] = map_slab(memory, size)
                elif kind == CLOSE:
                    if number in works:
                        works.pop(number).close()
                    slabs = {name: memory for name, memory in slabs.items() if name[0] != number}
                else:
                    slab, task = rest
                    connection.send(_made(works[number], slabs[number, slab], task))
            except (EOFError, OSError):
                return


def _made(work: Work, memory: NDArray[np.uint8], task: Any) -> tuple[bool, Any]:
    """Whether the task was done, and what came of it, or the error."""
    try:
        return True, work.make(task, carve(memory, work.layout(task)))
    except Exception as error:
        if isinstance(error, TeachonceError):
            return False, error
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))  # as the connection does it
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(f"in a process that decodes:\n{traceback.format_exc()}")
        return False, error
