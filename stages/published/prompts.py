"""Owns the prompts in a checkpoint: from keys of single layers to one array for each tower."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...storage_schemas.errors import InputError
from .layout import CheckpointLayout, check_shape


def stack_prompts(
    layout: CheckpointLayout, weights: Mapping[str, Tensor], tower: str, width: int, blocks: int, *, where: object
) -> Tensor:
    """The prompts of one tower, fp32 (layer, prompt, channel); no prompts are one layer of length 0.

    Args:
        layout: of the checkpoint.
        weights: the checkpoint.
        tower: `vision` or `text`.
        width: channels of the model's tokens in that tower.
        blocks: transformer blocks in it.

    Raises:
        InputError: layers of different shapes, of another width, more than there are blocks, or layer numbers that are no numbers.
    """
    keys = layout.prompts.get(tower, ())
    if not keys:
        return torch.zeros(1, 0, width)
    first = weights[keys[0]]
    for key in keys:
        length = len(first) if first.dim() else "prompts"
        check_shape(key, tuple(weights[key].shape), (length, width), where=where)
        if not bool(torch.isfinite(weights[key]).all()):
            raise InputError(
                "prompts that are not finite",
                code="checkpoint-not-finite",
                where=f"{where}: {key}",
                hint="take an earlier epoch's file",
            )
    if len(keys) > blocks:
        raise InputError(
            f"the checkpoint has more layers of {tower} prompts than the model has blocks",
            code="checkpoint-layers-too-many",
            where=where,
            expected=f"at most {blocks}",
            found=len(keys),
            hint="name the model that it was trained with",
        )
    return torch.stack([weights[key].float() for key in keys])
