"""Owns the average of a student's weights over the valley of its validation loss: SWAD.

Cha et al., SWAD: Domain Generalization by Seeking Flat Minima, NeurIPS 2021, arXiv 2102.08604, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ...storage_schemas.fingerprint import Json
from .average import Average
from .checkpoint import Trainee

_SEGMENT, _WAITING, _VALLEY, _AFTER, _LOSSES, _COUNTS = "segment", "waiting", "valley", "after", "losses", "counts"


class Swad(Average):
    """After each step `update`; with each validation loss, of the weights as they are then, `measured`.

    The valley begins at the first measurement that is the least of `converge` in a row from it on. Its threshold is (1 + `ratio`)
    times their mean. It ends before the first `tolerance` measurements in a row that are all above that; or, at the end of
    training, before those of the last ones that are.

    What is kept: means over segments, at most `converge` of them before the valley begins, and two behind that, on the student's
    device. Weights that are no floating point numbers (counters) are those of the last segment.

    A segment is the steps from one measurement to the next.

    Args:
        trainee: the student.
        converge, tolerance: measurements in a row.
        ratio: by which the loss may lie above the mean.
    """

    selects = True

    def __init__(self, trainee: Trainee, *, converge: int, tolerance: int, ratio: float) -> None:
        self._current = trainee.changing()
        self._converge, self._tolerance, self._ratio = converge, tolerance, ratio
        self._parts: dict[str, dict[str, Tensor]] = {}
        self._losses: list[float] = []
        self._steps = 0  # of the segment at hand
        self._first = 0  # segment that the valley begins with
        self._in_valley = self._above = (
            0  # segments in the valley's mean, and in that of those above the threshold since
        )

    @property
    def is_over(self) -> bool:
        return self._above >= self._tolerance

    @torch.no_grad()
    def update(self) -> None:
        if not self.is_over:
            self._parts[_SEGMENT] = self._joined(self._parts.get(_SEGMENT), self._steps, self._current, 1)
            self._steps += 1

    @torch.no_grad()
    def measured(self, loss: float) -> None:
        """
        Raises:
            ValueError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise ValueError(f"validation loss {loss}")
        if self.is_over:
            return
        segment, self._steps = self._parts.pop(_SEGMENT), 0
        self._losses.append(loss)
        if self._first:
            self._take(segment, loss)
            return
        number = len(self._losses)
        self._parts[f"{_WAITING} {number}"] = segment
        latest = self._losses[-self._converge :]
        if len(latest) == self._converge and latest[0] == min(latest):
            self._first = number - self._converge + 1
            for waiting, its_loss in enumerate(latest, self._first):
                self._take(self._parts.pop(f"{_WAITING} {waiting}"), its_loss)
            return
        self._parts.pop(f"{_WAITING} {number - self._converge + 1}", None)

    def final(self) -> Mapping[str, Tensor]:
        """The mean over the valley; over the last segment where none has begun. Empty before the first measurement."""
        if self._first:
            return self._parts[_VALLEY]
        return self._parts.get(f"{_WAITING} {len(self._losses)}", {})

    def about(self) -> dict[str, Json]:
        """`swad`: first and last segment of the average, counted from 1; the threshold, null where no valley has begun; and whether
        the loss rose out of it."""
        last = len(self._losses)
        first = self._first or last
        found = {"first": first, "last": first + self._in_valley - 1 if self._first else last}
        return {"swad": {**found, "threshold": self._threshold if self._first else None, "ended": self.is_over}}

    def state(self) -> dict[str, Tensor]:
        counts = [self._steps, self._first, self._in_valley, self._above]
        return {
            _LOSSES: torch.tensor(self._losses, dtype=torch.float64),
            _COUNTS: torch.tensor(counts, dtype=torch.int64),
            **{f"{part}/{name}": value for part, values in self._parts.items() for name, value in values.items()},
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        left = dict(state)
        losses, counts = left.pop(_LOSSES), left.pop(_COUNTS)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in left.items():
            part, _, own = name.partition("/")
            like = self._current[own]
            if like.shape != value.shape:
                raise ValueError(own)
            parts.setdefault(part, {})[own] = value.to(like.device, like.dtype, copy=True)
        for values in parts.values():
            if missing := self._current.keys() - values.keys():
                raise KeyError(min(missing))
        self._parts, self._losses = parts, losses.tolist()
        self._steps, self._first, self._in_valley, self._above = counts.tolist()

    @property
    def _threshold(self) -> float:
        own = self._losses[self._first - 1 : self._first - 1 + self._converge]
        return max(float(np.mean(own)) * (1 + self._ratio), own[0])

    def _take(self, segment: Mapping[str, Tensor], loss: float) -> None:
        """A segment behind the beginning of the valley: it belongs to it, with those before, if its loss is low enough."""
        if self.is_over:
            return
        after = self._joined(self._parts.pop(_AFTER, None), self._above, segment, 1)
        if loss > self._threshold:
            self._above += 1
            if self.is_over:
                return
            self._parts[_AFTER] = after
            return
        joined, self._above = self._above + 1, 0
        self._parts[_VALLEY] = self._joined(self._parts.get(_VALLEY), self._in_valley, after, joined)
        self._in_valley += joined

    def _joined(
        self, mean: dict[str, Tensor] | None, count: int, more: Mapping[str, Tensor], more_count: int
    ) -> dict[str, Tensor]:
        """The mean of `count` and `more_count` weights, of their means; in the memory of the first one."""
        if mean is None:
            return {name: value.detach().clone() for name, value in more.items()}
        for name, value in more.items():
            if value.is_floating_point():
                mean[name].lerp_(value.detach(), more_count / (count + more_count))
            else:
                mean[name].copy_(value)
        return mean
