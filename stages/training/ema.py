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

    Attributes:
        tensors: the averages, by name.
    """

    def __init__(self, student: BaseStudent, decay: float) -> None:
        self._current = student.changing()
        self.tensors = {name: value.detach().clone() for name, value in self._current.items()}
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        floats = [name for name, value in self._current.items() if value.is_floating_point()]
        self._average([self.tensors[n] for n in floats], [self._current[n] for n in floats], 1)
        for name in self._current.keys() - set(floats):
            self.tensors[name].copy_(self._current[name])


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], trainee: Trainee) -> dict[str, Tensor]:
    """Give a trainee these weights; returns copies of those that it had."""
    current = trainee.changing()
    before = {name: current[name].detach().clone() for name in tensors}
    for name, value in tensors.items():
        current[name].copy_(value)
    return before
