"""Owns the settings of the recipe `affinity`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting, with_default
from ..students.projectors import PROJECTORS
from .kd_settings import KdSettings
from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class AffinitySettings(TrainSettings):
    """As is usual for training a whole student; the loss as published (arXiv 2311.17049)."""

    batch_size: int = with_default(TrainSettings, "batch_size", 256)
    optimizer: str = with_default(TrainSettings, "optimizer", "adamw")
    lr: float = with_default(TrainSettings, "lr", 1e-3)
    weight_decay: float = with_default(TrainSettings, "weight_decay", 0.05)
    schedule: str = with_default(TrainSettings, "schedule", "cosine")
    projector: str = with_default(KdSettings, "projector", "linear", choices=PROJECTORS)
    affinity_weight: float = setting(
        1.0,
        least=0,
        most=1,
        help="Share of the teacher's affinities in the loss; the rest is CLIP's contrastive loss on the pairs of image and caption.",
    )
