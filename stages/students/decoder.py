"""Owns the student of reverse distillation: maps of a teacher to a small code, and from that the maps again.

Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022, arXiv 2201.10703. For the maps of
WideResNet50-2's first three stages it is the authors' architecture; for others it is made by the same rule of their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...storage_schemas.errors import InputError
from .decoder_blocks import Block, BlockKind, draw_weights, halving

#: (channel, y, x) of a map.
MapShape = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class DecoderKind:
    """A decoder that mirrors a network.

    Attributes:
        block: its residual blocks.
        stages: blocks of the stage that gives the coarsest map, the next one, and those behind it.
        code: blocks of the stage that makes the code.
    """

    block: BlockKind
    stages: tuple[int, int, int]
    code: int


#: By the name of the network that is mirrored.
DECODERS: Mapping[str, DecoderKind] = {
    "resnet18": DecoderKind(block=BlockKind(bottleneck=False), stages=(2, 2, 2), code=2),
    "resnet34": DecoderKind(block=BlockKind(bottleneck=False), stages=(3, 4, 6), code=3),
    "resnet50": DecoderKind(block=BlockKind(bottleneck=True), stages=(3, 4, 6), code=3),
    "wide_resnet50_2": DecoderKind(block=BlockKind(bottleneck=True, base_width=128), stages=(3, 4, 6), code=3),
}


class Decoder(nn.Module):
    """Maps, finest first, to maps of the same shapes.

    Each map is brought to the coarsest one's grid by 3x3 convolutions of stride 2, which have the channels of the map that has that
    grid. What comes of all is joined, and a stage of residual blocks makes a code of it: twice the coarsest map's channels on half
    its grid. Stages of transposed convolutions give the maps again, coarsest first.
    """

    def __init__(self, kind: DecoderKind, shapes: Sequence[MapShape]) -> None:
        """New weights are drawn from torch's global generator.

        Args:
            shapes: of the maps, finest first, as `check_shapes` wants them.
        """
        super().__init__()
        channels, sides = [shape[0] for shape in shapes], [shape[1] for shape in shapes]
        code = code_channels(shapes)
        self.reduce = nn.ModuleList(_reduce(place, channels, sides) for place in range(len(shapes)))
        self.code = nn.Sequential(
            Block(kind.block, channels[-1] * len(shapes), code, "halve"),
            *(Block(kind.block, code, code) for _ in range(kind.code - 1)),
        )
        stages, given, side = [], code, sides[-1] // 2
        for number, place in enumerate(reversed(range(len(shapes)))):
            own = channels[place]
            doublings = (sides[place] // side).bit_length() - 1
            blocks = [Block(kind.block, given if first else own, own, "double") for first in _firsts(doublings)]
            blocks += [Block(kind.block, own, own) for _ in range(kind.stages[min(number, 2)] - 1)]
            stages.append(nn.Sequential(*blocks))
            given, side = own, sides[place]
        self.stages = nn.ModuleList(stages)
        draw_weights(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, C, Y, X), finest first, to as many, in the same order."""
        joined = torch.cat([part(map_NCYX) for part, map_NCYX in zip(self.reduce, maps, strict=True)], dim=1)
        map_NCYX, found = self.code(joined), []
        for stage in self.stages:
            map_NCYX = stage(map_NCYX)
            found.append(map_NCYX)
        return found[::-1]


def code_channels(shapes: Sequence[MapShape]) -> int:
    """Channels of the code."""
    return 2 * shapes[-1][0]


def finest_first(shapes: Mapping[str, MapShape]) -> list[str]:
    """The names of maps in the order in which a decoder takes them."""
    return sorted(shapes, key=lambda name: -shapes[name][1])


def check_shapes(shapes: Mapping[str, MapShape]) -> None:
    """Refuse maps that no decoder can be made for.

    Args:
        shapes: of the maps, by name, finest first.

    Raises:
        InputError: a grid that is not square, or that is not a power of two times the next coarser one, or the coarsest cannot be halved.
    """
    sides = []
    for name, (_, rows, columns) in shapes.items():
        if rows != columns:
            raise _impossible(name, "as many rows as columns", f"{rows} rows, {columns} columns")
        sides.append(rows)
    names = list(shapes)
    if sides[-1] % 2:
        raise _impossible(names[-1], "an even number of rows, which the code halves", f"{sides[-1]}x{sides[-1]}")
    for name, coarser, side, next_side in zip(names, names[1:], sides, sides[1:], strict=False):
        factor, rest = divmod(side, next_side)
        if rest or factor < 2 or factor & (factor - 1):
            raise _impossible(name, f"2, 4 or 8 times the {next_side} rows of {coarser}", f"{side}")


def _impossible(name: str, expected: str, found: str) -> InputError:
    return InputError(
        "no decoder can be made for maps of these grids",
        code="maps-not-halving",
        where=name,
        expected=expected,
        found=found,
        hint="choose other levels with --feature-targets, or cache with another --teacher-size (256: 64, 32 and 16 rows)",
    )


def _reduce(place: int, channels: Sequence[int], sides: Sequence[int]) -> nn.Sequential:
    """A map to the coarsest one's grid and channels."""
    steps, given, side = [], channels[place], sides[place]
    while side > sides[-1]:
        side //= 2
        wanted = next(own for own, its in zip(channels, sides, strict=True) if its <= side)
        steps.append(halving(given, wanted))
        given = wanted
    return nn.Sequential(*steps)


def _firsts(count: int) -> list[bool]:
    """Whether it is the first, for each of so many."""
    return [number == 0 for number in range(count)]
