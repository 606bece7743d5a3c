"""Owns the gradients of one step: forward pass, loss and backward pass, part by part of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .ranks import accumulating

#: The mean loss of images (N, 3, H, W) and targets by name, with gradients.
Loss = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


class Gradients(Protocol):
    """Leaves the gradients of a batch in the `grad` of the trained parameters."""

    def __call__(self, images_NCHW: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """What was in `grad` before is gone.

        Args:
            images_NCHW: uint8, on the device.
            targets: fp32 (N, …) by name, on the device.

        Returns:
            The mean loss, detached and on the device; it stays as it is.
        """


@dataclass(frozen=True, kw_only=True)
class EagerGradients:
    """One kernel after another.

    Gradients of `parts` equal parts add up; every recipe's loss is a mean over its samples. Sample i is in part i modulo
    their number: so, over all ranks, parts hold the same samples whatever the number of ranks, and batch norm sees the
    same ones together.

    Attributes:
        loss: of a part.
        model: what `loss` calls, which may gather gradients from other ranks.
        parameters: those that train.
    """

    loss: Loss
    model: nn.Module
    parameters: Sequence[nn.Parameter]
    parts: int

    def __call__(self, images_NCHW: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        total = torch.zeros((), device=images_NCHW.device)
        for i in range(self.parts):
            part = {name: values[i :: self.parts] for name, values in targets.items()}
            with accumulating(self.model) if i + 1 < self.parts else nullcontext():
                loss = self.loss(images_NCHW[i :: self.parts], part) / self.parts
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total
