"""Owns what one worker process does: open the stage once, run units, commit each receipt as the last step."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..storage_schemas.errors import Stopped, StorageError, TeachonceError, WorkerError
from .ledger import Ledger
from .storage import as_storage_error
from .types import RunUnit, Seen, Stage, Timer, Unit


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a unit: done (error is None) or failed with a one-line reason, and a code where it is no bug's.

    `seen` is what a unit gave that only looks.
    """

    key: str
    rows: int
    invalid_rows: int = 0
    error: str | None = None
    code: str | None = None
    seen: Any = None


class Worker:
    """Runs units of one stage in this process. `run` may be called from several threads at once.

    Args:
        at: called with the key of a unit and how many of its samples are done, as it works; what it raises ends the unit.
    """

    def __init__(
        self, stage: Stage, ledger: Ledger, at: Callable[[str, int], None] = lambda key, samples: None
    ) -> None:
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
        try:
            return self.attempt(unit)
        except (WorkerError, Stopped):
            raise
        except Exception as error:
            return failed(self._ledger, unit, error)

    def attempt(self, unit: Unit, *, commit: bool = True) -> Outcome:
        """Do one unit, and commit it unless another process that does the same unit will. Failures are raised."""
        timer = Timer(lambda samples: self._at(unit.key, samples))
        receipt = self.open()(unit, timer)
        if isinstance(receipt, Seen):
            return Outcome(key=unit.key, rows=receipt.rows, seen=receipt.content)
        if commit:
            self._ledger.commit(receipt, timer.seconds)
        bad = sum(not row.is_left_out for row in receipt.invalid_rows)
        return Outcome(key=unit.key, rows=receipt.rows, invalid_rows=bad)

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
        """The stage, opened once. Not when the worker is made: Ray would wrap an error there in one of its own."""
        with self._opening:
            if self._run_unit is None:
                self._run_unit = self._stage.open()
            return self._run_unit


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
