"""Owns when training leaves off because a signal asked for it: for several ranks, behind the same step."""

from __future__ import annotations

import signal
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...pipeline import stopping
from .ranks import Ranks


class CommonStop:
    """Tells before each step whether to stop there. Every rank asks before every step.

    A signal may come to one rank only, or to several in different steps; one that left off alone would leave the others
    waiting for its gradients. So ranks tell each other before each step what they have heard, and act on it before the next one: the
    exchange goes on beside a step, over a group of gloo of its own, and waits for no GPU.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._group: Any = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self._told: tuple[Tensor, dist.Work] | None = None

    def is_due(self) -> bool:
        """Whether no further step is to be done."""
        if self._group is None:
            return stopping.asked() is not None
        if self._told is not None:
            heard, exchange = self._told
            exchange.wait()
            if number := int(heard):
                stopping.ask(signal.Signals(number).name)
                return True
        name = stopping.asked()
        heard = torch.tensor(0 if name is None else signal.Signals[name].value)
        told = dist.all_reduce(heard, dist.ReduceOp.MAX, self._group, async_op=True)
        assert told is not None
        self._told = heard, told
        return False
