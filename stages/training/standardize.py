"""Owns bringing targets to one scale before they are compared: of teacher and student alike, by the stored targets' statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..measures.target_statistics import Statistics


class Standardize(nn.Module):
    """(value - mean) / standard deviation, channel by channel, of the targets that it knows; others stay as they are."""

    def __init__(self, statistics: Mapping[str, Statistics]) -> None:
        super().__init__()
        self._places: dict[str, int] = {name: place for place, name in enumerate(statistics)}
        for place, one in enumerate(statistics.values()):
            shape = [1] * -one.axis
            shape[0] = -1
            self.register_buffer(f"mean_{place}", torch.from_numpy(one.mean_C).reshape(shape))
            self.register_buffer(f"std_{place}", torch.from_numpy(one.std_C).reshape(shape))

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._one(name, value) for name, value in values.items()}

    def _one(self, name: str, value: Tensor) -> Tensor:
        place = self._places.get(name)
        if place is None:
            return value
        mean, std = self.get_buffer(f"mean_{place}"), self.get_buffer(f"std_{place}")
        return (value - mean) / std
