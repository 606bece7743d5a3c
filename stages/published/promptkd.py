"""Owns what becomes of a PromptKD student's checkpoint: the weights of a student of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.weights import fit_weights
from ..prompts.vision import check_tower, count_blocks, vision_width
from ..students.family import Backbone
from ..students.head import Head
from ..students.student import Student
from .frozen import Drift, compare
from .layout import IMAGE, PROJECTOR, SCALE, CheckpointLayout, check_keys, check_shape
from .prompts import stack_prompts

#: The authors' projector: 1x1 convolutions over 1x1 maps with a batch norm between them. `w` is the student's width, `d` the
#: teacher's.
_PROJECTOR: Mapping[str, tuple[str, ...]] = {
    "0.weight": ("d", "w", "1", "1"),
    "0.bias": ("d",),
    "1.weight": ("d",),
    "1.bias": ("d",),
    "1.running_mean": ("d",),
    "1.running_var": ("d",),
    "1.num_batches_tracked": (),
    "3.weight": ("d", "d", "1", "1"),
    "3.bias": ("d",),
}


@dataclass(frozen=True, kw_only=True)
class PromptKdStudent:
    """A student from its checkpoint.

    Attributes:
        student: on the CPU, in fp32, in eval mode.
        logit_scale: the checkpoint's factor from cosines to logits.
        drift: how far its frozen weights are from the backbone's.
    """

    student: Student
    logit_scale: float
    drift: Drift


def take_student(
    layout: CheckpointLayout, weights: Mapping[str, Tensor], backbone: Backbone, name: str, *, where: object
) -> PromptKdStudent:
    """Build the student that a PromptKD checkpoint holds, batch norm's averages with it.

    Args:
        layout: of the checkpoint.
        weights: the checkpoint.
        backbone: the image tower that it was trained with.
        name: the name that the user gave it.

    Raises:
        InputError: another model: keys, shapes or weights differ; or one that cannot take prompts.
    """
    tower: Any = backbone.module
    check_tower(tower)
    own = {f"{IMAGE}{name}": value for name, value in tower.state_dict().items()}
    check_keys(layout.frozen, {*own, SCALE}, kind=layout.kind, where=where)
    check_keys(layout.projector, {PROJECTOR + name for name in _PROJECTOR}, kind=layout.kind, where=where)
    check_shape(SCALE, tuple(weights[SCALE].shape), (), where=where)
    drift = compare(weights, own, option="--student", model=name, where=where)
    prompts_LPD = stack_prompts(layout, weights, "vision", vision_width(tower), count_blocks(tower), where=where)
    projector = _projector(weights, backbone.width, where)
    depth, length, _ = prompts_LPD.shape
    head = Head(
        width=backbone.width,
        embed_dim=len(projector["3.bias"]),
        projector="mlp",
        prompt_length=length,
        prompt_depth=depth if length else 0,
        normalized=True,
    )
    with torch.random.fork_rng(devices=[]):
        student = Student(tower, backbone.preprocess, head)
    inner = "backbone.tower." if head.prompt_depth else "backbone."
    state = {inner + key.removeprefix(IMAGE): weights[key] for key in own}
    state |= {f"projector.{name}": value for name, value in projector.items()}
    if head.prompt_depth:
        state["backbone.prompts_LPD"] = prompts_LPD
    fit_weights(student, state, what="the student", where=where)
    student.requires_grad_(False)
    return PromptKdStudent(student=student.eval(), logit_scale=math.exp(float(weights[SCALE].float())), drift=drift)


def _projector(weights: Mapping[str, Tensor], width: int, where: object) -> dict[str, Tensor]:
    """Weights of linear layers and a 1-d batch norm, which are the same arithmetic."""
    bias = weights[f"{PROJECTOR}3.bias"]
    sizes: dict[str, int | str] = {"w": width, "d": len(bias) if bias.dim() else "channels", "1": 1}
    state = {}
    for name, shape in _PROJECTOR.items():
        value = weights[PROJECTOR + name]
        check_shape(PROJECTOR + name, tuple(value.shape), tuple(sizes[axis] for axis in shape), where=where)
        state[name] = value.flatten(1) if value.dim() == 4 else value
    return state
