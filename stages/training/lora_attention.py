"""Owns low-rank additions to torch's own attention, whose weights are not in layers of their own.

peft has a layer for it too, which adds to the frozen weights and subtracts again in every pass: they drift by rounding, so that
a run that was resumed would not end with the same bytes. Here the weights stay, and their sums are computed in each pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """W to W + scale · B A, in fp32; A is drawn as peft draws it, B is 0."""

    def __init__(self, weight: Tensor, *, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        rows, columns = weight.shape
        self.lora_A = nn.Parameter(torch.empty(rank, columns))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.lora_B @ self.lora_A)


def can_add_to_attention(attention: nn.MultiheadAttention) -> bool:
    """Whether its queries, keys and values come from one matrix, as they do where all have one width."""
    return isinstance(attention.in_proj_weight, Tensor)


def add_to_attention(attention: nn.MultiheadAttention, *, rank: int, scale: float) -> None:
    """Give both of its matrices additions."""
    for module, name in _matrices(attention):
        parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank=rank, scale=scale))


def merge_attention(attention: nn.MultiheadAttention) -> None:
    """Add them to the matrices, which are parameters again."""
    for module, name in _matrices(attention):
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _matrices(attention: nn.MultiheadAttention) -> tuple[tuple[nn.Module, str], ...]:
    return (attention, "in_proj_weight"), (attention.out_proj, "weight")
