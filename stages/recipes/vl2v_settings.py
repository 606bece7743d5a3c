"""Owns the settings of the recipe `vl2v`: as published."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting, with_default
from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Vl2vSettings(TrainSettings):
    """VL2V-ADiP: Addepalli et al., CVPR 2024, arXiv 2310.08255. 5,000 steps, measured every 200; DomainNet takes three times as many."""

    epochs: int = with_default(TrainSettings, "epochs", 25)
    batch_size: int = with_default(TrainSettings, "batch_size", 96)
    optimizer: str = with_default(TrainSettings, "optimizer", "adam")
    lr: float = with_default(TrainSettings, "lr", 5e-5)
    weight_decay: float = with_default(TrainSettings, "weight_decay", 0.0)
    schedule: str = with_default(TrainSettings, "schedule", "constant")
    warmup_epochs: int = with_default(TrainSettings, "warmup_epochs", 0)
    batch_norm: str = with_default(TrainSettings, "batch_norm", "frozen")
    per_domain: int = with_default(TrainSettings, "per_domain", 32)
    steps_per_epoch: int = with_default(TrainSettings, "steps_per_epoch", 200)
    hold_out: float = with_default(TrainSettings, "hold_out", 0.2)
    select: str = with_default(TrainSettings, "select", "swad")
    stage: int = setting(
        1,
        least=1,
        most=2,
        help="1 trains the projection to the teacher's embedding, on a backbone that stays as it is; 2 trains the backbone, under the "
        "projection of the bundle of stage 1 that --student-pretrained names.",
    )
    image_weight: float = setting(
        0.5,
        least=0,
        most=1,
        help="Share of the teacher's image embedding in the loss; the rest is the label's class vector.",
    )
