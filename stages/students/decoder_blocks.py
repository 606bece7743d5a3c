"""Owns the residual blocks of a decoder: those of ResNets, which keep the grid, halve it, or double it.

He et al., CVPR 2016, arXiv 1512.03385. Doubled as in the code of Deng and Li, CVPR 2022, arXiv 2201.10703: by transposed 2x2
convolutions in place of the 3x3 convolution that would halve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

#: What a block does to the rows and columns of its map.
Grid = Literal["keep", "halve", "double"]


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """Which blocks.

    Attributes:
        bottleneck: 1x1, 3x3, 1x1 with a quarter of the channels between; else 3x3, 3x3.
        base_width: of a bottleneck: channels between, for each 64 that a plain ResNet has there.
    """

    bottleneck: bool
    base_width: int = 64

    def between(self, channels: int) -> int:
        """Channels inside a bottleneck that gives so many."""
        return max(1, channels // 4 * self.base_width // 64)


class Block(nn.Module):
    """(N, given, Y, X) to (N, channels, …): ReLU of the sum of a way round (a convolution where shapes differ) and a way through."""

    def __init__(self, kind: BlockKind, given: int, channels: int, grid: Grid = "keep") -> None:
        super().__init__()
        if kind.bottleneck:
            width = kind.between(channels)
            self.through = nn.Sequential(
                *(nn.Conv2d(given, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
                *(_resizing(width, width, grid), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
                *(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels)),
            )
        else:
            self.through = nn.Sequential(
                *(_resizing(given, channels, grid), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
                *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)),
            )
        self.round: nn.Module = nn.Identity()
        if grid != "keep" or given != channels:
            self.round = nn.Sequential(_skipping(given, channels, grid), nn.BatchNorm2d(channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, map_NCYX: Tensor) -> Tensor:
        out: Tensor = self.relu(self.through(map_NCYX) + self.round(map_NCYX))
        return out


def halving(given: int, channels: int) -> nn.Sequential:
    """A 3x3 convolution of stride 2, batch norm, ReLU."""
    return nn.Sequential(_resizing(given, channels, "halve"), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def draw_weights(module: nn.Module) -> None:
    """Weights as at the start of the authors' training: convolutions by He et al., fan out; transposed ones as torch has them."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _resizing(given: int, channels: int, grid: Grid) -> nn.Module:
    if grid == "double":
        return nn.ConvTranspose2d(given, channels, 2, stride=2, bias=False)
    return nn.Conv2d(given, channels, 3, stride=2 if grid == "halve" else 1, padding=1, bias=False)


def _skipping(given: int, channels: int, grid: Grid) -> nn.Module:
    if grid == "double":
        return nn.ConvTranspose2d(given, channels, 2, stride=2, bias=False)
    return nn.Conv2d(given, channels, 1, stride=2 if grid == "halve" else 1, bias=False)
