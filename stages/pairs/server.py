"""Owns the server that forks loader processes: imported there and nowhere else, with what loaders need."""

from __future__ import annotations

import sys
from types import TracebackType

from .batches import Batches as Batches

#: Errors in a process that is forked for a parent which has ended meanwhile (Ctrl-C): its queues are gone.
_PARENT_IS_GONE = (FileNotFoundError, EOFError, ConnectionError, KeyboardInterrupt)


def _print_unless_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, _PARENT_IS_GONE):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _print_unless_interrupted
