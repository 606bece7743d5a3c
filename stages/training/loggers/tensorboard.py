"""Owns TensorBoard curves of a run, in a local folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ....pipeline.storage import Location
from .logger import Logger


class TensorBoard:
    """A `SummaryWriter`, which writes in a thread of its own."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:
        self._writer.close()


def open_tensorboard(folder: Location, step: int) -> Logger | None:
    """Curves in a folder; None, with a line on why, where there can be none. Points beyond `step` are taken back."""
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
    return TensorBoard(SummaryWriter(str(path), purge_step=step + 1 if step else None))
