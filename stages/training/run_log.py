"""Owns the log of a training run: log.jsonl in the bundle's `run`, and what other programs show of it."""

from __future__ import annotations

import json
from types import TracebackType

from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import canonical_json
from .loggers.registry import open_loggers
from .loggers.tracked import Tracking

#: Steps between two lines of the log.
LOG_EVERY = 20


class RunLog:
    """One JSON object a line: step (steps done), epoch, loss, lr, samples_per_second, wait_share;
    behind an epoch also validation_accuracy, where there are validation images.

    On resume, lines beyond the checkpoint are cut off, so that each step is logged once.
    """

    def __init__(self, folder: Location, *, step: int, tracking: Tracking | None = None) -> None:
        """
        Args:
            step: steps done by the checkpoint that the run goes on from.
            tracking: which programs show the figures, beside TensorBoard.
        """
        self._location = folder / "log.jsonl"
        self._keep(step)
        self._file = self._location.append()
        self._loggers = open_loggers(folder, step, tracking or Tracking())
        self._finished = False

    def write(self, *, step: int, epoch: int, **figures: float) -> None:
        """A line, and a point on every figure's curve."""
        line = {"step": step, "epoch": epoch, **{name: _rounded(value) for name, value in figures.items()}}
        self._file.write(canonical_json(line) + b"\n")
        self._file.flush()
        for logger in self._loggers:
            logger.log(step, {"epoch": epoch, **figures})

    def finish(self) -> None:
        """The run is at its end: closing is no stop before it."""
        self._finished = True

    def _keep(self, step: int) -> None:
        if not self._location.exists():
            return
        kept = []
        for line in self._location.read_bytes().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed run
        self._location.write_bytes(b"".join(kept))

    def close(self) -> None:
        """Close log and loggers."""
        self._file.close()
        for logger in self._loggers:
            logger.close(finished=self._finished)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
