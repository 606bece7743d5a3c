"""Owns the student that reads a teacher's maps, and gives maps of the same shapes: no image goes through it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...storage_schemas.errors import MismatchError
from ..models.layout import use_channels_last
from .base import BaseStudent
from .decoder import DECODERS, Decoder
from .head import Head


class MapStudent(BaseStudent):
    """Targets by name, fp32 (N, channel, y, x) on its device, to maps by the same names.

    Autocast, where a caller switches it on, reaches all of it; what comes out is fp32.
    """

    backbone: Decoder

    def __init__(self, backbone: Decoder, head: Head) -> None:
        """
        Args:
            backbone: a decoder for the maps of `head.levels`, in their order: finest first.
        """
        super().__init__()
        self.head, self.frozen = head, False
        self.backbone = backbone
        self._channels_last = use_channels_last(backbone)

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `outputs`."""
        return self.outputs(maps)

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A map for each of the head's levels, under its target's name and in its shape; fp32."""
        names = [level.target for level in self.head.levels]
        found = self.backbone([self._laid_out(inputs[name]) for name in names])
        return {name: map_NCYX.float() for name, map_NCYX in zip(names, found, strict=True)}

    def _laid_out(self, map_NCYX: Tensor) -> Tensor:
        return map_NCYX.contiguous(memory_format=torch.channels_last) if self._channels_last else map_NCYX

    def check(self, shapes: Mapping[str, tuple[int, ...]], *, where: object) -> None:
        """Refuse maps of other shapes than the student was made for.

        Args:
            shapes: of a store's targets, by name.
            where: the store.

        Raises:
            MismatchError: a level that is not there, or of another shape.
        """
        for level in self.head.levels:
            found = shapes.get(level.target)
            if found != tuple(level.shape):
                raise MismatchError(
                    "the student was made for maps of other shapes",
                    code="maps-other-shape",
                    where=f"{where}: {level.target}",
                    expected=" x ".join(map(str, level.shape)),
                    found="no such target" if found is None else " x ".join(map(str, found)),
                    hint="cache these images as those were that the student learned from: the same teacher, --teacher-size and --targets",
                )


def new_map_student(name: str, head: Head) -> MapStudent:
    """The student that mirrors a network, for the maps of `head.levels`; its weights are drawn from torch's global generator."""
    return MapStudent(Decoder(DECODERS[name], [level.shape for level in head.levels]), head)
