"""Owns the exponential moving average of a student's weights (Polyak and Juditsky, 1992), as an option of training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..students.base import BaseStudent
from .average import OneAverage
from .checkpoint import Trainee


class Ema(OneAverage):
    """After each step: average = decay * average + (1 - decay) * weights, from the starting weights on.

    Batch norm's averages are averaged likewise; its counters are copied.

    Args:
        student: on its device; only what training changes is kept a second time.
        decay: between 0 and 1.
        start: the decay of the first step, from which it goes to `decay` in `steps`; 0 steps for none.

    Attributes:
        tensors: the averages, by name.
        steps_done: how often it was updated; where training goes on, whoever loads the averages says so.
    """

    def __init__(self, student: BaseStudent, decay: float, start: float = 0.0, steps: int = 0) -> None:
        self._current = student.changing()
        self.tensors = {name: value.detach().clone() for name, value in self._current.items()}
        self._decay, self._start, self._steps = decay, start, steps
        self.steps_done = 0

    @property
    def decay(self) -> float:
        """Of the next update."""
        if not self._steps:
            return self._decay
        return self._start + (self._decay - self._start) * min(1.0, self.steps_done / self._steps)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        floats = [name for name, value in self._current.items() if value.is_floating_point()]
        average = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        average([self.tensors[n] for n in floats], [self._current[n] for n in floats], 1)
        for name in self._current.keys() - set(floats):
            self.tensors[name].copy_(self._current[name])
        self.steps_done += 1


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], trainee: Trainee) -> dict[str, Tensor]:
    """Give a trainee these weights; returns copies of those that it had."""
    current = trainee.changing()
    before = {name: current[name].detach().clone() for name in tensors}
    for name, value in tensors.items():
        current[name].copy_(value)
    return before
