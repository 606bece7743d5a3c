"""Owns the log of a training run: log.jsonl and TensorBoard curves, in the bundle's `run`."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Any

from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import canonical_json

#: Steps between two lines of the log.
LOG_EVERY = 20


class RunLog:
    """One JSON object a line: step (steps done), epoch, loss, lr, samples_per_second, wait_share;
    behind an epoch also validation_accuracy, where there are validation images.

    On resume, lines beyond the checkpoint are cut off, so that each step is logged once.
    """

    def __init__(self, folder: Location, *, step: int) -> None:
        """`step`: steps done by the checkpoint that the run goes on from."""
        self._location = folder / "log.jsonl"
        self._keep(step)
        self._file = self._location.append()
        self._curves = _curves(folder / "tensorboard", step)

    def write(self, *, step: int, epoch: int, **figures: float) -> None:
        """A line, and a point on every figure's curve."""
        line = {"step": step, "epoch": epoch, **{name: _rounded(value) for name, value in figures.items()}}
        self._file.write(canonical_json(line) + b"\n")
        self._file.flush()
        if self._curves is not None:
            for name, value in figures.items():
                self._curves.add_scalar(name, value, step)

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
        """Close log and curves."""
        self._file.close()
        if self._curves is not None:
            self._curves.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _curves(folder: Location, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "distill: no TensorBoard curves; `pip install 'teachonce[tensorboard]'` brings them",
            file=sys.stderr,
        )
        return None
    path = folder.local_path()
    if path is None:
        print(f"distill: no TensorBoard curves in {folder}, which is no local folder", file=sys.stderr)
        return None
    return SummaryWriter(str(path), purge_step=step + 1 if step else None)
