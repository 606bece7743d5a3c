"""Owns the settings of the recipe `promptkd`: as published."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting, with_default
from ..students.projectors import PROJECTORS
from .kd_settings import KdSettings
from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class PromptKdSettings(TrainSettings):
    """Li et al., CVPR 2024, arXiv 2403.02781, base-to-novel."""

    batch_size: int = with_default(TrainSettings, "batch_size", 8)
    optimizer: str = with_default(TrainSettings, "optimizer", "sgd")
    lr: float = with_default(TrainSettings, "lr", 0.005)
    weight_decay: float = with_default(TrainSettings, "weight_decay", 5e-4)
    schedule: str = with_default(TrainSettings, "schedule", "coop")
    temperature: float = with_default(KdSettings, "temperature", 1.0)
    loss_weight: float = with_default(KdSettings, "loss_weight", 1000.0)
    projector: str = with_default(KdSettings, "projector", "mlp", choices=PROJECTORS)
    prompt_length: int = setting(4, least=0, help="Visual prompt tokens per layer.")
    prompt_depth: int = setting(9, least=1, help="Layers with prompts, at most the student's.")
