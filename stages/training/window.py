"""Owns losses and times between two lines of a training's log. Figures stay on the device until then."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ...pipeline.types import Timer
from ...storage_schemas.errors import InputError
from .ranks import Ranks

T = TypeVar("T")


class Window:
    """Means of the figures of each step, and how long steps took and waited for data."""

    def __init__(self, timer: Timer, ranks: Ranks) -> None:
        self._timer, self._ranks = timer, ranks
        self._paused: float | None = None
        self.restart()

    def restart(self) -> None:
        """Begin again; what was since `close` is not counted."""
        self._start = time.perf_counter()
        self._waited = self._elsewhere = 0.0
        self._figures: dict[str, list[Tensor]] = {}

    def wait_for(self, items: Iterator[T]) -> T | None:
        """The next item, or None behind the last; the time until then counts as waiting."""
        start = time.perf_counter()
        item = next(items, None)
        self._waited += time.perf_counter() - start
        return item

    def resume(self, waited: float) -> None:
        """A step begins, whose batch took so many seconds to come. What else passed since `pause` was other students' time:
        steps were no faster for it, but it was spent neither in them nor in waiting.
        """
        now = time.perf_counter()
        if self._paused is None:
            self.restart()
            self._start = now - waited
        else:
            self._elsewhere += now - self._paused - waited
        self._waited += waited

    def pause(self) -> None:
        """A step, with all that was due behind it, is over."""
        self._paused = time.perf_counter()

    def add(self, **figures: Tensor) -> None:
        """One step's scalars, among them `loss`."""
        for name, value in figures.items():
            self._figures.setdefault(name, []).append(value)

    def close(self, *, samples: int, step: int, epoch: int) -> dict[str, float]:
        """Figures since the last call: means, samples_per_second, wait_share.

        Args:
            samples: in a step.
            step: steps done.
            epoch: from 0.

        Raises:
            InputError: a loss was not finite.
        """
        by_step = {name: self._ranks.mean(torch.stack(values)).tolist() for name, values in self._figures.items()}
        seconds = time.perf_counter() - self._start
        losses = by_step["loss"]
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise InputError(
                    "the loss is not finite",
                    code="loss-not-finite",
                    found=loss,
                    where=f"step {step - len(losses) + offset + 1}, epoch {epoch + 1}",
                    hint="use a smaller --lr, longer --warmup-epochs or --precision fp32, and another --out",
                )
        self._timer.add("wait", self._waited)
        self._timer.add("train", seconds - self._waited - self._elsewhere)
        figures = {name: math.fsum(values) / len(values) for name, values in by_step.items()}
        figures |= {
            "samples_per_second": samples * len(losses) / seconds,
            "wait_share": self._waited / seconds,
        }
        self.restart()
        return figures
