"""Owns the average of the prompts over epochs: Gaussian weights, prompts only.

Khattak et al., ICCV 2023, arXiv 2307.06948, section 3.3. Their code averages the frozen weights too, in fp16, and these
drift by rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..prompts.clip import PromptedClip
from ..training.average import OneAverage


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """The weight of each epoch e = 1 … epochs, proportional to exp(-(e - mean)² / 2 std²); their sum is 1."""
    logs = [-0.5 * ((epoch - mean) / std) ** 2 for epoch in range(1, epochs + 1)]
    parts = [math.exp(log - max(logs)) for log in logs]
    return [part / math.fsum(parts) for part in parts]


class GaussianAverage(OneAverage):
    """The weighted sum of the prompts at the end of each epoch so far.

    Attributes:
        tensors: the sum, by name; the average itself behind the last epoch.
        epochs_done: epochs that it holds; set on resume.
    """

    def __init__(self, clip: PromptedClip, *, epochs: int, mean: float, std: float) -> None:
        self._current = clip.changing()
        self._weights = gaussian_weights(epochs, mean, std)
        self.tensors: dict[str, Tensor] = {
            name: torch.zeros_like(value).detach() for name, value in self._current.items()
        }
        self.epochs_done = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the prompts as they are at the end of the next epoch."""
        weight = self._weights[self.epochs_done]
        for name, value in self._current.items():
            self.tensors[name].add_(value, alpha=weight)
        self.epochs_done += 1
