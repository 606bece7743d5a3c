"""Owns the student that is trained: backbone, prompts if any, and projectors to the teacher's shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage_schemas.errors import InputError
from ..models.class_head import TrainedHead
from ..models.intermediates import TOKENS, Intermediates
from ..models.layout import use_channels_last
from ..models.preprocess import Normalize, Preprocess
from ..prompts.vision import PromptedVisionTransformer
from .base import BaseStudent
from .head import POOLED, Head, Level
from .projectors import PROJECTORS


class Student(BaseStudent):
    """uint8 images (N, 3, H, W) on its device to fp32 embeddings (N, D of the teacher).

    What comes out is ready for `ClassVectors.logits`: normalised where the class vectors need it. Autocast,
    where a caller switches it on, reaches the backbone only; projector and normalisation are fp32.

    `outputs` also gives the maps that the head's levels name, from the same pass.
    """

    def __init__(self, backbone: nn.Module, preprocess: Preprocess, head: Head) -> None:
        """New parts (prompts, projector) are drawn from torch's global generator."""
        super().__init__()
        self.head = head
        self.frozen = False
        self.normalize = Normalize(preprocess)
        self.backbone = backbone
        if head.prompt_depth:
            self.backbone = PromptedVisionTransformer(backbone, length=head.prompt_length, depth=head.prompt_depth)
        self.projector = make_projector(head)
        if head.levels:  # others have no such part in their weights
            self.levels = nn.ModuleList(_projector_of(level) for level in head.levels)
        self.classes = TrainedHead(head.embed_dim, head.classes) if head.classes else None
        self._layers = tuple(dict.fromkeys(level.layer for level in head.levels if level.layer != POOLED))
        self._maps = Intermediates(backbone) if self._layers else None
        self._channels_last = use_channels_last(backbone)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Embeddings (N, D), fp32."""
        return self._embedding(self._pooled(images_NCHW))

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """`embedding` (N, D), and what the projector of each of the head's levels gives, by its target's name; fp32.

        Also `logits` (N, C) where a layer for the classes trains with it.

        Args:
            inputs: images, as `forward` takes them.
        """
        if not self.head.levels:
            embedding_ND: Tensor = self(inputs)
            return {"embedding": embedding_ND} | self._logits(embedding_ND)
        if self._maps is None:
            features = {POOLED: self._pooled(inputs)}
        else:
            passed = self._maps.run(self._pixels(inputs), self._layers, to_the_end=True)
            features = {**passed.maps, POOLED: self._maps.pooled(passed)}
        found = {"embedding": self._embedding(features[POOLED])}
        with torch.autocast(inputs.device.type, enabled=False):
            for level, projector in zip(self.head.levels, self.levels, strict=True):
                found[level.target] = projector(features[level.layer].float())
        return found | self._logits(found["embedding"])

    def _logits(self, embedding_ND: Tensor) -> dict[str, Tensor]:
        return {} if self.classes is None else {"logits": self.classes(embedding_ND)}

    def _pooled(self, images_NCHW: Tensor) -> Tensor:
        features = self.backbone(self._pixels(images_NCHW))
        # open_clip towers made for captioning return (pooled, tokens)
        pooled: Tensor = features[0] if isinstance(features, tuple) else features
        return pooled

    def _pixels(self, images_NCHW: Tensor) -> Tensor:
        pixels_NCHW: Tensor = self.normalize(images_NCHW)
        return pixels_NCHW.contiguous(memory_format=torch.channels_last) if self._channels_last else pixels_NCHW

    def _embedding(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            embedding_ND: Tensor = self.projector(features.float())
            return F.normalize(embedding_ND, dim=-1) if self.head.normalized else embedding_ND


def make_projector(head: Head) -> nn.Module:
    """The projector (N, width) to (N, embed_dim).

    PromptKD writes its `mlp` as 1x1 convolutions and 2-d batch norm over 1x1 maps; linear layers and 1-d
    batch norm are the same arithmetic with the same initial distribution.

    Raises:
        InputError: unknown, or `none` between different widths.
    """
    if head.projector == "linear":
        return nn.Linear(head.width, head.embed_dim)
    if head.projector == "mlp":
        return nn.Sequential(
            nn.Linear(head.width, head.embed_dim),
            nn.BatchNorm1d(head.embed_dim),
            nn.ReLU(inplace=True),
            nn.Linear(head.embed_dim, head.embed_dim),
        )
    if head.projector != "none":
        raise InputError(
            "unknown projector",
            code="projector-unknown",
            where="--projector",
            expected=PROJECTORS,
            found=head.projector,
        )
    if head.width != head.embed_dim:
        raise InputError(
            "the student's features need a projector to the teacher's width",
            code="projector-needed",
            where="--projector none",
            expected=f"{head.embed_dim} channels",
            found=head.width,
            hint="--projector linear",
        )
    return nn.Identity()


def _projector_of(level: Level) -> nn.Module:
    """From a level's features of the student to the target's shape."""
    if level.layer != POOLED:
        return LevelProjector(level)
    return make_projector(
        Head(width=level.width, embed_dim=level.shape[0], projector=level.projector, normalized=False)
    )


class LevelProjector(nn.Module):
    """A map of the student, (N, width, Y, X) or tokens (N, T, width), to the shape of a target, fp32.

    A finer grid than the target's is averaged over areas, a coarser one interpolated; then a projector acts at each place.
    """

    def __init__(self, level: Level) -> None:
        """
        Raises:
            InputError: tokens that are no square grid, or `none` between different widths.
        """
        super().__init__()
        self.level = level
        self._grid = grid_of(level.shape, level.target)
        self.project = _place_projector(level, level.shape[-1] if len(level.shape) == 2 else level.shape[0])

    def forward(self, values: Tensor) -> Tensor:
        map_NCYX = values.float()
        if self.level.layer == TOKENS:
            side = math.isqrt(map_NCYX.shape[1])
            map_NCYX = map_NCYX.transpose(1, 2).reshape(len(map_NCYX), -1, side, side)
        here, there = tuple(map_NCYX.shape[2:]), self._grid
        if here != there:
            map_NCYX = (
                F.adaptive_avg_pool2d(map_NCYX, there)
                if here[0] >= there[0] and here[1] >= there[1]
                else F.interpolate(map_NCYX, there, mode="bilinear", align_corners=False)
            )
        map_NCYX = cast("Tensor", self.project(map_NCYX))
        return map_NCYX.flatten(2).transpose(1, 2) if len(self.level.shape) == 2 else map_NCYX


def grid_of(shape: Sequence[int], target: str) -> tuple[int, int]:
    """Rows and columns of a target's places: those of (channel, y, x), or a square of (token, channel).

    Raises:
        InputError: tokens that are no square.
    """
    if len(shape) == 3:
        return shape[1], shape[2]
    side = math.isqrt(shape[0])
    if side * side != shape[0]:
        raise InputError(
            "tokens that lie on no square grid cannot be compared with a student's maps",
            code="tokens-not-square",
            where=target,
            expected="a square number of tokens",
            found=shape[0],
            hint="choose a target with the axes y and x",
        )
    return side, side


def _place_projector(level: Level, channels: int) -> nn.Module:
    """`make_projector` at each place of a map: 1x1 convolutions."""
    if level.projector == "linear":
        return nn.Conv2d(level.width, channels, 1)
    if level.projector == "mlp":
        return nn.Sequential(
            nn.Conv2d(level.width, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
        )
    return make_projector(Head(width=level.width, embed_dim=channels, projector=level.projector, normalized=False))
