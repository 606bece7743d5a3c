"""Owns the settings of the recipe `reverse-distillation`: as published."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import with_default
from .features_settings import FeaturesSettings
from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class ReverseDistillationSettings(TrainSettings):
    """Deng and Li, CVPR 2022, arXiv 2201.10703."""

    epochs: int = with_default(TrainSettings, "epochs", 200)
    batch_size: int = with_default(TrainSettings, "batch_size", 16)
    optimizer: str = with_default(TrainSettings, "optimizer", "adam")
    betas: tuple[float, float] = with_default(TrainSettings, "betas", (0.5, 0.999))
    lr: float = with_default(TrainSettings, "lr", 0.005)
    weight_decay: float = with_default(TrainSettings, "weight_decay", 0.0)
    schedule: str = with_default(TrainSettings, "schedule", "constant")
    warmup_epochs: int = with_default(TrainSettings, "warmup_epochs", 0)
    feature_targets: str = with_default(FeaturesSettings, "feature_targets", "")
