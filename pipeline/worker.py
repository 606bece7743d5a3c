"""Owns what one worker process does: open the stage once, run units, commit each receipt as the last step."""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass

from ..storage_schemas.errors import TeachonceError
from .ledger import Ledger
from .storage import as_storage_error
from .types import RunUnit, Stage, Timer, Unit


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a unit: done (error is None) or failed with a one-line reason."""

    key: str
    rows: int
    invalid_rows: int = 0
    error: str | None = None


class Worker:
    """Runs units of one stage in this process. `run` may be called from several threads at once."""

    def __init__(self, stage: Stage, ledger: Ledger) -> None:
        self._stage = stage
        self._ledger = ledger
        self._run_unit: RunUnit = stage.open()

    def run(self, unit: Unit) -> Outcome:
        """Do one unit and commit it. A failure is recorded and returned, never raised, so others go on."""
        timer = Timer()
        try:
            receipt = self._run_unit(unit, timer)
            self._ledger.commit(receipt, timer.seconds)
        except Exception as error:
            return self._failed(unit, error)
        return Outcome(key=unit.key, rows=receipt.rows, invalid_rows=len(receipt.invalid_rows))

    def _failed(self, unit: Unit, error: Exception) -> Outcome:
        clear = as_storage_error(error) if isinstance(error, OSError) else error
        if isinstance(clear, TeachonceError):
            reason = str(clear)
        else:
            reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # a full disk cannot take the note either; the outcome still tells
            self._ledger.fail(unit.key, reason, "".join(traceback.format_exception(error)))
        return Outcome(key=unit.key, rows=unit.rows, error=reason)
