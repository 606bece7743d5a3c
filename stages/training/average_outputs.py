"""Owns what the moving average of a student's weights gives in a step: computed once for the whole batch, beside its targets.

A stored target cannot stand in for it, since these weights change in every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from ..models.class_head import Classifier
from ..models.compute import Compute
from ..recipes.recipe import Recipe
from ..students.base import BaseStudent, Outputs
from .average import Average
from .ranks import Ranks

#: What the names of these begin with, among the targets of a batch; weights of samples have another one.
_AVERAGE, _WEIGHTS = "average/", "average_weights"


class Averaged(Protocol):
    """What it needs of a trainer (see `Trainer`)."""

    @property
    def student(self) -> BaseStudent: ...
    @property
    def student_head(self) -> Classifier | None: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def settings(self) -> Any: ...
    @property
    def compute(self) -> Compute: ...
    @property
    def ranks(self) -> Ranks: ...


@torch.no_grad()
def average_outputs(trainer: Averaged, average: Average, images_NCHW: Tensor) -> dict[str, Tensor]:
    """Its outputs in evaluation mode, and the weights that the recipe gives samples by them, as `split_average` takes them.

    Args:
        average: of the student's weights.
        images_NCHW: uint8, this rank's part of the batch.
    """
    student = trainer.student
    model = Outputs(student)
    was_training = student.training
    model.eval()
    try:
        with torch.autocast(images_NCHW.device.type, torch.bfloat16, enabled=trainer.compute.autocast):
            tensors = {f"student.{name}": value for name, value in average.final().items()}
            found: dict[str, Tensor] = functional_call(model, tensors, (images_NCHW,))
    finally:
        student.train(was_training)
    if trainer.student_head is not None and "logits" not in found:
        found = {**found, "logits": trainer.student_head(found["embedding"])}
    outputs = {_AVERAGE + name: value.float() for name, value in found.items() if name in ("embedding", "logits")}
    weights_N = trainer.recipe.average_weights(found, trainer.settings)
    if weights_N is not None:
        mean = trainer.ranks.mean(weights_N.mean().reshape(1))
        outputs[_WEIGHTS] = weights_N / torch.where(mean > 0, mean, 1)
    return outputs


@dataclass(frozen=True, kw_only=True)
class Split:
    """Targets of a batch, apart: `others` are the teacher's, `outputs` and `weights_N` what `average_outputs` gave."""

    others: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    weights_N: Tensor | None


def split_average(targets: Mapping[str, Tensor]) -> Split:
    """What lies among the targets of a batch, or of a part of it."""
    own = {name for name in targets if name.startswith(_AVERAGE)} | {_WEIGHTS}
    return Split(
        others={name: values for name, values in targets.items() if name not in own},
        outputs={name.removeprefix(_AVERAGE): targets[name] for name in own - {_WEIGHTS}},
        weights_N=targets.get(_WEIGHTS),
    )
