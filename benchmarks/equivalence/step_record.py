"""Owns the record of a training's steps: the loss of each, and the trained weights after some of them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from teachonce.stages.students.student import Student
from teachonce.stages.training.trainer import Trainer
from torch import nn


@dataclass
class StepRecord:
    """The loss of each step of one training, and its weights after some of them.

    Attributes:
        keep: weights are kept after so many steps.
        losses: one a step.
        weights: trained weights as one fp64 vector, by the number of steps done.
        acting: which of them the student's output depends on, bool; see `acting`.
    """

    keep: Container[int] = ()
    losses: list[float] = field(default_factory=list)
    weights: dict[int, torch.Tensor] = field(default_factory=dict)
    acting: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def add(self, loss: torch.Tensor, student: Student) -> None:
        """Note a step that has been done."""
        self.losses.append(loss.item())
        if len(self.losses) in self.keep:
            flat = [p.detach().double().cpu().flatten() for p in student.trained().values()]
            self.weights[len(self.losses)] = torch.cat(flat)
            self.acting = acting(student)


def acting(student: Student) -> torch.Tensor:
    """Which trained weights the output depends on, bool (weight,).

    Two kinds of bias cancel: that of a linear layer before batch norm, and that of attention's keys, which adds the same
    to all that a softmax compares. Their gradients are rounding errors, and AdamW makes steps of full length of them.
    """
    masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in student.trained().items()}
    for name, module in student.named_modules():
        if isinstance(module, nn.MultiheadAttention) and f"{name}.in_proj_bias" in masks:
            width = module.embed_dim
            masks[f"{name}.in_proj_bias"][width : 2 * width] = False
    projector = student.projector
    if isinstance(projector, nn.Sequential) and isinstance(projector[1], nn.BatchNorm1d):
        masks["projector.0.bias"][:] = False
    return torch.cat([mask.flatten() for mask in masks.values()])


@contextmanager
def recorded(keep: Container[int] = ()) -> Iterator[StepRecord]:
    """Record every step of the training that runs in this block."""
    record, original = StepRecord(keep), Trainer.step

    def step(self: Trainer, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = original(self, *arguments, **keywords)
        record.add(loss, self.student)
        return loss

    with mock.patch.object(Trainer, "step", step):
        yield record
