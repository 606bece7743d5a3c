"""Owns what one worker process does: open the stage once, run units, commit each receipt as the last step."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..storage_schemas.errors import Stopped, StorageError, TeachonceError, WorkerError
from ..storage_schemas.receipt import Receipt
from .ledger import Ledger
from .storage import as_storage_error
from .types import RunUnit, Seen, Stage, Timer, Unit

#: What torch says where memory of the machine or of a GPU is short.
_NO_MEMORY = ("can't allocate memory", "out of memory")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a unit took, and where.

    Attributes:
        node: the machine's name.
        process: id of the process.
        worker: the process as people know it.
        began: seconds since 1970, by that machine's clock.
        took: seconds.
        seconds: by kind, summed over threads.
        bytes_written: of the files that its receipt vouches for.
    """

    node: str
    process: int
    worker: str
    began: float
    took: float
    seconds: Mapping[str, float]
    bytes_written: int = 0

    @staticmethod
    def here(timer: Timer, worker: str = "", receipt: Receipt | Seen | None = None) -> Effort:
        """Of a unit that this process has come to the end of."""
        outputs = receipt.outputs if isinstance(receipt, Receipt) else ()
        return Effort(
            node=socket.gethostname(),
            process=os.getpid(),
            worker=worker or f"process {os.getpid()}",
            began=timer.began,
            took=timer.took,
            seconds=dict(timer.seconds),
            bytes_written=sum(output.bytes for output in outputs),
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a unit: done (error is None) or failed with a one-line reason, and a code where it is no bug's.

    `seen` is what a unit gave that only looks. `effort` is not known of a unit whose process has ended.
    """

    key: str
    rows: int
    invalid_rows: int = 0
    error: str | None = None
    code: str | None = None
    seen: Any = None
    effort: Effort | None = None


class Worker:
    """Runs units of one stage in this process. `run` may be called from several threads at once.

    Args:
        at: called with the key of a unit and how many of its samples are done, as it works; what it raises ends the unit.
        name: of this worker, for people; '' for its process.
    """

    def __init__(
        self, stage: Stage, ledger: Ledger, at: Callable[[str, int], None] = lambda key, samples: None, name: str = ""
    ) -> None:
        self._name = name
        self._stage = stage
        self._ledger = ledger
        self._at = at
        self._run_unit: RunUnit | None = None
        self._opening = threading.Lock()

    def run(self, unit: Unit) -> Outcome:
        """Do one unit and commit it. A failure is recorded and returned, never raised, so others go on.

        An error in opening the stage, or of this process or its device, is raised: every other unit would fail by it too.
        So is a stop that was asked for, which is no failure.
        """
        self.open()
        timer = self._timer(unit)
        try:
            return self._attempt(unit, timer)
        except (WorkerError, Stopped):
            raise
        except Exception as error:
            return replace(failed(self._ledger, unit, error), effort=Effort.here(timer, self._name))

    def attempt(self, unit: Unit, *, commit: bool = True) -> Outcome:
        """Do one unit, and commit it unless another process that does the same unit will. Failures are raised."""
        return self._attempt(unit, self._timer(unit), commit=commit)

    def _timer(self, unit: Unit) -> Timer:
        return Timer(lambda samples: self._at(unit.key, samples))

    def _attempt(self, unit: Unit, timer: Timer, *, commit: bool = True) -> Outcome:
        receipt = self.open()(unit, timer)
        if isinstance(receipt, Seen):
            effort = Effort.here(timer, self._name)
            return Outcome(key=unit.key, rows=receipt.rows, seen=receipt.content, effort=effort)
        if commit:
            self._ledger.commit(receipt, timer.seconds)
        return outcome_of(receipt, Effort.here(timer, self._name, receipt))

    def close(self) -> None:
        """No unit is left: end what the stage has started for its units."""
        close = getattr(self._run_unit, "close", None)
        if close is not None:
            close()

    @property
    def is_open(self) -> bool:
        """Whether the stage is opened, so that units are at work."""
        return self._run_unit is not None

    def open(self) -> RunUnit:
        """The stage, opened once. Not when the worker is made: Ray would wrap an error there in one of its own.

        Raises:
            WorkerError: what it loads does not fit in memory.
        """
        with self._opening:
            if self._run_unit is None:
                try:
                    self._run_unit = self._stage.open()
                except (MemoryError, RuntimeError) as error:
                    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
                        raise _too_large(self._stage.name, error) from error
                    raise
            return self._run_unit


def outcome_of(receipt: Receipt, effort: Effort) -> Outcome:
    """Of a unit that is done."""
    bad = sum(not row.is_left_out for row in receipt.invalid_rows)
    return Outcome(key=receipt.key, rows=receipt.rows, invalid_rows=bad, effort=effort)


def _too_large(stage: str, error: Exception) -> WorkerError:
    return WorkerError(
        f"what `teachonce {stage}` loads does not fit in a worker's memory",
        code="worker-memory-short",
        where=f"process {os.getpid()} on {socket.gethostname()}",
        found=str(error).strip().partition("\n")[0] or type(error).__name__,
        hint="use a machine with more memory, fewer --workers, or a smaller model, then run the same command again",
    )


def failed(ledger: Ledger, unit: Unit, error: Exception) -> Outcome:
    """Record why a unit failed."""
    clear = as_storage_error(error) if isinstance(error, OSError) else error
    if isinstance(clear, TeachonceError):
        reason, code = str(clear), clear.code
    else:
        reason, code = f"{type(error).__name__}: {error}", None
    # A full disk cannot take the note either; the outcome still has the reason.
    with contextlib.suppress(OSError, StorageError):
        ledger.fail(unit.key, reason, "".join(traceback.format_exception(error)), code)
    return Outcome(key=unit.key, rows=unit.rows, error=reason, code=code)
